"""Settings: what the defaults are, and where each one's range ends.

A default is a promise: the figures of docs/results were measured with these. Who changes one does
so here too, and measures anew.
"""

import inspect
import math
from dataclasses import fields

import pytest

from genprior import priors, solvers
from genprior.operators import Identity
from genprior.priors import samplers
from genprior.priors.samplers import DDIM, DDPM, DPMSolver, Euler, Heun, SASolver, UniPC
from genprior.priors.samplers.unconditional import DEFAULT
from genprior.solvers import (
    DAPS,
    DDNM,
    DDRM,
    DPS,
    MMPS,
    SMC,
    AnnealedImportance,
    DenoisingPosterior,
    DiffPIR,
    FlowMAP,
    JointMAP,
    LatentMAP,
    LatentSampler,
    PiGDM,
    REDDiff,
    RePaint,
)
from genprior.solvers.latent import curvature, hmc
from genprior.solvers.testing import gaussian_field

SHARED = {"keep_measured": False, "antithetic": False, "returns": 0, "window": (0.65, 6.5)}
WALKS = {
    "MMPS": {"steps": 20, "iterations": 5, "tolerance": 0.01, "steer": 1.0, "approach": 0.625},
    "DAPS": {"steps": 100, "flow_steps": 1},
    "SMC": {"steps": 100, "particles": 256, "exact_entries": 16},
    "PiGDM": {"steps": 100},
    "DPS": {"steps": 100, "zeta": 1.0, "matched": True},
    "DiffPIR": {"steps": 100, "lam": 1.0, "zeta": 0.5, "ddpm_levels": False},
    "DDRM": {
        "steps": 100,
        "eta": 0.95,
        "eta_b": 1.0,
        "unknown": 0.5,
        "as_published": False,
        "smallest": 0.0,
    },
    "DDNM": {"steps": 100, "eta": 0.95, "unknown": 0.5, "as_published": False},
    "RePaint": {"steps": 100, "repeats": 5},
    "DenoisingPosterior": {"steps": 20},
    "REDDiff": {"steps": 100, "lam": 1.0, "rate": 0.3, "ddpm_levels": False},
}
SAMPLERS = {
    "MMPS": SASolver(tau=1.0, tau_low=0.4, turn=0.4, longest=0.8),
    "PiGDM": DPMSolver(stochastic=True),
    "DenoisingPosterior": DPMSolver(stochastic=False),
}
LATENT = {
    "ExactPosterior": {},
    "LatentSampler": {
        "steps": 300,
        "warm_up": 300,
        "chains": 4,
        "leapfrog": 8,
        "acceptance": 0.8,
        "decoder_variance": None,
    },
    "AnnealedImportance": {
        "particles": 64,
        "share": 0.9,
        "moves": 2,
        "leapfrog": 5,
        "steps": 200,
        "decoder_variance": None,
    },
    "FlowMAP": {
        "space": "latent",
        "gamma": 1.0,
        "optimizer": "lbfgs",
        "start": "zero",
        "steps": 500,
        "tolerance": 1e-3,
        "learning_rate": 0.01,
    },
    "LatentMAP": {
        "optimizer": "lbfgs",
        "restarts": 4,
        "steps": 500,
        "tolerance": 1e-3,
        "learning_rate": 0.01,
        "prior_weight": 1.0,
        "decoder_variance": None,
        "adapt": 0,
    },
    "JointMAP": {"turns": 5, "descent": 20, "steps": 500, "tolerance": 1e-3},
}
SETTINGS = LATENT | {
    name: own | SHARED | ({"sampler": SAMPLERS[name]} if name in SAMPLERS else {})
    for name, own in WALKS.items()
}
PUBLISHED = [
    (lambda: DDNM.published(), DDNM(steps=100, eta=0.85, as_published=True)),
    (lambda: DDRM.published(), DDRM(steps=20, eta=0.85, as_published=True, smallest=0.03)),
    (lambda: DPS.published(), DPS(steps=1000, zeta=1.0, matched=False)),
    (lambda: DPS.published(zeta=0.3), DPS(steps=1000, zeta=0.3, matched=False)),
    (lambda: DiffPIR.published(), DiffPIR(steps=100, lam=7.0, zeta=0.3, ddpm_levels=True)),
    (lambda: REDDiff.published(), REDDiff(steps=1000, lam=0.25, rate=0.2, ddpm_levels=True)),
    (lambda: MMPS.steered(), MMPS(steps=32, steer=20.0)),
]


def settings(made):
    return {field.name: getattr(made, field.name) for field in fields(made)}


