"""`converged` and its one warning: whether the images returned explain y."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from tools import randn, seeded

from genprior.operators import GaussianNoise, Identity, PoissonNoise, Problem
from genprior.priors import Gaussian
from genprior.solvers import MMPS, DiffusionSolver, LatentSampler, REDDiff
from genprior.solvers.fit import misfit

SHAPE = (1, 8, 8)
PRIOR = Gaussian(torch.full(SHAPE, 0.5).double(), torch.zeros(1, *SHAPE).double(), residual=0.2)


@dataclass(frozen=True)
class Astray(DiffusionSolver):
    """Passes through y at every level, and returns images `off` away from it."""

    off: tuple[float, ...] = (0.0,)

    def descend(self, walk):
        y = walk.problem.y
        for _ in walk.sigmas:
            walk.record(y)
        off = torch.tensor(self.off, dtype=y.dtype).repeat(len(y) // len(self.off))
        return y + off[:, None, None, None] * randn(*SHAPE).sign()


def posed(noise, count=1, value=0.5):
    return Problem(torch.full((count, *SHAPE), value).double(), Identity(SHAPE), noise)


@pytest.mark.parametrize(
    ("noise", "off", "expected"),
    [
        (GaussianNoise(0.02), 0.02 * 1.4, True),
        (GaussianNoise(0.02), 0.0, True),
        (GaussianNoise(0.02), 0.02 * 2.5, False),
        (GaussianNoise(0.02), 0.02 * 8, False),
        (GaussianNoise(0.0), 0.02, True),
        (GaussianNoise(0.0), 0.1, False),
        (PoissonNoise(100.0), (0.5 / 100) ** 0.5 * 1.4, True),
        (PoissonNoise(100.0), (0.5 / 100) ** 0.5 * 3, False),
    ],
    ids=str,
)
def test_images_far_from_y_have_not_converged(noise, off, expected):
    """Catches a walk judged by its guided x0, not by what it returns; wrong units of the noise;
    a trained network's honest misfit, or a fit too good, called a failure."""
    result = Astray(steps=3, off=(off,))(posed(noise), PRIOR)
    assert result.converged.tolist() == [expected]


@pytest.mark.parametrize("batch_size", [None, 3, 1])
def test_one_sample_astray_is_not_averaged_away(batch_size):
    """Catches a mean over samples, which hides one of eight at ten times the noise and depends on
    how they are cut into chunks; and a warning that tells the mean instead of what failed."""
    off = [0.2, *[0.0] * 7]

    class _OneAstray(Astray):
        def descend(self, walk):
            mine = tuple(off.pop(0) for _ in walk.problem.y)
            return Astray(steps=3, off=mine).descend(walk)

    problem, solver = posed(GaussianNoise(0.02)), _OneAstray(steps=3)
    with pytest.warns(RuntimeWarning, match=r"\|y - A x\| is 10, where noise makes it 1"):
        result = solver(problem, PRIOR, num_samples=8, batch_size=batch_size)
    assert result.converged.tolist() == [False]
    assert result.trace["worst_residual"].tolist() == [[pytest.approx(10)]]
    assert result.trace["residual"][-1].tolist() == [pytest.approx(10 / 8)]


def test_one_warning_names_the_images_and_their_residuals():
    """Catches silence, a warning a chunk, and one that does not say where."""
    problem = posed(GaussianNoise(0.02), count=3)
    solver = Astray(steps=3, off=(0.0, 0.2, 0.0))
    with pytest.warns(RuntimeWarning) as caught:
        result = solver(problem, PRIOR, batch_size=3)
    assert result.converged.tolist() == [True, False, True]
    assert result.trace["sigma"][-1].tolist() == [0, 0, 0]
    torch.testing.assert_close(result.trace["residual"][-1], misfit(problem, result.samples[:, 0]))
    (warning,) = caught
    assert warning.filename == __file__
    assert "Astray: 1 of 3 images have not converged: number 1;" in str(warning.message)
    assert "|y - A x| is 10, where noise makes it 1. Try more steps" in str(warning.message)


def test_a_walk_too_short_is_noticed_and_a_sound_one_is_not():
    """Catches `converged=True` after two steps from the mean, and a warning of what went well."""
    x = PRIOR.sample(2, generator=seeded())
    problem = Problem.simulate(x, Identity(SHAPE), GaussianNoise(0.005), generator=seeded(1))
    with pytest.warns(RuntimeWarning, match="REDDiff: 2 of 2 images have not converged"):
        assert not REDDiff(steps=2)(problem, PRIOR, generator=seeded(2)).converged.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = MMPS()(problem, PRIOR, num_samples=2, generator=seeded(2))
    assert result.converged.all()
    assert (result.trace["residual"][-1] - 1).abs().max() < 0.3


def test_latents_that_cannot_make_y_have_not_converged():
    """Catches chains that agree on a poor fit."""
    plain = Gaussian(torch.full(SHAPE, 0.5).double(), 0.1 * torch.ones(1, *SHAPE).double())
    problem = Problem(0.5 + 0.2 * randn(1, *SHAPE).sign(), Identity(SHAPE), GaussianNoise(0.02))
    solver = LatentSampler(steps=40, warm_up=40, leapfrog=4)
    with pytest.warns(RuntimeWarning, match="LatentSampler: 1 of 1 images"):
        result = solver(problem, plain, num_samples=2, generator=seeded())
    assert not result.converged.any()
    assert result.trace["residual"][-1] > 5
