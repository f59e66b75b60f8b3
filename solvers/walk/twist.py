"""Gaussian approximations of p(y | x_sigma) with their densities: the twists of SMC."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from genprior.operators.base import per_row
from genprior.priors.samplers.steps import plus
from genprior.solvers.walk.state import Walk
from genprior.solvers.walk.steps import where_rows

DAMPING = 1e-4
"""Least measurement variance as a share of x0's given x_sigma; it vanishes with sigma."""


@dataclass(frozen=True)
class Twist:
    """N(y; A x0, sigma_y^2 I + A V A^T) at R rows.

    Attributes:
        log_density: In nats, up to a constant of the image and sigma, (R,).
        x0: denoise(x, sigma), (R, C, H, W).
        guided: E[x0 | x_sigma, y] = x0 + V A^T (sigma_y^2 I + A V A^T)^-1 (y - A x0).
    """

    log_density: Tensor
    x0: Tensor
    guided: Tensor

    def take(self, index: Tensor) -> Twist:
        """Return the rows `index`."""
        return Twist(self.log_density[index], self.x0[index], self.guided[index])

    def where(self, sound: Tensor, x: Tensor) -> Twist:
        """Give rows that are not `sound` no weight, and x in place of their images."""
        return Twist(
            torch.where(sound, self.log_density, -math.inf),
            where_rows(sound, self.x0, x),
            where_rows(sound, self.guided, x),
        )


def scalar_twist(walk: Walk, x: Tensor, sigma: Tensor) -> Twist:
    """Take V = r^2 I in the density, and its product with one Jacobian in the guided mean.

    The determinant is then the same for all particles of an image, and left out.
    """
    data = walk.data
    r2, noise2 = walk.variances(sigma, DAMPING)
    x, x0 = walk.denoise_with_graph(x, sigma)
    residual = data.residual(x0.detach())
    u = data.solver(noise2, scale=r2)(residual)
    (gradient,) = torch.autograd.grad(x0, x, data.adjoint(u))
    quadratic = (residual * u).flatten(1).sum(1)
    x0 = x0.detach()
    guided = plus(x0, sigma**2, gradient)
    return Twist(-0.5 * quadratic, x0, guided)


def exact_twist(walk: Walk, x: Tensor, sigma: Tensor) -> Twist:
    """Take V = sigma^2 d x0 / d x: one vector-Jacobian product for each observed entry of y."""
    operator = walk.problem.linear_operator
    _, noise2 = walk.variances(sigma, DAMPING)
    x, x0 = walk.denoise_with_graph(x, sigma)
    residual = walk.problem.residual(x0.detach())
    entries = observed_entries(walk)
    columns, rows = [], []
    for entry in entries:
        e = torch.zeros_like(residual)
        e.view(len(e), -1)[:, entry] = 1
        (product,) = torch.autograd.grad(x0, x, operator.adjoint(e), retain_graph=True)
        columns.append(per_row(sigma**2, product) * product)
        rows.append(operator(columns[-1]).flatten(1)[:, entries])
    gram = torch.stack(rows, -1)
    eye = torch.eye(len(entries), dtype=gram.dtype, device=gram.device)
    covariance = (gram + gram.mT) / 2 + per_row(noise2, gram) * eye
    factor, failed = torch.linalg.cholesky_ex(covariance)
    r = residual.flatten(1)[:, entries, None]
    u = torch.cholesky_solve(r, factor)[..., 0]
    quadratic = (r[..., 0] * u).sum(1)
    log_determinant = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
    log_density = torch.where(failed == 0, -0.5 * (quadratic + log_determinant), torch.nan)
    correction = torch.einsum("mrchw,rm->rchw", torch.stack(columns), u)
    return Twist(log_density, x0.detach(), x0.detach() + correction)


def observed_entries(walk: Walk) -> Tensor:
    """Return the flat indices of entries of y that any row observes; unseen ones are inert."""
    y, observed = walk.problem.y, walk.problem.operator.observed
    if observed is None:
        return torch.arange(y[0].numel(), device=y.device)
    return observed.expand_as(y).flatten(1).any(0).nonzero().flatten()
