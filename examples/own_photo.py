"""Own photos: the four tasks with photos-diffusion, and a hole that is too large for it.

    python examples/own_photo.py --out docs

writes own-photo.png (denoise, deblur, superres and inpaint, on photos that ship with scikit-image,
degraded by simulation) and large-hole.png (the same cat with the same hole, filled by
photos-diffusion, which knows photos but no cats, and by cats64-gaussian, which knows nothing but
cats). `--side 256` draws them larger; time grows with its square.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

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
) -> list[plots.Row]:
    """Degrade a photo, restore it, and make the row of a picture."""
    noise = GaussianNoise(sigma)
    problem = Problem.simulate(x, operator, noise, generator=torch.Generator().manual_seed(SEED))
    result = genprior.solve(
        problem, prior, num_samples=samples, generator=torch.Generator().manual_seed(SEED + 1)
    )
    value = genprior.metrics.psnr(result.mean, x).item()
    print(f"{label:12} {value:6.2f} dB of the mean, {result.seconds:.1f} s", flush=True)
    return plots.rows(result, problem, x, label=label)


def hole(side: int, prior: Prior, label: str) -> list[plots.Row]:
    """Hide an eye and half the face of the cat that the demo shows, at any size."""
    x = from_array(skimage.data.chelsea()[:, 95:395], size=side)
    place = (side * 14 // 64, side * 30 // 64)
    mask = masks.box((side, side), size=side // 2, position=place)
    return restored(x, Inpainting(mask, image_shape=(3, side, side)), 0.02, prior, label, 4)


def save(lines: list[plots.Row], path: Path, samples: int) -> None:
    """Draw rows into a PNG; one that takes too much room gets 256 colours, then fewer pixels."""
    buffer = io.BytesIO()
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
    photos = genprior.load("photos-diffusion")
    if options.only != "tasks":
        lines = hole(options.side, photos, "photos-diffusion")
        lines += hole(64, genprior.load("cats64-gaussian"), "cats64-gaussian")
        save(lines, options.out / "large-hole.png", 2)
    if options.only != "hole":
        lines = []
        for label, (x, operator, sigma) in tasks(options.side).items():
            lines += restored(x, operator, sigma, photos, label, options.samples)
        save(lines, options.out / "own-photo.png", 1)


if __name__ == "__main__":
    main()
