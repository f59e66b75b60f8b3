"""Sequential Monte Carlo: weighted particles that make a guided walk asymptotically exact."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from genprior.operators.random import systematic
from genprior.priors.samplers.steps import renewal, renewed
from genprior.solvers.chunks import Solution
from genprior.solvers.data_term import DataTerm
from genprior.solvers.diffusion.daps import conditional_draw
from genprior.solvers.latent.diagnostics import (
    FAMILIES,
    effective_size,
    family_shares,
    remark_on_families,
)
from genprior.solvers.walk.solver import DiffusionSolver
from genprior.solvers.walk.state import Walk
from genprior.solvers.walk.steps import finite_rows, per_level, surely_finite
from genprior.solvers.walk.twist import Twist, exact_twist, observed_entries, scalar_twist


@dataclass(frozen=True)
class SMC(DiffusionSolver):
    """Twisted diffusion sampler.

        psi_t(x) = N(y; A x0, sigma_y^2 I + A V A^T),   x0 = denoise(x, sigma_t), V = Cov[x0 | x]
        propose x_{t-1} ~ q, the ancestral step with E[x0 | x_t, y]
        weight by p(x_{t-1} | x_t) psi_{t-1}(x_{t-1}) / (q psi_t(x_t)),  p the step with x0

    An image's particles form one system, resampled where its effective size halves, from which
    all its samples are drawn. As particles and steps grow they become draws from the posterior.
    V is exact, by one vector-Jacobian product for each entry of y, where there are at most
    `exact_entries` of them, else PiGDM's scalar.

    Attributes:
        particles: For each image; as many as there are samples where more of these are asked
            for. The result's trace tells the `effective` size of an image's system at each step:
            that many samples at most are independent. It tells too how many `families` are left
            in the end, the first particles that the last descend from; `converged` is False below
            two, as with many entries of y and little noise.
        exact_entries: Most observed entries of y for the exact V.

    Source: Wu et al. 2023, arXiv:2306.17775, Algorithm 1 (there V is a scalar, and the gradient
        is taken through psi). Differs: V; log-uniform levels that follow sigma_y; the last step
        is drawn.
    """

    linear: ClassVar[bool] = True
    gaussian: ClassVar[bool] = True
    joint: ClassVar[bool] = True

    particles: int = 256
    exact_entries: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.particles < 1:
            raise ValueError(f"SMC: particles must be at least 1, not {self.particles}")

    def _rows_per_image(self, num_samples: int) -> int:
        return max(self.particles, num_samples)

    def _finish(self, walk: Walk, x: Tensor) -> Solution:
        solution = super()._finish(walk, x)
        more = {"effective": torch.stack(walk.effective), "families": walk.families[None]}
        return replace(
            solution,
            converged=solution.converged & (walk.families >= FAMILIES),
            trace={**solution.trace, **more},
        )

    def _remark(self, found: Solution) -> str:
        said = remark_on_families(found.trace["families"][0])
        return f"{said}, or MMPS" if said else ""

    def descend(self, walk: Walk) -> Tensor:
        few = len(observed_entries(walk)) <= self.exact_entries
        x = self.start(walk)
        twist = self._twist(walk, x, walk.sigmas[0], few)
        log_weights = twist.log_density
        family = torch.arange(len(x) // len(walk.generators), device=x.device)
        family = family.repeat(len(walk.generators))
        shares = per_level(x, *renewal(walk.sigmas[:-1], walk.sigmas[1:]))
        for lower, (k, s) in zip(walk.sigmas[1:], shares, strict=True):
            index, log_weights = self._resample(walk, log_weights)
            if index is not None:
                x, twist, family = x[index], twist.take(index), family[index]
            walk.record(twist.guided)
            n = walk.noise(x)
            shift = (1 - k) / s * (twist.guided - twist.x0)
            x = renewed(twist.guided, x, k, s, n)
            before, twist = twist.log_density, self._twist(walk, x, lower, few)
            # log p / q for equal covariances s^2: their means are s * shift apart
            ratio = -(shift * (n + shift / 2)).flatten(1).sum(1)
            log_weights = log_weights + ratio + twist.log_density - before
        walk.record(twist.guided)
        weights = _weights(walk, log_weights)
        walk.effective.append(effective_size(weights))
        walk.families = effective_size(family_shares(weights, family.view_as(weights)))
        chosen = _choose(walk, log_weights, walk.samples)
        return self._last_draw(walk, twist.x0, chosen)

    def _twist(self, walk: Walk, x: Tensor, sigma: Tensor, few: bool) -> Twist:
        twist = (exact_twist if few else scalar_twist)(walk, x, sigma)
        if surely_finite(twist.log_density, twist.guided):
            return twist
        sound = twist.log_density.isfinite() & finite_rows(twist.guided)
        walk.doubt(sound)
        return twist.where(sound, x)

    @staticmethod
    def _resample(walk: Walk, log_weights: Tensor) -> tuple[Tensor | None, Tensor]:
        """Draw particles anew in images whose effective size is below half; None: in no image."""
        weights = _weights(walk, log_weights)
        count = weights.shape[1]
        walk.effective.append(effective_size(weights))
        halved = walk.effective[-1] < count / 2
        drawn = _choose(walk, log_weights, count)
        if not bool(halved.any()):
            return None, log_weights
        same = torch.arange(len(log_weights), device=drawn.device)
        chosen = halved.repeat_interleave(count)
        log_weights = torch.where(chosen, 0.0, log_weights)
        return torch.where(chosen, drawn, same), log_weights

    @staticmethod
    def _last_draw(walk: Walk, x0: Tensor, chosen: Tensor) -> Tensor:
        """Draw x0 given the last x and y: V is all but sigma^2 I there."""
        data = DataTerm.of(walk.problem.take(chosen))
        r2 = walk.uncertainty(walk.sigmas[-1])[chosen]
        return conditional_draw(data, x0[chosen], r2, walk.noise)


def _weights(walk: Walk, log_weights: Tensor) -> Tensor:
    """Normalise within each image, (B, P); a system without any weight starts afresh."""
    grouped = log_weights.reshape(len(walk.generators), -1)
    lost = (grouped == -torch.inf).all(1, keepdim=True)
    return torch.softmax(torch.where(lost, 0.0, grouped), 1)


def _choose(walk: Walk, log_weights: Tensor, count: int) -> Tensor:
    """Draw `count` particles of each image by systematic resampling: flat indices."""
    weights = _weights(walk, log_weights)
    index = systematic(weights, count, walk.generators)
    first = torch.arange(len(weights), device=index.device)[:, None] * weights.shape[1]
    return (first + index).flatten()
