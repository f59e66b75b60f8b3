"""Diffusion posterior sampling: a step down the gradient of the residual's norm."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genprior.operators import Problem
from genprior.priors.samplers.steps import plus, renewal, renewed
from genprior.solvers.base import Counted, numbered
from genprior.solvers.chunks import Solution
from genprior.solvers.walk.control import white_error
from genprior.solvers.walk.levels import ddpm_grid
from genprior.solvers.walk.solver import DiffusionSolver
from genprior.solvers.walk.state import Walk
from genprior.solvers.walk.steps import per_level

TRUSTED = 2.0
"""Longest residual that is followed, as a multiple of the length that is expected of it."""

OFF = 0.5
"""Error of the mean in posterior standard deviations, on white data, that is warned of."""


@dataclass(frozen=True)
class DPS(DiffusionSolver):
    """Diffusion Posterior Sampling.

        x_i' = ancestral step from x_i with x0 = denoise(x_i)
        x_{i-1} = x_i' - zeta_i grad_{x_i} |y - A(x0)|

    The norm is each image's own, over observed entries; where the noise is Poisson's, entries
    are weighted by the inverse of their standard deviation. A may be nonlinear. One
    vector-Jacobian product a step.

    The paper leaves zeta_i to be tuned, and its step has one length however well x0 fits. Here
    the step is that of a likelihood N(y; A x0, (sigma_y^2 + a r_i^2) I),

        zeta_i = zeta |y - A x0| (sigma_i^2 - sigma_{i-1}^2) / (sigma_y^2 + a r_i^2)

    with r_i^2 = sigma_i^2 s^2 / (sigma_i^2 + s^2), s the prior's standard deviation and
    a = |A^T u|^2 for the unit residual u. A residual over `TRUSTED` times the length that this
    likelihood expects, sqrt(m (sigma_y^2 + a r_i^2)) for m observed entries, counts as that
    long, which keeps steps bounded where A is nonlinear.

    One number stands for A A^T. Where its eigenvalues g differ, a step that is safe along the
    largest is too short along the others at every level above sigma_y / sqrt(g), and more steps
    do not mend it: along those the mean stays short of y, by about a posterior standard deviation
    once sigma_y is under a hundredth of the data's (blur, compressed sensing, dense matrices;
    never masks and downsampling). Where A is linear and the noise Gaussian the same steps are
    taken on white data, whose posterior is known; where they end over `OFF` posterior standard
    deviations from its mean, a warning says so. The trace keeps it as `white_error`.

    Attributes:
        zeta: Scale of the step.
        matched: The above; else `zeta` is the published constant, see `published`.

    Source: Chung et al. 2023, arXiv:2209.14687, Algorithm 1. Differs: the norm is taken per
        image (the code's is over the batch); zeta_i as above.
    """

    zeta: float = 1.0
    matched: bool = True

    @classmethod
    def published(cls, *, zeta: float = 1.0) -> DPS:
        """The settings of the paper's code: 1000 steps, zeta from .3 to 1 by the task.

        The constant belongs to the variance-preserving x of images in [-1, 1]. In our units the
        step is  zeta / 2 sqrt((1 + 4 sigma_i^2) (1 + 4 sigma_{i-1}^2)):  y - A x0 doubles, and
        2 x - 1 = x_VP / sqrt(alpha_bar), alpha_bar = 1 / (1 + 4 sigma^2).
        """
        return cls(steps=1000, zeta=zeta, matched=False)

    def levels(self, problem: Problem, prior: Counted) -> Tensor:
        if self.matched:
            return super().levels(problem, prior)
        return ddpm_grid(problem, self.steps)

    def descend(self, walk: Walk) -> Tensor:
        x, pulls = self.start(walk), []
        shares = per_level(x, *renewal(walk.sigmas, walk.lower))
        for sigma, lower, (k, s) in zip(walk.sigmas, walk.lower, shares, strict=True):
            x, x0 = walk.denoise_with_graph(x, sigma)
            norm, pulled = walk.residual_gradient(x0.detach())
            (gradient,) = torch.autograd.grad(x0, x, pulled)
            x, x0 = x.detach(), x0.detach()
            a = pulled.flatten(1).square().sum(1)
            zeta = self._zeta(walk, sigma, lower, norm, a)
            pulls.append(torch.where(norm > 0, zeta / norm, 0.0))
            n = None if walk.last else walk.noise(x)
            ahead = plus(renewed(x0, x, k, s, n), -zeta, gradient)
            x = walk.keep_sound(ahead, x)
            walk.record(x0, norm)
        if walk.problem.linear_gaussian:
            walk.white_error = white_error(walk, pulls)
        return x

    def _finish(self, walk: Walk, x: Tensor) -> Solution:
        found = super()._finish(walk, x)
        if walk.white_error is None:
            return found
        return replace(found, trace={**found.trace, "white_error": walk.white_error[None]})

    def _remark(self, found: Solution) -> str:
        if "white_error" not in found.trace:
            return ""
        error = found.trace["white_error"][0]
        images = (error > OFF).nonzero().flatten().tolist()
        if not images:
            return ""
        return (
            f"one number stands for A A^T, which is too coarse for {len(images)} of {len(error)} "
            f"images: number {numbered(images)}; on white data the same steps end "
            f"{', '.join(f'{float(error[i]):.2g}' for i in images[:8])} posterior standard "
            "deviations from the mean. Take MMPS or PiGDM"
        )

    def _zeta(self, walk: Walk, sigma: Tensor, lower: Tensor, norm: Tensor, a: Tensor) -> Tensor:
        if not self.matched:
            return self.zeta / 2 * ((1 + 4 * sigma**2) * (1 + 4 * lower**2)).sqrt()
        variance = walk.sigma_y**2 + a * walk.uncertainty(sigma)
        length = TRUSTED * (walk.problem.observed_count * variance).sqrt()
        step = torch.minimum(norm, length) * (sigma**2 - lower**2) / variance
        return self.zeta * torch.where(variance > 0, step, 0.0)
