"""The most probable pair of image and latent, with the encoder's help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from genprior.priors.base import EncodingPrior, LatentPrior, Prior
from genprior.solvers.base import Counted, Solver
from genprior.solvers.chunks import Chunk, Solution
from genprior.solvers.latent import lbfgs
from genprior.solvers.latent.latent_map import latent_energy
from genprior.solvers.latent.latent_posterior import LatentPosterior, latent_posterior


@dataclass(frozen=True)
class JointMAP(Solver):
    """Maximise p(x, z | y) over image and latent: in turn with the encoder's help, then at once.

        J(x, z) = |y - A x|^2 / (2 sigma^2) + |x - decode(z)|^2 / (2 s^2) + |z|^2 / 2

    In each turn z is the encoder's guess where that lowers J, and elsewhere descends from where
    it was; x is the minimum, in closed form. Turns find a good valley but crawl along it: where
    little is measured x holds z fast. So at last z descends alone J with its best x put in, which
    is the function that `LatentMAP` descends; the minimum is the same.
    The prior's decoder must have one standard deviation s (a VAE with Gaussian pixels).

    Attributes:
        turns: Of image and latent.
        descent: Gradient evaluations of a turn in which the encoder's guess is no better.
        steps: Most gradient evaluations of the descent at last.
        tolerance: Norm of the gradient in z at which an image is done.

    Source: Gonzalez, Almansa, Tan 2022 (JPMAP), arXiv:2103.01648, Algorithm 2. Differs: L-BFGS
        descends, from where z was and not from the encoder's guess; the descent at last; no
        continuation in s.
    """

    needs: ClassVar[tuple[type[Prior], ...]] = (LatentPrior, EncodingPrior)
    needs_besides: ClassVar[str] = "a decoder_std (a VAE with Gaussian pixels)"
    linear: ClassVar[bool] = True
    gaussian: ClassVar[bool] = True
    point_estimate: ClassVar[bool] = True

    turns: int = 5
    descent: int = 20
    steps: int = 500
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if self.turns < 0 or self.descent < 2 or self.steps < 1 or not self.tolerance >= 0:
            raise ValueError(
                "JointMAP takes turns >= 0, descent >= 2, steps >= 1 and tolerance >= 0, not "
                f"{self.turns}, {self.descent}, {self.steps}, {self.tolerance}"
            )

    @classmethod
    def serves(cls, prior: Prior) -> bool:
        return super().serves(prior) and getattr(prior, "decoder_std", None) is not None

    def _solve(self, chunk: Chunk, prior: Counted) -> Solution:
        posterior = latent_posterior(prior, chunk.problem, decoder_variance=True)
        z = chunk.problem.y.new_zeros(len(chunk.problem.y), *prior.latent_shape)
        x = posterior.mean_image(z)
        for _ in chunk.track(range(self.turns), "JointMAP"):
            z = self._latent(posterior, x, z)
            x = posterior.mean_image(z)
        energy = latent_energy(posterior, prior.latent_shape, prior_weight=1.0)
        end = lbfgs.minimise(energy, z.flatten(1), steps=self.steps, tolerance=self.tolerance)
        z = end.x.unflatten(1, prior.latent_shape)
        x, misfit = posterior.mean_image(z), posterior.misfit(z)
        finite = x.isfinite().flatten(1).all(1)
        return Solution(
            samples=x[:, None],
            converged=end.converged & posterior.explains(misfit) & finite,
            latents=z[:, None],
            trace={"energy": end.history, "residual": misfit[None]},
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
