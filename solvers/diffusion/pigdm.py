"""Pseudoinverse guidance: the likelihood with one scalar covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genprior.priors.samplers import DPMSolver, Sampler
from genprior.priors.samplers.steps import plus
from genprior.solvers.walk.guided import GuidedSolver
from genprior.solvers.walk.state import Walk


@dataclass(frozen=True)
class PiGDM(GuidedSolver):
    """Pseudoinverse-Guided Diffusion Model.

        p(y | x_t) = N(y; A x0, r_t^2 A A^T + sigma_y^2 I),
        r_t^2 = sigma_t^2 s^2 / (sigma_t^2 + s^2)
        E[x0 | x_t, y] = x0 + sigma_t^2 (dx0/dx_t)^T A^T (r_t^2 A A^T + sigma_y^2 I)^-1 (y - A x0)

    with x0 = denoise(x_t) and s the prior's standard deviation. One vector-Jacobian product a
    step.

    Source: Song et al. 2023, "Pseudoinverse-Guided Diffusion Models for Inverse Problems",
        equations 7 and 8. Differs: s^2 is the data's variance, not 1, in r_t^2 (their appendix
        A.3 derives it for data of variance 1); the guided mean is Tweedie's, their code scales
        the guidance by r_t^2 sqrt(alpha_t) instead of sigma_t^2; the walk is second order.
    """

    linear: ClassVar[bool] = True
    gaussian: ClassVar[bool] = True

    sampler: Sampler = DPMSolver(stochastic=True)  # noqa: RUF009 (frozen)

    def guide(self, walk: Walk, x: Tensor, sigma: Tensor) -> Tensor:
        data, r2 = walk.data, walk.uncertainty(sigma)
        x, x0 = walk.denoise_with_graph(x, sigma)
        u = data.solver(walk.sigma_y**2, scale=r2)(data.residual(x0.detach()))
        (gradient,) = torch.autograd.grad(x0, x, data.adjoint(u))
        return plus(x0.detach(), sigma**2, gradient)
