"""What a trained generator makes: neighbours of its samples, paths, sums, and typical images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genprior.figures.canvas import Measured, canvas, classes, digits, load_family, tiles
from genprior.priors import GAN
from genprior.priors.interpolation import spherical

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRUNCATIONS = (0.25, 0.5, 0.7, 0.85, 1.0)

KNOWN = 10_000
"""Training digits whose classes name those of samples."""

NEIGHBOURS = 5

FEW = 3
"""Latents in a mean: then a - b + c has variance 1, as a draw of z has."""

SIGNED = ("bold a", "- thin a", "+ thin b", "= sum")

Row = dict[str, Any]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def nearest(x: Tensor, others: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """Return distances, root mean square, to the nearest of `others`, and places, (B, count)."""
    flat = others.flatten(1)
    found = [torch.cdist(part.flatten(1), flat).topk(count, 1, largest=False)
             for part in x.split(200)]  # fmt: skip
    away, places = (torch.cat(column) for column in zip(*found, strict=True))
    return away / flat.shape[1] ** 0.5, places


def named(x: Tensor, known: Tensor, kinds: Tensor) -> Tensor:
    """Return the most frequent class among the nearest digits of known class, (B,)."""
    _, places = nearest(x, known, NEIGHBOURS)
    return kinds[places].mode(1).values


def neighbours(data: str | None, seed: int, prior: str) -> Measured:
    """Draw samples and test digits beside the training digits that are nearest to them."""
    known, test = digits(data, "train"), digits(data, "test", 500)
    samples = load_family(prior, GAN).sample(500, generator=seeded(seed))
    figure = canvas(9, 6.4)
    rows: list[Row] = []
    for axis, (what, x) in zip(
        figure.subplots(1, 2), {"samples": samples, "test digits": test}.items(), strict=True
    ):
        away, places = nearest(x, known, NEIGHBOURS)
        row = {"what": what, **_quartiles(away[:, 0])}
        shown = torch.cat([x[:10, None], known[places[:10]]], 1)
        title = f"{what} (left), and the five nearest training digits\n"
        title += f"distance of the first: median {row['median']:.3f} a pixel, of 500"
        tiles(axis, shown.flatten(0, 1), 1 + NEIGHBOURS, title)
        axis.axvline(sum(axis.get_xlim()) / (1 + NEIGHBOURS), color="C1", lw=2)
        rows.append(row)
        print(row, flush=True)
    return Measured(figure, rows)


def _quartiles(values: Tensor) -> Row:
    low, median, high = values.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return {"quarter": low, "median": median, "three quarters": high}


def between(data: str | None, seed: int, prior: str) -> Figure:
    """Draw images on great circles in z between pairs of draws."""
    gan = load_family(prior, GAN)
    first, last = torch.randn(2, 6, *gan.latent_shape, generator=seeded(seed))
    z = spherical(first, last, torch.linspace(0, 1, 11))
    figure = canvas(9, 5.2)
    title = "G(z) on great circles between two draws of z (first and last column)"
    with torch.no_grad():
        tiles(figure.subplots(), gan.decode(z.flatten(0, 1)), 11, title)
    return figure


def sums(gan: GAN, known: Tensor, kinds: Tensor, seed: int) -> tuple[list[Row], Tensor]:
    """Make z = (bold a) - (thin a) + (thin b) for all pairs of classes, each a mean of three.

    Returns:
        For each pair the brightness of the means' images and of the sum's, and the sum's class;
        and these images, (pairs, 4, C, H, W).
    """
    generator = seeded(seed)
    z = torch.randn(4000, *gan.latent_shape, generator=generator)
    with torch.no_grad():
        x = torch.cat([gan.decode(part) for part in z.split(500)])
    kind, light = named(x, known, kinds), x.flatten(1).mean(1)

    def mean_latent(a: int, bold: bool) -> Tensor:
        own = (kind == a).nonzero()[:, 0]
        own = own[light[own].argsort(descending=bold)][: max(FEW, len(own) // 10)]
        return z[own[torch.randperm(len(own), generator=generator)[:FEW]]].mean(0)

    found = kind.unique().tolist()
    pairs = [(a, b) for a in found for b in found if a != b]
    latents = []
    for a, b in pairs:
        bold, thin, other = mean_latent(a, True), mean_latent(a, False), mean_latent(b, False)
        latents.append(torch.stack([bold, thin, other, bold - thin + other]))
    with torch.no_grad():
        images = gan.decode(torch.cat(latents)).unflatten(0, (len(pairs), 4))
    became = named(images[:, 3], known, kinds)
    names = ("bold a", "thin a", "thin b", "sum")
    rows = [
        {"a": a, "b": b, "class of sum": int(to), **dict(zip(names, levels, strict=True))}
        for (a, b), to, levels in zip(pairs, became, images.mean((2, 3, 4)).tolist(), strict=True)
    ]
    return rows, images


def arithmetic(data: str | None, seed: int, prior: str) -> Measured:
    """Draw sums of latents that make thin digits bold."""
    known, kinds = digits(data, "train", KNOWN), classes(data, "train", KNOWN)
    if kinds is None:
        raise ValueError("this figure needs the digits' classes: a labels file beside MNIST's")
    rows, images = sums(load_family(prior, GAN), known, kinds, seed)
    kept = sum(row["class of sum"] == row["b"] for row in rows)
    before, after = (sum(row[k] for row in rows) / len(rows) for k in ("thin b", "sum"))
    print(f"class kept in {kept} of {len(rows)}, brightness {before:.3f} -> {after:.3f}")
    figure = canvas(7, 6.6)
    places = torch.linspace(0, len(rows) - 1, 16).long()
    for axis, shown in zip(figure.subplots(1, 2), places.chunk(2), strict=True):
        tiles(axis, images[shown].flatten(0, 1), 4)
        quarter = axis.get_xlim()[1] / 4
        axis.set_xticks([quarter * (i + 0.5) for i in range(4)], SIGNED)
        axis.tick_params(length=0, labeltop=True, labelbottom=False)
    figure.suptitle(
        f"means of {FEW} latents: of {len(rows)} pairs of classes {kept} keep b;\n"
        f"mean brightness {before:.3f} of thin b, {after:.3f} of the sums",
        fontsize=10,
    )
    return Measured(figure, rows)


def truncated(gan: GAN, known: Tensor, test: Tensor, seed: int) -> tuple[list[Row], Tensor]:
    """Sample the same draws at each truncation.

    Returns:
        For each the spread of 1,000 samples, their mean distance from each other over that of
        test digits, and the median distance to the nearest training digit; the first twelve.
    """
    rows, shown = [], []
    whole = torch.pdist(test.flatten(1)).mean()
    for truncation in TRUNCATIONS:
        x = gan.sample(1000, generator=seeded(seed), truncation=truncation)
        away = nearest(x, known)[0].median()
        spread = torch.pdist(x.flatten(1)).mean() / whole
        rows.append({"truncation": truncation, "spread": float(spread), "nearest": float(away)})
        shown.append(x[:12])
    away = float(nearest(test, known)[0].median())
    return [*rows, {"truncation": "test digits", "spread": 1.0, "nearest": away}], torch.cat(shown)


def truncation(data: str | None, seed: int, prior: str) -> Measured:
    """Draw twelve samples at each truncation, with how varied and how typical a thousand are."""
    known, test = digits(data, "train", KNOWN), digits(data, "test", 1000)
    rows, x = truncated(load_family(prior, GAN), known, test, seed)
    figure = canvas(9, 4.4)
    axes = figure.subplots(len(TRUNCATIONS), 1)
    for axis, row, images in zip(axes, rows, x.split(12), strict=False):
        tiles(axis, images, 12)
        said = f"{row['truncation']:g}: spread {row['spread']:.2f}, nearest {row['nearest']:.3f}"
        axis.set_ylabel(said.replace(": ", ":\n").replace(", ", "\n"), rotation=0, ha="right",
                        va="center", fontsize=9)  # fmt: skip
        print(row, flush=True)
    last = rows[-1]["nearest"]
    figure.suptitle(
        "G(t z) of the same draws at truncations t; spread: distance between samples over that of "
        f"test digits;\nnearest: median distance a pixel to {KNOWN:,} training digits (test "
        f"digits: {last:.3f})",
        fontsize=9,
    )
    return Measured(figure, rows)
