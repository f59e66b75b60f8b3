"""Every diffusion solver's law on every kind of operator: figures and a CSV.

    python benchmarks/laws.py [--out docs/results/laws.csv] [--only MMPS DPS] [--operators blur]
                              [--sizes 4 8] [--sigmas 0.005 0.05 0.5 each]

The prior is Gaussian, rough (correlation exp(-distance / length)) or smooth (Matern 5/2), so the
posterior is known in closed form, and so is the law of a solver whose guidance is linear in
y - A x0 (`affine_law`); DPS, SMC and the default, steered MMPS, are sampled 500 times, which
leaves .045 in the mean error of a right law. REDDiff gives one image. Figures:

KL               of the samples' law (fitted normal law) from the posterior; of 500 samples even
                 exact ones have .3 at 4x4 and 2.2 at 8x8
mean error       root mean square over pixels, in posterior standard deviations
variance         of a pixel over the posterior's, mean over pixels
whitened         tr(posterior covariance^-1 covariance) / d: every direction counts alike
refused          why, where a solver does not serve the operator

Sigma "each": three images in one batch have .005, .05 and .5. "apart" is how far their samples
are from those of each image alone with its own sigma, in posterior standard deviations, at most:
at 0 the laws are those of the other rows. "converged" counts them, of three.

`--table` prints the table of docs/results/solvers.md from the CSV and measures nothing. Rows that
the CSV has are kept and not made again. No default was chosen on these seeds (5000 and
5001); choices were made on 100 to 103.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from dataclasses import replace
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
    GaussianNoise,
    LinearOperator,
    Matrix,
    Problem,
)
from genprior.operators.kernels import gaussian
from genprior.priors import Gaussian
from genprior.solvers import DPS, MMPS, SMC, REDDiff, Solver
from genprior.solvers.testing import affine_law, gaussian_field, posterior_law

CHOSEN: dict[str, Solver] = {
    "MMPS steered": MMPS.steered(),
    "MMPS": MMPS(),
    "MMPS, 20 products": MMPS(iterations=20),
    "MMPS, systems solved": MMPS(),
    **{n: SOLVERS[n] for n in ("PiGDM", "DAPS", "DiffPIR", "DDNM", "DDRM", "RePaint")},
    "DPS": DPS(),
    "SMC": SMC(particles=500),
    "REDDiff": REDDiff(),
    **{n: SOLVERS[n] for n in ("DDNM published", "DDRM published, 100")},
}
SAMPLED = ("MMPS steered", "MMPS", "MMPS, 20 products", "DPS", "SMC")
EACH = (0.005, 0.05, 0.5)
FIELDS: tuple[str, ...] = (
    "solver",
    "operator",
    "size",
    "prior",
    "sigma",
    "KL",
    "mean error",
    "variance",
    "whitened",
    "seconds",
    "apart",
    "converged",
    "refused",
)
CASE = FIELDS[:5]
DRAWS = 500


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


def law_of(name: str, prior: Gaussian, problem: Problem) -> tuple[Tensor, Tensor]:
    """The law of the samples, exact where the walk is affine in its noise."""
    solver = CHOSEN[name]
    if isinstance(solver, REDDiff):
        mean = solver(problem, prior, generator=seeded(1)).mean.flatten()
        return mean, torch.zeros(len(mean), len(mean), dtype=mean.dtype)
    if name in SAMPLED:
        result = solver(problem, prior, num_samples=DRAWS, generator=seeded(1))
        return moments(result.samples[0])
    if isinstance(solver, MMPS):  # which stops where a row has converged: no affine map does
        solver = replace(solver, iterations=problem.y[0].numel(), tolerance=1e-9)
    return affine_law(solver, problem, prior)


def law_row(name: str, prior: Gaussian, problem: Problem) -> Row:
    """What the law is, beside the posterior's."""
    mean, covariance = posterior_law(prior, problem)
    found, spread = law_of(name, prior, problem)
    error = (found - mean) / covariance.diag().sqrt()
    row: Row = {"mean error": float(error.square().mean().sqrt())}
    if CHOSEN[name].point_estimate:
        return row
    return row | {
        "KL": float(gaussian_kl(found, spread, mean, covariance)),
        "variance": float((spread.diag() / covariance.diag()).mean()),
        "whitened": float(torch.linalg.solve(covariance, spread).diag().mean()),
    }


