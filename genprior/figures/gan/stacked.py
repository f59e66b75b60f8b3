"""Stacked digits: images whose two channels are digits of their own, so of 100 classes.

A sample is sure where, in each channel, its nearest training digits are all of one class. A class
counts from a quarter of its share of the sure samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genprior.figures.canvas import Measured, canvas, classes, digits, tiles
from genprior.figures.gan.trained import KNOWN, NEIGHBOURS, nearest, seeded
from genprior.figures.gan.training import fit
from genprior.priors import GAN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = 100
SAMPLES = 5000
SIZE = 14
"""Of an image's side: digits are shrunk by half."""

LATENT = 64
NETWORK = {"kind": "perceptron", "hidden": [256, 512]}
BATCH = 128

CONTENDERS: dict[str, dict[str, Any]] = {
    "minimax": {"kind": "minimax"},
    "non-saturating": {"kind": "non-saturating"},
    "hinge": {"kind": "hinge"},
    "least squares": {"kind": "least-squares"},
    "Wasserstein, clip": {"kind": "wasserstein", "clip": 0.03},
    "Wasserstein, penalty": {"kind": "wasserstein", "gradient_penalty": 1.0},
    "non-saturating, R1 + R2": {"kind": "non-saturating", "r1": 0.1, "r2": 0.1},
    "relativistic, R1 + R2": {"kind": "relativistic", "r1": 0.1, "r2": 0.1},
}

Row = dict[str, Any]


def stack(x: Tensor, count: int, seed: int) -> Tensor:
    """Draw pairs of digits (n, 1, H, W) as the channels of images (count, 2, H, W)."""
    return x[torch.randint(len(x), (count, 2), generator=seeded(seed)), 0]


def kinds_of(x: Tensor, known: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """Return classes 0 to 99 of images (B, 2, H, W), and whether they are sure, (B,)."""
    _, places = nearest(x.flatten(0, 1)[:, None], known, NEIGHBOURS)
    named = kinds[places]
    sure = (named == named[:, :1]).all(1).view(-1, 2).all(1)
    first, second = named.mode(1).values.view(-1, 2).T
    return 10 * first + second, sure


def counted(x: Tensor, known: Tensor, kinds: Tensor) -> Row:
    """Count the classes among samples.

    Returns:
        `classes` that have a quarter of their share of the sure samples at least; `sure`, their
        share of all; `kl` of the sure ones over the classes from equal shares, in nats.
    """
    kind, sure = kinds_of(x, known, kinds)
    count = torch.bincount(kind[sure], minlength=KINDS)
    q = count / count.sum().clamp(min=1)
    return {
        "classes": int((q >= 0.25 / KINDS).sum()),
        "sure": float(sure.double().mean()),
        "kl": float((q * (KINDS * q).clamp(min=1e-12).log()).sum()),
    }


def stacked(data: str | None, seed: int, full: bool) -> Measured:
    """Train each loss on stacked digits, and draw and count its samples."""
    known, kinds = digits(data, "train", KNOWN), classes(data, "train", KNOWN)
    if kinds is None:
        raise ValueError("this figure needs the digits' classes: a labels file beside MNIST's")
    known, test = F.avg_pool2d(known, 2), F.avg_pool2d(digits(data, "test"), 2)
    x = F.avg_pool2d(digits(data, "train", None if full else 30_000), 2)
    # Digits that name classes are none that networks are trained on: copies would be sure.
    x = stack(x[KNOWN:], 60_000, seed)
    drawn = {
        "uniform noise": torch.rand(SAMPLES, 2, SIZE, SIZE, generator=seeded(seed)),
        "test digits": stack(test, SAMPLES, seed),
    }
    for name, loss in CONTENDERS.items():
        drawn[name] = sampled(loss, x, steps=20_000 if full else 3000, seed=seed)
        print(name, counted(drawn[name], known, kinds), flush=True)
    rows = [{"samples": name, **counted(x, known, kinds)} for name, x in drawn.items()]
    return Measured(draw(drawn, rows), rows)


def sampled(loss: dict[str, Any], x: Tensor, *, steps: int, seed: int) -> Tensor:
    """Train a GAN with a loss; return its samples."""
    shape = (x.shape[1], x.shape[2], x.shape[3])
    gan = GAN(shape, LATENT, network=NETWORK, loss=loss, seed=seed)
    done = fit(gan, x, 5e-4, steps=steps, batch=BATCH, seed=seed)
    return done.sample(SAMPLES, generator=seeded(seed))


def draw(drawn: dict[str, Tensor], rows: list[Row]) -> Figure:
    """Draw samples of each: the first channel red, the second green."""
    figure = canvas(10, 4.9)
    axes = figure.subplots(2, (len(drawn) + 1) // 2)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, x), row in zip(axes.flat, drawn.items(), rows, strict=False):
        axis.set_axis_on()
        colours = torch.cat([x[:25], torch.zeros_like(x[:25, :1])], 1)
        said = f"{row['classes']} of {KINDS}, {100 * row['sure']:.0f} % sure"
        tiles(axis, colours, 5)
        axis.set_title(f"{name}\n{said}", fontsize=8)
    return figure
