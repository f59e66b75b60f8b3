"""`genprior train gaussian | mixture | texture`: the families that are fitted in closed form."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genprior.commands.outputs import refuse_existing
from genprior.commands.source import Source
from genprior.data import read_image
from genprior.priors import Gaussian, GaussianMixture, Prior, StationaryGaussian


@dataclass(frozen=True)
class Weights:
    """Where fitted weights go, and how they are stored.

    Attributes:
        out: Weights file (.safetensors), or a folder for prior.safetensors.
        half: Store the directions in half precision.
        int8: Store them as 8-bit integers, one scale each: half the size of `half`.
        card: Plain data on the weights, kept in the file: data, licence, ...
        force: Replace the file if it exists.
    """

    out: str
    half: bool = False
    int8: bool = False
    card: dict[str, Any] | None = None
    force: bool = False

    def __post_init__(self) -> None:
        refuse_existing([self.path], self.force)

    @property
    def path(self) -> Path:
        path = Path(self.out)
        return path if path.suffix == ".safetensors" else path / "prior.safetensors"

    def save(self, prior: Prior, start: float, **about: Any) -> None:
        """Write a prior whose fit began at `start`, of `time.perf_counter`."""
        card = {**about, "seconds": round(time.perf_counter() - start, 1), **(self.card or {})}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        dtype = torch.int8 if self.int8 else torch.float16 if self.half else None
        prior.save(self.path, card=card, dtype=dtype)
        size = self.path.stat().st_size / 1e6
        print(f"fitted in {card['seconds']} s; wrote {self.path} ({size:.1f} MB)")


def fit_gaussian(source: Source, weights: Weights, *, rank: int | None = None) -> None:
    """Fit a Gaussian (probabilistic principal component analysis) to images.

    Args:
        source: The images.
        weights: Where they go.
        rank: Principal directions kept; None picks the likeliest on held-out images.
    """
    data, start = source.open(), time.perf_counter()
    prior = Gaussian.fit(data, rank=rank)
    kept = {"rank": len(prior.factors), "residual": float(prior.residual)}
    weights.save(prior, start, data=source.data, images=len(data), **kept)


def fit_mixture(
    source: Source,
    weights: Weights,
    *,
    components: int,
    rank: int | None = None,
    iterations: int = 100,
    seed: int = 0,
) -> None:
    """Fit a mixture of Gaussians (of probabilistic PCA, with a rank) by EM.

    Args:
        source: The images.
        weights: Where they go.
        components: Number of Gaussians.
        rank: Principal directions of each; None for full covariances (small images only).
        iterations: At most so many steps of EM.
        seed: Of the k-means++ start.
    """
    data, start = source.open(), time.perf_counter()

    def report(step: int, value: float) -> None:
        if sys.stderr.isatty():
            print(f"\riteration {step + 1}: {value:.1f} nats per image", end="", file=sys.stderr)

    generator = torch.Generator().manual_seed(seed)
    prior = GaussianMixture.fit(
        data, components, rank=rank, generator=generator, iterations=iterations, callback=report
    )
    if sys.stderr.isatty():
        print(file=sys.stderr)
    kept = {"components": components, "rank": rank}
    weights.save(prior, start, data=source.data, images=len(data), **kept)


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
    weights = Weights(out, card=card, force=force)
    pixels, start = read_image(image), time.perf_counter()
    prior = StationaryGaussian.fit(pixels, residual=residual)
    weights.save(prior, start, data=image, images=1)
