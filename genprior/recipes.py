"""From a folder of images to a trained prior, in one call that a YAML file can hold."""

from __future__ import annotations

import math
from typing import Any

from genprior.data import images
from genprior.priors.base import Prior
from genprior.priors.diffusion import Diffusion
from genprior.training import TrainingOptions, train

PIXELS = 64 * 64
"""Images up to this size get attention at the lowest resolution."""


def train_diffusion(
    data: str,
    out: str,
    *,
    size: int | None = None,
    channels: int | None = None,
    any_size: bool = False,
    steps: int = 20_000,
    batch_size: int = 64,
    network: dict[str, Any] | None = None,
    objective: dict[str, Any] | None = None,
    options: TrainingOptions | None = None,
    upscale: bool = False,
    skip_bad: bool = False,
    card: dict[str, Any] | None = None,
) -> Prior:
    """Train a diffusion prior on images; the same call again resumes.

    Args:
        data: Folder, tar, npz or npy array, idx file or torchvision data set name.
        out: Folder for prior.safetensors, checkpoints, sample grids and the loss curve.
        size: Side that images are cropped and resized to; None takes them as they are.
        channels: 1 or 3; None takes the images' own.
        any_size: Train on crops (`options.augment.crop`) a prior for images of any size.
        steps: Updates.
        batch_size: Images in each.
        network: Options of the U-Net; None chooses by the size.
        objective: 'kind' (edm, ddpm, flow) and its options.
        options: Learning rate, precision, devices, checkpoints and the rest.
        upscale: Enlarge images smaller than `size`.
        skip_bad: Leave out unreadable images instead of stopping.
        card: Plain data on the weights, kept in the file.
    """
    options = options if options is not None else TrainingOptions()
    if any_size and (options.augment is None or options.augment.crop is None):
        raise ValueError("any_size needs crops to train on: set options.augment.crop, as to 64")
    source = images(data, size=size, channels=channels, upscale=upscale, skip_bad=skip_bad)
    first = source[0]
    shape = (first.shape[0], None, None) if any_size else tuple(first.shape)
    prior = Diffusion.from_images(
        source,
        image_shape=shape,
        network=network if network is not None else default_network(shape),
        objective=objective,
    )
    about = {"data": str(data), "images": len(source), **(card or {})}
    trained = train(
        prior, source, out=out, steps=steps, batch_size=batch_size, options=options, card=about
    )
    return trained


def default_network(shape: tuple[int | None, ...]) -> dict[str, Any]:
    """Choose a network that two CPU cores train overnight: lowest resolution 7 to 16 pixels."""
    height, width = shape[1:]
    if height is None or width is None:
        return {"widths": [64, 96, 160], "blocks": [2, 2, 2]}
    levels = max(1, round(math.log2(min(height, width) / 14)) + 1)
    widths = [min(64 * 2**level, 256) for level in range(levels)]
    return {"widths": widths, "blocks": [2] * levels, "attention": height * width <= PIXELS}
