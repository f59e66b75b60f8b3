"""Every sampler against the same steps written out one by one from its formulas."""

import math

import pytest
import torch
from tools import seeded
from written_out.samplers import Tape, ddpm_levels, log_uniform, rho_levels, walk_by

from genprior.operators import GaussianNoise, Identity, Problem
from genprior.priors import Gaussian, samplers
from genprior.priors.samplers import DDIM, DDPM, DPMSolver, Euler, Heun, SASolver, UniPC
from genprior.solvers.testing import noise_replaced
from genprior.solvers.walk.levels import ddpm_grid

SHAPE = (1, 1, 3)
MEAN, STD = (
    torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64),
    torch.tensor([0.5, 0.2, 0.05], dtype=torch.float64),
)
PRIOR = Gaussian.from_covariance(MEAN.reshape(SHAPE), torch.diag(STD**2))


def denoise(x, sigma):
    return MEAN + STD**2 / (STD**2 + sigma**2) * (x - MEAN)


@pytest.mark.parametrize(
    "sampler",
    [
        Euler(),
        DDIM(0.6),
        DDPM(),
        Heun(),
        Heun(churn=0.9, churn_range=(0.1, 3.0), churn_noise=1.01),
        Heun(churn=50.0),
        DPMSolver(),
        DPMSolver(stochastic=True),
        UniPC(),
        SASolver(),
        SASolver(tau=0.6, tau_low=0.0, turn=0.5, longest=0.5),
        SASolver(tau=0.0, tau_low=0.7, longest=1.5),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "levels",
    [
        (8.0, 6.4, 3.6, 2.4, 2.2, 1.6, 0.56, 0.24, 0.16, 0.04),
        (2.0, 1.6, 0.9, 0.6, 0.56, 0.4, 0.14, 0.06, 0.04, 0.01),
        (3.0, 3.0, 2.0, 1.5, 1.5, 1.0),
        (4.0, 2.0),
    ],
    ids=lambda levels: str(levels[0]),
)
def test_sampler_is_the_one_written_out(sampler, levels):
    """Catches any number or sign of a sampler, also where steps are not alike, very long or of
    length zero."""
    sigmas, tape = torch.tensor(levels, dtype=torch.float64), Tape()
    x = torch.randn(2, *SHAPE, generator=seeded(1)).double()
    with noise_replaced(tape):
        found = sampler(PRIOR.denoise, x, sigmas)
        below = sampler(PRIOR.denoise, x, sigmas, to_zero=False)
    half = len(tape.dealt) // 2
    for i in range(2):
        noise = tape.row(i)
        exact = walk_by(sampler, denoise, x[i].flatten(), levels, lambda n=noise: next(n))
        torch.testing.assert_close(found[i].flatten(), exact, rtol=1e-7, atol=1e-9)
        assert len(list(noise)) == half
        # to_zero is one denoising more
        ends = PRIOR.denoise(below, sigmas[-1])[i].flatten()
        assert half or torch.allclose(ends, exact, rtol=1e-7, atol=1e-9)


def test_levels_are_spaced_as_they_say():
    """Catches an end that is missed, a spacing of another power, and DDPM's schedule in other
    units or with other ends."""
    high, low = (
        torch.tensor([3.0, 1.0], dtype=torch.float64),
        torch.tensor([0.02, 0.5], dtype=torch.float64),
    )
    for grid, expected in ((samplers.log_uniform, log_uniform), (samplers.rho_grid, rho_levels)):
        found = grid(high, low, 7, like=high)
        for i in range(2):
            exact = torch.tensor(expected(float(high[i]), float(low[i]), 7), dtype=torch.float64)
            torch.testing.assert_close(found[:, i], exact)
        assert grid(2.0, 1.0, 1, like=high).tolist() == pytest.approx([2.0])
        assert grid(2.0, 2.0, 2, like=high).tolist() == pytest.approx([2.0, 2.0])
        for wrong in ((1.0, 2.0), (1.0, 0.0)):
            with pytest.raises(ValueError, match="sigma_max >= sigma_min > 0"):
                grid(*wrong, 3, like=high)
        with pytest.raises(ValueError, match="steps must be at least 1, not 0"):
            grid(2.0, 1.0, 0, like=high)
    problem = Problem(
        torch.zeros(2, *SHAPE, dtype=torch.float64), Identity(SHAPE), GaussianNoise(0.1)
    )
    for steps in (1, 7, 1000):
        exact = torch.tensor(ddpm_levels(steps), dtype=torch.float64)[:, None].expand(-1, 2)
        torch.testing.assert_close(ddpm_grid(problem, steps), exact, rtol=1e-9, atol=0)
    assert len(ddpm_grid(problem, 2000)) == 1000
    spaced = Heun().grid(2.0, 0.1, 5, like=high)
    torch.testing.assert_close(spaced, torch.tensor(rho_levels(2.0, 0.1, 5), dtype=torch.float64))


def test_evaluations_and_ends_of_a_walk():
    """Catches steps that are not what the evaluations buy, and a walk from elsewhere than 80 to a
    250th data standard deviation, within what the prior knows."""
    assert [Heun().steps(n) for n in (1, 2, 19, 20)] == [1, 1, 10, 10]
    assert UniPC().steps(19) == 19
    wide, narrow = (Ranged(ends) for ends in ((0.0, 1e9), (0.01, 3.0)))
    std = float(STD.mean())
    assert samplers.walk_range(wide) == pytest.approx((0.004 * std, 80 * std))
    assert samplers.walk_range(narrow) == pytest.approx((0.01, 3.0))


class Ranged(Gaussian):
    """PRIOR with another range of noise levels."""

    def __init__(self, ends):
        super().__init__(PRIOR.mean, PRIOR.factors, residual=PRIOR.residual)
        self.ends = ends

    @property
    def sigma_range(self):
        return self.ends


def test_callback_sees_every_step():
    """Catches steps counted from elsewhere, the last one missed, and second evaluations told."""
    sigmas = torch.tensor([2.0, 1.0, 0.3, 0.1], dtype=torch.float64)
    x = torch.zeros(2, *SHAPE, dtype=torch.float64)
    for sampler in (Euler(), Heun(), DPMSolver(), UniPC(), SASolver()):
        seen = []

        def note(step, sigma, x, x0, seen=seen):
            torch.testing.assert_close(x0, PRIOR.denoise(x, sigma))
            seen.append((step, float(sigma)))

        found = sampler(PRIOR.denoise, x, sigmas, callback=note, generator=seeded())
        assert seen == list(enumerate(sigmas.tolist()))
        assert math.isfinite(float(found.sum()))


def test_start_is_the_one_written_out():
    """Catches a start of another spread, for each row its own sigma."""
    sigma, tape = torch.tensor([0.3, 4.0], dtype=torch.float64), Tape()
    with noise_replaced(tape):
        found = samplers.start(PRIOR, (2, *SHAPE), sigma, dtype=torch.float64)
    for i in range(2):
        (n,) = tape.row(i)
        expected = MEAN + (STD**2 + sigma[i] ** 2).sqrt() * n
        torch.testing.assert_close(found[i].flatten(), expected)