@pytest.mark.parametrize("name", solvers.available())
def test_defaults_of_solvers(name):
    """Catches a default that moved, and a setting that nobody has decided on."""
    assert settings(getattr(solvers, name)()) == SETTINGS[name]


@pytest.mark.parametrize(("make", "expected"), PUBLISHED, ids=[repr(e) for _, e in PUBLISHED])
def test_published_settings(make, expected):
    """Catches a number that is not the paper's code's."""
    assert make() == expected


def test_defaults_of_samplers():
    """Catches a default that moved, and two names of one method that differ."""
    assert [s.eta for s in (DDIM(), Euler(), DDPM(), DDIM(0.5))] == [0, 0, 1, 0.5]
    assert settings(Heun()) == {
        "churn": 0,
        "churn_range": (0, math.inf),
        "churn_noise": 1,
    }
    assert settings(DPMSolver()) == {"stochastic": False}
    assert SASolver() == SASolver(tau=1.0, tau_low=0.4, turn=0.4, longest=0.8)
    assert settings(UniPC()) == {"tau": 0, "tau_low": 0, "turn": 0.4, "longest": 0.8}
    assert SASolver(tau=0.7) == DEFAULT
    for draw in (samplers.sample, priors.Diffusion.sample):
        assert inspect.signature(draw).parameters["steps"].default == 18
    assert inspect.signature(samplers.rho_grid).parameters["rho"].default == 7


def test_sizes_up_to_which_matrices_are_dense():
    """Catches a d x d matrix for each row of a large latent."""
    assert (curvature.DENSE, hmc.DENSE) == (64, 64)


LEGAL = [
    lambda: MMPS(steps=1, iterations=1, steer=1.0, approach=0.0),
    lambda: MMPS(steer=2.0, approach=0.99),
    lambda: MMPS(returns=1, steer=1.0, window=(0.0, 0.0)),
    lambda: DAPS(steps=3, flow_steps=1),
    lambda: DAPS(steps=3, flow_steps=3),
    lambda: SMC(particles=1),
    lambda: RePaint(steps=2, repeats=1),
    lambda: RePaint(steps=5, repeats=4),
    lambda: LatentSampler(steps=4, warm_up=20, chains=1, leapfrog=1),
    lambda: LatentSampler(acceptance=0.01),
    lambda: LatentSampler(acceptance=0.99),
    lambda: AnnealedImportance(particles=4, moves=1, leapfrog=1, steps=1, share=0.01),
    lambda: FlowMAP(steps=1, gamma=0.0, tolerance=0.0, learning_rate=1e-9),
    lambda: LatentMAP(restarts=1, steps=1, tolerance=0.0, prior_weight=0.0, learning_rate=1e-9),
    lambda: LatentMAP(adapt=100_000),
    lambda: JointMAP(turns=0, descent=2, steps=1, tolerance=0.0),
    lambda: SASolver(tau=0.0, tau_low=0.0),
    lambda: PiGDM(steps=1),
]
ILLEGAL = [
    (lambda: PiGDM(steps=0), "steps must be from 1 to 1000000, not 0"),
    (lambda: MMPS(steps=10**9), "steps must be from 1 to 1000000, not 1000000000"),
    (lambda: PiGDM(returns=-1), "returns must be at least 0"),
    (lambda: PiGDM(window=(-0.1, 1.0)), "0 <= low <= high"),
    (lambda: PiGDM(window=(1.0, 0.9)), "0 <= low <= high"),
    (lambda: MMPS(iterations=0), "iterations must be at least 1, not 0"),
    (lambda: MMPS(steer=0.99), "steer must be finite and at least 1"),
    (lambda: MMPS(steer=math.inf), "steer must be finite"),
    (lambda: MMPS(approach=-0.01), r"approach in \[0, 1\)"),
    (lambda: MMPS(approach=1.0), r"approach in \[0, 1\)"),
    (lambda: MMPS(steer=1.01, returns=1), "returns is for steer=1"),
    (lambda: DAPS(steps=3, flow_steps=0), r"flow_steps must be 1 to steps \(3\), not 0"),
    (lambda: DAPS(steps=3, flow_steps=4), r"flow_steps must be 1 to steps \(3\), not 4"),
    (lambda: AnnealedImportance(particles=3), "particles >= 4"),
    (lambda: AnnealedImportance(steps=0), "steps >= 1"),
    (lambda: AnnealedImportance(share=1.0), "share must be between 0 and 1"),
    (lambda: AnnealedImportance(share=0.0), "share must be between 0 and 1"),
    (lambda: SMC(particles=0), "particles must be at least 1, not 0"),
    (lambda: RePaint(steps=5, repeats=0), r"repeats must be 1 to steps - 1 \(4\), not 0"),
    (lambda: RePaint(steps=5, repeats=5), r"repeats must be 1 to steps - 1 \(4\), not 5"),
    (lambda: LatentSampler(steps=3), "steps >= 4"),
    (lambda: LatentSampler(warm_up=19), "warm_up >= 20"),
    (lambda: LatentSampler(chains=0), "chains and leapfrog >= 1"),
    (lambda: LatentSampler(leapfrog=0), "chains and leapfrog >= 1"),
    (lambda: LatentSampler(acceptance=0.0), "between 0 and 1, not 0"),
    (lambda: LatentSampler(acceptance=1.0), "between 0 and 1, not 1"),
    (lambda: LatentMAP(restarts=0), "restarts and steps must be at least 1"),
    (lambda: LatentMAP(adapt=-1), "adapt must be 0 to 100000, not -1"),
    (lambda: LatentMAP(adapt=100_001), "adapt must be 0 to 100000, not 100001"),
    (lambda: LatentMAP(steps=0), "restarts and steps must be at least 1"),
    (lambda: LatentMAP(prior_weight=-0.1), "prior_weight and tolerance must be >= 0"),
    (lambda: LatentMAP(tolerance=-1e-9), "prior_weight and tolerance must be >= 0"),
    (lambda: LatentMAP(tolerance=math.nan), "prior_weight and tolerance must be >= 0"),
    (lambda: LatentMAP(learning_rate=0.0), "learning_rate > 0"),
    (lambda: JointMAP(turns=-1), "turns >= 0"),
    (lambda: JointMAP(descent=1), "descent >= 2"),
    (lambda: JointMAP(steps=0), "steps >= 1"),
    (lambda: JointMAP(tolerance=-1e-9), "tolerance >= 0"),
    (lambda: JointMAP(tolerance=math.nan), "tolerance >= 0"),
    (lambda: SASolver(tau=-0.01), "tau must be at least 0, not -0.01"),
    (lambda: SASolver(tau_low=-0.01), "tau must be at least 0, not -0.01"),
]


