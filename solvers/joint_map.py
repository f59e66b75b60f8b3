"""The most probable pair of image and latent, by turns, with the encoder's help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genprior.priors.base import Prior
from genprior.priors.variational import VariationalPrior
from genprior.solvers import lbfgs
from genprior.solvers.base import Chunk, Counted, Solution, Solver
from genprior.solvers.latent_posterior import LatentPosterior, latent_posterior


@dataclass(frozen=True)
class JointMAP(Solver):
    """Maximise p(x, z | y) over image and latent in turn.

        J(x, z) = |y - A x|^2 / (2 sigma^2) + |x - decode(z)|^2 / (2 s^2) + |z|^2 / 2

    For z the encoder's guess is taken where it lowers J; elsewhere z descends from where it was.
    For x the minimum is in closed form. An image whose x moves less than `tolerance` is done.
    The prior's decoder must have one standard deviation s (a VAE with Gaussian pixels).

    Attributes:
        steps: Most turns.
        descent: Gradient evaluations of a turn in which the encoder's guess is no better.
        tolerance: Root mean square change of x at which an image is done.

    Source: Gonzalez, Almansa, Tan 2022 (JPMAP), arXiv:2103.01648, Algorithm 2. Differs: L-BFGS
        descends; no continuation in s.
    """

    needs: ClassVar[type[Prior]] = VariationalPrior
    linear: ClassVar[bool] = True
    gaussian: ClassVar[bool] = True
    point_estimate: ClassVar[bool] = True

    steps: int = 200
    descent: int = 20
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if self.steps < 1 or self.descent < 2 or not self.tolerance >= 0:
            raise ValueError(
                "JointMAP takes steps >= 1, descent >= 2 and tolerance >= 0, not "
                f"{self.steps}, {self.descent}, {self.tolerance}"
            )

    def _solve(self, chunk: Chunk, prior: Counted) -> Solution:
        whole = latent_posterior(prior, chunk.problem, decoder_variance=True)
        count = len(chunk.problem.y)
        z = chunk.problem.y.new_zeros(count, *prior.latent_shape)
        x = whole.mean_image(z)
        done = torch.zeros(count, dtype=torch.bool, device=x.device)
        history = []
        for _ in chunk.track(range(self.steps), "JointMAP"):
            row = (~done).nonzero()[:, 0]
            if not len(row):
                break
            posterior = whole.take(row)
            z[row] = self._latent(posterior, x[row], z[row])
            moved = posterior.mean_image(z[row])
            change = (moved - x[row]).square().flatten(1).mean(1).sqrt()
            x[row] = moved
            done[row] = change <= self.tolerance
            history.append(change.new_zeros(count).index_copy(0, row, change))
        misfit = whole.misfit(z)
        return Solution(
            samples=x[:, None],
            converged=done & whole.explains(misfit) & x.isfinite().flatten(1).all(1),
            latents=z[:, None],
            trace={"change": torch.stack(history), "residual": misfit[None]},
        )

    def _latent(self, posterior: LatentPosterior, x: Tensor, z: Tensor) -> Tensor:
        """Lower J(x, .) from z: by the encoder, else by descent."""
        prior, s = posterior.prior, posterior.decoder_std

        def energy(flat: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                latent = flat.detach().requires_grad_()
                error = (x[row] - prior.decode(latent.unflatten(1, z.shape[1:]))) / s
                value = 0.5 * (error.square().flatten(1).sum(1) + latent.square().sum(1))
                (gradient,) = torch.autograd.grad(value.sum(), latent)
            return value.detach(), gradient

        def value(latent: Tensor) -> Tensor:
            error = (x - prior.decode(latent)) / s
            return 0.5 * (error.square().flatten(1).sum(1) + latent.square().flatten(1).sum(1))

        guess = prior.encode(x)
        z = z.clone()
        lower = value(guess) < value(z)
        z[lower] = guess[lower]
        stay = (~lower).nonzero()[:, 0]
        if len(stay):
            end = lbfgs.minimise(
                lambda flat, row: energy(flat, stay[row]),
                z[stay].flatten(1),
                steps=self.descent,
                tolerance=0.0,
            )
            z[stay] = end.x.unflatten(1, z.shape[1:])
        return z
