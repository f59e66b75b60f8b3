"""`genprior train diffusion`: from images to a trained prior; a YAML recipe holds the options."""

from __future__ import annotations

import math
from typing import Any

import torch

from genprior.data import Images
from genprior.priors.base import Prior
from genprior.priors.diffusion import Diffusion
from genprior.priors.files import read_header
from genprior.shell.source import Source
from genprior.training import TrainingOptions, train

ATTENTION = 64 * 64
"""Images up to so many pixels get attention at the lowest resolution."""


def train_diffusion(
    source: Source,
    options: TrainingOptions,
    *,
    out: str,
    steps: int = 20_000,
    batch_size: int = 64,
    any_size: bool = False,
    network: dict[str, Any] | None = None,
    objective: dict[str, Any] | None = None,
    half: bool = False,
    card: dict[str, Any] | None = None,
) -> Prior:
    """Train a diffusion prior on images; the same command again resumes.

    Args:
        source: The images.
        options: Learning rate, precision, devices, checkpoints and the rest.
        out: Folder for prior.safetensors, checkpoints, sample grids and the loss curve.
        steps: Updates.
        batch_size: Images in each update, over all devices together.
        any_size: Train on crops (augment.crop) a prior for images of any size.
        network: Options of the U-Net; None chooses by the size.
        objective: 'kind' (edm, ddpm or flow) and its options.
        half: Store the weights in half precision at the end.
        card: Plain data on the weights, kept in the file: data, licence, ...
    """
    if any_size and (options.augment is None or options.augment.crop is None):
        raise ValueError("any_size needs crops to train on: set augment.crop, as to 64")
    data = source.open()
    prior = build_diffusion(data, any_size=any_size, network=network, objective=objective)
    about = {"data": source.data, "images": len(data), **(card or {})}
    trained = train(
        prior, data, out=out, steps=steps, batch_size=batch_size, options=options, card=about
    )
    if half:
        path = f"{out}/prior.safetensors"
        trained.save(path, card=read_header(path)["card"], dtype=torch.float16)
    return trained


def build_diffusion(
    data: Images,
    *,
    any_size: bool = False,
    network: dict[str, Any] | None = None,
    objective: dict[str, Any] | None = None,
) -> Diffusion:
    """Build an untrained prior for a data set, with a network that fits its size."""
    first = data[0]
    shape = (first.shape[0], None, None) if any_size else tuple(first.shape)
    return Diffusion.from_images(
        data,
        image_shape=shape,
        network=network if network is not None else default_network(shape),
        objective=objective,
    )


def default_network(shape: tuple[int | None, ...]) -> dict[str, Any]:
    """Choose a network that CPU cores can train: its lowest resolution is 4 to 8 pixels."""
    height, width = shape[1:]
    if height is None or width is None:
        return {"widths": [64, 96, 160], "blocks": [2, 2, 2]}
    levels = max(1, round(math.log2(min(height, width) / 12)) + 1)
    widths = [min(48 * 2**level, 192) for level in range(levels)]
    return {"widths": widths, "blocks": [2] * levels, "attention": height * width <= ATTENTION}
