"""`genprior train gaussian | mixture | texture`: the families that are fitted in closed form."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from genprior.commands.outputs import refuse_existing
from genprior.commands.source import Source
from genprior.data import read_image
from genprior.priors import Gaussian, GaussianMixture, Prior, StationaryGaussian


def fit_gaussian(
    source: Source,
    *,
    out: str,
    rank: int | None = None,
    half: bool = False,
    int8: bool = False,
    card: dict[str, Any] | None = None,
    force: bool = False,
) -> None:
    """Fit a Gaussian (probabilistic principal component analysis) to images.

    Args:
        source: The images.
        out: Weights file (.safetensors), or a folder for prior.safetensors.
        rank: Principal directions kept; None picks the likeliest on held-out images.
        half: Store the directions in half precision.
        int8: Store them as 8-bit integers, one scale each: half the size of `half`.
        card: Plain data on the weights, kept in the file: data, licence, ...
        force: Replace the file if it exists.
    """
    path = _weights_path(out, force)
    data = source.open()
    start = time.perf_counter()
    prior = Gaussian.fit(data, rank=rank)
    about = {"rank": len(prior.factors), "residual": float(prior.residual)}
    about = {"data": source.data, "images": len(data), **about}
    _save(prior, path, start, _stored(half, int8), about, card)


def fit_mixture(
    source: Source,
    *,
    out: str,
    components: int,
    rank: int | None = None,
    iterations: int = 100,
    seed: int = 0,
    half: bool = False,
    int8: bool = False,
    card: dict[str, Any] | None = None,
    force: bool = False,
) -> None:
    """Fit a mixture of Gaussians (of probabilistic PCA, with a rank) by EM.

    Args:
        source: The images.
        out: Weights file (.safetensors), or a folder for prior.safetensors.
        components: Number of Gaussians.
        rank: Principal directions of each; None for full covariances (small images only).
        iterations: At most so many steps of EM.
        seed: Of the k-means++ start.
        half: Store the directions in half precision.
        int8: Store them as 8-bit integers, one scale each: half the size of `half`.
        card: Plain data on the weights, kept in the file: data, licence, ...
        force: Replace the file if it exists.
    """
    path = _weights_path(out, force)
    data = source.open()
    start = time.perf_counter()

    def report(step: int, value: float) -> None:
        if sys.stderr.isatty():
            print(f"\riteration {step + 1}: {value:.1f} nats per image", end="", file=sys.stderr)

    prior = GaussianMixture.fit(
        data,
        components,
        rank=rank,
        generator=torch.Generator().manual_seed(seed),
        iterations=iterations,
        callback=report,
    )
    if sys.stderr.isatty():
        print(file=sys.stderr)
    about = {"data": source.data, "images": len(data), "components": components, "rank": rank}
    _save(prior, path, start, _stored(half, int8), about, card)


def fit_texture(
    image: str,
    *,
    out: str,
    residual: float = 0.0,
    card: dict[str, Any] | None = None,
    force: bool = False,
) -> None:
    """Fit a stationary Gaussian texture to one image.

    Args:
        image: The image file.
        out: Weights file (.safetensors), or a folder for prior.safetensors.
        residual: Std of white noise on top; > 0 gives the texture a density.
        card: Plain data on the weights, kept in the file: data, licence, ...
        force: Replace the file if it exists.
    """
    path = _weights_path(out, force)
    pixels = read_image(image)
    start = time.perf_counter()
    prior = StationaryGaussian.fit(pixels, residual=residual)
    _save(prior, path, start, None, {"data": image, "images": 1}, card)


def _weights_path(out: str, force: bool) -> Path:
    path = Path(out)
    path = path if path.suffix == ".safetensors" else path / "prior.safetensors"
    refuse_existing([path], force)
    return path


def _stored(half: bool, int8: bool) -> torch.dtype | None:
    return torch.int8 if int8 else torch.float16 if half else None


def _save(
    prior: Prior,
    path: Path,
    start: float,
    dtype: torch.dtype | None,
    about: dict[str, Any],
    card: dict[str, Any] | None,
) -> None:
    about = {**about, "seconds": round(time.perf_counter() - start, 1), **(card or {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    prior.save(path, card=about, dtype=dtype)
    print(f"fitted in {about['seconds']} s; wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
