"""Critics with clipped weights and with the gradient penalty: Gulrajani et al. 2017, figures 1, 2.

As there (arXiv:1704.00028) the generator is fixed at the data plus normal noise, and critics of
points in the plane are trained alone. Differs: the noise has std .5, fewer layers and updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from genprior.figures.canvas import Measured, canvas
from genprior.priors.gan.gan import GAN
from genprior.priors.gan.losses import squared_slope
from genprior.priors.gan.training import AdversarialTraining

BATCH = 256

NOISE = 0.5
"""Std of what is added to the data to make the points to be told from it."""

CONSTRAINTS: dict[str, dict[str, float]] = {
    "clip .1": {"clip": 0.1},
    "clip .01": {"clip": 0.01},
    "penalty": {"gradient_penalty": 1.0},
}

Row = dict[str, Any]


def eight(count: int, generator: torch.Generator) -> Tensor:
    """Draw from eight narrow normals on a circle of radius 2, (count, 2)."""
    angle = torch.randint(8, (count,), generator=generator) * math.pi / 4
    x = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    return x + 0.05 * torch.randn(count, 2, generator=generator)


def twenty_five(count: int, generator: torch.Generator) -> Tensor:
    """Draw from 25 narrow normals, a grid of means 1 apart, (count, 2)."""
    x = torch.randint(5, (count, 2), generator=generator) - 2.0
    return x + 0.05 * torch.randn(count, 2, generator=generator)


def roll(count: int, generator: torch.Generator) -> Tensor:
    """Draw from a spiral of one and a half turns, (count, 2)."""
    angle = math.pi * (1.5 + 3 * torch.rand(count, generator=generator))
    x = angle[:, None] * torch.stack([angle.cos(), angle.sin()], 1) / 7
    return x + 0.05 * torch.randn(count, 2, generator=generator)


DATA: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "8 Gaussians": eight,
    "25 Gaussians": twenty_five,
    "swiss roll": roll,
}


class Trained(NamedTuple):
    """A critic, and what was seen on its way.

    Attributes:
        critic: (B, 1, 1, 2) -> (B,).
        gaps: mean D(x) - mean D(fake) after each update.
        slopes: Norm of the loss's gradient in each layer's output, input first, at the end.
    """

    critic: nn.Module
    gaps: list[float]
    slopes: list[float]


def fit_critic(
    draw: Callable[[int, torch.Generator], Tensor],
    constraint: dict[str, float],
    *,
    hidden: tuple[int, ...] = (128, 128, 128),
    steps: int = 1000,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Trained:
    """Train a Wasserstein critic to tell points from the same with noise added.

    Args:
        draw: Of (count, generator) -> points (count, 2).
        constraint: `clip` or `gradient_penalty` of `AdversarialOptions`.
        hidden: Widths of its layers.
        steps: Updates.
        learning_rate: Adam's.
        seed: Of weights and points.
    """
    gan = GAN(
        (1, 1, 2),
        1,
        network={"kind": "perceptron", "hidden": list(hidden), "bounded": False},
        loss={"kind": "wasserstein", **constraint},
        seed=seed,
    )
    training, generator = AdversarialTraining(gan), torch.Generator().manual_seed(seed)
    critic, rules = training.critic, gan.loss
    optimizer = training.optimizer("critic", learning_rate, critic.parameters())

    def pairs() -> tuple[Tensor, Tensor]:
        real, fake = (draw(BATCH, generator).view(-1, 1, 1, 2) for _ in range(2))
        return real, fake + NOISE * torch.randn(fake.shape, generator=generator)

    gaps = []
    for _ in range(steps):
        real, fake = pairs()
        a, b = critic(real), critic(fake)
        loss = rules.loss.critic(a, b).mean()
        if rules.penalised:
            loss = loss + rules.penalty(critic, real, fake, generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gaps.append(float((a.mean() - b.mean()).detach()))
    real, fake = pairs()
    return Trained(critic, gaps, slopes(critic, rules.loss.critic, real, fake))


def slopes(
    critic: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], real: Tensor, fake: Tensor
) -> list[float]:
    """Return the norm of the loss's gradient in the input of each linear layer, first to last."""
    inputs: list[Tensor] = []
    hooks = [
        m.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
        for m in critic.modules()
        if isinstance(m, nn.Linear)
    ]
    score = critic(torch.cat([real, fake]).requires_grad_())
    for hook in hooks:
        hook.remove()
    found = torch.autograd.grad(loss(*score.chunk(2)).mean(), inputs)
    return [float(gradient.norm()) for gradient in found]


