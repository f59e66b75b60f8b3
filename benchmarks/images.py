"""Every diffusion solver, and the peers', on real images with one trained network.

    python benchmarks/images.py mnist-diffusion --data MNIST --features MODELS --out images-mnist

Parts: `main`, six tasks at noise .05 (all solvers) and .01 (a few); `peers`, deepinv's and
azula's solvers with as many evaluations as the default takes; `sweep`, two tasks against the
number of steps; `pairs`, the default with independent samples and with antithetic pairs; `dps`,
two tasks with the best DPS of 1000 steps, both in pairs; `coverage`, the default with 19 samples;
`pictures`. Writes images.csv and a table (images.md). Images are test images; no
default was chosen on them. Scores are of images clipped and rounded to 8 bits, as the truth is.
SMC, whose particles cost 256 times as much, is left to truth.py.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from common.features import load_features
from common.image_peers import PEERS, peer_samples
from common.image_problems import SMALL_TASKS, Row, scores, small_task, summary, table
from torch import Tensor

import genprior
from genprior.data import images
from genprior.operators import GaussianNoise, Inpainting, Problem
from genprior.plots import grid
from genprior.priors import DenoisingPrior, Diffusion
from genprior.solve import default_solver
from genprior.solvers import (
    DAPS,
    DDNM,
    DDRM,
    DPS,
    MMPS,
    DiffPIR,
    PiGDM,
    REDDiff,
    RePaint,
    Result,
    Solver,
)

SOLVERS: dict[str, Solver] = {
    "MMPS": MMPS(),
    "PiGDM": PiGDM(),
    "DAPS": DAPS(),
    "DPS": DPS(),
    "DiffPIR": DiffPIR(),
    "DDRM": DDRM(),
    "DDNM": DDNM(),
    "RePaint": RePaint(),
    "REDDiff": REDDiff(),
}
FEW = ("MMPS", "DPS")
"""Solved at noise .01 too."""

SWEEP: dict[str, Callable[[int], Solver]] = {
    "MMPS": lambda n: MMPS(steps=n),
    "PiGDM": lambda n: PiGDM(steps=n),
    "DAPS": lambda n: DAPS(steps=n),
    "DPS": lambda n: DPS(steps=n),
    "DiffPIR": lambda n: DiffPIR(steps=n),
}
HARD = ("box", "deblur, motion")

BEST_DPS: dict[str, Solver] = {
    "DPS 1000, matched": DPS(steps=1000, antithetic=True),
    "DPS 1000, published .3": replace(DPS.published(zeta=0.3), antithetic=True),
    "DPS 1000, published 1": replace(DPS.published(zeta=1.0), antithetic=True),
}
COLUMNS = (
    "task",
    "sigma",
    "solver",
    "forwards",
    "vjps",
    "PSNR of mean",
    "PSNR of sample",
    "SSIM of mean",
    "CRPS",
    "feature distance",
    "between samples",
    "feature distance of mean",
    "coverage 90 %",
    "residual / sigma",
    "seconds a sample",
)


class Bench:
    """One prior and its test images."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.name, self.options = options.prior, options
        prior = genprior.load(options.prior)
        assert isinstance(prior, DenoisingPrior)
        if options.bf16:
            assert isinstance(prior, Diffusion)
            prior.autocast = torch.bfloat16
        self.prior, self.samples = prior, options.samples
        channels, height, width = prior.image_shape
        assert height is not None
        assert width is not None
        assert channels is not None
        self.shape = (channels, height, width)
        test = images(options.data, size=(height, width), channels=channels, split="test")
        self.test = test
        self.x = self.choose(options.images, seed=0)
        kind = "lenet" if channels == 1 else "vgg16"
        self.network = load_features(kind, options.features)

    def choose(self, count: int, *, seed: int) -> Tensor:
        """Test images, at most 100; no two seeds of 0 to 3 share one, be there only 400."""
        order = torch.randperm(len(self.test), generator=torch.Generator().manual_seed(99))
        return self.test.batch(order[100 * seed :][:count])

    def problem(self, task: str, sigma: float, x: Tensor, seed: int = 0) -> Problem:
        operator = small_task(task, self.shape, len(x), seed)
        generator = torch.Generator().manual_seed(seed + 1)
        return Problem.simulate(x, operator, GaussianNoise(sigma), generator=generator)

    def ours(
        self, label: str, solver: Solver, task: str, sigma: float, x: Tensor | None = None
    ) -> Row:
        x = self.x if x is None else x
        problem = self.problem(task, sigma, x)
        count = 1 if solver.point_estimate else self.samples
        generator = torch.Generator().manual_seed(2)
        result = solver(problem, self.prior, num_samples=count, generator=generator, batch_size=64)
        row = self.row(label, task, sigma, result.samples, x, problem, result)
        spent = {"forwards": result.forwards, "vjps": result.vjps}
        return row | spent | {"seconds a sample": result.seconds / (len(x) * count)}

    def peer(self, label: str, task: str, sigma: float, budget: int) -> Row:
        problem, begin = self.problem(task, sigma, self.x), time.perf_counter()
        samples, forwards, vjps = peer_samples(
            label, problem, self.prior, self.samples, budget=budget
        )
        seconds = (time.perf_counter() - begin) / (len(self.x) * self.samples)
        row = self.row(label, task, sigma, samples, self.x, problem)
        return row | {"forwards": forwards, "vjps": vjps, "seconds a sample": seconds}

    def row(
        self,
        label: str,
        task: str,
        sigma: float,
        samples: Tensor,
        x: Tensor,
        problem: Problem,
        result: Result | None = None,
    ) -> Row:
        found = scores(
            samples,
            x,
            problem,
            self.network,
            mean=result.mean if result else None,
            antithetic=result is not None and result.antithetic,
        )
        return {"prior": self.name, "task": task, "sigma": sigma, "solver": label} | summary(found)


