"""Every operator against the public contract suite, on every device."""

import pytest
from cases import LINEAR_OPERATORS, OPERATORS

from genprior.operators.testing import CHECKS, LINEAR_CHECKS, make_example


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", OPERATORS)
def test_promises(name, check, device):
    """Each check's docstring names its promise; a broken one is the bug that it catches."""
    case = OPERATORS[name]
    check(make_example(case.make(), image_shape=case.image_shape, device=device))


@pytest.mark.parametrize("check", LINEAR_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", LINEAR_OPERATORS)
def test_linear_promises(name, check, device):
    """Catches a wrong adjoint, a solve that is not the dense one, an SVD that is not A's."""
    case = LINEAR_OPERATORS[name]
    check(make_example(case.make(), image_shape=case.image_shape, device=device))