def batch_row(name: str, prior: Gaussian, problem: Problem) -> Row:
    """Three images with noises of their own, together and alone."""
    solver = CHOSEN[name]
    noise = GaussianNoise(torch.tensor(EACH, dtype=problem.y.dtype))
    clean = problem.take(torch.zeros(3, dtype=torch.int64))
    x = prior.sample(3, generator=seeded(2))
    batch = Problem.simulate(x, clean.operator, noise, generator=seeded(3))
    together = solver(batch, prior, generator=[seeded(i) for i in range(3)])
    apart = []
    for i in range(3):
        one = batch.take(torch.tensor([i]))
        _, covariance = posterior_law(prior, one)
        off = solver(one, prior, generator=[seeded(i)]).samples[0] - together.samples[i]
        apart.append(float((off.flatten().abs() / covariance.diag().sqrt()).max()))
    return {"apart": max(apart), "converged": int(together.converged.sum())}


def rows(args: argparse.Namespace, known: set[tuple[str, ...]]) -> Iterator[Row]:
    """One row for each solver and case; refusals say so."""
    for size, field, sigma in product(args.sizes, ("rough", "smooth"), args.sigmas):
        for kind, operator in operators(size).items():
            if args.operators and kind not in args.operators:
                continue
            prior, problem = gaussian_field(
                args.seed,
                sigma=0.05 if sigma == "each" else float(sigma),
                observed=size**2 // 2,
                size=size,
                smooth=size / 2 if field == "smooth" else 0.0,
                operator=operator,
            )
            for name in args.only:
                case: Row = dict(zip(CASE, (name, kind, size, field, sigma), strict=True))
                if tuple(map(str, case.values())) in known:
                    continue
                start = time.perf_counter()
                try:
                    found = (batch_row if sigma == "each" else law_row)(name, prior, problem)
                except (TypeError, ValueError) as error:
                    found = {"refused": str(error)}
                yield case | found | {"seconds": time.perf_counter() - start}


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--only", nargs="+", choices=CHOSEN, default=list(CHOSEN))
    parser.add_argument("--operators", nargs="+", default=None)
    parser.add_argument("--sizes", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--sigmas", nargs="+", default=["0.005", "0.05", "0.5", "each"])
    parser.add_argument("--seed", type=int, default=5000)
    parser.add_argument("--table", action="store_true", help="print the table of the CSV")
    args = parser.parse_args()
    table: list[Row] = []
    if args.out is not None and args.out.exists():
        with args.out.open(newline="") as file:
            table.extend(dict(row) for row in csv.DictReader(file))
    if args.table:
        print(markdown(table))
        return
    known = {tuple(str(row[name]) for name in CASE) for row in table}
    for row in rows(args, known):
        written = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items()}
        table.append(written)
        print(" | ".join(str(written.get(name, "")) for name in FIELDS), flush=True)
        if args.out is not None:
            write(args.out, table)


def markdown(table: list[Row]) -> str:
    """Typical (median) and worst mean error and variance of each solver on each operator."""
    kinds = list(operators(4))
    lines = [f"| solver | {' | '.join(kinds)} |", "|" + "---|" * (len(kinds) + 1)]
    for name in CHOSEN:
        cells = []
        for kind in kinds:
            mine = [row for row in table if (row["solver"], row["operator"]) == (name, kind)]
            error, variance = (
                torch.tensor([float(str(row[f])) for row in mine if row.get(f)])
                for f in ("mean error", "variance")
            )
            cell = "refused" if any(row.get("refused") for row in mine) else "-"
            if len(error):
                cell = f"{error.median():.2f} / {error.max():.2f}"
            if len(variance):
                worst = variance[variance.log().abs().argmax()]
                cell += f", {variance.median():.2f} / {worst:.2f}"
            cells.append(cell)
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(path: Path, table: list[Row]) -> None:
    """Write rows in the order of their cases."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(table, key=lambda row: (int(str(row["size"])), str(row["prior"]))))


if __name__ == "__main__":
    main()
