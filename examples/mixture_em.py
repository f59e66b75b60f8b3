"""Expectation-maximisation at work: normals fitted to points in the plane
========================================================================

The command::

    python examples/mixture_em.py --out mixture_em.png

draws three panels. An image of two pixels is a point. Left: points and the fitted components, at
one and two standard deviations. Middle: the log-likelihood, which never falls. Right: the second
pixel inpainted given the first, where the posterior has several modes.

.. image:: /pictures/examples/mixture_em.png
   :alt: points with ellipses, a rising curve, a histogram with several modes
"""

# sphinx_gallery_thumbnail_path = 'pictures/examples/mixture_em.png'

from __future__ import annotations

import argparse
import math

import torch
from torch import Tensor

from genprior.operators import GaussianNoise, Inpainting, Problem
from genprior.operators.random import normal
from genprior.priors import GaussianMixture

FIRST_PIXEL = 0.5


def points(count: int, generator: torch.Generator) -> Tensor:
    """Draw points of three noisy arcs as images (count, 1, 1, 2)."""
    third = torch.arange(count) % 3
    angle = torch.linspace(0, 1.6, count, dtype=torch.float64) + 2 * math.pi / 3 * third
    noise = normal((count, 2), generator, dtype=torch.float64)
    arcs = torch.stack([angle.cos(), angle.sin()], 1)
    return (0.5 + 0.35 * arcs + 0.02 * noise).reshape(count, 1, 1, 2)


def ellipse(mean: Tensor, covariance: Tensor, radius: float) -> Tensor:
    """The curve (n, 2) at `radius` standard deviations from the mean."""
    angle = torch.linspace(0, 2 * math.pi, 100, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    return mean + radius * circle @ torch.linalg.cholesky(covariance).T


def main() -> None:
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", default="mixture_em.png")
    out = parser.parse_args().out
    generator = torch.Generator().manual_seed(0)
    x, history = points(900, generator), []
    prior = GaussianMixture.fit(
        x,
        9,
        generator=generator,
        tolerance=1e-4,
        callback=lambda _, value: history.append(value),
    )
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)

    left.plot(*x.flatten(1).T, ".", markersize=2, color="0.6")
    for weight, part in zip(prior.weights, prior.components, strict=True):
        law = part.law(torch.float64)
        covariance = law.factors.T @ law.factors + law.residual**2 * torch.eye(2).double()
        for radius in (1, 2):
            curve = ellipse(law.mean, covariance, radius)
            left.plot(*curve.T, color="C0", linewidth=0.5 + 8 * float(weight) / radius)
    left.axvline(FIRST_PIXEL, color="C3", linewidth=1)
    left.set(title="data and components", xlabel="first pixel", ylabel="second pixel")
    left.set_aspect("equal")

    middle.plot(range(1, len(history) + 1), history, ".-", color="C0")
    middle.set(title="EM never loses", xlabel="iteration", ylabel="log-likelihood, nats a point")

    mask = torch.tensor([[[True, False]]])
    y = torch.tensor([[[[FIRST_PIXEL, 0.0]]]], dtype=torch.float64)
    posterior = prior.posterior(Problem(y, Inpainting(mask), GaussianNoise(0.01)))
    samples = posterior.sample(5000, generator=generator)[0, :, 0, 0, 1]
    axis = torch.linspace(-0.1, 1.1, 600, dtype=torch.float64)
    given = torch.full_like(axis, FIRST_PIXEL)
    slice_ = torch.stack([given, axis], 1).reshape(-1, 1, 1, 2)
    density = prior.log_prob(slice_).exp()
    density = density / torch.trapezoid(density, axis)
    right.hist(samples.numpy(), bins=120, range=(-0.1, 1.1), density=True, color="0.8")
    right.plot(axis, density, color="C3")
    right.set(
        title=f"second pixel, given the first is {FIRST_PIXEL}",
        xlabel="second pixel",
        ylabel="density: 5000 samples and the slice",
    )
    figure.savefig(out, dpi=150)
    print(f"{len(history)} iterations, {history[0]:.4f} to {history[-1]:.4f} nats; wrote {out}")


if __name__ == "__main__":
    main()
