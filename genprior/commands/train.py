"""`genprior train diffusion | vae | hvae | autoencoder`: from images to a trained prior.

A YAML recipe may hold the options; those in pretrained/recipes made the priors that are shipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from genprior.commands.run import Run
from genprior.commands.source import Source
from genprior.pretrained import card
from genprior.priors import VAE, Autoencoder, HierarchicalVAE, Prior
from genprior.priors.diffusion.diffusion import Diffusion
from genprior.training import TrainingOptions

ATTENTION = 64 * 64
"""Images up to so many pixels get attention at the lowest resolution."""


def train_diffusion(
    source: Source,
    run: Run,
    options: TrainingOptions,
    *,
    any_size: bool = False,
    network: dict[str, Any] | None = None,
    objective: dict[str, Any] | None = None,
) -> Prior:
    """Train a diffusion prior on images; the same command again resumes.

    Args:
        source: The images.
        run: Length and place.
        options: Learning rate, precision, devices, checkpoints and the rest.
        any_size: Train on crops (augment.crop) a prior for images of any size.
        network: Options of the U-Net; None takes those of `start`, or chooses by the size.
        objective: 'kind' (edm, ddpm or flow) and its options.
    """
    if any_size and (options.augment is None or options.augment.crop is None):
        raise ValueError("any_size needs crops to train on: set augment.crop, as to 64")
    data = source.open()
    first = data[0]
    shape = (first.shape[0], None, None) if any_size else tuple(first.shape)
    if network is None and run.start is not None:
        known = card(run.start)["config"].get("network", {})
        network = {key: value for key, value in known.items() if key != "channels"} or None
    prior = Diffusion.from_images(
        data,
        image_shape=shape,
        network=network if network is not None else default_network(shape),
        objective=objective,
    )
    return run.train(prior, data, source, options)


def default_network(shape: tuple[int | None, ...]) -> dict[str, Any]:
    """Choose a network that CPU cores can train: its lowest resolution is 4 to 8 pixels."""
    height, width = shape[1:]
    if height is None or width is None:
        return {"widths": [64, 96, 160], "blocks": [2, 2, 2]}
    levels = max(1, round(math.log2(min(height, width) / 12)) + 1)
    widths = [min(48 * 2**level, 192) for level in range(levels)]
    return {"widths": widths, "blocks": [2] * levels, "attention": height * width <= ATTENTION}


def train_vae(
    source: Source,
    run: Run,
    options: TrainingOptions,
    *,
    latent_size: int = 20,
    network: dict[str, Any] | None = None,
    pixels: dict[str, Any] | None = None,
    bound: dict[str, Any] | None = None,
) -> Prior:
    """Train a VAE on images; the same command again resumes.

    Args:
        source: The images.
        run: Length and place.
        options: Learning rate, precision, devices, checkpoints and the rest.
        latent_size: Length of the latent.
        network: 'kind' (perceptron or convolutional) and its options; CSGM's if None.
        pixels: 'kind' (gaussian, bernoulli or categorical) and its options.
        bound: What is trained: samples, importance, closed_kl, free_bits, kl_weight, warm_up.
    """
    data = source.open()
    prior = VAE.from_images(
        data, latent_size=latent_size, network=network, pixels=pixels, bound=bound
    )
    return run.train(prior, data, source, options)


def train_hvae(
    source: Source,
    run: Run,
    options: TrainingOptions,
    *,
    widths: Sequence[int] = (32, 64, 96),
    groups: Sequence[int] = (1, 2, 2),
    latent_channels: int = 6,
    whole: int = 0,
    pixels: dict[str, Any] | None = None,
    bound: dict[str, Any] | None = None,
) -> Prior:
    """Train a hierarchical VAE on images; the same command again resumes.

    Args:
        source: The images.
        run: Length and place.
        options: Learning rate, precision, devices, checkpoints and the rest.
        widths: Channels of each level, fine to coarse, the first at half the image's size.
        groups: Groups of latents at each level.
        latent_channels: Channels of each group.
        whole: Length of a first group that is a vector without places; 0 for none.
        pixels: 'kind' (gaussian, bernoulli or categorical) and its options.
        bound: What is trained: samples, importance, closed_kl, free_bits, kl_weight, warm_up.
    """
    data = source.open()
    prior = HierarchicalVAE.from_images(
        data,
        widths=widths,
        groups=groups,
        latent_channels=latent_channels,
        whole=whole,
        pixels=pixels,
        bound=bound,
    )
    return run.train(prior, data, source, options)


def train_autoencoder(
    source: Source,
    run: Run,
    options: TrainingOptions,
    *,
    latent_size: int = 20,
    network: dict[str, Any] | None = None,
) -> Prior:
    """Train an autoencoder on images; the same command again resumes.

    Args:
        source: The images.
        run: Length and place.
        options: Learning rate, precision, devices, checkpoints and the rest.
        latent_size: Length of the code.
        network: 'kind' (perceptron or convolutional) and its options; the VAE's if None.
    """
    data = source.open()
    prior = Autoencoder.from_images(data, latent_size=latent_size, network=network)
    return run.train(prior, data, source, replace(options, grid=0))  # it has nothing to sample
