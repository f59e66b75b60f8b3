"""A hole in digits or cats filled with a GAN: by the mode, by chains, by particles.

    PYTHONPATH=benchmarks python benchmarks/details/priors/inversion.py mnist-gan --data MNIST \
        [--images 10] [--out inversion.csv]

A box of three sevenths of the side is missing, noise .05. Seen and hidden pixels are scored apart;
`represented` is the root mean square distance of an image to the nearest that the generator makes,
as LatentMAP finds it from the whole image without noise to speak of.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import genprior
from genprior import metrics
from genprior.data import images
from genprior.operators import GaussianNoise, Identity, Inpainting, Problem, masks
from genprior.priors import GAN
from genprior.solvers import AnnealedImportance, LatentMAP, LatentSampler, Solver

SOLVERS: dict[str, tuple[Solver, int]] = {
    "LatentMAP, 1 start": (LatentMAP(restarts=1), 1),
    "LatentMAP, 4 starts": (LatentMAP(restarts=4), 1),
    "LatentMAP, 4 starts, in w": (LatentMAP(restarts=4), 1),
    "LatentMAP, 4 starts, adapt 300": (LatentMAP(restarts=4, adapt=300), 1),
    "LatentSampler": (LatentSampler(), 16),
    "AnnealedImportance": (AnnealedImportance(), 16),
}
"""And how many samples are drawn; in w only where the generator has a mapping."""

SIGMA = 0.05


def scored(name: str, problem: Problem, prior: Any, x: Tensor, hidden: Tensor) -> dict[str, Any]:
    """Solve and score."""
    solver, samples = SOLVERS[name]
    generators = [torch.Generator().manual_seed(i) for i in range(len(x))]
    begin = time.perf_counter()
    found = solver(problem, prior, num_samples=samples, generator=generators)
    error = (found.mean - x).square()
    where = hidden.expand_as(x)
    row: dict[str, Any] = {
        "prior": "",
        "solver": name,
        "images": len(x),
        "RMSE seen": float(error[~where].mean().sqrt()),
        "RMSE hidden": float(error[where].mean().sqrt()),
        "residual": float(found.trace["residual"][-1].mean()),
        "converged": int(found.converged.sum()),
        "gradients": found.vjps,
        "seconds": time.perf_counter() - begin,
    }
    if samples > 1:
        inside = metrics.coverage(found.samples, x, level=0.8, where=where)
        row["coverage of 80 %"] = 100 * float(inside.mean())
        row["CRPS hidden"] = float(metrics.crps(found.samples, x, where=where).mean())
    return row


def main() -> None:
    """Print rows as they come, and write the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("prior")
    parser.add_argument("--data", required=True, help="folder with the test images")
    parser.add_argument("--images", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("inversion.csv"))
    given = parser.parse_args()
    prior = genprior.load(given.prior)
    channels, size, _ = prior.image_shape
    held = images(given.data, size=size, channels=channels, split="test")
    x = held.batch(range(given.images))
    height, width = x.shape[-2:]
    hidden = masks.box((height, width), size=3 * height // 7) == 0
    problem = Problem.simulate(
        x, Inpainting(~hidden), GaussianNoise(SIGMA), generator=torch.Generator().manual_seed(0)
    )
    whole = Problem(x, Identity(prior.image_shape), GaussianNoise(0.01))
    best = LatentMAP(restarts=8, prior_weight=0.0, decoder_variance=False)(
        whole, prior, generator=None
    ).mean
    represented = float((best - x).square().mean().sqrt())
    rows: list[dict[str, Any]] = []
    for name in SOLVERS:
        searched = prior
        if name.endswith("in w"):
            if not (isinstance(prior, GAN) and prior.network.get("mapping")):
                continue
            searched = prior.space("w")
        row = scored(name, problem, searched, x, hidden)
        row |= {"prior": given.prior, "represented": represented}
        rows.append({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})
        print(rows[-1], flush=True)
        with given.out.open("w", newline="") as file:
            names = list(dict.fromkeys(key for each in rows for key in each))
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
