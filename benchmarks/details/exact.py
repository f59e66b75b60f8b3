"""Exact posteriors: what they cost, and whether their intervals cover what they should.

    python benchmarks/details/exact.py [--out FOLDER]

Prints a table and writes exact.csv. Times are of the clock and, in brackets, of the processor.
Memory is what a call adds to the peak of the process.
"""

from __future__ import annotations

import argparse
import csv
import resource
import time
from collections.abc import Callable
from pathlib import Path

import skimage.data
import torch

import genprior
from genprior import metrics
from genprior.operators import GaussianNoise, Inpainting, Problem, masks
from genprior.priors import Prior, StationaryGaussian

Row = tuple[str, str, str]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(run: Callable[[], object]) -> tuple[str, float]:
    """Return times in words, and megabytes that a call added to the process's peak."""
    before, clock, processor = peak_megabytes(), time.perf_counter(), time.process_time()
    run()
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    return f"{clock:.2f} s ({processor:.2f})", peak_megabytes() - before


def many_masks(prior: Prior) -> list[Row]:
    """64 images under 64 different masks, 8 samples each, with exact mean and std."""
    x = prior.sample(64, generator=seeded(0))
    kinds = {
        "box of 24": masks.box((64, 64), size=24, count=64, generator=seeded(1)),
        "random half": masks.random((64, 64), missing=0.5, count=64, generator=seeded(1)),
    }
    rows: list[Row] = []
    for kind, mask in kinds.items():
        problem = Problem.simulate(x, Inpainting(mask), GaussianNoise(0.05), generator=seeded(2))
        seconds, megabytes = timed(
            lambda: genprior.solve(problem, prior, num_samples=8, generator=seeded(3))  # noqa: B023
        )
        name = f"cats64-gaussian, 64 masks ({kind}), 8 samples"
        rows += [(name, seconds, "< 5 s")]
        rows += [(f"{name}, memory", f"{megabytes:.0f} MB", "< 2000 MB")]
    return rows


def coverage(prior: Prior, count: int) -> list[str]:
    """Share of missing pixels inside 50 and 90 % intervals: mean, standard error by problem."""
    x = prior.sample(count, generator=seeded(4))
    size = (x.shape[-2], x.shape[-1])
    mask = masks.random(size, missing=0.5, count=count, generator=seeded(5))
    problem = Problem.simulate(x, Inpainting(mask), GaussianNoise(0.05), generator=seeded(6))
    result = genprior.solve(problem, prior, num_samples=39, generator=seeded(7), batch_size=2000)
    texts = []
    for level in (0.5, 0.9):
        held = metrics.coverage(result.samples, x, level, where=~mask)
        error = held.std() / count**0.5
        texts.append(f"{100 * held.mean():.2f} +- {100 * error:.2f} %")
    return texts


def textures() -> list[Row]:
    brick = torch.from_numpy(skimage.data.brick())[None].float() / 255
    prior = StationaryGaussian.fit(brick)
    seconds, _ = timed(lambda: prior.sample(1, size=(1024, 1024), generator=seeded(8)))
    rows = [("texture 1024x1024", seconds, "< 1 s")]
    small = StationaryGaussian.fit(brick[:, :256, :256], residual=0.01)
    hole = Inpainting(masks.box((256, 256), size=64))
    problem = Problem.simulate(brick[None, :, :256, :256], hole, GaussianNoise(0.01))
    seconds, _ = timed(lambda: genprior.solve(problem, small, num_samples=1))
    return [*rows, ("64x64 hole in 256x256 texture", seconds, "< 10 s")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results"))
    out = parser.parse_args().out
    rows = many_masks(genprior.load("cats64-gaussian"))
    rows += textures()
    for name in ("mnist-gaussian", "mnist-mixture"):
        half, ninety = coverage(genprior.load(name), 500)
        rows += [(f"{name}, 50 % intervals, 500 problems", half, "50 %")]
        rows += [(f"{name}, 90 % intervals, 500 problems", ninety, "90 %")]
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "exact.csv", "w", newline="") as file:
        csv.writer(file).writerows([("what", "measured", "wanted"), *rows])
    for what, measured, wanted in rows:
        print(f"{what:56} {measured:18} {wanted}")


if __name__ == "__main__":
    main()
