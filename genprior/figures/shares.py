"""Which of two kinds of digit a solver shows, where a tiny image leaves both possible.

The prior is a mixture of two normal laws, one of each kind, in unequal shares; so the posterior
shares of the kinds, and samples, are exact. Drawn from the prior itself, truths and posterior
samples have the same shares. The mode has not: where in doubt it is of the frequent kind, as of
faces in Menon et al. 2020 (PULSE, arXiv:2003.03808); Jalal et al. 2021 (arXiv:2106.12182).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genprior.figures.canvas import Measured, canvas, classes, digits, tiles
from genprior.operators import Downsampling, GaussianNoise, Problem
from genprior.priors import Gaussian, GaussianMixture
from genprior.solvers import DPS, MMPS, DiffusionSolver, PiGDM

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS, SHARES = (4, 9), (0.2, 0.8)
RANK = 40
SIGMAS = (0.05, 0.2)
FACTOR = 7
DRAWS = 400
"""Truths of each noise level, and samples of each solver."""

SOLVERS: dict[str, DiffusionSolver] = {"MMPS": MMPS(), "DPS": DPS(), "PiGDM": PiGDM()}

Row = dict[str, Any]


def two_kinds(x: Tensor, kinds: Tensor) -> GaussianMixture:
    """Fit a normal law to each of the two kinds, with one covariance for both.

    The covariance is shared so that the modes' heights differ by the kinds' shares alone.
    """
    own = [x[kinds == kind] for kind in KINDS]
    means = [images.mean(0) for images in own]
    about = torch.cat([images - mean for images, mean in zip(own, means, strict=True)])
    law = Gaussian.fit(about, rank=RANK)
    residuals = torch.full((len(KINDS),), float(law.residual))
    factors = law.factors.expand(len(KINDS), *law.factors.shape)
    return GaussianMixture.low_rank(torch.tensor(SHARES), torch.stack(means), factors, residuals)


def kind_of(prior: GaussianMixture, x: Tensor) -> Tensor:
    """Return the component that an image is most probably of, (B,)."""
    joint = [part.log_prob(x) for part in prior.components]
    return (torch.stack(joint, 1) + prior.weights.log()).argmax(1)


def mode(prior: GaussianMixture, problem: Problem) -> Tensor:
    """Return the most probable image, (B, C, H, W): the higher of the components' modes."""
    means = torch.stack([part.posterior(problem).mean for part in prior.components], 1)
    posterior = prior.posterior(problem)
    heights = torch.stack([posterior.log_prob(x) for x in means.unbind(1)], 1)
    return means[torch.arange(len(means)), heights.argmax(1)]


def compared(
    prior: GaussianMixture, sigma: float, *, draws: int, seed: int
) -> tuple[list[Row], dict[str, Tensor]]:
    """Count how often each answer is of the rare kind.

    Args:
        prior: A mixture of two kinds, the rare one first.
        sigma: Of the noise on the small image.
        draws: Truths, drawn from the prior; each answer is one image for each.
        seed: Of truths, noise and samples.
    Returns:
        The share of the rare kind and its standard error, and how often the truth's kind was
        met, by answer; and the images.
    """
    generator = torch.Generator().manual_seed(seed)
    x = prior.sample(draws, generator=generator)
    operator, noise = Downsampling(FACTOR, (1, 28, 28)), GaussianNoise(sigma)
    problem = Problem.simulate(x, operator, noise, generator=generator)
    posterior = prior.posterior(problem)
    found = {"truth": x, "exact": posterior.sample(1, generator=generator)[:, 0]}
    for name, solver in SOLVERS.items():
        result = solver(problem, prior, num_samples=1, generator=generator)
        found[name] = result.samples[:, 0]
    found["MAP"] = mode(prior, problem)
    truth = kind_of(prior, x)
    rows: list[Row] = [
        {"sigma": sigma, "answer": "posterior", "rare": float(posterior.weights[:, 0].mean()),
         "error": 0.0, "right": float(posterior.weights.square().sum(1).mean())}
    ]  # fmt: skip
    for name, images in found.items():
        kind = kind_of(prior, images)
        rare = float((kind == 0).float().mean())
        row = {"sigma": sigma, "answer": name, "rare": rare}
        row["error"] = (rare * (1 - rare) / draws) ** 0.5
        row["right"] = float((kind == truth).float().mean())
        rows.append(row)
        print(row, flush=True)
    return rows, {"y": operator.pinv(problem.y), **found}


def shares(data: str | None, seed: int) -> Measured:
    """Count the rare kind among truths, exact samples, solvers' samples and modes."""
    x, kinds = digits(data, "train", 20_000), classes(data, "train", 20_000)
    if kinds is None:
        raise ValueError("this figure needs the digits' classes: a labels file beside MNIST's")
    prior = two_kinds(x, kinds)
    rows: list[Row] = []
    images: dict[str, Tensor] = {}
    for sigma in SIGMAS:
        found, images = compared(prior, sigma, draws=DRAWS, seed=seed)
        rows += found
    return Measured(draw_shares(rows, images, kind_of(prior, images["truth"]) == 0), rows)


def draw_shares(rows: list[Row], images: Mapping[str, Tensor], rare: Tensor) -> Figure:
    """Plot the share of the rare kind by answer, and some truths of that kind with answers.

    Args:
        rows: Of `compared`, for every noise level.
        images: Of the last level.
        rare: Which truths are of the rare kind.
    """
    figure = canvas(10, 4)
    axis, shown = figure.subplots(1, 2, width_ratios=(1, 1.1))
    names = list(dict.fromkeys(row["answer"] for row in rows))
    for place, sigma in enumerate(SIGMAS):
        mine = [row for row in rows if row["sigma"] == sigma]
        at = [names.index(row["answer"]) + 0.38 * (place - 0.5) for row in mine]
        axis.bar(at, [row["rare"] for row in mine], 0.36, yerr=[row["error"] for row in mine],
                 capsize=2, label=f"noise {sigma:g}")  # fmt: skip
    axis.axhline(SHARES[0], color="0.5", ls=":")
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.set_ylabel(f"share of {KINDS[0]}s")
    axis.legend(fontsize=8)
    chosen = rare.nonzero()[:8, 0]
    stack = torch.cat([x[chosen] for x in images.values()])
    tiles(shown, stack, len(chosen), f"truths that are {KINDS[0]}s; noise {SIGMAS[-1]:g}")
    bottom = shown.get_ylim()[0]
    middles = [bottom * (line + 0.5) / len(images) for line in range(len(images))]
    shown.set_yticks(middles, list(images))
    shown.tick_params(length=0)
    return figure
