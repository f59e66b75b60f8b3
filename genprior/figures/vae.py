"""Figures that show what a variational autoencoder learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from genprior.data import images
from genprior.plots import grid
from genprior.pretrained import load
from genprior.priors import VAE, Autoencoder, HierarchicalVAE, Trainable
from genprior.training import TrainingOptions, train
from genprior.training.report import Callback

if TYPE_CHECKING:
    from matplotlib.figure import Figure


M = TypeVar("M", bound=Trainable)


def _digits(data: str | None, split: str, count: int) -> Tensor:
    if data is None:
        raise ValueError("this figure needs digits: pass --data, a folder with MNIST's files")
    return images(data, split=split).batch(range(count))


def _canvas(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _fit(model: M, x: Tensor, *, steps: int, seed: int, callback: Callback | None = None) -> M:
    """Train on batches of 100 at a constant rate."""
    options = TrainingOptions(
        warmup=0, cooldown=0, clip=None, precision="fp32", seed=seed, progress=False
    )
    return train(model, x, steps=steps, batch_size=100, options=options, callback=callback)


def codes(data: str | None, seed: int) -> Figure:
    """Draw what an autoencoder and a VAE make of 1,000 digits in two dimensions.

    The left panels hold test digits above their reconstructions; the middle ones the codes of
    256 test digits, with the encoder's standard deviations; the right ones what lies between
    them: the images of codes drawn from a normal fitted to the codes.
    """
    from matplotlib.patches import Ellipse

    x, test = _digits(data, "train", 1000), _digits(data, "test", 256)
    network = {"hidden": [500, 500], "seed": seed}
    autoencoder = Autoencoder((1, 28, 28), 2, network=network)
    vae = VAE((1, 28, 28), 2, network=network, pixels={"std": 0.35, "learned": False})
    figure = _canvas(12, 6)
    axes = figure.subplots(2, 3)
    for row, untrained in zip(axes, (autoencoder, vae), strict=True):
        prior = _fit(untrained, x, steps=1500, seed=seed)
        z, std = prior.encode(test), None
        if isinstance(prior, VAE):
            z, std = prior.encode_distribution(test)
        name = type(prior).__name__
        pairs = torch.cat([test[:10], prior.decode(z[:10]), test[10:20], prior.decode(z[10:20])])
        _tiles(row[0], pairs, 10, f"{name}: digits, reconstructions")
        row[1].scatter(*z.T, s=6)
        for centre, radius in zip(z, std if std is not None else [], strict=False):
            ellipse = Ellipse(tuple(centre.tolist()), *(2 * radius).tolist(), alpha=0.3)
            row[1].add_patch(ellipse)
        row[1].set_aspect("equal", adjustable="datalim")
        row[1].set(title="codes of 256 test digits")
        generator = torch.Generator().manual_seed(seed)
        draws = torch.randn(40, 2, generator=generator) @ torch.linalg.cholesky(z.T.cov()).T
        _tiles(row[2], prior.decode(draws + z.mean(0)), 10, "codes drawn from their normal")
    return figure


def manifold(data: str | None, seed: int) -> Figure:
    """Draw the decoder's images on a grid of quantiles of a two-dimensional normal."""
    prior = load("mnist-vae2")
    assert isinstance(prior, VAE)
    quantiles = torch.special.ndtri(torch.linspace(0.025, 0.975, 20))
    z = torch.cartesian_prod(quantiles.flip(0), quantiles).flip(1)
    figure = _canvas(6, 6.3)
    _tiles(figure.subplots(), prior.decode(z), 20, "decoder of mnist-vae2 at quantiles of z")
    return figure


def collapse(data: str | None, seed: int) -> Figure:
    """Draw how many latent units are active while a VAE with a coarse decoder trains."""
    x = _digits(data, "train", 5000)
    figure = _canvas(8, 3.2)
    active, bound = figure.subplots(1, 2)
    options: dict[str, dict[str, Any]] = {
        "no warm-up": {},
        "KL warm-up": {"warm_up": 40_000},
        "free bits": {"free_bits": 0.5},
    }
    for label, settings in options.items():
        vae = VAE(
            (1, 28, 28),
            20,
            network={"hidden": [100] * 4, "activation": "relu", "seed": seed},
            pixels={"std": 0.9, "learned": False},
            bound=settings,
        )
        points: list[tuple[int, dict[str, float]]] = []
        _fit(vae, x, steps=600, seed=seed, callback=lambda *point: points.append(point))  # noqa: B023
        for axis, key in ((active, "all/active"), (bound, "all/kl")):
            axis.plot([s for s, _ in points], [logs[key] for _, logs in points], label=label)
    active.set(xlabel="step", title="active units of 20 (decoder std 0.9)")
    bound.set(xlabel="step", title="KL, nats")
    active.legend()
    return figure


def hierarchy(data: str | None, seed: int) -> Figure:
    """Draw samples that share nothing, their first group, and their first two groups."""
    prior = load("cats32-hvae")
    assert isinstance(prior, HierarchicalVAE)
    generator = torch.Generator().manual_seed(seed)
    groups = prior.split_latent(torch.randn(1, *prior.latent_shape, generator=generator))
    figure = _canvas(8, 4.7)
    axes = figure.subplots(3, 1)
    titles = ("nothing fixed", "z_1 fixed", "z_1 and z_2 fixed")
    for fixed, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        samples = prior.sample(24, generator=generator, fixed=groups[:fixed])
        _tiles(axis, samples, 12, title)
    return figure


def _tiles(axis: Any, x: Tensor, columns: int, title: str) -> None:
    picture = grid(x, columns=columns).clamp(0, 1)
    axis.imshow(picture.permute(1, 2, 0), cmap="gray", interpolation="nearest")
    axis.set(title=title, xticks=[], yticks=[])