def critics(data: str | None, seed: int, full: bool) -> Measured:
    """Draw the values of critics with clipped weights and of penalised ones on three sets."""
    steps = 10_000 if full else 1500
    shown = {k: v for k, v in CONSTRAINTS.items() if k != "clip .01"}
    figure = canvas(9, 6.2)
    axes = figure.subplots(len(shown), len(DATA))
    side = torch.linspace(-3.2, 3.2, 120)
    places = torch.cartesian_prod(side, side).flip(1).view(-1, 1, 1, 2)
    rows: list[Row] = []
    for line, (name, constraint) in zip(axes, shown.items(), strict=True):
        for axis, (what, draw) in zip(line, DATA.items(), strict=True):
            critic = fit_critic(draw, constraint, steps=steps, seed=seed).critic
            points = draw(1000, torch.Generator().manual_seed(seed))
            slope = squared_slope(critic, points.view(-1, 1, 1, 2)).detach().sqrt().mean()
            with torch.no_grad():
                values = critic(places).view(len(side), len(side))
            axis.contour(side, side, values, levels=20, cmap="viridis", linewidths=0.9)
            axis.scatter(*points[:500].T, s=1, color="C3")
            axis.set(xticks=[], yticks=[], aspect="equal")
            axis.set_title(f"{what}; mean |grad D| {float(slope):.3f}", fontsize=9)
            rows.append({"constraint": name, "data": what, "slope": float(slope)})
            print(rows[-1], flush=True)
        line[0].set_ylabel(name)
    figure.suptitle(f"20 levels of D after {steps} updates; red: the data", fontsize=10)
    return Measured(figure, rows)


def clipping(data: str | None, seed: int, full: bool) -> Measured:
    """Draw what clipping and the penalty do to a deep critic: weights, gradients, its estimate."""
    steps = 5000 if full else 600
    figure = canvas(10, 3.6)
    weights, gradients, curves = figure.subplots(1, 3)
    rows: list[Row] = []
    for colour, (name, constraint) in zip(("C1", "C3", "C0"), CONSTRAINTS.items(), strict=True):
        trained = fit_critic(roll, constraint, hidden=(64,) * 9, steps=steps, seed=seed)
        values = torch.cat([p.detach().flatten() for p in trained.critic.parameters()])
        bound = constraint.get("clip", math.inf)
        edge = float((values.abs() > 0.98 * bound).float().mean())
        scaled = values / (bound if bound < math.inf else float(values.abs().max()))
        weights.hist(scaled.numpy(), 41, density=True, histtype="step", color=colour, label=name)
        layers = range(1, len(trained.slopes) + 1)
        gradients.semilogy(layers, trained.slopes, "o-", color=colour, ms=3)
        curves.plot(trained.gaps, color=colour, lw=0.8)
        orders = math.log10(trained.slopes[0] / trained.slopes[-1])
        gap = sum(trained.gaps[-50:]) / 50
        rows.append({"constraint": name, "at the bound": edge, "orders": orders,
                     "gap": gap})  # fmt: skip
        print(rows[-1], flush=True)
    weights.set(xlabel="weight over its bound (penalty: over the largest)", ylabel="density")
    gradients.set(xlabel="layer (1: input)", ylabel="|gradient of the loss|")
    curves.set(xlabel="update", ylabel="mean D(x) - mean D(fake)", yscale="symlog")
    weights.set_title("weights of ten layers", fontsize=10)
    gradients.set_title("gradients, layer by layer", fontsize=10)
    curves.set_title("what the critic gains", fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return Measured(figure, rows)
