"""Samplers against laws known in closed form: order of convergence, variances, mixtures."""

import inspect
import itertools
import math

import pytest
import torch
from tools import close

from genprior.metrics import sliced_wasserstein
from genprior.operators.random import normal
from genprior.priors import Diffusion, Gaussian, GaussianMixture, samplers
from genprior.priors.samplers import DDIM, DDPM, DPMSolver, Euler, Heun, sa_solver
from genprior.priors.samplers.sa_solver import SASolver, UniPC
from genprior.priors.samplers.unconditional import DEFAULT

HIGH, LOW = 20.0, 0.02
STD = torch.tensor([0.5, 0.2, 0.05], dtype=torch.float64)


def gaussian():
    """Independent pixels of three scales about a mean: the flow is known for each."""
    factors = torch.diag((STD**2 - 0.01**2).sqrt()).reshape(3, 1, 1, 3)
    mean = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64).reshape(1, 1, 3)
    return Gaussian(mean, factors, residual=0.01)


def flow_error(sampler, evaluations, grid=samplers.log_uniform):
    """Distance from the exact probability flow, which scales N(m, v + sigma^2) about m."""
    prior = gaussian()
    sigmas = grid(HIGH, LOW, sampler.steps(evaluations), like=STD)
    z = normal((5, 1, 1, 3), torch.Generator().manual_seed(0), dtype=torch.float64)
    x = prior.mean + (STD**2 + HIGH**2).sqrt() * z
    exact = prior.mean + (STD**2 + LOW**2).sqrt() * z
    return (sampler(prior.denoise, x, sigmas, to_zero=False) - exact).abs().max().item()


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (Euler(), 1),
        (Heun(), 2),
        (DPMSolver(), 2),
        (UniPC(), 4),
        (SASolver(tau=0.0, tau_low=0.0, longest=0.0), 2),
    ],
    ids=["euler", "heun", "2m", "unipc", "unipc, long steps"],
)
@pytest.mark.parametrize("grid", [samplers.log_uniform, samplers.rho_grid])
def test_order_of_convergence(sampler, order, grid):
    """Would catch a wrong coefficient of the higher-order terms, which only costs accuracy."""
    evaluations = [160, 320, 640]
    errors = [math.log(flow_error(sampler, n, grid)) for n in evaluations]
    slopes = [(errors[i] - errors[i + 1]) / math.log(2) for i in range(2)]
    assert slopes == pytest.approx([order, order], abs=0.3)


def test_corrector_pays_at_twenty_evaluations():
    """Would catch a corrector that forgets the newest x0 or corrects the wrong x."""
    assert flow_error(UniPC(), 20) < flow_error(DPMSolver(), 20) / 10


class Unit:
    """Stands for `normal`: each draw moves a row of its own by one, and is counted."""

    def __init__(self):
        self.drawn = 0

    def __call__(self, shape, generator, **kind):
        out = torch.zeros(shape, **kind)
        if self.drawn < len(out):
            out[self.drawn] = 1
        self.drawn += 1
        return out


def scalar_law(sampler, sigmas, std, monkeypatch, *, to_zero=False):
    """What the walk multiplies its start with, and the variance of its noise at the end: exact,
    as a Gaussian's denoiser makes the walk linear."""
    monkeypatch.setattr(sa_solver, "normal", unit := Unit())
    x = torch.zeros(len(sigmas) + 1, 1, 1, 1, dtype=torch.float64)
    x[-1] = 1
    out = sampler(lambda x, s: std**2 / (std**2 + s**2) * x, x, sigmas, to_zero=to_zero).flatten()
    assert unit.drawn < len(sigmas)
    return float(out[-1]), float((out[:-1] ** 2).sum())


