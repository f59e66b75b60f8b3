"""The public checks: each fails a solver that breaks its promise, by a little."""

from dataclasses import dataclass

import pytest
import torch
from tools import randn, seeded

from genprior.operators import Blur, GaussianNoise, Inpainting, kernels
from genprior.operators.random import normal
from genprior.priors import DenoisingPrior
from genprior.priors.samplers import ddim
from genprior.solvers import DiffPIR, Solution, Solver
from genprior.solvers.testing import (
    COUNT,
    Failing,
    affine_law,
    check_solver,
    gaussian_field,
    noise_replaced,
    posterior_law,
)


@dataclass(frozen=True)
class _Honest(Solver):
    """Denoises y with noise of its own; `fault` says which promise it breaks, by a millionth."""

    fault: str = ""
    needs = (DenoisingPrior,)

    def _solve(self, chunk, prior):
        problem = chunk.rows
        y, rows = problem.y, len(problem.y)
        off = 1e-5 * torch.ones_like(y[:1])
        n = normal(y.shape, chunk.generators, dtype=y.dtype)
        if self.fault == "copies":
            n = torch.zeros_like(n)
        if self.fault == "repeats":
            n = n + off * normal(y.shape, None, dtype=y.dtype)
        if self.fault == "the global generator":
            torch.rand(1)
        x0 = prior.denoise(y + 0.05 * n, 0.05)
        sound = x0.isfinite().flatten(1).all(1)
        x0 = x0.where(sound[:, None, None, None], 0.5)
        if self.fault == "rows":
            x0 = x0 + off * y.norm()
        if self.fault == "chunks":
            x0 = x0 + off * (rows % 2)
        if self.fault == "inputs":
            chunk.problem.y.mul_(1 + 1e-9)
        if self.fault == "counts":
            prior.prior.denoise(y[:1], 0.3)
        if self.fault == "spreads":
            x0 = x0 + off * sound.all()
        if self.fault == "silent":
            sound = torch.ones_like(sound)
        if self.fault == "NaN":
            x0 = x0.where(sound[:, None, None, None], torch.nan)
        shape = (-1, chunk.samples)
        trace = torch.where(sound, 1.0, torch.nan).reshape(shape).mean(1)[None]
        if self.fault == "no trace":
            trace = torch.ones_like(trace)
        if self.fault == "recovers":
            trace = torch.cat([trace, torch.ones_like(trace)])
        if self.fault == "float32":
            x0 = x0.float()
        return Solution(
            x0.unflatten(0, shape),
            converged=sound.reshape(shape).all(1),
            trace={"residual": trace},
        )


FAULTS = {
    "repeats": "the same generators gave other samples",
    "the global generator": "the global generator moved",
    "copies": "copies of one another",
    "rows": "depends on its neighbours",
    "chunks": "gives other samples",
    "inputs": "y was changed",
    "counts": "counted",
    "spreads": "image 1 failed and image",
    "silent": "converged is",
    "NaN": "NaN reached the samples",
    "no trace": "does not show where the network failed",
    "recovers": "recovers after a failure",
    "float32": "but y is",
}


@pytest.mark.filterwarnings("ignore:.*have not converged")
def test_an_honest_solver_passes():
    """Catches a check that nothing can pass."""
    check_solver(_Honest())
    check_solver(_Honest(), operator=Blur(kernels.uniform(3), (1, 4, 4)))


@pytest.mark.filterwarnings("ignore:.*have not converged")
@pytest.mark.parametrize("fault", FAULTS)
def test_every_promise_is_looked_at(fault):
    """Catches a check that passes what it is there to find."""
    state = torch.random.get_rng_state()
    try:
        with pytest.raises(AssertionError, match=FAULTS[fault]):
            check_solver(_Honest(fault))
    finally:
        torch.random.set_rng_state(state)


