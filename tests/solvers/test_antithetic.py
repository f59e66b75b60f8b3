"""Samples drawn in pairs of opposite noise: the same law each, a better mean, an honest spread."""

from dataclasses import replace

import pytest
import torch
from tools import identical, seeded

from genprior.metrics import gaussian_kl
from genprior.operators.random import normal, spawn
from genprior.restoration.scores import score
from genprior.restoration.settings import Solving
from genprior.solvers import DAPS, DPS, MMPS, SMC, REDDiff, Result
from genprior.solvers.result import paired_std
from genprior.solvers.testing import gaussian_field, posterior_law

# Its law on a Gaussian is the posterior's: see test_truth_gaussian.py.
RIGHT = MMPS(iterations=8, tolerance=1e-9, antithetic=True)


def test_mirrored_generators_give_the_negatives():
    """Catches a pair of two seeds, and a sign that is lost after the first draw."""
    for generators in (spawn(seeded(), 1, per=4, mirrored=True), spawn(seeded(), 1, per=4)):
        drawn = torch.stack([normal((4, 3), generators) for _ in range(2)])
        opposite = identical(drawn[:, 1::2], -drawn[:, ::2])
        assert opposite == (type(generators[1]) is not torch.Generator)
        assert not identical(drawn[:, 0], drawn[:, 2])


def test_mean_of_four_is_the_mean_of_very_many():
    """Catches noise that does not cancel; four independent samples miss by half a std."""
    prior, problem = gaussian_field(910)
    mean, covariance = posterior_law(prior, problem)
    for solver, least, most in ((RIGHT, 0, 0.02), (replace(RIGHT, antithetic=False), 0.2, 1)):
        result = solver(problem, prior, num_samples=4, generator=seeded())
        miss = (result.mean[0].flatten() - mean) / covariance.diag().sqrt()
        assert least <= miss.square().mean().sqrt() < most
        assert result.antithetic == solver.antithetic


def test_each_of_a_pair_keeps_its_law():
    """Catches a mirrored row that starts elsewhere or walks with noise of another size."""
    prior, problem = gaussian_field(910)
    mean, covariance = posterior_law(prior, problem)
    result = RIGHT(problem, prior, num_samples=4000, batch_size=4000, generator=seeded())
    for half in (result.samples[0, ::2], result.samples[0, 1::2]):
        x = half.flatten(1)
        # 2000 samples alone cost .038 nats
        assert gaussian_kl(x.mean(0), torch.cov(x.T), mean, covariance) < 0.06


def test_spread_counts_with_the_pairs():
    """Catches the usual std, whose square is a third too large for two opposite pairs."""
    prior, problem = gaussian_field(910)
    _, covariance = posterior_law(prior, problem)
    problem = problem.take(torch.zeros(400, dtype=torch.long))
    result = RIGHT(problem, prior, num_samples=4, generator=seeded())
    assert result.std is not None
    ratio = (result.std.square().flatten(1) / covariance.diag()).mean(1)
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / len(ratio) ** 0.5


@pytest.mark.parametrize("correlation", [-1.0, -0.5, 0.4])
def test_paired_std_is_unbiased_for_any_dependence(correlation):
    """Catches a divisor that is right for opposite or for independent pairs only."""
    first, other = normal((2, 20000, 2), seeded(), dtype=torch.float64)
    second = correlation * first + (1 - correlation**2) ** 0.5 * other
    samples = torch.stack([first, second], -1).flatten(1)
    variance = paired_std(samples).square()
    assert abs(variance.mean() - 1) < 5 * variance.std() / len(variance) ** 0.5


def test_scores_use_independent_samples():
    """Catches coverage and CRPS that take both of a pair for independent."""
    prior, problem = gaussian_field(910)
    mean, covariance = posterior_law(prior, problem)
    draws = torch.linalg.cholesky(covariance) @ normal((16, 300), seeded(3)).to(covariance)
    truth = (mean[:, None] + draws).T.reshape(300, 1, 4, 4).to(problem.y)
    problem = problem.take(torch.zeros(300, dtype=torch.long))
    result = RIGHT(problem, prior, num_samples=4, generator=seeded())
    free = replace(RIGHT, antithetic=False)(problem, prior, num_samples=4, generator=seeded(1))
    paired, independent = score(result, problem, truth), score(free, problem, truth)
    assert abs(paired["coverage_50"].mean() - 0.5) < 5 * paired["coverage_50"].std() / 300**0.5
    difference = paired["crps"] - independent["crps"]
    assert abs(difference.mean()) < 5 * difference.std() / 300**0.5
    with_both = score(replace(result, antithetic=False), problem, truth)["crps"]
    assert with_both.mean() < paired["crps"].mean() - 3 * paired["crps"].std() / 300**0.5


def test_pairs_do_not_depend_on_chunks(tmp_path):
    """Catches pairs made inside a chunk, and a file that forgets them."""
    prior, problem = gaussian_field(910)
    solver = DAPS(steps=6, antithetic=True)
    whole = solver(problem, prior, num_samples=4, generator=seeded())
    split = solver(problem, prior, num_samples=4, generator=seeded(), batch_size=1)
    assert torch.allclose(whole.samples, split.samples, atol=1e-5)
    whole.save(tmp_path / "result.safetensors")
    assert Result.load(tmp_path / "result.safetensors").antithetic


@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_cannot_be_paired_is_refused(count):
    """Catches a sample without its opposite, or a spread estimated from one pair."""
    prior, problem = gaussian_field(910)
    with pytest.raises(ValueError, match=r"num_samples must be 4, 6, ..., not"):
        DPS(steps=2, antithetic=True)(problem, prior, num_samples=count)


@pytest.mark.parametrize("solver", [SMC, REDDiff])
def test_solvers_without_independent_samples_refuse_pairs(solver):
    """Catches particles that resampling has mixed, sold as pairs."""
    with pytest.raises(ValueError, match="draws no independent samples"):
        solver(antithetic=True)


@pytest.mark.parametrize(
    ("solving", "paired"),
    [
        (Solving("x", solver="MMPS"), True),
        (Solving("x", solver="DPS", samples=6), True),
        (Solving("x", solver="MMPS", samples=3), False),
        (Solving("x", solver="MMPS", samples=2), False),
        (Solving("x", solver="MMPS", antithetic=False), False),
        (Solving("x", solver="SMC"), False),
        (Solving("x", solver="REDDiff"), False),
        (Solving("x", solver="ExactPosterior"), False),
    ],
    ids=str,
)
def test_the_shell_pairs_where_it_can(solving, paired):
    """Catches a default that refuses an odd number of samples or a solver without pairs."""
    prior, problem = gaussian_field(910)
    assert getattr(solving.find_solver(problem, prior), "antithetic", False) == paired
