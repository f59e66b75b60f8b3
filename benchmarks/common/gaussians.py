"""1a: a Gaussian on 16 pixels, 8 seen, where the law of most samples is known exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from common.exact_problems import moments, seeded, summary

from genprior.metrics import gaussian_kl
from genprior.priors.samplers.sa_solver import UniPC
from genprior.solvers import (
    DAPS,
    DDNM,
    DDRM,
    DPS,
    MMPS,
    SMC,
    DiffPIR,
    PiGDM,
    REDDiff,
    RePaint,
    Solver,
)
from genprior.solvers.testing import affine_law, gaussian_field, posterior_law

Row = dict[str, object]

AFFINE = (PiGDM, DAPS, DiffPIR, DDNM, DDRM, RePaint)
SOLVERS = {
    "MMPS": MMPS(),
    "MMPS, UniPC": MMPS(sampler=UniPC()),
    "MMPS, steered": MMPS.steered(),
    "PiGDM": PiGDM(),
    "DAPS": DAPS(),
    "DAPS 50x2": DAPS(flow_steps=2),
    "RePaint": RePaint(),
    "DiffPIR": DiffPIR(),
    "DiffPIR published": DiffPIR.published(),
    "DDRM": DDRM(),
    "DDRM published, 100": DDRM.published(steps=100),
    "DDNM": DDNM(),
    "DDNM published": DDNM.published(),
    "DPS": DPS(),
    "DPS published": DPS.published(),
    "SMC": SMC(particles=2000),
}


def gaussian_rows(
    seeds: range, sigmas: list[float], only: list[str] | None = None, *, draws: int = 2000
) -> Iterable[Row]:
    """1a. KL of the samples' exact law where the walk is affine, and of `draws` samples."""
    for sigma in sigmas:
        for name, solver in {"floor": None, "data ignored": None, **SOLVERS}.items():
            if only and name not in only:
                continue
            costly = name in ("DPS published", "SMC")
            if costly and not only and sigma != 0.05:
                continue  # at the other levels only when asked for by name
            some = seeds[:3] if name == "DPS published" else seeds
            results = [_gaussian(name, solver, seed, sigma, draws) for seed in some]
            (kl, se), (law_kl, law_se) = (summary(r[i] for r in results) for i in (0, 1))
            yield {
                "table": "1a",
                "case": f"sigma {sigma}",
                "solver": name,
                "problems": len(some),
                "forwards": results[0][4],
                "vjps": summary(r[5] for r in results)[0],
                "KL of samples": kl,
                "se": se,
                "KL of law": law_kl,
                "law se": law_se,
                "variance seen": summary(r[2] for r in results)[0],
                "variance missing": summary(r[3] for r in results)[0],
            }
        if only and "REDDiff" not in only:
            continue
        error = [_reddiff_error(seed, sigma) for seed in seeds]
        mean, se = summary(error)
        yield {
            "table": "1a",
            "case": f"sigma {sigma}",
            "solver": "REDDiff",
            "forwards": 100,
            "mean error / std": mean,
            "se": se,
        }


def pairs_rows(seeds: range, only: list[str] | None = None, *, runs: int = 100) -> Iterable[Row]:
    """How far the mean of 4 samples and its spread are off, independent and in pairs.

    The mean's error is in posterior standard deviations; the spread is Result.std squared over
    the posterior's variance, and the root mean square of what it misses that by.
    """
    for name, solver in SOLVERS.items():
        published = "published" in name
        if published or isinstance(solver, SMC) or (only and name not in only):
            continue
        for antithetic in (False, True):
            chosen = replace(solver, antithetic=antithetic)
            found = [_mean_and_spread(chosen, seed, runs) for seed in seeds]
            error, ratio, scatter = (summary(f[i] for f in found) for i in range(3))
            yield {
                "table": "pairs",
                "case": "sigma 0.05",
                "solver": name + ", pairs" * antithetic,
                "error of mean / std": error[0],
                "se": error[1],
                "variance": ratio[0],
                "scatter of variance": scatter[0],
            }


def _mean_and_spread(solver: Solver, seed: int, runs: int) -> tuple[float, float, float]:
    prior, problem = gaussian_field(seed)
    mean, covariance = posterior_law(prior, problem)
    repeated = problem.take(torch.zeros(runs, dtype=torch.long))
    result = solver(repeated, prior, num_samples=4, generator=seeded(seed))
    assert result.std is not None
    miss = (result.mean.flatten(1) - mean) / covariance.diag().sqrt()
    ratio = result.std.square().flatten(1) / covariance.diag()
    scatter = (ratio - 1).square().mean().sqrt()
    return float(miss.square().mean().sqrt()), float(ratio.mean()), float(scatter)


def _gaussian(
    name: str, solver: Solver | None, seed: int, sigma: float, draws: int
) -> tuple[float, ...]:
    prior, problem = gaussian_field(seed, sigma=sigma)
    mean, covariance = posterior_law(prior, problem)
    generator, cost = seeded(seed), (0.0, 0.0)
    law_kl = math.nan
    law = (mean, covariance)
    if name == "data ignored":
        law = moments(prior.sample(20000, generator=generator))
    if isinstance(solver, AFFINE):
        law = affine_law(solver, problem, prior)
        cost = (solver.steps, solver.steps if isinstance(solver, PiGDM) else 0)
    if isinstance(solver, (*AFFINE, type(None))):
        law_kl = float(gaussian_kl(*law, mean, covariance))
        root = torch.linalg.cholesky(law[1])
        noise = torch.randn(draws, 16, generator=generator, dtype=torch.float64)
        law = moments(law[0] + noise @ root.T)
    else:
        count = 500 if solver == SOLVERS["DPS published"] else draws
        result = solver(problem, prior, num_samples=count, batch_size=count, generator=generator)
        law = moments(result.samples[0])
        particles = solver.particles / count if isinstance(solver, SMC) else 1
        cost = (result.forwards / particles, result.vjps / particles)
    seen = problem.operator.observed.flatten()  # type: ignore[union-attr]
    ratio = law[1].diag() / covariance.diag()
    kl = float(gaussian_kl(*law, mean, covariance))
    return kl, law_kl, float(ratio[seen].mean()), float(ratio[~seen].mean()), *cost


def _reddiff_error(seed: int, sigma: float) -> float:
    prior, problem = gaussian_field(seed, sigma=sigma)
    mean, covariance = posterior_law(prior, problem)
    found = REDDiff()(problem, prior, generator=seeded(seed)).mean.flatten()
    return float(((found - mean) / covariance.diag().sqrt()).square().mean().sqrt())
