"""The exact law of a walk's samples, for walks that are affine in their noise.

On a Gaussian prior a linear guidance makes every step affine in x and in the noise drawn, so a
sample is a + L n with n standard normal. Sending unit vectors through in place of n gives a and
L: the law N(a, L L^T), with no Monte Carlo error.
"""

import sys
from contextlib import contextmanager

import torch

from genprior.operators import GaussianNoise, Inpainting, Problem
from genprior.priors import Gaussian


def field(seed, *, sigma=0.05, observed=8):
    """A Gaussian on 1x4x4 images with its posterior problem: pixels of std .1 to .2, correlated
    over 1 to 3 pixels, `observed` of the 16 seen."""
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    places = torch.cartesian_prod(*[torch.arange(4, dtype=torch.float64)] * 2)
    length, std = 1 + 2 * uniform(1), 0.1 + 0.1 * uniform(16)
    covariance = std[:, None] * std * torch.exp(-torch.cdist(places, places) / length)
    prior = Gaussian.from_covariance(0.3 + 0.4 * uniform(1, 4, 4), covariance)
    mask = torch.zeros(16, dtype=torch.bool)
    mask[torch.randperm(16, generator=g)[:observed]] = True
    x = prior.sample(1, generator=g)
    operator = Inpainting(mask.reshape(1, 4, 4))
    return prior, Problem.simulate(x, operator, GaussianNoise(sigma), generator=g)


def covariance_of(prior):
    law = prior.law(torch.float64)
    eye = torch.eye(law.dimension, dtype=torch.float64)
    return law.factors.T @ law.factors + law.residual**2 * eye


def exact(prior, problem):
    """Posterior mean and covariance by dense algebra, independent of the library's own."""
    prior_covariance = covariance_of(prior)
    seen = problem.operator.observed
    a = problem.operator.dense_matrix(problem.y)
    y = problem.y[0].flatten()
    if seen is not None:
        keep = seen.expand_as(problem.y)[0].flatten()
        a, y = a.reshape(-1, a.shape[-1])[keep], y[keep]
    noise = problem.noise.sigma**2 * torch.eye(len(y), dtype=torch.float64)
    gain = prior_covariance @ a.T @ torch.linalg.inv(a @ prior_covariance @ a.T + noise)
    mean = prior.mean.flatten()
    return mean + gain @ (y - a @ mean), prior_covariance - gain @ a @ prior_covariance


class _UnitVectors:
    """Stands for `normal`: counts the numbers drawn, then deals each call its unit vectors."""

    def __init__(self, rows=None):
        self.rows, self.drawn = rows, 0

    def __call__(self, shape, generator, *, dtype=torch.float32, device="cpu"):
        size = int(torch.tensor(shape[1:]).prod())
        out = torch.zeros(shape[0], size, dtype=dtype, device=device)
        if self.rows is not None:
            out[1 + self.drawn : 1 + self.drawn + size] = torch.eye(size, dtype=dtype)
        self.drawn += size
        return out.reshape(shape)


@contextmanager
def noise_replaced(function):
    """Put `function` in the place of `normal` wherever the library draws noise."""
    modules = [
        m
        for name, m in list(sys.modules.items())
        if name.startswith("genprior.") and hasattr(m, "normal") and not name.endswith(".random")
    ]
    originals = [m.normal for m in modules]
    try:
        for module in modules:
            module.normal = function
        yield function
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.normal = original


def population(solver, problem, prior, *, scale=1.0):
    """Mean and covariance of the solver's samples; `scale` multiplies all noise it draws."""
    with noise_replaced(_UnitVectors()) as counted:
        solver(problem, prior)
    rows = 1 + counted.drawn
    with noise_replaced(_UnitVectors(rows)):
        result = solver(problem, prior, num_samples=rows, batch_size=rows)
    x = result.samples[0].flatten(1)
    columns = scale * (x[1:] - x[0])
    return x[0], columns.T @ columns


def sampled(solver, problem, prior, *, n=500, scale=1.0):
    """Mean and covariance of n samples, for walks that are not affine."""
    from genprior.operators.random import normal

    def scaled(*args, **kwargs):
        return scale * normal(*args, **kwargs)

    generator = torch.Generator().manual_seed(0)
    with noise_replaced(scaled):
        result = solver(problem, prior, num_samples=n, batch_size=n, generator=generator)
    x = result.samples[0].flatten(1)
    return x.mean(0), torch.cov(x.T)