@pytest.mark.parametrize(("tau", "mean", "variance"), [(0.0, 4, 4), (0.4, 4, 2), (1.0, None, 2)])
def test_orders_of_the_stochastic_walk(tau, mean, variance, monkeypatch):
    """Would catch weights that ignore tau, and an order claimed that the variance has not.

    The law is known: x shrinks by ((v + s'^2) / (v + s^2))^((1 + tau^2) / 2), and its variance
    stays v + s^2. At tau 1 the mean is right to rounding.
    """
    std, high, low = 0.3, 3.0, 0.05
    shrink = ((std**2 + low**2) / (std**2 + high**2)) ** ((1 + tau**2) / 2)
    errors = []
    for steps in (41, 81, 161):
        like = torch.ones((), dtype=torch.float64)
        sigmas = samplers.log_uniform(high, low, steps, like=like)
        sampler = SASolver(tau=tau, tau_low=tau)
        kept, noise = scalar_law(sampler, sigmas, std, monkeypatch)
        law = kept**2 * (std**2 + high**2) + noise
        errors.append((abs(kept / shrink - 1), abs(law / (std**2 + low**2) - 1)))
    for i, order in enumerate((mean, variance)):
        if order is None:
            assert errors[0][i] < 1e-7
            continue
        slopes = [math.log2(a[i] / b[i]) for a, b in itertools.pairwise(errors)]
        assert min(slopes) > order - 0.5
        assert order == 4 or max(slopes) < order + 0.5  # of order 4 the error may cross zero


@pytest.mark.parametrize("std", [2.0, 1.0, 0.3, 0.1, 0.03])
def test_default_samples_have_the_right_variance(std, monkeypatch):
    """Would catch a default that an exact network cannot save: it was up to 26 % too wide.

    In data standard deviations, directions from twice that to a thirtieth, at the default steps.
    """
    steps = inspect.signature(samplers.sample).parameters["steps"].default
    assert inspect.signature(Diffusion.sample).parameters["steps"].default == steps
    like = torch.ones((), dtype=torch.float64)
    sigmas = DEFAULT.grid(80.0, 0.004, DEFAULT.steps(steps), like=like)
    kept, noise = scalar_law(DEFAULT, sigmas, std, monkeypatch, to_zero=True)
    assert kept**2 * (1 + 80**2) + noise == pytest.approx(std**2, rel=0.02)


def test_default_is_what_priors_sample_with(monkeypatch):
    """Would catch a default of one's own in a prior, whose law nothing tests."""
    prior, seen = gaussian(), []

    def watch(self, denoise, x, sigmas, **keywords):
        seen.append((self, sigmas))
        return x

    monkeypatch.setattr(SASolver, "__call__", watch)
    samplers.sample(prior, 2)
    assert seen[0][0] is DEFAULT
    ratios = seen[0][1][1:] / seen[0][1][:-1]
    assert float(ratios.max() - ratios.min()) < 1e-6


def test_tau_is_not_negative():
    """Would catch more noise added than the walk takes out."""
    with pytest.raises(ValueError, match="tau"):
        SASolver(tau=-0.1)


def test_steps_of_length_zero():
    """Would catch polynomials through the same place twice: NaN where a row has one level."""
    prior = gaussian()
    high = torch.tensor([2.0, 0.5], dtype=torch.float64)
    sigmas = samplers.log_uniform(high, 0.5, 8, like=high)
    x = normal((2, 1, 1, 3), torch.Generator().manual_seed(0), dtype=torch.float64)
    found = UniPC()(prior.denoise, x, sigmas)
    # The grid's 0.5 is an exponential of a logarithm, and each of 8 steps rounds twice.
    close(found[1], prior.denoise(x, 0.5)[1], ulps=18)
    assert found.isfinite().all()


