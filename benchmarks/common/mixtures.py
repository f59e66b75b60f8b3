"""Table 1b of truth.py: a mixture of 25 modes (MCGDiff), whose weights guidance alone misses.

Three rows set the scale: the floor (two exact sample sets), the oracle (the shipped walk of MMPS
with the exact E[x0 | x_sigma, y]: what discretisation costs) and the walk that earlier figures
were measured with (ancestral steps on DDPM's levels from N(0, sigma_max^2 I), covariance exact).
All methods see the same replicates, so differences from that walk are paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from common.exact_problems import Oracle, Spheres, mcgdiff, moments, seeded, summary
from torch import Tensor

from genprior.metrics import sliced_wasserstein
from genprior.operators import Problem
from genprior.operators.base import per_row
from genprior.priors.samplers import DDIM, Sampler
from genprior.priors.samplers.sa_solver import UniPC
from genprior.solvers import DAPS, DDNM, DDRM, DPS, MMPS, SMC, DiffPIR, PiGDM, Solver
from genprior.solvers.base import Counted
from genprior.solvers.walk.levels import ddpm_grid
from genprior.solvers.walk.state import Walk


@dataclass(frozen=True)
class _Oracle(MMPS):
    """The walk of MMPS with the exact guided mean."""

    def guide(self, walk: Walk, x: Tensor, sigma: Tensor) -> Tensor:
        prior = walk.prior.prior
        assert isinstance(prior, Oracle)
        return prior.denoise(x, sigma)


@dataclass(frozen=True)
class _Plain(MMPS):
    """MMPS, its systems solved to the end, on DDPM's levels from N(0, sigma_max^2 I)."""

    tolerance: float = 1e-9
    sampler: Sampler = DDIM(eta=1.0)  # noqa: RUF009 (frozen)

    def levels(self, problem: Problem, prior: Counted) -> Tensor:
        # ddpm_grid halves sigma for pixels in [0, 1]; this prior's are on the real line
        return 2 * ddpm_grid(problem, self.steps)

    def start(self, walk: Walk) -> Tensor:
        n = walk.noise(walk.problem.y.new_empty(walk.shape))
        return per_row(walk.sigmas[0], n) * n


PLAIN = "MMPS plain walk, 20"

NAMED: dict[str, Solver | None] = {
    "floor": None,
    "data ignored": None,
    "oracle, 20": _Oracle(),
    "oracle, UniPC, 20": _Oracle(sampler=UniPC()),
    "oracle ancestral, 20": _Oracle(sampler=DDIM(eta=1.0)),
    PLAIN: _Plain(),
    "MMPS, 20": MMPS(),
    "MMPS, UniPC, 20": MMPS(sampler=UniPC()),
    "MMPS ancestral, 20": MMPS(sampler=DDIM(eta=1.0)),
}

COSTLY: dict[str, Solver | None] = {
    "SMC 4000": SMC(particles=4000),
    "SMC 1000": SMC(particles=1000),
    "PiGDM": PiGDM(),
    "DAPS": DAPS(),
    "DiffPIR": DiffPIR(),
    "DDRM": DDRM(),
    "DDNM": DDNM(),
    "DPS": DPS(),
}


def mixture_rows(
    cells: Sequence[tuple[int, int]],
    replicates: int,
    few: int,
    only: Sequence[str] | None = None,
    draws: int = 1000,
) -> Iterable[dict[str, object]]:
    """1b at each (d, m); `few` replicates for the methods that cost most or are only reported."""
    for d, m in cells:
        plain: list[float] | None = None
        for name, solver in {**NAMED, **COSTLY}.items():
            if only and name not in only:
                continue
            count = min(few if name in COSTLY else replicates, replicates)
            results = [_mixture(name, solver, d, m, seed, draws) for seed in range(count)]
            distance, se = summary(r[0] for r in results)
            bias, bias_se = summary(r[1] for r in results)
            ratio, ratio_se = summary(r[2] for r in results)
            row: dict[str, object] = {
                "table": "1b",
                "case": f"d {d}, m {m}",
                "solver": name,
                "replicates": count,
                "sliced W1": distance,
                "se": se,
                "log p bias": bias,
                "log p bias se": bias_se,
                "variance ratio": ratio,
                "variance ratio se": ratio_se,
            }
            if name == PLAIN:
                plain = [r[0] for r in results]
            elif plain is not None:
                pairs = zip(results, plain, strict=False)
                row["minus plain"], row["minus plain se"] = summary(r[0] - p for r, p in pairs)
            yield row


def _mixture(
    name: str, solver: Solver | None, d: int, m: int, seed: int, draws: int
) -> tuple[float, ...]:
    prior, problem = mcgdiff(d, m, 5000 + seed)
    posterior = prior.exact.posterior(problem)
    # The distance is between sets of `draws`; the moments' own error is kept below it.
    many = posterior.sample(5 * draws, generator=seeded(seed))[0]
    exact = many[:draws]
    generator = seeded(100 + seed)
    if solver is not None:
        seen = Oracle(prior, problem) if isinstance(solver, _Oracle) else prior
        found = solver(
            problem, seen, num_samples=draws, batch_size=10**5, generator=generator
        ).samples[0]
    elif name == "floor":
        found = posterior.sample(draws, generator=generator)[0]
    else:
        found = prior.sample(draws, generator=generator)
    distance = float(sliced_wasserstein(found, exact, directions=200, generator=seeded(seed)))
    bias = _mean_log_prob(prior, problem, found) - _mean_log_prob(prior, problem, many)
    ratio = moments(found)[1].trace() / moments(many)[1].trace()
    return distance, bias, float(ratio)


def _mean_log_prob(prior: Spheres, problem: Problem, samples: Tensor) -> float:
    """Mean of log p(x | y) up to the evidence, which cancels in the bias."""
    rows = problem.take(torch.zeros(len(samples), dtype=torch.long))
    return float((prior.exact.log_prob(samples) + rows.log_likelihood(samples)).mean())
