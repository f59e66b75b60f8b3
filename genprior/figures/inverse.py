"""Compressed sensing of digits: a VAE's latent against Lasso in pixels and cosines.

The protocol of Bora et al. 2017 (CSGM, arXiv:1703.03208): A has normal entries of variance 1/m,
the noise has norm 0.1, 10 test digits, 10 restarts; squared error per pixel.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genprior.figures.canvas import digits
from genprior.operators import CompressedSensing, GaussianNoise, Problem
from genprior.pretrained import load
from genprior.priors import Prior
from genprior.solvers import LatentMAP

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED = {
    10: 0.0680, 25: 0.0276, 50: 0.0118, 75: 0.0084, 100: 0.0083,
    200: 0.0075, 300: 0.0072, 400: 0.0072, 500: 0.0072, 750: 0.0070,
}  # fmt: skip
"""Errors of CSGM's VAE by number of measurements, in a public reproduction of 2026."""

SOLVERS = {
    "lbfgs": LatentMAP("lbfgs", restarts=10, steps=250),
    "adam": LatentMAP("adam", restarts=10, steps=1000),
}


def pose(x: Tensor, m: int) -> Problem:
    """Measure digits (B, 1, 28, 28) m times; the noise has norm 0.1."""
    generator = torch.Generator().manual_seed(m)
    operator = CompressedSensing((1, 28, 28), m, generator=generator)
    return Problem.simulate(x, operator, GaussianNoise(0.1 / m**0.5), generator=generator)


def lasso(problem: Problem, basis: Tensor, *, weight: float = 0.1) -> Tensor:
    """Minimise |y - A x|^2 + weight |c|_1 over x = basis c, as CSGM's Lasso does; (B, 784)."""
    from sklearn.linear_model import Lasso

    operator = problem.operator
    assert isinstance(operator, CompressedSensing)
    a = operator.dense_matrix(problem.y).double() @ basis
    fit = Lasso(alpha=weight / (2 * len(a)), fit_intercept=False, max_iter=2000)
    rows = [torch.from_numpy(fit.fit(a.numpy(), y.double().numpy()).coef_) for y in problem.y]
    return torch.stack(rows) @ basis.T


def cosine_basis() -> Tensor:
    """Return the orthonormal 2-D cosines of 28x28 images as columns, (784, 784)."""
    n = torch.arange(28, dtype=torch.float64)
    one = torch.cos(torch.pi * (n[:, None] + 0.5) * n / 28) * (2 / 28) ** 0.5
    one[:, 0] /= 2**0.5
    return torch.kron(one, one)


def compare(prior: Prior, x: Tensor, *, seed: int = 0) -> list[dict[str, float]]:
    """Return squared errors per pixel and costs, a row for each number of measurements."""
    flat, rows = x.flatten(1).double(), []
    bases = {"pixels": torch.eye(784, dtype=torch.float64), "dct": cosine_basis()}
    for m, published in PUBLISHED.items():
        problem = pose(x, m)
        row: dict[str, float] = {"m": m, "published VAE": published}
        for name, solver in SOLVERS.items():
            result = solver(problem, prior, generator=torch.Generator().manual_seed(seed))
            row[name] = float((result.mean - x).square().mean())
            row[f"{name} seconds"] = result.seconds
            row[f"{name} gradients per restart"] = result.vjps / solver.restarts
        for name, basis in bases.items():
            row[f"lasso {name}"] = float((lasso(problem, basis) - flat).square().mean())
        print("  ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
        rows.append(row)
    return rows


def draw(rows: list[dict[str, float]]) -> Figure:
    """Plot error against the number of measurements."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    styles = {
        "lbfgs": ("VAE, L-BFGS", "C0o-"),
        "adam": ("VAE, Adam", "C3x:"),
        "published VAE": ("VAE, public reproduction", "C7s--"),
        "lasso pixels": ("Lasso, pixels", "C1^-"),
        "lasso dct": ("Lasso, cosines", "C2v-"),
    }
    for key, (label, style) in styles.items():
        axes.plot([r["m"] for r in rows], [r[key] for r in rows], style, label=label)
    axes.set(xscale="log", yscale="log", ylim=(2e-4, 0.2))
    axes.set(xlabel="measurements of 784 pixels", ylabel="squared error per pixel")
    axes.legend(fontsize=8)
    return figure


def csgm(data: str | None, seed: int) -> Figure:
    """Run the comparison on ten test digits and plot it."""
    if find_spec("sklearn") is None:
        raise ValueError("this figure needs scikit-learn: pip install genprior[figures]")
    return draw(compare(load("mnist-vae"), digits(data, "test", 10), seed=seed))
