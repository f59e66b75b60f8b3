"""Every exact prior keeps every promise of the contract."""

import pytest
from cases import EXACT_PRIORS, gaussian

from genprior.priors import testing


@pytest.mark.parametrize("name", EXACT_PRIORS)
def test_contract(name, device):
    """Would catch any broken promise that `genprior.priors.testing` lists."""
    testing.check_prior(EXACT_PRIORS[name](), device=device)


@pytest.mark.parametrize(
    ("method", "replacement", "message"),
    [
        ("denoise", lambda self, x, sigma: x.clone(), "posterior mean and denoise"),
        ("log_prob", lambda self, x: -x.flatten(1).square().sum(1), "change of variables"),
        ("encode", lambda self, x: (x - self.mean).to(x), r"decode\(encode"),
        ("decode", lambda self, z: z - z.mean(0) + self.mean, "in a batch and alone"),
    ],
)
def test_suite_notices(method, replacement, message, monkeypatch):
    """Would catch a contract suite that passes whatever it is given."""
    prior = gaussian()
    monkeypatch.setattr(type(prior), method, replacement)
    with pytest.raises(AssertionError, match=message):
        testing.check_prior(prior)
