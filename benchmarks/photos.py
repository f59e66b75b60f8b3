"""Colour photos of 500x500: photos-diffusion against classical restoration.

    python benchmarks/photos.py --data KODAK --features MODELS --out photos

Four tasks: denoise (sigma 25/255), deblur (Gaussian of std 1.6, sigma .02), 80 % missing (sigma
.02), superres x2 (sigma .02). Ours is what the shell does: 4 samples in antithetic pairs by the
default solver. The classical methods are scikit-image's: total variation, Wiener, biharmonic
inpainting, bicubic enlarging; each with the best of a few settings on these very photos, so their
rows are optimistic. Feature distances are of the middle 256x256. Writes photos.csv, a table
(photos.md) and a picture of the first photo for each task.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common.features import load_features
from common.image_problems import Row, feature_scores, scores, summary, table
from skimage.restoration import denoise_tv_chambolle, inpaint_biharmonic, wiener
from skimage.transform import resize
from torch import Tensor

import genprior
from genprior.data import images, write_image
from genprior.operators import (
    Blur,
    Downsampling,
    GaussianNoise,
    Identity,
    Inpainting,
    LinearOperator,
    Problem,
    kernels,
    masks,
)
from genprior.priors import DenoisingPrior, Diffusion
from genprior.solve import default_solver

Shape = tuple[int, int, int]
Classical = Callable[[Problem], Tensor]

TASKS: dict[str, tuple[float, Callable[[Shape, torch.Generator], LinearOperator]]] = {
    "denoise": (25 / 255, lambda shape, g: Identity(shape)),
    "deblur": (0.02, lambda shape, g: Blur(kernels.gaussian(1.6), shape)),
    "80 % missing": (
        0.02,
        lambda shape, g: Inpainting(masks.random(shape[1:], missing=0.8, generator=g)),
    ),
    "superres x2": (0.02, lambda shape, g: Downsampling(2, shape)),
}
LOOK = 256
"""Side of the middle part that the feature network looks at."""

COLUMNS = (
    "task",
    "method",
    "PSNR of mean",
    "PSNR of sample",
    "SSIM of mean",
    "feature distance",
    "between samples",
    "feature distance of mean",
    "CRPS",
    "coverage 90 %",
    "residual / sigma",
    "forwards",
    "vjps",
    "seconds",
)


def to_array(y: Tensor) -> np.ndarray:
    return y[0].permute(1, 2, 0).double().numpy()


def to_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))).float()[None]


def tv(array: np.ndarray, weight: float) -> np.ndarray:
    return denoise_tv_chambolle(array, weight=weight, channel_axis=-1) if weight else array


def _wiener(balance: float) -> Classical:
    kernel = kernels.gaussian(1.6).numpy()

    def run(problem: Problem) -> Tensor:
        y = to_array(problem.y)
        restored = np.empty_like(y)
        for c in range(3):
            restored[..., c] = wiener(y[..., c], kernel, balance, clip=False)
        return to_tensor(restored)

    return run


def _biharmonic(weight: float) -> Classical:
    def run(problem: Problem) -> Tensor:
        assert problem.operator.observed is not None
        missing = ~problem.operator.observed[0, 0].numpy()
        filled = inpaint_biharmonic(to_array(problem.y), missing, channel_axis=-1)
        return to_tensor(tv(np.asarray(filled), weight))

    return run


def _bicubic(weight: float) -> Classical:
    def run(problem: Problem) -> Tensor:
        y = tv(to_array(problem.y), weight)
        size = (2 * y.shape[0], 2 * y.shape[1])
        return to_tensor(np.asarray(resize(y, size, order=3, mode="edge")))

    return run


CLASSICAL: dict[str, dict[str, dict[float, Classical]]] = {
    "denoise": {
        "total variation": {
            w: (lambda problem, w=w: to_tensor(tv(to_array(problem.y), w)))
            for w in (0.06, 0.07, 0.08, 0.09)
        }
    },
    "deblur": {"Wiener": {b: _wiener(b) for b in (0.003, 0.01, 0.03, 0.1)}},
    "80 % missing": {"biharmonic": {w: _biharmonic(w) for w in (0.0, 0.02)}},
    "superres x2": {"bicubic": {w: _bicubic(w) for w in (0.0, 0.01, 0.02)}},
}


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        prior = genprior.load(options.prior)
        assert isinstance(prior, DenoisingPrior)
        if options.bf16:
            assert isinstance(prior, Diffusion)
            prior.autocast = torch.bfloat16
        self.prior, self.options = prior, options
        photos = [x[None] for x in images(options.data, channels=3)]
        self.truths = photos[: options.count]
        self.network = load_features("vgg16", options.features)

    def problem(self, task: str, index: int) -> Problem:
        sigma, make = TASKS[task]
        x, generator = self.truths[index], torch.Generator().manual_seed(index)
        operator = make((3, x.shape[2], x.shape[3]), generator)
        return Problem.simulate(x, operator, GaussianNoise(sigma), generator=generator)

    def rows(self, task: str) -> Iterator[Row]:
        yield from self.classical(task)
        yield self.ours(task)

    def classical(self, task: str) -> Iterator[Row]:
        for method, settings in CLASSICAL[task].items():
            rows = []
            for setting, restore in settings.items():
                found, begin = [], time.perf_counter()
                for i, x in enumerate(self.truths):
                    problem = self.problem(task, i)
                    restored = restore(problem)
                    found.append(scores(restored[:, None], x, problem, None))
                seconds = (time.perf_counter() - begin) / len(self.truths)
                row = {"task": task, "method": method, "setting": setting, "seconds": seconds}
                rows.append(row | summary(_joined(found)))
            best = max(rows, key=lambda row: row["PSNR of mean"])
            restore = settings[best["setting"]]
            looks = [
                self.looks(restore(self.problem(task, i))[:, None], x)
                for i, x in enumerate(self.truths)
            ]
            yield best | summary(_joined(looks))

    def looks(
        self,
        samples: Tensor,
        x: Tensor,
        mean: Tensor | None = None,
        *,
        antithetic: bool = False,
    ) -> dict[str, Tensor]:
        """Feature distances of the middle of the photo."""
        top, left = (x.shape[2] - LOOK) // 2, (x.shape[3] - LOOK) // 2

        def middle(t: Tensor) -> Tensor:
            return t[..., top : top + LOOK, left : left + LOOK]

        mean = samples.mean(1) if mean is None else mean
        return feature_scores(
            self.network, middle(samples), middle(x), middle(mean), antithetic=antithetic
        )

    def ours(self, task: str) -> Row:
        found, spent = [], []
        for i, x in enumerate(self.truths):
            problem = self.problem(task, i)
            result = genprior.solve(
                problem,
                self.prior,
                solver=replace(default_solver(problem, self.prior), antithetic=True),
                num_samples=self.options.samples,
                generator=torch.Generator().manual_seed(i),
            )
            found.append(
                scores(result.samples, x, problem, None, mean=result.mean, antithetic=True)
                | self.looks(result.samples, x, result.mean, antithetic=True)
            )
            spent.append((result.forwards, result.vjps, result.seconds))
            if i == 0:
                y = problem.operator.pinv(problem.y)  # type: ignore[operator]
                parts = [x[0], y[0], result.mean[0], result.samples[0, 0]]
                name = task.replace(" ", "-").replace("%", "percent")
                path = self.options.out / f"{name}.png"
                write_image(path, torch.cat(parts, -1), force=True)
        forwards, vjps, seconds = (sum(s) / len(s) for s in zip(*spent, strict=True))
        row = {"task": task, "method": f"{self.options.prior}, {self.options.samples} samples"}
        row |= {"forwards": forwards, "vjps": vjps, "seconds": seconds}
        return row | summary(_joined(found))


def _joined(found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with the photos")
    parser.add_argument("--features", required=True, help="folder with the feature networks")
    parser.add_argument("--prior", default="photos-diffusion")
    parser.add_argument("--out", type=Path, default=Path("photos"))
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--bf16", action="store_true", help="the network in bfloat16")
    parser.add_argument("--count", type=int, default=None, help="of the photos")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    bench, rows = Bench(options), []
    for task in options.tasks:
        for row in bench.rows(task):
            rows.append(row)
            print(table([row], COLUMNS), flush=True)
            names = list(dict.fromkeys(name for row in rows for name in row))
            with (options.out / "photos.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, names)
                writer.writeheader()
                writer.writerows(rows)
            (options.out / "photos.md").write_text(table(rows, COLUMNS) + "\n")


if __name__ == "__main__":
    main()