@pytest.mark.parametrize("smooth", [0.0, 0.9, 2.0])
def test_fields_have_the_law_they_say(smooth):
    """Catches another correlation, means or stds out of their range, and a mask or noise of
    another size."""
    prior, problem = gaussian_field(4, sigma=0.3, observed=11, size=5, smooth=smooth)
    assert prior.mean.shape == (1, 5, 5)
    assert prior.mean.min() >= 0.3
    assert 0.6 < prior.mean.max() <= 0.7
    assert 0.3 < prior.mean.min() < 0.4
    std = prior.data_std.flatten()
    assert 0.1 <= std.min() < 0.13
    assert 0.17 < std.max() <= 0.2
    flat = prior.factors.flatten(1)
    covariance = flat.T @ flat + prior.residual**2 * torch.eye(25)
    correlation = covariance / (std[:, None] * std)
    places = torch.tensor([(i, j) for i in range(5) for j in range(5)], dtype=torch.float64)
    distance = (places[:, None] - places).norm(dim=-1)
    if smooth:
        r = 5**0.5 * distance / smooth
        expected = (1 + r + r**2 / 3) * (-r).exp()
    else:
        lengths = -distance[0, 1:] / correlation[0, 1:].log()
        torch.testing.assert_close(lengths, lengths[:1].expand(24))
        assert 1 <= float(lengths[0]) <= 3
        expected = (-distance / lengths[0]).exp()
    torch.testing.assert_close(correlation, expected)
    assert isinstance(problem.operator, Inpainting)
    assert int(problem.operator.mask.sum()) == 11
    assert problem.sigma.item() == pytest.approx(0.3)
    assert isinstance(problem.noise, GaussianNoise)
    prior, problem = gaussian_field(4)
    assert (prior.image_shape, problem.sigma.item()) == ((1, 4, 4), pytest.approx(0.05))
    assert int(problem.operator.mask.sum()) == 8
    lengths = [field_length(seed) for seed in range(30)]
    assert 1 <= min(lengths) < 1.5
    assert 2.5 < max(lengths) <= 3


def field_length(seed):
    prior, _ = gaussian_field(seed)
    flat, std = prior.factors.flatten(1), prior.data_std.flatten()
    return -1 / float(((flat.T @ flat)[0, 1] / (std[0] * std[1])).log())


def test_posterior_law_is_the_posterior():
    """Catches dense algebra that errs on entries that nobody observed."""
    for operator in (None, Blur(kernels.uniform(3), (1, 4, 4))):
        prior, problem = gaussian_field(5, operator=operator)
        mean, covariance = posterior_law(prior, problem)
        exact = prior.posterior(problem)
        torch.testing.assert_close(mean, exact.mean.flatten())
        torch.testing.assert_close(covariance.diag().sqrt(), exact.std.flatten())


def test_affine_law_is_that_of_the_noise_sent_through():
    """Catches noise of a second draw left out of the law, a square root too few, and `normal`
    left replaced."""

    @dataclass(frozen=True)
    class _Affine(Solver):
        needs = (DenoisingPrior,)

        def _solve(self, chunk, prior):
            shape = (len(chunk.rows.y), 16)
            n = [ddim.normal(shape, chunk.generators, dtype=torch.float64) for _ in range(2)]
            x = 0.5 + n[0] @ first + n[1] @ second
            return Solution(x.reshape(-1, chunk.samples, 1, 4, 4))

    first, second = randn(16, 16, seed=1), randn(16, 16, seed=2)
    prior, problem = gaussian_field(6)
    mean, covariance = affine_law(_Affine(), problem, prior)
    torch.testing.assert_close(mean, torch.full((16,), 0.5).double())
    torch.testing.assert_close(covariance, first.T @ first + second.T @ second)
    drawn = DiffPIR(steps=3)(problem, prior, num_samples=2, generator=seeded()).samples
    assert (drawn[:, 0] - drawn[:, 1]).abs().max() > 1e-3
    with pytest.raises(RuntimeError, match="on purpose"), noise_replaced(on_purpose):
        DiffPIR(steps=3)(problem, prior)
    DiffPIR(steps=3)(problem, prior)


def on_purpose(*args, **keywords):
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("per_image", [1, 2, 5])
def test_the_second_image_fails_and_no_other(per_image):
    """Catches NaN at other noise levels or for other images than said, whatever the batch."""
    prior, _ = gaussian_field(7)
    broken = Failing(prior, below=0.2)
    x = randn(COUNT * per_image, 1, 4, 4)
    for sigma, fails in ((0.2, False), (0.19, True)):
        found = broken.denoise(x, sigma)
        bad = found.isnan().flatten(1).any(1).unflatten(0, (COUNT, per_image))
        assert bad.tolist() == [[fails and i == 1] * per_image for i in range(COUNT)]
        torch.testing.assert_close(found[:per_image], prior.denoise(x, sigma)[:per_image])
