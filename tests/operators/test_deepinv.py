"""The adapters from and to deepinv, by deepinv's own checks where it has them."""

import pytest
import torch
from cases import COLOUR, LINEAR_OPERATORS, Saturation
from tools import identical, seeded

from genprior.operators import (
    GaussianNoise,
    Identity,
    LinearOperator,
    Problem,
    from_deepinv,
    to_deepinv,
)
from genprior.operators.random import normal, uniform

F64 = torch.float64
NAMES = [name for name in LINEAR_OPERATORS if not name.startswith("deepinv")]


def images(shape, rows=2):
    return uniform((rows, *shape), seeded(), dtype=F64)


def as_physics(name):
    """A physics of one of our operators with images that fit its per-image state."""
    case = LINEAR_OPERATORS[name]
    operator = case.make()
    return to_deepinv(operator), operator, images(case.image_shape, operator.rows or 2)


@pytest.fixture
def deepinv_draws():
    """deepinv's own tests draw from the global generator: give it back as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("name", NAMES)
def test_adjointness_by_deepinv(name, deepinv_draws):
    """Catches A and A_adjoint that deepinv's algorithms would find inconsistent."""
    physics, _, x = as_physics(name)
    assert physics.adjointness_test(x, num_samples=len(x)) < 1e-10


@pytest.mark.parametrize("name", NAMES)
def test_pseudo_inverse_by_deepinv(name):
    """Catches an A_dagger that is not the pseudo-inverse: A^+ A A^T A x = A^T A x."""
    physics, _, x = as_physics(name)
    r = physics.A_adjoint(physics.A(x))
    error = (physics.A_dagger(physics.A(r)) - r).norm() / r.norm()
    assert error < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_norm_by_deepinv(name, deepinv_draws):
    """Catches A^T A of another scale: deepinv's power method against the dense matrix."""
    physics, operator, x = as_physics(name)
    matrix = operator.dense_matrix(operator(x))
    estimate = physics.compute_sqnorm(x, verbose=False, max_iter=3000, tol=1e-7)
    exact = torch.linalg.matrix_norm(matrix, 2).max() ** 2
    assert abs(float(estimate / exact) - 1) < 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_differentiability(name):
    """Catches graphs cut in A, A_adjoint or A_dagger, which deepinv's networks train through."""
    physics, _, x = as_physics(name)
    y = physics.A(x)
    for function, point in (
        (physics.A, x),
        (physics.A_adjoint, y),
        (physics.A_dagger, y),
    ):
        point = point.clone().requires_grad_()
        function(point).square().sum().backward()
        assert point.grad is not None
        assert point.grad.norm() > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gamma", [0.7, "rows"])
def test_proximal_map(name, gamma):
    """Catches a wrong Woodbury: the gradient of the proximal objective must vanish."""
    physics, operator, x = as_physics(name)
    if gamma == "rows":
        gamma = torch.linspace(0.3, 2.0, len(x), dtype=F64).view(-1, 1, 1, 1)
    y = operator(x) + 0.1 * normal(operator(x).shape, seeded(1), dtype=F64)
    z = images(x.shape[1:], len(x)).flip(0)
    p = physics.prox_l2(z, y, gamma)
    gradient = gamma * operator.adjoint(operator(p) - y) + p - z
    assert gradient.norm() < 1e-5 * z.norm()


def test_deepinv_copies_are_independent():
    """Catches a physics whose move or clone changes the operator that it came from."""
    operator = LINEAR_OPERATORS["blur"].make()
    physics = to_deepinv(operator)
    physics.clone().to(torch.float32)
    physics.to(torch.float32)
    assert operator.kernel.dtype == F64


def test_a_deepinv_algorithm_accepts_our_operator():
    """Catches a missing method: proximal gradient on a least-squares problem finds A^+ y."""
    from deepinv.optim import L2

    physics, operator, x = as_physics("blur")
    y, data = operator(x), L2()
    estimate = torch.zeros_like(x)
    for _ in range(300):
        estimate = data.prox(estimate, y, physics, gamma=10.0)
    assert (operator(estimate) - y).norm() < 1e-4 * y.norm()


def test_round_trip():
    """Catches a change of A on the way to deepinv and back."""
    operator = LINEAR_OPERATORS["blur"].make()
    back = from_deepinv(to_deepinv(operator), COLOUR)
    x = images(COLOUR)
    assert isinstance(back, LinearOperator)
    torch.testing.assert_close(back(x), operator(x))
    v = normal(operator(x).shape, seeded(2), dtype=F64)
    torch.testing.assert_close(back.adjoint(v), operator.adjoint(v))


def test_the_noise_model_is_ignored_and_the_physics_cloned():
    """Catches noise that is added twice, and a caller's physics that is changed."""
    from deepinv.physics import Denoising
    from deepinv.physics import GaussianNoise as DeepinvNoise

    physics = Denoising(DeepinvNoise(1.0))
    operator = from_deepinv(physics, COLOUR)
    x = images(COLOUR)
    assert identical(operator(x), x)
    assert operator.physics is not physics
    problem = Problem.simulate(x, operator, GaussianNoise(0.1), generator=seeded())
    assert problem.log_likelihood(x).shape == (2,)


def test_complex_and_listed_measurements_become_real_ones():
    """Catches an imaginary part or a second measurement that is dropped."""
    from deepinv.physics import LinearPhysics, stack

    fourier = LinearPhysics(A=lambda x, **_: torch.fft.fft2(x, norm="ortho"))
    operator = from_deepinv(fourier, COLOUR)
    x = images(COLOUR)
    assert operator.measurement_shape == (*COLOUR, 2)
    torch.testing.assert_close(operator.adjoint(operator(x)), x)
    twice = stack(
        LinearPhysics(A=lambda x, **_: 2 * x, A_adjoint=lambda y, **_: 2 * y),
        LinearPhysics(A=lambda x, **_: x[..., :1], A_adjoint=None),
    )
    operator = from_deepinv(twice, COLOUR)
    assert operator.measurement_shape == (3 * 8 * 12 + 3 * 8,)
    expected = 4 * x
    expected[..., :1] += x[..., :1]
    torch.testing.assert_close(operator.adjoint(operator(x)), expected)


def test_what_cannot_be_adapted_is_named():
    """Catches parameters for each image, an approximate transpose, and foreign objects."""
    from deepinv.physics import Inpainting, Tomography

    masks = torch.ones(4, *COLOUR)
    with pytest.raises(ValueError, match="4 measurements of one image"):
        from_deepinv(Inpainting(COLOUR, mask=masks), COLOUR)
    rough = Tomography(4, 8, normalize=False, adjoint_via_backprop=False)
    with pytest.raises(ValueError, match="adjoint_via_backprop=True"):
        from_deepinv(rough, (1, 8, 8))
    with pytest.raises(ValueError, match="Tomography cannot serve"):
        from_deepinv(Tomography(4, 8, normalize=False), (1, 9, 9))
    with pytest.raises(TypeError, match="not a Identity"):
        from_deepinv(Identity(COLOUR), COLOUR)
    with pytest.raises(TypeError, match="not a Saturation"):
        to_deepinv(Saturation())