def test_the_last_legal_values_are_accepted():
    """Catches a bound that shuts out what it should let in."""
    for make in LEGAL:
        make()


@pytest.mark.parametrize(("make", "words"), ILLEGAL, ids=[words for _, words in ILLEGAL])
def test_the_first_illegal_values_are_refused(make, words):
    """Catches a bound that is off by one or looks the other way, and words that do not say it."""
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("solver", "field"),
    [
        (LatentSampler(steps=10**9), "steps"),
        (LatentSampler(warm_up=10**9), "warm_up"),
        (LatentSampler(chains=10**9), "chains"),
        (AnnealedImportance(particles=10**9), "particles"),
        (LatentMAP(restarts=10**9), "restarts"),
        (SMC(particles=10**9), "particles"),
    ],
    ids=repr,
)
def test_counts_that_no_memory_holds_are_refused_before_the_work(solver, field):
    """Catches a slip of the finger that fills the memory, or walks for years."""
    prior, problem = gaussian_field(0)
    with pytest.raises(ValueError, match=rf": {field} must be at most 1000000, not 1000000000"):
        solver(problem, prior)


COSTS = {
    MMPS: lambda steps: steps,
    PiGDM: lambda steps: steps,
    DPS: lambda steps: steps,
    DAPS: lambda steps: steps,
    DiffPIR: lambda steps: steps,
    DDNM: lambda steps: steps,
    DDRM: lambda steps: steps,
    REDDiff: lambda steps: steps,
    DenoisingPosterior: lambda steps: max(2, steps),  # the start's mean, and one step at least
    RePaint: lambda steps: max(1, steps // 5) + 2 * max(1, (steps - max(1, steps // 5)) // 2),
}
VARIANTS = {RePaint: {"repeats": 2}}


@pytest.mark.filterwarnings("ignore:.*have not converged")
@pytest.mark.parametrize("solver", COSTS, ids=lambda solver: solver.__name__)
def test_few_steps_cost_what_they_say(solver):
    """Catches a start that is not counted, and a least number of steps that is not the one."""
    prior, problem = gaussian_field(3, operator=Identity((1, 4, 4)))
    if solver is RePaint:
        prior, problem = gaussian_field(3)
    for steps in (1, 2, 3, 4, 5, 6, 11):
        if solver is RePaint and steps < 3:
            continue
        made = solver(steps=steps, **VARIANTS.get(solver, {}))
        assert made(problem, prior).forwards == COSTS[solver](steps), steps
    if solver is MMPS:
        for steps in (1, 2, 5):
            assert MMPS(steps=steps, steer=20.0)(problem, prior).forwards == steps
