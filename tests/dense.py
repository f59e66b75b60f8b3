"""The textbook formulas with d x d matrices, against which the fast ones are checked."""

from __future__ import annotations

import math

import torch

from genprior.operators import (
    Blur,
    Compose,
    CompressedSensing,
    Downsampling,
    GaussianNoise,
    Identity,
    Inpainting,
    Matrix,
    Problem,
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def random_covariance(d, *, seed=0, spread=0.15):
    """A covariance matrix whose eigenvalues span two orders of magnitude."""
    q = torch.linalg.qr(randn(d, d, seed=seed)).Q
    scales = spread * torch.logspace(0.3, -0.7, d, dtype=torch.float64)
    return (q * scales**2) @ q.T


def matrix_of(problem, row):
    """A of image `row` on observed entries, (m, d)."""
    shape = tuple(problem.image_shape)
    d = math.prod(shape)
    index = torch.full((d,), row)
    operator = problem.operator.take(index)
    impulses = torch.eye(d, dtype=problem.y.dtype).reshape(d, *shape)
    columns = operator(impulses).flatten(1).T
    observed = problem.operator.take(index[:1]).observed
    if observed is None:
        return columns, slice(None)
    seen = observed.expand(1, *problem.y.shape[1:]).flatten()
    return columns[seen], seen


def condition(mean, covariance, problem, row):
    """Mean, covariance and log evidence of p(x | y) for x ~ N(mean (d,), covariance)."""
    a, seen = matrix_of(problem, row)
    y = problem.y[row].flatten()[seen]
    sigma = torch.as_tensor(problem.noise.sigma, dtype=y.dtype)
    sigma = sigma.reshape(-1)[row if sigma.numel() > 1 else 0]
    of_y = a @ covariance @ a.T + sigma**2 * torch.eye(len(y), dtype=y.dtype)
    gain = torch.linalg.solve(of_y, a @ covariance).T
    law = torch.distributions.MultivariateNormal(a @ mean, of_y)
    return (
        mean + gain @ (y - a @ mean),
        covariance - gain @ a @ covariance,
        law.log_prob(y),
    )


def problems(shape=(2, 4, 6), *, count=3):
    """Name -> operator for images of `shape`, with and without per-image state."""
    channels, height, width = shape
    d = math.prod(shape)
    masks = torch.rand(count, 1, height, width, generator=seeded(1)) < 0.6
    masks[:, :, 0, 0] = True
    colour = torch.rand(channels, height, width, generator=seeded(2)) < 0.3
    colour[0, 0, 0] = True
    kernel = torch.rand(3, 2, generator=seeded(4), dtype=torch.float64)
    kernel = kernel / kernel.sum()
    return {
        "identity": Identity(shape),
        "masks": Inpainting(masks),
        "colour mask": Inpainting(colour),
        "matrix": Matrix(randn(7, d, seed=3), shape),
        "circular blur": Blur(kernel, shape),
        "valid blur": Blur(kernel, shape, boundary="valid"),
        "downsampling": Downsampling(2, shape),
        "downsampling with a kernel": Downsampling(2, shape, kernel=kernel),
        "compressed sensing": CompressedSensing(shape, 9, generator=seeded(5)),
        "structured sensing": CompressedSensing(shape, 9, generator=seeded(5), structured=True),
        "blur then masks": Compose(Inpainting(masks), Blur(kernel, shape)),
    }


def pose(operator, shape=(2, 4, 6), *, count=3, sigma=None, seed=7):
    """A problem of `count` images near one half, with one sigma for each."""
    x = 0.5 + 0.2 * randn(count, *shape, seed=seed)
    sigma = (
        torch.tensor([0.05, 0.2, 0.01], dtype=torch.float64)[:count] if sigma is None else sigma
    )
    return Problem.simulate(x, operator, GaussianNoise(sigma), generator=seeded(seed))
