"""Own photos: four tasks, and a hole that is too large
====================================================

The command::

    python examples/own_photo.py --out own-photo

writes own-photo.png (denoise, deblur, superres and inpaint, on photos that ship with scikit-image,
degraded by simulation), large-hole.png (the same cat with the same hole, filled by
photos-diffusion, which knows photos but no cats, and by cats64-gaussian, which knows nothing but
cats) and own-photo.csv with what was measured. ``--side 256`` draws them larger; time grows with
its square.

.. image:: /guides/pictures/own-photo.png
   :alt: four tasks on photos
"""

# sphinx_gallery_thumbnail_path = 'guides/pictures/own-photo.png'

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor

import genprior
from genprior import plots
from genprior.data import from_array
from genprior.data.files import write_atomically
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
from genprior.priors import Prior

SEED = 0

Measured = dict[str, object]
"""A row of own-photo.csv."""

LARGEST = 350_000
"""Bytes that a picture in a repository may take."""


def photo(name: str, side: int) -> Tensor:
    """Open one of scikit-image's photos, the middle of it, (1, 3, side, side)."""
    image = getattr(skimage.data, name)()
    if name == "astronaut":
        image = image[:300, 80:380]  # face and shuttle: at this size the whole has no detail
    return from_array(image, size=side)


def tasks(side: int) -> dict[str, tuple[Tensor, LinearOperator, float]]:
    """Make each task: the photo, what degrades it, the noise's std."""
    cat, woman, cup = (photo(name, side) for name in ("chelsea", "astronaut", "coffee"))
    shape = (3, side, side)
    scratches = masks.strokes(
        (side, side), number=12, width=side / 40, generator=torch.Generator().manual_seed(SEED)
    )
    return {
        "denoise": (cat, Identity(shape), 25 / 255),
        "deblur": (woman, Blur(kernels.motion(9.0, 30.0), shape), 0.01),
        "superres": (cup, Downsampling(2, shape), 0.01),
        "inpaint": (woman, Inpainting(scratches, image_shape=shape), 0.01),
    }


def restored(
    x: Tensor, operator: LinearOperator, sigma: float, prior: Prior, label: str, samples: int
) -> tuple[list[plots.Row], Measured]:
    """Degrade a photo, restore it, and make the row of a picture and of the table."""
    noise = GaussianNoise(sigma)
    problem = Problem.simulate(x, operator, noise, generator=torch.Generator().manual_seed(SEED))
    result = genprior.solve(
        problem, prior, num_samples=samples, generator=torch.Generator().manual_seed(SEED + 1)
    )
    psnr = genprior.metrics.psnr
    measured: Measured = {
        "row": label,
        "PSNR of mean": psnr(result.mean, x).item(),
        "PSNR of sample": psnr(result.samples[0], x).mean().item(),
    }
    if result.std is not None and operator.observed is not None:
        measured["std of missing"] = result.std[~operator.observed.expand_as(x)].mean().item()
    if isinstance(operator, Downsampling):
        measured["PSNR of Lanczos"] = psnr(_lanczos(problem.y, x.shape[-1]), x).item()
    print(measured, f"{result.seconds:.1f} s", flush=True)
    return plots.rows(result, problem, x, label=label), measured


def _lanczos(y: Tensor, side: int) -> Tensor:
    """Enlarge one photo (1, C, h, w) by interpolation, each channel."""
    size = side, side
    enlarged = [
        Image.fromarray(channel.numpy()).resize(size, Image.Resampling.LANCZOS) for channel in y[0]
    ]
    return torch.stack([torch.from_numpy(np.array(channel)) for channel in enlarged])[None]


def hole(side: int, prior: Prior, label: str) -> tuple[list[plots.Row], Measured]:
    """Hide an eye and half the face of the cat that the demo shows, at any size."""
    x = from_array(skimage.data.chelsea()[:, 95:395], size=side)
    place = (side * 14 // 64, side * 30 // 64)
    mask = masks.box((side, side), size=side // 2, position=place)
    return restored(x, Inpainting(mask, image_shape=(3, side, side)), 0.02, prior, label, 4)


def save(found: list[tuple[list[plots.Row], Measured]], path: Path, samples: int) -> None:
    """Draw rows into a PNG; one that takes too much room gets 256 colours, then fewer pixels."""
    buffer = io.BytesIO()
    lines = [line for lines, _ in found for line in lines]
    plots.draw(lines, path=buffer, samples=samples)  # pyright: ignore[reportArgumentType]
    picture = Image.open(buffer).convert("RGB")
    content = _encoded(picture)
    for scale in (1.0, 0.85, 0.7, 0.6, 0.5):
        if len(content) <= LARGEST:
            break
        size = round(scale * picture.width), round(scale * picture.height)
        content = _encoded(picture.resize(size, Image.Resampling.LANCZOS).quantize(256))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    print(f"wrote {path}, {len(content) / 1e3:.0f} kB", flush=True)


def _encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("own-photo"))
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--only", choices=["tasks", "hole"])
    options = parser.parse_args()
    photos, table = genprior.load("photos-diffusion"), []
    if options.only != "tasks":
        cats = genprior.load("cats64-gaussian")
        found = [hole(options.side, photos, "photos-diffusion"), hole(64, cats, "cats64-gaussian")]
        save(found, options.out / "large-hole.png", 2)
        table += [measured for _, measured in found]
    if options.only != "hole":
        found = [
            restored(x, operator, sigma, photos, label, options.samples)
            for label, (x, operator, sigma) in tasks(options.side).items()
        ]
        save(found, options.out / "own-photo.png", 1)
        table += [measured for _, measured in found]
    with (options.out / "own-photo.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(key for row in table for key in row))
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main()
