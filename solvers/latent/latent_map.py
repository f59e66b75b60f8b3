"""The most probable latent, by descent from several starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.linalg import vecdot

from genprior.operators.random import normal
from genprior.priors.base import LatentPrior, Prior
from genprior.solvers.base import Counted, Solver
from genprior.solvers.chunks import Chunk, Solution
from genprior.solvers.latent import lbfgs
from genprior.solvers.latent.adaptation import adapt, check_adaptable
from genprior.solvers.latent.latent_posterior import LatentPosterior, latent_posterior
from genprior.solvers.latent.lbfgs import Ends, Function, Minimum

MOST_ADAPTED = 100_000


@dataclass(frozen=True)
class LatentMAP(Solver):
    """Maximise p(z | y) over latents and return the image of the best of several restarts.

        z* = argmin_z  -log p(y | z) + prior_weight |z|^2 / 2,   x* = E[x | z*, y]

    The first start is z = 0, the prior's mode; the others are drawn from the prior. All restarts
    of all images run as one batch, and a row that has converged is evaluated no more. `converged`
    is False for an image whose best restart did not converge, or whose residual ("residual" in
    the trace, in units of the noise) is far above the noise: the prior cannot explain y. There
    `adapt` helps: from z* on, a copy of the decoder is trained on y alone until its residual is
    the noise's. What comes out is no mode of the prior any more; "residual" then has two rows,
    before and after, and the first is the prior's error of representation; `converged` says
    that the second is down at the noise.

    Attributes:
        optimizer: 'lbfgs', or 'adam' as in the source.
        restarts: Starts for each image.
        steps: Most gradient evaluations for each restart.
        tolerance: Norm of the gradient in z at which a restart has converged.
        learning_rate: Adam's.
        prior_weight: 1 is the MAP; the source's lambda, beside a data term |y - A x|^2, is
            sigma^2 times this weight.
        decoder_variance: Count the decoder's own spread (`decoder_std` of a VAE) in the
            likelihood; None does so wherever it can be done.
        adapt: Most steps of training the decoder on each image, 0 for none.

    Source: Bora et al. 2017 (CSGM), arXiv:1703.03208; Hussein et al. 2020, arXiv:1906.05284
        (`adapt`). Differs: the weight of |z|^2 follows from
        the noise, and the decoder's error counts as noise.
    """

    needs: ClassVar[tuple[type[Prior], ...]] = (LatentPrior,)
    point_estimate: ClassVar[bool] = True

    optimizer: Literal["lbfgs", "adam"] = "lbfgs"
    restarts: int = 4
    steps: int = 500
    tolerance: float = 1e-3
    learning_rate: float = 0.01
    prior_weight: float = 1.0
    decoder_variance: bool | None = None
    adapt: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in ("lbfgs", "adam"):
            raise ValueError(f"optimizer must be 'lbfgs' or 'adam', not {self.optimizer!r}")
        if self.restarts < 1 or self.steps < 1:
            raise ValueError(
                f"restarts and steps must be at least 1, not {self.restarts}, {self.steps}"
            )
        if not 0 <= self.adapt <= MOST_ADAPTED:
            raise ValueError(f"adapt must be 0 to {MOST_ADAPTED}, not {self.adapt}")
        if self.prior_weight < 0 or not (self.tolerance >= 0 and self.learning_rate > 0):
            raise ValueError(
                "prior_weight and tolerance must be >= 0 and learning_rate > 0, not "
                f"{self.prior_weight}, {self.tolerance}, {self.learning_rate}"
            )

    def _rows_per_image(self, num_samples: int) -> int:
        return self.restarts

    def _solve(self, chunk: Chunk, prior: Counted) -> Solution:
        if self.adapt:
            check_adaptable(prior.prior)
        y, restarts = chunk.problem.y, self.restarts
        images = torch.arange(len(y), device=y.device)
        rows = chunk.problem.take(images.repeat_interleave(restarts))
        posterior = latent_posterior(prior, rows, self.decoder_variance)
        z = starts(prior.latent_shape, restarts, chunk.generators, like=y)
        energy = latent_energy(posterior, prior.latent_shape, prior_weight=self.prior_weight)
        end = self._minimise(energy, z.flatten(0, 1).flatten(1))
        value = end.value.view(-1, restarts)
        best = images * restarts + value.argmin(1)
        found = posterior.take(best)
        z = end.x[best].unflatten(1, prior.latent_shape)
        if self.adapt:
            x, z, residual, converged = adapt(found, z, steps=self.adapt)
        else:
            x, residual = found.mean_image(z), found.misfit(z)[None]
            converged = end.converged[best] & found.explains(residual[0])
        history = end.history.view(-1, len(y), restarts).amin(2)
        return Solution(
            samples=x[:, None],
            converged=converged,
            latents=z[:, None],
            trace={"energy": history, "residual": residual},
        )

    def _minimise(self, energy: Function, z: Tensor) -> Minimum:
        if self.optimizer == "lbfgs":
            return lbfgs.minimise(energy, z, steps=self.steps, tolerance=self.tolerance)
        return adam(energy, z, steps=self.steps, tolerance=self.tolerance, rate=self.learning_rate)


def starts(
    latent_shape: Sequence[int],
    restarts: int,
    generators: Sequence[torch.Generator],
    *,
    like: Tensor,
) -> Tensor:
    """Return z = 0 and draws from the prior, (B, restarts, *latent_shape)."""
    shape = (len(generators), restarts, *latent_shape)
    z = normal(shape, generators, dtype=like.dtype, device=like.device)
    z[:, 0] = 0
    return z


def latent_energy(
    posterior: LatentPosterior,
    latent_shape: Sequence[int],
    *,
    prior_weight: float,
    log_volume: Callable[[Tensor], Tensor] | None = None,
) -> Function:
    """Return f(z, rows) = -log p(y | z) + prior_weight (|z|^2 / 2 + log_volume(z)), z flat.

    Its minimum for weight 1 is the mode of p(z | y), or with log_volume(z) = log |det d decode /
    dz|, for z (n, *latent_shape) (n,), that of p(x | y): -log p(x) = -log N(z) + log |det| there.
    """
    count = len(posterior.problem.y)
    kept: tuple[Tensor | None, LatentPosterior] = (None, posterior)

    def energy(z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal kept
        if len(rows) < count and rows is not kept[0]:
            kept = (rows, posterior.take(rows))
        value, gradient = kept[1].value_and_gradient(z.view(-1, *latent_shape))
        value = value.add(vecdot(z, z), alpha=0.5 * prior_weight)
        gradient = gradient.flatten(1).add(z, alpha=prior_weight)
        if log_volume is None:
            return value, gradient
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            volume = log_volume(z.view(-1, *latent_shape))
            (slope,) = torch.autograd.grad(volume.sum(), z)
        return value + prior_weight * volume.detach(), gradient + prior_weight * slope

    return energy


def adam(function: Function, x0: Tensor, *, steps: int, tolerance: float, rate: float) -> Minimum:
    """Minimise N functions by Adam; rows that converge, or become NaN, stop.

    Source: Kingma, Ba 2015, arXiv:1412.6980, Algorithm 1.
    """
    x, row = x0, torch.arange(len(x0), device=x0.device)
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    f, g = function(x, row)
    ends = Ends.start(x, f.nan_to_num(nan=torch.inf))
    for step in range(1, steps + 1):
        going = g.norm(dim=1) > tolerance  # False also where it is NaN
        if not bool(going.all()):
            over = ~going
            finite = f[over].isfinite() & g[over].isfinite().all(1)
            ends.close(row[over], x[over], f[over].where(finite, torch.inf), finite)
            row, x, f, g, m, v = (a[going] for a in (row, x, f, g, m, v))
        if step == steps or not len(row):
            break
        m.lerp_(g, 0.1)
        v.mul_(0.999).addcmul_(g, g, value=0.001)
        root = (1 - 0.999**step) ** 0.5
        scale = v.sqrt().add_(1e-8 * root)
        x = torch.addcdiv(x, m, scale, value=-rate * root / (1 - 0.9**step))
        f, g = function(x, row)
        ends.record(row, f)
    ends.close(row, x, f, torch.zeros_like(row, dtype=torch.bool))
    return ends.minimum()
