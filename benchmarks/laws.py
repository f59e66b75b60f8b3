"""Every diffusion solver's law on every kind of operator: figures and a CSV.

    python benchmarks/laws.py [--out docs/results/laws.csv] [--only MMPS DPS] [--operators blur]
                              [--sizes 4 8] [--sigmas 0.005 0.05 0.5]

The prior is Gaussian, so the posterior is known in closed form, and so is the law of a solver
whose guidance is linear in y - A x0 (`affine_law`); others are sampled 500 times. Figures:

KL               of the samples' law (fitted normal law) from the posterior
mean error       root mean square over pixels, in posterior standard deviations
variance         of a pixel over the posterior's, mean over pixels
whitened         tr(posterior covariance^-1 covariance) / d: every direction counts alike

No default was chosen on these seeds (5000 and 5001); choices were made on 100 to 103.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from common.exact_problems import moments, seeded
from common.gaussians import SOLVERS, Row
from torch import Tensor

from genprior.metrics import gaussian_kl
from genprior.operators import (
    Blur,
    CompressedSensing,
    Downsampling,
    LinearOperator,
    Matrix,
    Problem,
)
from genprior.operators.kernels import gaussian
from genprior.priors import Gaussian
from genprior.solvers import DPS, MMPS, SMC, RePaint, Solver
from genprior.solvers.testing import affine_law, gaussian_field, posterior_law

NAMES = ("MMPS", "PiGDM", "DAPS", "DiffPIR", "DDNM", "DDRM", "RePaint", "DPS")
PUBLISHED = ("DDNM published", "DDRM published, 100")
SIGMAS = {"0.005": 0.005, "0.05": 0.05, "0.5": 0.5}
FIELDS: tuple[str, ...] = (
    "solver",
    "operator",
    "size",
    "prior",
    "sigma",
    "KL",
    "mean error",
    "variance",
)
FIELDS = (*FIELDS, "whitened", "seconds")


def operators(size: int) -> dict[str, LinearOperator | None]:
    """Name -> operator for images (1, size, size); None is a mask that sees half of them."""
    shape, d = (1, size, size), size**2
    width = min(7, 2 * ((size - 1) // 2) + 1)
    kernel = gaussian(1.0)
    cut = (len(kernel) - width) // 2
    kernel = kernel[cut : cut + width, cut : cut + width]
    return {
        "mask": None,
        "blur": Blur(kernel / kernel.sum(), shape),
        "downsampling": Downsampling(2, shape),
        "compressed sensing": CompressedSensing(shape, d // 2, generator=seeded(7)),
        "matrix": Matrix(torch.randn(d // 2, d, generator=seeded(8)).double() / size, shape),
    }


def law_of(solver: Solver, prior: Gaussian, problem: Problem) -> tuple[Tensor, Tensor]:
    """The law of the samples, exact where the walk is affine in its noise."""
    if isinstance(solver, MMPS):  # as shipped it stops early, which no affine map does
        solver = type(solver)(iterations=problem.y[0].numel(), tolerance=1e-9)
    if isinstance(solver, (DPS, SMC)):
        result = solver(problem, prior, num_samples=500, generator=seeded(1))
        return moments(result.samples[0])
    return affine_law(solver, problem, prior)


def rows(
    only: list[str], chosen: list[str] | None, sizes: list[int], sigmas: list[str], seed: int
) -> Iterator[Row]:
    """One row for each solver and case; refusals say so."""
    for size, field, sigma in product(sizes, ("rough", "smooth"), sigmas):
        for kind, operator in operators(size).items():
            if chosen and kind not in chosen:
                continue
            prior, problem = gaussian_field(
                seed,
                sigma=float(sigma),
                observed=size**2 // 2,
                size=size,
                smooth=size / 2 if field == "smooth" else 0.0,
                operator=operator,
            )
            mean, covariance = posterior_law(prior, problem)
            for name in only:
                case: Row = dict(zip(FIELDS, (name, kind, size, field, sigma), strict=False))
                solver = SOLVERS[name]
                if isinstance(solver, RePaint) and kind != "mask":
                    continue
                start = time.perf_counter()
                try:
                    found, spread = law_of(solver, prior, problem)
                except ValueError as error:
                    yield case | {"KL": "refused", "mean error": str(error)[:40]}
                    continue
                error = (found - mean) / covariance.diag().sqrt()
                whitened = torch.linalg.solve(covariance, spread).diag().mean()
                yield case | {
                    "KL": float(gaussian_kl(found, spread, mean, covariance)),
                    "mean error": float(error.square().mean().sqrt()),
                    "variance": float((spread.diag() / covariance.diag()).mean()),
                    "whitened": float(whitened),
                    "seconds": time.perf_counter() - start,
                }


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--only", nargs="+", default=[*NAMES, *PUBLISHED])
    parser.add_argument("--operators", nargs="+", default=None)
    parser.add_argument("--sizes", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--sigmas", nargs="+", default=["0.005", "0.05", "0.5"])
    parser.add_argument("--seed", type=int, default=5000)
    args = parser.parse_args()
    table = []
    for row in rows(args.only, args.operators, args.sizes, args.sigmas, args.seed):
        table.append(row)
        shown = (row.get(name, "") for name in FIELDS)
        print(
            " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in shown), flush=True
        )
    if args.out is not None:
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            for row in table:
                numbers = {k: f"{v:.3g}" for k, v in row.items() if isinstance(v, float)}
                writer.writerow(row | numbers)


if __name__ == "__main__":
    main()
