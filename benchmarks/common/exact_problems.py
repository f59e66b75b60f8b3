"""Posteriors known in closed form, fast enough to draw thousands of samples from every solver."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from genprior.operators import GaussianNoise, Inpainting, Matrix, Problem
from genprior.operators.base import per_row
from genprior.operators.random import Generators
from genprior.priors import DenoisingPrior, Gaussian, GaussianMixture

FLOAT = torch.float64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moments(samples: Tensor) -> tuple[Tensor, Tensor]:
    flat = samples.flatten(1)
    return flat.mean(0), torch.cov(flat.T)


def summary(values: Iterable[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    v = torch.tensor(list(values), dtype=torch.float64)
    return float(v.mean()), float(v.std() / math.sqrt(len(v))) if len(v) > 1 else math.nan


class Spheres(DenoisingPrior):
    """sum_k w_k N(m_k, r^2 I): GaussianMixture's law, its denoiser in one matrix product.

    With `problem`, the oracle: E[x0 | x_sigma, y] of that one problem instead of E[x0 | x_sigma].
    """

    def __init__(self, weights: Tensor, means: Tensor, residual: float) -> None:
        super().__init__()
        k, d = means.shape
        self.weights, self.means, self.residual = weights / weights.sum(), means, residual
        self.image_shape = (1, 1, d)
        none = torch.zeros(k, 0, 1, 1, d, dtype=FLOAT)
        residuals = torch.full((k,), residual, dtype=FLOAT)
        self.exact = GaussianMixture.low_rank(weights, means.reshape(k, 1, 1, d), none, residuals)
        self.sigma_range = self.exact.sigma_range
        self.data_mean, self.data_std = self.exact.data_mean, self.exact.data_std

    @property
    def config(self) -> dict[str, Any]:
        return {}

    def sample(self, n: int, *, size: Any = None, generator: Generators = None) -> Tensor:
        return self.exact.sample(n, size=size, generator=generator)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        flat = x.flatten(1)
        noise2 = per_row(sigma, flat) ** 2
        total = self.residual**2 + noise2
        squares = torch.cdist(flat[None], self.means[None])[0].square()
        share = torch.softmax(self.weights.log() - squares / (2 * total), 1)
        mean = share @ self.means
        return (mean + self.residual**2 / total * (flat - mean)).reshape(x.shape)


class Oracle(Spheres):
    """E[x0 | x_sigma, y] of one problem with y = A x + n, exact."""

    def __init__(self, prior: Spheres, problem: Problem) -> None:
        super().__init__(prior.weights, prior.means, prior.residual)
        assert isinstance(problem.operator, Matrix)
        assert isinstance(problem.noise, GaussianNoise)
        a, y, s2 = problem.operator.matrix, problem.y[0], float(problem.noise.sigma) ** 2
        r2 = prior.residual**2
        d = a.shape[1]
        covariance = torch.linalg.inv(torch.eye(d, dtype=FLOAT) / r2 + a.T @ a / s2)
        gain = covariance @ a.T / s2
        evidence = torch.distributions.MultivariateNormal(
            prior.means @ a.T, r2 * a @ a.T + s2 * torch.eye(len(a), dtype=FLOAT)
        ).log_prob(y)
        self.log_weights = prior.weights.log() + evidence
        self.centres = prior.means + (y - prior.means @ a.T) @ gain.T
        self.values, self.vectors = torch.linalg.eigh(covariance)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        flat = x.flatten(1) @ self.vectors
        centres = self.centres @ self.vectors
        noise2 = per_row(sigma, flat).reshape(-1, 1) ** 2
        total = self.values + noise2
        squares = (flat[:, None] - centres).square() / total[:, None]
        share = torch.softmax(self.log_weights - squares.sum(2) / 2, 1)
        mean = share @ centres
        found = mean + self.values / total * (flat - mean)
        return (found @ self.vectors.T).reshape(x.shape)


def mcgdiff(d: int, m: int, seed: int) -> tuple[Spheres, Problem]:
    """25 modes at (-8 i, -8 j) repeated, and a random A (Cardoso et al. 2024, their code)."""
    g = seeded(seed)
    places = torch.cartesian_prod(*[torch.arange(-2, 3, dtype=FLOAT)] * 2)
    weights = torch.randn(25, generator=g, dtype=FLOAT) ** 2
    prior = Spheres(weights, (-8 * places).repeat(1, d // 2), 1.0)
    u, _, vt = torch.linalg.svd(torch.randn(m, d, generator=g, dtype=FLOAT), full_matrices=False)
    s = torch.rand(m, generator=g, dtype=FLOAT).sort(descending=True).values
    noise = float(torch.rand((), generator=g, dtype=FLOAT) * s[0])
    operator = Matrix(u * s @ vt, (1, 1, d))
    x = prior.sample(1, generator=g)
    return prior, Problem.simulate(x, operator, GaussianNoise(noise), generator=g)


def random_field(seed: int, size: int = 32) -> tuple[Gaussian, Problem]:
    """Matern-5/2 covariance, 16 random pixels seen, sigma .1 (after Boys et al. 2024)."""
    g = seeded(seed)
    places = torch.cartesian_prod(*[torch.linspace(0, 1, size, dtype=FLOAT)] * 2)
    r = torch.cdist(places, places) * 5**0.5 / 0.25
    covariance = (1 + r + r**2 / 3) * torch.exp(-r) + 1e-6 * torch.eye(size**2, dtype=FLOAT)
    prior = Gaussian.from_covariance(torch.zeros(1, size, size, dtype=FLOAT), covariance)
    mask = torch.zeros(size**2, dtype=torch.bool)
    mask[torch.randperm(size**2, generator=g)[:16]] = True
    x = prior.sample(1, generator=g)
    operator = Inpainting(mask.reshape(1, size, size))
    return prior, Problem.simulate(x, operator, GaussianNoise(0.1), generator=g)


def curve(seed: int) -> tuple[Spheres, Problem]:
    """256 narrow modes along a random closed curve in 3-D, y = w.x (after Rozet et al. 2024)."""
    g = seeded(seed)
    phase = torch.linspace(0, 2 * torch.pi, 257, dtype=FLOAT)[:256, None]
    order = torch.arange(1, 5, dtype=FLOAT)
    a, b = torch.randn(2, 4, 3, generator=g, dtype=FLOAT) / (1 + order[:, None])
    points = torch.cos(phase * order) @ a + torch.sin(phase * order) @ b
    prior = Spheres(torch.ones(256, dtype=FLOAT), points, 0.01)
    w = torch.randn(1, 3, generator=g, dtype=FLOAT)
    operator = Matrix(w / w.norm(), (1, 1, 3))
    x = prior.sample(1, generator=g)
    return prior, Problem.simulate(x, operator, GaussianNoise(0.01), generator=g)
