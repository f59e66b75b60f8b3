"""Every diffusion solver against posteriors known in closed form: figures, CSV and a picture.

    python benchmarks/truth.py --out truth [--full] [--peers] [--only 1a 1b]

1a  a Gaussian on 16 pixels, 8 seen: KL and variance ratios, ten problems
1b  a mixture of 25 modes (MCGDiff): sliced Wasserstein distance, twenty replicates
1c  a random field of 32 x 32 with 16 pixels seen: errors of mean and spread
1d  the approximations of p(y | x_sigma) alone: KL of p(x_sigma | y)
coverage  of 90 % intervals and simulation-based ranks, 200 problems
pairs  (only when asked for) mean and spread of four samples on 1a, independent and antithetic

No default of a solver was chosen on these seeds (defaults: gaussian_field 100 to 106).
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from common.exact_problems import curve, random_field, seeded, summary
from common.gaussians import SOLVERS, Row, gaussian_rows, pairs_rows
from common.mixtures import mixture_rows
from torch import Tensor

from genprior.metrics import coverage, sbc_ranks
from genprior.operators import GaussianNoise, Inpainting, Problem
from genprior.solvers import SMC
from genprior.solvers.testing import gaussian_field

DRAWS = 19
"""Of the coverage table: their range is a 90 % interval."""


def field_rows(only: list[str] | None = None, *, draws: int = 100) -> Iterable[Row]:
    """1c."""
    prior, problem = random_field(7)
    posterior = prior.posterior(problem)
    names = ("MMPS", "MMPS, UniPC", "PiGDM", "DAPS", "DiffPIR", "DPS")
    for name, solver in {"floor": None, **{name: SOLVERS[name] for name in names}}.items():
        if only and name not in only:
            continue
        if solver is None:
            samples = posterior.sample(draws, generator=seeded(1))[0]
        else:
            samples = solver(problem, prior, num_samples=draws, generator=seeded(1)).samples[0]
        error = (samples.mean(0) - posterior.mean[0]) / posterior.std[0]
        yield {
            "table": "1c",
            "case": "32 x 32",
            "solver": name,
            "mean error / std": float(error.square().mean().sqrt()),
            "variance ratio": float((samples.var(0) / posterior.std[0] ** 2).mean()),
        }


def likelihood_rows(draws: int = 4096, seeds: range = range(10)) -> Iterable[Row]:
    """1d. KL of p(x_t | y) from each approximation, both by reweighting draws of x_t."""
    for sigma in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0):
        distances: dict[str, list[float]] = {"DPS": [], "PiGDM": [], "MMPS": []}
        for seed in seeds:
            prior, problem = curve(seed)
            w, y = problem.operator.matrix[0], float(problem.y)  # type: ignore[union-attr]
            x = prior.sample(draws, generator=seeded(seed)).flatten(1)
            x = x + sigma * torch.randn(x.shape, generator=seeded(seed + 1), dtype=x.dtype)
            exact, mean, v = _likelihood(prior, x, sigma, w, y)
            s2 = float(prior.data_std.square().mean())
            scalar = torch.full_like(v, sigma**2 * s2 / (sigma**2 + s2))
            for name, variance in (("DPS", 0 * v), ("PiGDM", scalar), ("MMPS", v)):
                guess = _log_normal(y - mean, variance + 1e-4)
                p, q = torch.log_softmax(exact, 0), torch.log_softmax(guess, 0)
                distances[name].append(float((p.exp() * (p - q)).sum()))
        for name, values in distances.items():
            mean, se = summary(values)
            yield {
                "table": "1d",
                "case": f"sigma_t {sigma}",
                "solver": name,
                "KL of law": mean,
                "law se": se,
            }


def _log_normal(residual: Tensor, variance: Tensor) -> Tensor:
    return -0.5 * (residual**2 / variance + variance.log())


def _likelihood(prior, x: Tensor, sigma: float, w: Tensor, y: float) -> tuple[Tensor, ...]:
    """log p(y | x_t), and mean and variance of w.x0 given x_t, all exact."""
    total, r2 = prior.residual**2 + sigma**2, prior.residual**2
    share = torch.softmax(-torch.cdist(x, prior.means).square() / (2 * total), 1)
    centres = (prior.means * sigma**2 / total) @ w + (x @ w)[:, None] * r2 / total
    within = r2 * sigma**2 / total
    mean = (share * centres).sum(1)
    variance = within + (share * (centres - mean[:, None]) ** 2).sum(1)
    spread = torch.tensor(within + 1e-4, dtype=x.dtype)
    exact = torch.logsumexp(share.log() + _log_normal(y - centres, spread), 1)
    return exact, mean, variance


def coverage_rows(only: list[str] | None = None, *, problems: int = 200) -> Iterable[Row]:
    """Coverage of 90 % intervals over draws of x and y; how often the truth has each rank."""
    prior, _ = gaussian_field(7000)
    x = prior.sample(problems, generator=seeded(1))
    masks = torch.stack([torch.randperm(16, generator=seeded(i)) < 8 for i in range(problems)])
    operator = Inpainting(masks.reshape(-1, 1, 4, 4))
    problem = Problem.simulate(x, operator, GaussianNoise(0.05), generator=seeded(2))
    shipped = {k: v for k, v in SOLVERS.items() if "published" not in k}
    for name, solver in (shipped | {"SMC": SMC()}).items():
        if only and name not in only:
            continue
        # Every problem of SMC costs 256 walks.
        count = problems // 3 if name == "SMC" else problems
        some = problem.take(torch.arange(count))
        samples = solver(some, prior, num_samples=DRAWS, generator=seeded(3)).samples
        mean, se = summary(coverage(samples, x[:count], 0.9).tolist())
        ranks = sbc_ranks(samples, x[:count], generator=seeded(4)).flatten()
        counts = ranks.long().bincount(minlength=DRAWS + 1).tolist()
        yield {
            "table": "coverage",
            "case": "90 %",
            "solver": name,
            "problems": count,
            "coverage": mean,
            "se": se,
            "ranks": " ".join(map(str, counts)),
        }


def _label(axis: Any, points: list[tuple[float, float, str]]) -> None:
    """Write names beside points (x, y, name) of like x on logarithmic axes, none over another."""
    least = 0.0
    for x, y, name in sorted(points, key=lambda p: p[1]):
        least = max(y, 1.25 * least)
        left = x > 500 or x < 90  # where there is room
        axis.annotate(
            name,
            (x, y),
            (x / 1.15 if left else x * 1.15, least),
            fontsize=7,
            ha="right" if left else "left",
            va="center",
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "0.5", "shrinkA": 0},
        )


def draw_costs(rows: list[Row], path: Path) -> None:
    """Distance from the posterior against cost."""
    from matplotlib.figure import Figure

    shown = [r for r in rows if r.get("case") == "sigma 0.05" and r.get("KL of samples")]
    shown = [r for r in shown if float(str(r.get("forwards") or 0)) > 0]
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, with_vjps in zip(axes, (False, True), strict=True):
        points: list[tuple[float, float, str]] = []
        for r in shown:
            forwards, vjps, kl = (float(str(r[k])) for k in ("forwards", "vjps", "KL of samples"))
            points.append((forwards + with_vjps * vjps, kl, str(r["solver"])))
        costs = [cost for cost, _, _ in points]
        axis.loglog(costs, [kl for _, kl, _ in points], "o", color="#4477aa")
        axis.set_xlim(min(costs) / 2.5, max(costs) * 1.5)
        axis.set_xlabel("forwards + VJPs of a sample" if with_vjps else "forwards of a sample")
        for low, high in ((0, 90), (90, 150), (150, 500), (500, 1e4)):
            _label(axis, [point for point in points if low < point[0] <= high])
    axes[0].set_ylabel("KL from the posterior, 2000 samples")
    figure.savefig(path, dpi=120)


def draw_ranks(rows: list[Row], path: Path) -> None:
    """How often the truth has each rank among the samples, a histogram for each solver."""
    from matplotlib.figure import Figure

    ranked = {str(r["solver"]): str(r["ranks"]) for r in rows if r.get("ranks")}
    figure = Figure(figsize=(10, 6), layout="constrained")
    grid = figure.subplots(3, -(-len(ranked) // 3), sharex=True, sharey=True).flatten()
    for axis, (name, text) in zip(grid, ranked.items(), strict=False):
        counts = torch.tensor([float(n) for n in text.split()])
        axis.bar(range(len(counts)), counts / counts.sum(), width=1.0, color="#4477aa")
        axis.axhline(1 / len(counts), color="black", lw=0.8)
        axis.set_title(name, fontsize=9)
    for axis in grid[len(ranked) :]:
        axis.axis("off")
    figure.supxlabel(f"rank of the truth among {DRAWS} samples", fontsize=9)
    figure.supylabel("share of pixels", fontsize=9)
    figure.savefig(path, dpi=120)


def draw(rows: list[Row], folder: Path) -> None:
    """Draw what there are rows for."""
    if any(r["table"] == "1a" for r in rows):
        draw_costs(rows, folder / "truth.png")
    if any(r["table"] == "coverage" for r in rows):
        draw_ranks(rows, folder / "ranks.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore
    parser.add_argument("--out", type=Path, default=Path("truth"))
    parser.add_argument("--full", action="store_true", help="d = 800 too")
    parser.add_argument("--peers", action="store_true", help="deepinv and azula on 1a")
    parser.add_argument("--only", nargs="*", default=["1a", "1b", "1c", "1d", "coverage"])
    parser.add_argument("--sigmas", nargs="*", type=float, default=[0.01, 0.05, 0.2])
    parser.add_argument("--cells", nargs="*", type=_pair, help="of 1b, as 8,1 80,4")
    parser.add_argument("--rows", nargs="*", help="of all tables but 1d, by name")
    parser.add_argument("--replicates", type=int, default=20)
    parser.add_argument("--few", type=int, default=3, help="of the costly rows of 1b")
    parser.add_argument("--problems", type=int, default=200, help="of the coverage table")
    parser.add_argument("--draw", type=Path, help="draw the pictures of this CSV, and stop")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.draw:
        with options.draw.open(newline="") as file:
            draw([dict(row) for row in csv.DictReader(file)], options.out)
        return
    if options.cells is None:
        dimensions = (8, 80, 800) if options.full else (8, 80)
        options.cells = [(d, m) for d in dimensions for m in (1, 4)]
    names = options.only + ["peers"] * options.peers
    rows: list[Row] = []
    # Two processes of one thread each: the tensors are too small for threads to share.
    pool = ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,))
    with pool:
        for table in pool.map(partial(run_table, options=options), names):
            rows += table
            write(rows, options.out / "truth.csv")
    draw(rows, options.out)


def run_table(name: str, options: argparse.Namespace) -> list[Row]:
    """Run one table and print its rows as they come."""
    tables: dict[str, Callable[[], Iterable[Row]]] = {
        "1a": lambda: gaussian_rows(range(5000, 5010), options.sigmas, options.rows),
        "1b": lambda: mixture_rows(options.cells, options.replicates, options.few, options.rows),
        "1c": lambda: field_rows(options.rows),
        "1d": likelihood_rows,
        "pairs": lambda: pairs_rows(range(5000, 5010), options.rows),
        "coverage": lambda: coverage_rows(options.rows, problems=options.problems),
        "peers": _peers,
    }
    rows: list[Row] = []
    begin = time.process_time()
    for row in tables[name]():
        # of the processor, so that a busy machine does not count
        row["CPU seconds"] = time.process_time() - begin
        begin = time.process_time()
        rows.append(row)
        shown = [f"{k} {v:.3g}" if isinstance(v, float) else str(v) for k, v in row.items()]
        print("  ".join(shown), flush=True)
    return rows


def _peers() -> Iterable[Row]:
    from common.peers import peer_rows

    return peer_rows(range(5000, 5010))


def _pair(text: str) -> tuple[int, int]:
    d, m = text.split(",")
    return int(d), int(m)


def write(rows: list[Row], path: Path) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
