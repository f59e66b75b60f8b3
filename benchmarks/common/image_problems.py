"""The tasks of the image benchmarks, and how an answer is scored."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from common.features import VGG16, Features
from torch import Tensor

from genprior.metrics import coverage, crps, psnr, ssim
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
from genprior.solvers.result import independent_sets

Row = dict[str, Any]


def small_task(name: str, shape: tuple[int, int, int], count: int, seed: int) -> LinearOperator:
    """Make a task for images of 28 or 32 pixels; masks are drawn for each image."""
    size, generator = (shape[1], shape[2]), torch.Generator().manual_seed(seed)
    if name == "box":
        side = round(0.4 * shape[1])
        return Inpainting(masks.box(size, size=side, generator=generator, count=count))
    if name == "random 92 %":
        return Inpainting(masks.random(size, missing=0.92, generator=generator, count=count))
    return {
        "deblur, gaussian": lambda: Blur(kernels.gaussian(1.5), shape),
        "deblur, motion": lambda: Blur(kernels.motion(9, 30.0), shape),
        "superres x4": lambda: Downsampling(4, shape),
        "denoise": lambda: Identity(shape),
    }[name]()


SMALL_TASKS = (
    "box",
    "random 92 %",
    "deblur, gaussian",
    "deblur, motion",
    "superres x4",
    "denoise",
)


def as_seen(x: Tensor) -> Tensor:
    """Round to the 256 levels that the truth has, so that black is black and ties are ties."""
    return (x.clamp(0, 1) * 255).round() / 255


def feature_distance(network: Features, x: Tensor, truth: Tensor) -> Tensor:
    """How far images look from the truth to a network, (B,).

    VGG-16: squared differences of unit-length activations, summed over layers, not weighted (its
    weights were fine-tuned for edges: no LPIPS). LeNet: |f(x) - f(truth)|^2 / |f(truth)|^2.
    """
    if isinstance(network, VGG16):
        return network.distance(x, truth)
    a, b = network(x), network(truth)
    return (a - b).square().sum(1) / b.square().sum(1)


def scores(
    samples: Tensor,
    truth: Tensor,
    problem: Problem,
    network: Features | None,
    *,
    mean: Tensor | None = None,
    antithetic: bool = False,
) -> dict[str, Tensor]:
    """Score samples (B, S, C, H, W), each score (B,); all but the residual on 8-bit images.

    `mean` (B, C, H, W) is that of the Result; that of the samples if None. What asks for
    independent samples gets one of each antithetic pair, then the others.
    """
    batch, count = samples.shape[:2]
    seen = as_seen(samples)
    mean = (samples.mean(1) if mean is None else mean).clamp(0, 1)
    repeated = truth.repeat_interleave(count, 0)
    index = torch.arange(batch).repeat_interleave(count)

    def per_image(values: Tensor) -> Tensor:
        return values.reshape(batch, count).double().mean(1)

    residual = problem.take(index).residual(samples.flatten(0, 1)).flatten(1)
    observed = problem.operator.observed
    entries = residual[0].numel() if observed is None else 0
    if observed is not None:
        entries = torch.broadcast_to(observed, problem.y.shape).flatten(1).sum(1)[index]
    assert isinstance(problem.noise, GaussianNoise)
    size = (residual.square().sum(1) / entries).sqrt() / torch.as_tensor(problem.noise.sigma)
    found = {
        "PSNR of mean": psnr(mean, truth),
        "PSNR of sample": per_image(psnr(seen.flatten(0, 1), repeated)),
        "SSIM of mean": ssim(mean, truth),
        "residual / sigma": per_image(size),
    }
    if count > 1:
        # where truth and samples are all equal, as on black paper, there is nothing to cover
        values = torch.cat([seen, truth[:, None]], 1)
        vary = values.amax(1) > values.amin(1)
        sets = independent_sets(seen, antithetic)
        found["CRPS"] = torch.stack([crps(some, truth) for some in sets]).mean(0)
        held = [coverage(some, truth, 0.9, where=vary) for some in sets]
        found["coverage 90 %"] = torch.stack(held).mean(0)
    if network is not None:
        found |= feature_scores(network, samples, truth, mean, antithetic=antithetic)
    return found


def feature_scores(
    network: Features,
    samples: Tensor,
    truth: Tensor,
    mean: Tensor,
    *,
    antithetic: bool = False,
) -> dict[str, Tensor]:
    """Score how far samples (B, S, C, H, W) and their mean look from the truth, each (B,)."""
    batch, count = samples.shape[:2]
    seen = as_seen(samples)

    def per_image(others: Tensor) -> Tensor:
        distances = feature_distance(network, seen.flatten(0, 1), others)
        return distances.reshape(batch, count).double().mean(1)

    found = {"feature distance": per_image(truth.repeat_interleave(count, 0))}
    if count > 1:
        found["feature distance of mean"] = feature_distance(network, mean.clamp(0, 1), truth)
        # of a right posterior the truth is one more sample: as far from one as they lie apart
        others = seen.roll(2 if antithetic else 1, dims=1)
        found["between samples"] = per_image(others.flatten(0, 1))
    else:
        found["feature distance of mean"] = found["feature distance"]
    return found


def summary(found: dict[str, Tensor]) -> Row:
    """Mean over images of each score, and its standard error."""
    row: Row = {}
    for name, values in found.items():
        row[name] = float(values.mean())
        row[f"{name}, se"] = float(values.std() / math.sqrt(len(values)))
    return row


def table(rows: Iterable[Row], columns: Iterable[str]) -> str:
    """Write rows as the docs' table."""
    columns = list(columns)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [row.get(c, "") for c in columns]
        lines.append(
            "| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |"
        )
    return "\n".join(lines)