def main_rows(bench: Bench) -> Iterable[Row]:
    for task in SMALL_TASKS:
        for sigma in (0.05, 0.01):
            problem = bench.problem(task, sigma, bench.x)
            default = default_solver(problem, bench.prior)
            chosen = {"default": default} | SOLVERS
            for label, solver in chosen.items():
                if label not in (bench.options.solvers or chosen):
                    continue
                inpainting = isinstance(problem.operator, Inpainting)
                if isinstance(solver, RePaint) and not inpainting:
                    continue
                if sigma == 0.05 or label in ("default", *FEW):
                    yield bench.ours(label, solver, task, sigma)


def peer_rows(bench: Bench) -> Iterable[Row]:
    for task in SMALL_TASKS:
        problem = bench.problem(task, 0.05, bench.x[:1])
        cost = default_solver(problem, bench.prior)(
            problem, bench.prior, generator=torch.Generator().manual_seed(0)
        )
        for label in PEERS:
            yield bench.peer(label, task, 0.05, round(cost.forwards + cost.vjps))


def sweep_rows(bench: Bench) -> Iterable[Row]:
    for task in HARD:
        for label, make in SWEEP.items():
            for steps in (10, 20, 50):
                yield bench.ours(label, make(steps), task, 0.05) | {"steps": steps}


def pairs_rows(bench: Bench) -> Iterable[Row]:
    """What antithetic pairs change; denoising has the exact mean anyway."""
    for task in SMALL_TASKS:
        default = default_solver(bench.problem(task, 0.05, bench.x), bench.prior)
        if isinstance(default, MMPS):
            yield bench.ours("default", default, task, 0.05)
            yield bench.ours("in pairs", replace(default, antithetic=True), task, 0.05)


def dps_rows(bench: Bench) -> Iterable[Row]:
    """The best of three DPS of 1000 steps, beside the default on the same images.

    Best by CRPS on four other images; both on eight, as a thousand steps take long. Samples of
    both are in antithetic pairs, so that the mean of four says what either method can.
    """
    for task in HARD:
        others, x = bench.choose(4, seed=1), bench.choose(8, seed=0)
        tried = {
            label: bench.ours(label, solver, task, 0.05, others)["CRPS"]
            for label, solver in BEST_DPS.items()
        }
        best = min(tried, key=lambda label: tried[label])
        yield bench.ours(best, BEST_DPS[best], task, 0.05, x)
        default = default_solver(bench.problem(task, 0.05, x), bench.prior)
        assert isinstance(default, MMPS)
        default = replace(default, antithetic=True)
        yield bench.ours("default", default, task, 0.05, x)


def coverage_rows(bench: Bench) -> Iterable[Row]:
    """The default with 19 samples, of which 90 % is a whole number of ranks."""
    x, bench.samples = bench.choose(8, seed=2), 19
    for task in SMALL_TASKS:
        solver = default_solver(bench.problem(task, 0.05, x[:1]), bench.prior)
        yield bench.ours("default", solver, task, 0.05, x)


def picture_rows(bench: Bench) -> Iterable[Row]:
    """A picture for each of two tasks: truth, measurement, then one sample of each method."""
    x, bench.samples = bench.choose(8, seed=0), 1
    for task in HARD:
        problem = bench.problem(task, 0.05, x)
        default = default_solver(problem, bench.prior)
        cost = default(problem.take(torch.tensor([0])), bench.prior)
        lines = {"truth": x, "measurement": problem.y}
        chosen = {"default": default, "DPS": DPS(), "DiffPIR": DiffPIR()}
        for label, solver in chosen.items():
            generator = torch.Generator().manual_seed(2)
            lines[label] = solver(problem, bench.prior, generator=generator).samples[:, 0]
        for label in ("deepinv DPS", "deepinv DiffPIR", "azula MMPS, 3 iterations"):
            budget = round(cost.forwards + cost.vjps)
            lines[label] = peer_samples(label, problem, bench.prior, 1, budget=budget)[0][:, 0]
        name = task.replace(",", "").replace(" ", "-")
        grid(torch.cat(list(lines.values())), columns=8, path=bench.options.out / f"{name}.png")
        yield {"part": "pictures", "task": task, "solver": f"rows: {', '.join(lines)}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prior")
    parser.add_argument("--data", required=True, help="folder with the test images")
    parser.add_argument("--features", required=True, help="folder with the feature networks")
    parser.add_argument("--out", type=Path, default=Path("images"))
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--bf16", action="store_true", help="the network in bfloat16")
    kinds = {
        "main": main_rows,
        "peers": peer_rows,
        "sweep": sweep_rows,
        "pairs": pairs_rows,
        "dps": dps_rows,
        "coverage": coverage_rows,
        "pictures": picture_rows,
    }
    parser.add_argument("--parts", nargs="+", choices=kinds, default=list(kinds))
    parser.add_argument("--solvers", nargs="+", help="of the main part: default, DPS, ...")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    bench, rows = Bench(options), []
    for part in options.parts:
        bench.samples = options.samples  # some parts take another number
        for row in kinds[part](bench):
            rows.append({"part": part} | row)
            print(
                {
                    k: round(v, 4) if isinstance(v, float) else v
                    for k, v in row.items()
                    if k in COLUMNS
                },
                flush=True,
            )
            _write(rows, options.out)


def _write(rows: list[Row], folder: Path) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "images.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    (folder / "images.md").write_text(table(rows, COLUMNS) + "\n")


if __name__ == "__main__":
    main()
