"""Figures that show what a variational autoencoder learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from genprior.figures.canvas import canvas, classes, digits, tiles
from genprior.pretrained import load
from genprior.priors import VAE, Autoencoder, HierarchicalVAE, Trainable
from genprior.training import TrainingOptions, train
from genprior.training.report import Callback

if TYPE_CHECKING:
    from matplotlib.figure import Figure


M = TypeVar("M", bound=Trainable)

WARM_UP = 400
"""Steps of the warm-up that `collapse` shows, half of the training."""


def _fit(model: M, x: Tensor, *, steps: int, seed: int, callback: Callback | None = None) -> M:
    """Train on batches of 100 at a constant rate."""
    options = TrainingOptions(
        warmup=0, cooldown=0, clip=None, precision="fp32", seed=seed, progress=False
    )
    return train(model, x, steps=steps, batch_size=100, options=options, callback=callback)


def codes(data: str | None, seed: int) -> Figure:
    """Draw what an autoencoder and a VAE make of 1,000 digits in two dimensions.

    The left panels hold test digits above their reconstructions; the middle ones the codes of
    256 test digits, coloured by class, with the VAE's standard deviations and the circles that
    hold 68 and 95 % of N(0, I); the right ones what is decoded from draws: of the VAE's prior,
    and, as an autoencoder has none, of a normal fitted to its codes.
    """
    x, test = digits(data, "train", 1000), digits(data, "test", 256)
    kinds = classes(data, "test", 256)
    network = {"hidden": [500, 500], "seed": seed}
    autoencoder = Autoencoder((1, 28, 28), 2, network=network)
    vae = VAE((1, 28, 28), 2, network=network, pixels={"std": 0.35, "learned": False})
    figure = canvas(13, 7)
    axes = figure.subplots(2, 3)
    for row, untrained in zip(axes, (autoencoder, vae), strict=True):
        prior = _fit(untrained, x, steps=1500, seed=seed)
        z, std, name = prior.encode(test), None, type(prior).__name__
        draws = torch.randn(40, 2, generator=torch.Generator().manual_seed(seed))
        drawn = "draws of its prior, decoded"
        if isinstance(prior, VAE):
            z, std = prior.encode_distribution(test)
        else:
            draws = draws @ torch.linalg.cholesky(z.T.cov()).T + z.mean(0)
            drawn = "a normal fitted to its codes, decoded"
        pairs = torch.cat([test[:10], prior.decode(z[:10]), test[10:20], prior.decode(z[10:20])])
        tiles(row[0], pairs, 10, f"{name}: digits above reconstructions")
        _cloud(row[1], z, std, kinds)
        row[1].set_title(f"{name}: codes of 256 test digits", fontsize=10)
        tiles(row[2], prior.decode(draws), 10, drawn)
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=12, frameon=False)
    return figure


def _cloud(axis: Any, z: Tensor, std: Tensor | None, kinds: Tensor | None) -> None:
    """Scatter codes (n, 2) by their kinds, with their standard deviations and those of N(0, I)."""
    from matplotlib.colors import TABLEAU_COLORS
    from matplotlib.patches import Circle, Ellipse

    colours = list(TABLEAU_COLORS.values())
    shown = torch.zeros(len(z)).long() if kinds is None else kinds
    for radius in (1.515, 2.448):
        axis.add_patch(Circle((0, 0), radius, fill=False, color="black", lw=0.8))
    for centre, radius, kind in zip(z, std if std is not None else [], shown, strict=False):
        size = (2 * radius).tolist()
        axis.add_patch(Ellipse(tuple(centre.tolist()), *size, alpha=0.2, color=colours[kind]))
    for kind in shown.unique().tolist():
        label = "digits" if kinds is None else str(kind)
        axis.scatter(*z[shown == kind].T, s=8, color=colours[kind], label=label)
    axis.plot([], [], color="black", lw=0.8, label="68 and 95 % of N(0, I)")
    axis.set_aspect("equal", adjustable="datalim")
    axis.set(xlabel="first number of the code", ylabel="second number")


def manifold(data: str | None, seed: int) -> Figure:
    """Draw the decoder's images on a grid of quantiles of a two-dimensional normal."""
    prior = load("mnist-vae2")
    assert isinstance(prior, VAE)
    quantiles = torch.special.ndtri(torch.linspace(0.025, 0.975, 20))
    z = torch.cartesian_prod(quantiles.flip(0), quantiles).flip(1)
    figure = canvas(6, 6.3)
    tiles(figure.subplots(), prior.decode(z), 20, "decoder of mnist-vae2 at quantiles of z")
    return figure


def collapse(data: str | None, seed: int) -> Figure:
    """Draw how many latent units are active while a VAE with a coarse decoder trains.

    A decoder of std 0.9 gains less from most units than their KL costs, so they empty. A warm-up,
    which makes the KL cheap at first, puts that off; free bits, which change the bound, prevent
    it.
    """
    x = digits(data, "train", 5000)
    figure = canvas(10, 4)
    active, bound = figure.subplots(1, 2)
    options: dict[str, dict[str, Any]] = {
        "no remedy": {},
        f"KL warm-up over {WARM_UP} steps": {"warm_up": 100 * WARM_UP},
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
        _fit(vae, x, steps=2 * WARM_UP, seed=seed, callback=lambda *point: points.append(point))  # noqa: B023
        end = round(points[-1][1]["all/active"])
        steps = [step for step, _ in points]
        active.plot(
            steps, [v["all/active"] for _, v in points], label=f"{label}: {end} at the end"
        )
        bound.plot(steps, [v["all/kl"] for _, v in points])
    for axis in (active, bound):
        axis.axvline(WARM_UP, color="0.7", lw=0.8, ls=":")
    active.set(xlabel="training step", ylabel="active units of 20")
    active.set_title("Free bits prevent the collapse, a warm-up puts it off", fontsize=10)
    bound.set(xlabel="training step", ylabel="KL from the prior, nats")
    bound.set_title("What the latent says of an image (decoder of std 0.9)", fontsize=10)
    handles, labels = active.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def hierarchy(data: str | None, seed: int) -> Figure:
    """Draw samples that share nothing, their first group, and their first two groups."""
    prior = load("cats32-hvae")
    assert isinstance(prior, HierarchicalVAE)
    generator = torch.Generator().manual_seed(seed)
    groups = prior.split_latent(torch.randn(1, *prior.latent_shape, generator=generator))
    figure = canvas(8, 4.7)
    axes = figure.subplots(3, 1)
    titles = ("nothing fixed", "z_1 fixed", "z_1 and z_2 fixed")
    for fixed, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        samples = prior.sample(24, generator=generator, fixed=groups[:fixed])
        tiles(axis, samples, 12, title)
    return figure
