"""`genprior train vae | hvae | autoencoder`: from images to a trained autoencoder of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from genprior.data import Images
from genprior.pretrained import load
from genprior.priors import VAE, Autoencoder, HierarchicalVAE, Prior
from genprior.priors.files import read_header
from genprior.priors.trainable import TrainablePrior
from genprior.shell.source import Source
from genprior.training import TrainingOptions, train


def train_vae(
    source: Source,
    options: TrainingOptions,
    *,
    out: str,
    steps: int = 8000,
    batch_size: int = 256,
    latent_size: int = 20,
    network: dict[str, Any] | None = None,
    pixels: dict[str, Any] | None = None,
    bound: dict[str, Any] | None = None,
    start: str | None = None,
    half: bool = False,
    card: dict[str, Any] | None = None,
) -> Prior:
    """Train a VAE on images; the same command again resumes.

    Args:
        source: The images.
        options: Learning rate, precision, devices, checkpoints and the rest.
        out: Folder for prior.safetensors, checkpoints, sample grids and the loss curve.
        steps: Updates.
        batch_size: Images in each update, over all devices together.
        latent_size: Length of the latent.
        network: 'kind' (perceptron or convolutional) and its options; CSGM's if None.
        pixels: 'kind' (gaussian, bernoulli or categorical) and its options.
        bound: What is trained: samples, importance, closed_kl, free_bits, kl_weight, warm_up.
        start: Name or file of a trained VAE of the same network to begin with, if any.
        half: Store the weights in half precision at the end.
        card: Plain data on the weights, kept in the file: data, licence, ...
    """
    data = source.open()
    prior = VAE.from_images(
        data, latent_size=latent_size, network=network, pixels=pixels, bound=bound
    )
    if start is not None:
        begin_with(prior, start)
        card = {"start": start, **(card or {})}
    return _train(prior, data, source, options, out, steps, batch_size, half, card)


def begin_with(prior: VAE, start: str) -> None:
    """Copy the weights of a trained VAE whose network is the same."""
    trained = load(start)
    ours, theirs = (
        {key: value for key, value in p.config.items() if key != "bound"} for p in (prior, trained)
    )
    if not isinstance(trained, VAE) or ours != theirs:
        raise ValueError(
            f"training cannot start from {start}, a {type(trained).__name__} with {theirs}: "
            f"its options must be those of the VAE to train, {ours}"
        )
    prior.load_state_dict(trained.state_dict())


def train_hvae(
    source: Source,
    options: TrainingOptions,
    *,
    out: str,
    steps: int = 8000,
    batch_size: int = 32,
    widths: Sequence[int] = (32, 64, 96),
    groups: Sequence[int] = (1, 2, 2),
    latent_channels: int = 6,
    whole: int = 0,
    pixels: dict[str, Any] | None = None,
    bound: dict[str, Any] | None = None,
    half: bool = False,
    card: dict[str, Any] | None = None,
) -> Prior:
    """Train a hierarchical VAE on images; the same command again resumes.

    Args:
        source: The images.
        options: Learning rate, precision, devices, checkpoints and the rest.
        out: Folder for prior.safetensors, checkpoints, sample grids and the loss curve.
        steps: Updates.
        batch_size: Images in each update, over all devices together.
        widths: Channels of each level, fine to coarse, the first at half the image's size.
        groups: Groups of latents at each level.
        latent_channels: Channels of each group.
        whole: Length of a first group that is a vector without places; 0 for none.
        pixels: 'kind' (gaussian, bernoulli or categorical) and its options.
        bound: What is trained: samples, importance, closed_kl, free_bits, kl_weight, warm_up.
        half: Store the weights in half precision at the end.
        card: Plain data on the weights, kept in the file: data, licence, ...
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
    return _train(prior, data, source, options, out, steps, batch_size, half, card)


def train_autoencoder(
    source: Source,
    options: TrainingOptions,
    *,
    out: str,
    steps: int = 8000,
    batch_size: int = 256,
    latent_size: int = 20,
    network: dict[str, Any] | None = None,
    half: bool = False,
    card: dict[str, Any] | None = None,
) -> Prior:
    """Train an autoencoder on images; the same command again resumes.

    Args:
        source: The images.
        options: Learning rate, precision, devices, checkpoints and the rest.
        out: Folder for prior.safetensors, checkpoints and the loss curve.
        steps: Updates.
        batch_size: Images in each update, over all devices together.
        latent_size: Length of the code.
        network: 'kind' (perceptron or convolutional) and its options; the VAE's if None.
        half: Store the weights in half precision at the end.
        card: Plain data on the weights, kept in the file: data, licence, ...
    """
    data = source.open()
    prior = Autoencoder.from_images(data, latent_size=latent_size, network=network)
    options = replace(options, grid=0)  # it has nothing to sample
    return _train(prior, data, source, options, out, steps, batch_size, half, card)


def _train(
    prior: TrainablePrior,
    data: Images,
    source: Source,
    options: TrainingOptions,
    out: str,
    steps: int,
    batch_size: int,
    half: bool,
    card: dict[str, Any] | None,
) -> Prior:
    about = {"data": source.data, "images": len(data), **(card or {})}
    trained = train(
        prior, data, out=out, steps=steps, batch_size=batch_size, options=options, card=about
    )
    if half:
        path = f"{out}/prior.safetensors"
        trained.save(path, card=read_header(path)["card"], dtype=torch.float16)
    return trained
