"""The default on images that chose nothing, beside DPS and plain MMPS: a CSV.

    python benchmarks/details/default.py --mnist F --fashion F --cats F --photos KODAK
                                         [--out docs/results/images/default.csv] [--only cats]

Digits, fashion (12x12 of 28x28 missing in the middle) and cats (13x13 of 32x32), noise .05, 24
test images, 8 samples each; photos: the middle 128x128 of four, noise .02, blurred by a Gaussian
of std 1.5 or shrunk by 2, 4 samples. Images are numbers 400 to 423 of the test images in the
order that images.py takes them from (it takes from the first 400, and so did all choices), less
those that lie among the first 100 of the file. Samples are independent.

"DPS 100, fixed step" is DPS as it was before its step followed the residual: the paper's step of
one length, of the length that its likelihood expects.

Columns: CRPS in thousandths, of the hole where there is one; `default_less` the default's CRPS
minus this row's, paired, with standard error over images, and `ratio` of the two; the share of
pixels that lie within the range of the samples, of 8-bit images without what is black in all
(ties are broken at random), which should be `range_should`; `range_raw` the same of samples as
they come and every pixel. Rows of other cases that the CSV has already are kept.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import genprior
from genprior.data import images
from genprior.metrics import coverage, crps, psnr
from genprior.operators import (
    Blur,
    Downsampling,
    GaussianNoise,
    Inpainting,
    LinearOperator,
    Problem,
    kernels,
    masks,
)
from genprior.operators.random import spawn
from genprior.priors import DenoisingPrior
from genprior.solve import default_solver
from genprior.solvers import DPS, MMPS, Solver
from genprior.solvers.walk.state import Walk

Row = dict[str, Any]

PHOTOS = ("kodim05", "kodim10", "kodim16", "kodim20")
CROP = 128


class FixedStep(DPS):
    """DPS whose step has the length that the likelihood expects, however well x0 fits."""

    def _zeta(self, walk: Walk, sigma: Tensor, lower: Tensor, norm: Tensor, a: Tensor) -> Tensor:
        variance = walk.sigma_y**2 + a * walk.uncertainty(sigma)
        return (walk.problem.observed_count / variance).sqrt() * (sigma**2 - lower**2)


SOLVERS: dict[str, Solver | None] = {
    "default": None,
    "MMPS 20": MMPS(),
    "DPS 100": DPS(steps=100),
    "DPS 100, fixed step": FixedStep(steps=100),
}


@dataclass(frozen=True)
class Case:
    """A prior, its images and what is done to them."""

    prior: str
    source: str
    operator: partial[LinearOperator]
    sigma: float = 0.05
    samples: int = 8
    solvers: tuple[str, ...] = tuple(SOLVERS)


def hole(side: int, size: int) -> Inpainting:
    return Inpainting(masks.box((size, size), size=side), image_shape=(None, size, size))


def blurred(shape: tuple[int, int, int]) -> Blur:
    return Blur(kernels.gaussian(1.5), shape)


COLOUR = (3, CROP, CROP)
FEW = ("default", "MMPS 20")
CASES = {
    "digits": Case("mnist-diffusion", "mnist", partial(hole, 12, 28)),
    "fashion": Case(
        "fashion-diffusion", "fashion", partial(hole, 12, 28), solvers=(*FEW, "DPS 100")
    ),
    "cats": Case("cats32-diffusion", "cats", partial(hole, 13, 32), solvers=FEW),
    "photos, x2": Case(
        "photos-diffusion", "photos", partial(Downsampling, 2, COLOUR), 0.02, 4, FEW
    ),
    "photos, blur": Case("photos-diffusion", "photos", partial(blurred, COLOUR), 0.02, 4, FEW),
}


def kept_apart(source: str, prior: DenoisingPrior, count: int) -> tuple[Tensor, list[int]]:
    """Test images (count, C, H, W) and their numbers in the file."""
    channels, height, width = prior.image_shape
    assert height is not None
    assert width is not None
    test = images(source, size=(height, width), channels=channels, split="test")
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(99))[400:]
    numbers = order[order >= 100][:count]
    return test.batch(numbers), numbers.tolist()


def crops(folder: str) -> tuple[Tensor, list[str]]:
    """The middle of four photos."""
    photos = [images(f"{folder}/{name}.png", channels=3)[0] for name in PHOTOS]
    middle = [[(side - CROP) // 2 for side in photo.shape[1:]] for photo in photos]
    cut = [p[:, a : a + CROP, b : b + CROP] for p, (a, b) in zip(photos, middle, strict=True)]
    return torch.stack(cut), list(PHOTOS)


def scores(samples: Tensor, truth: Tensor, where: Tensor) -> dict[str, Tensor]:
    """Scores of samples (B, S, C, H, W) at the pixels `where`, each (B,)."""
    count, seen = samples.shape[1], (samples.clamp(0, 1) * 255).round() / 255
    values = torch.cat([seen, truth[:, None]], 1)
    vary = (values.amax(1) > values.amin(1)) & where
    held = (samples.amin(1) <= truth) & (truth <= samples.amax(1))
    inside = where.expand_as(truth).flatten(1)
    return {
        "crps": 1000 * crps(seen, truth, where=where),
        "range": coverage(seen, truth, (count - 1) / (count + 1), where=vary),
        "range_raw": (held.flatten(1) & inside).sum(1) / inside.sum(1),
        "psnr": psnr(seen.mean(1), truth),
    }


def rows(name: str, case: Case, folders: dict[str, str], count: int) -> Iterator[Row]:
    """One row a solver."""
    prior = genprior.load(case.prior)
    assert isinstance(prior, DenoisingPrior)
    if case.source == "photos":
        truth, numbers = crops(folders["photos"])
    else:
        truth, numbers = kept_apart(folders[case.source], prior, count)
    print(f"{name}: images {numbers}", flush=True)
    operator = case.operator()
    noise = GaussianNoise(case.sigma)
    problem = Problem.simulate(
        truth, operator, noise, generator=torch.Generator().manual_seed(4001)
    )
    observed = operator.observed
    where = torch.ones(1, 1, 1, dtype=torch.bool) if observed is None else ~observed
    first: Tensor | None = None
    for label in case.solvers:
        solver = SOLVERS[label] or default_solver(problem, prior)
        result = solver(
            problem,
            prior,
            num_samples=case.samples,
            generator=spawn(torch.Generator().manual_seed(4002), len(truth)),
            batch_size=64,
        )
        found = scores(result.samples, truth, where)
        mine = found["crps"]
        first = mine if first is None else first
        ratio = float(first.mean() / mine.mean())
        error = math.sqrt(len(mine))
        yield {
            "case": name,
            "solver": label,
            "images": len(truth),
            "samples": case.samples,
            "forwards": result.forwards,
            "vjps": result.vjps,
            "crps": float(mine.mean()),
            "crps_se": float(mine.std() / error),
            "default_less": float((first - mine).mean()),
            "default_less_se": float((first - mine).std() / error),
            "ratio": ratio,
            "ratio_se": float((first - ratio * mine).std() / mine.mean() / error),
            "range": float(found["range"].mean()),
            "range_se": float(found["range"].std() / error),
            "range_should": (case.samples - 1) / (case.samples + 1),
            "range_raw": float(found["range_raw"].mean()),
            "psnr": float(found["psnr"].mean()),
            "psnr_se": float(found["psnr"].std() / error),
            "converged": int(result.converged.sum()),
            "seconds": result.seconds,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    sources = list(dict.fromkeys(case.source for case in CASES.values()))
    for source in sources:
        parser.add_argument(f"--{source}", default=None, help="folder; cases without are left out")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--samples", type=int, default=None, help="an image; else the case's")
    parser.add_argument("--out", type=Path, default=None, help="CSV to write")
    options = parser.parse_args()
    folders = {source: vars(options)[source] for source in sources}
    for name in options.only:
        if folders[CASES[name].source] is None:
            continue
        case = CASES[name]
        case = replace(case, samples=options.samples or case.samples)
        table = []
        for row in rows(name, case, folders, options.images):
            table.append({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})
            print(" | ".join(map(str, table[-1].values())), flush=True)
        if options.out is not None:
            write(options.out, table)


def write(path: Path, table: list[Row]) -> None:
    """Put the rows of a case in the place of those that are there."""
    before: list[Row] = []
    if path.exists():
        with path.open(newline="") as file:
            before = [row for row in csv.DictReader(file) if row["case"] != table[0]["case"]]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(before + table)


if __name__ == "__main__":
    main()