@pytest.mark.parametrize(
    "sampler",
    [
        DDPM(),
        DDIM(0.5),
        Heun(churn=60.0, churn_noise=1.0),
        DPMSolver(stochastic=True),
        SASolver(),
        SASolver(tau_low=1.0),
    ],
    ids=str,
)
def test_stochastic_walks_keep_the_variance(sampler):
    """Would catch injected noise off by a factor, as sqrt(2): the law stays N(m, v + sigma^2)."""
    prior, count = gaussian(), 8000
    generator = torch.Generator().manual_seed(3)
    kind = {"generator": generator, "dtype": torch.float64}
    x = samplers.start(prior, (count, 1, 1, 3), HIGH, **kind)
    sigmas = samplers.log_uniform(HIGH, LOW, 400, like=x)
    x = sampler(prior.denoise, x, sigmas, generator=generator, to_zero=False)
    law = (STD**2 + LOW**2).sqrt()
    scaled = ((x - prior.mean) / law).squeeze()
    assert (scaled.mean(0).abs() < 5 / count**0.5).all()
    # The discretisation adds its own; a step of a 400th of the range leaves about a per cent.
    allowed = 5 * (2 / count) ** 0.5 + (0.035 if isinstance(sampler, DDIM) else 0.01)
    assert ((scaled.var(0) - 1).abs() < allowed).all()


def test_start_has_the_right_law():
    """Would catch a start N(0, sigma^2), wrong wherever the data's spread counts."""
    prior, count = gaussian(), 20_000
    generator = torch.Generator().manual_seed(0)
    x = samplers.start(prior, (count, 1, 1, 3), 0.3, generator=generator, dtype=torch.float64)
    expected = (prior.data_std.double() ** 2 + 0.3**2).expand(1, 1, 3)
    assert ((x.mean(0) - prior.mean).abs() < 5 * (expected / count).sqrt()).all()
    assert ((x.var(0) / expected - 1).abs() < 5 * (2 / count) ** 0.5).all()


MIXTURE_SAMPLERS = {
    "ddpm": DDPM(),
    "ddim": DDIM(0.5),
    "euler": Euler(),
    "heun": Heun(),
    "churn": Heun(churn=10.0),
    "2m": DPMSolver(),
    "stochastic": DPMSolver(stochastic=True),
    "unipc": UniPC(),
    "sa": SASolver(),
}


@pytest.mark.parametrize("name", MIXTURE_SAMPLERS)
def test_mixture_in_a_hundred_evaluations(name):
    """Would catch lost modes or wrong weights: sliced Wasserstein at its sampling floor."""
    generator = torch.Generator().manual_seed(0)
    means = 0.5 + 0.4 * normal((4, 1, 2, 2), generator, dtype=torch.float64)
    covariance = 0.08**2 * torch.eye(4, dtype=torch.float64).expand(4, 4, 4)
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    prior = GaussianMixture(weights, means, covariance)
    count = 2000
    truth = [prior.sample(count, generator=generator).flatten(1) for _ in range(8)]

    def distance(a, b):
        directions = torch.Generator().manual_seed(1)
        return float(sliced_wasserstein(a, b, directions=100, generator=directions))

    floors = torch.tensor([distance(truth[0], other) for other in truth[1:]])
    drawn = samplers.sample(
        prior, count, steps=100, sampler=MIXTURE_SAMPLERS[name], generator=generator
    )
    assert distance(truth[0], drawn.flatten(1)) < floors.mean() + 5 * floors.std()


def test_rows_do_not_mix():
    """Would catch a draw or a step length shared along the batch."""
    prior = gaussian()
    for sampler in MIXTURE_SAMPLERS.values():
        seeds = [torch.Generator().manual_seed(i) for i in range(3)]
        together = samplers.sample(prior, 3, steps=10, sampler=sampler, generator=seeds)
        alone = samplers.sample(
            prior, 1, steps=10, sampler=sampler, generator=[torch.Generator().manual_seed(1)]
        )
        assert torch.allclose(together[1:2], alone, rtol=0, atol=1e-12)


def test_evaluations_are_what_was_asked():
    """Would catch a sampler that spends more network evaluations than it says."""
    prior, calls = gaussian(), []

    def denoise(x, sigma):
        calls.append(sigma)
        return prior.denoise(x, sigma)

    x = torch.zeros(1, 1, 1, 3, dtype=torch.float64)
    for sampler in MIXTURE_SAMPLERS.values():
        calls.clear()
        sigmas = samplers.log_uniform(HIGH, LOW, sampler.steps(19), like=STD)
        sampler(denoise, x, sigmas, generator=torch.Generator())
        assert len(calls) == 19
