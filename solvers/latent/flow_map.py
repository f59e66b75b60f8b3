"""The most probable image of a prior with an exact density, by descent in its latent or in x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from genprior.operators import Problem
from genprior.priors.base import DensityPrior, EncodingPrior, LatentPrior, Prior
from genprior.solvers.base import Counted, Solver
from genprior.solvers.chunks import Chunk, Solution
from genprior.solvers.fit import largest_misfit, misfit
from genprior.solvers.latent import lbfgs
from genprior.solvers.latent.latent_map import adam, latent_energy
from genprior.solvers.latent.latent_posterior import latent_posterior
from genprior.solvers.latent.lbfgs import Function


@dataclass(frozen=True)
class FlowMAP(Solver):
    """Maximise the posterior of a flow, in its latent z or in the image x = decode(z).

        space="latent":  z* = argmin_z  -log p(y | decode(z)) + gamma |z|^2 / 2
        space="image":   x* = argmin_x  -log p(y | x) - gamma log p(x)

    They are two different modes: a density changes with the coordinates it is taken in, by the
    volume |det d decode / dz|, so the most probable z is not the z of the most probable x. For a
    Gaussian they agree. The mode in z searches through the inverse of the flow; the mode in x
    needs its density only, and starts at the same image.

    The gradient of each image is its own: rows that converge are evaluated no more. `converged`
    is False where the descent did not end, or the residual is far above the noise.

    Attributes:
        space: 'latent' or 'image'.
        gamma: Weight of the prior; 1 is the posterior.
        optimizer: 'lbfgs' or 'adam'.
        start: 'zero' for z = 0, the middle of the prior; 'measurement' for the latent of
            A^+ y brought into [0, 1]; or a latent, (k,).
        steps: Most gradient evaluations.
        tolerance: Norm of the gradient at which an image is done.
        learning_rate: Adam's.

    Source: Asim et al. 2020, arXiv:1905.11672 (in z, L-BFGS from z = 0); Whang et al. 2021,
        arXiv:2003.08089, equation 4 (in x). Differs: the data term is the noise's likelihood, so
        that gamma = 1 is the posterior.
    """

    needs: ClassVar[tuple[type[Prior], ...]] = (LatentPrior, EncodingPrior, DensityPrior)
    needs_besides: ClassVar[str] = "an encoder that is exact (a flow, a Gaussian)"
    point_estimate: ClassVar[bool] = True

    space: Literal["latent", "image"] = "latent"
    gamma: float = 1.0
    optimizer: Literal["lbfgs", "adam"] = "lbfgs"
    start: Literal["zero", "measurement"] | Tensor = "zero"
    steps: int = 500
    tolerance: float = 1e-3
    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        for name, allowed in (
            ("space", ("latent", "image")),
            ("optimizer", ("lbfgs", "adam")),
            ("start", ("zero", "measurement")),
        ):
            value = getattr(self, name)
            if not isinstance(value, Tensor) and value not in allowed:
                raise ValueError(
                    f"{name} must be {' or '.join(map(repr, allowed))}, not {value!r}"
                )
        if self.steps < 1 or not (self.gamma >= 0 and self.tolerance >= 0):
            raise ValueError(
                "steps must be at least 1, gamma and tolerance >= 0, not "
                f"{self.steps}, {self.gamma}, {self.tolerance}"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, not {self.learning_rate}")

    @classmethod
    def serves(cls, prior: Prior) -> bool:
        return super().serves(prior) and bool(getattr(prior, "exact_encoder", False))

    def _solve(self, chunk: Chunk, prior: Counted) -> Solution:
        problem = chunk.problem
        z = self._begin(problem, prior, chunk.image_shape)
        posterior = latent_posterior(prior, problem, decoder_variance=False)
        if self.space == "latent":
            energy = latent_energy(posterior, z.shape[1:], prior_weight=self.gamma)
            begin = z
        else:
            energy = image_energy(problem, prior, chunk.image_shape, gamma=self.gamma)
            begin = prior.decode(z)
        flat = begin.flatten(1)
        if self.optimizer == "lbfgs":
            end = lbfgs.minimise(energy, flat, steps=self.steps, tolerance=self.tolerance)
        else:
            end = adam(
                energy, flat, steps=self.steps, tolerance=self.tolerance, rate=self.learning_rate
            )
        found = end.x.view_as(begin)
        x = prior.decode(found) if self.space == "latent" else found
        z = found if self.space == "latent" else prior.encode(found)
        residual = misfit(problem, x)
        return Solution(
            samples=x[:, None],
            converged=end.converged & (residual <= largest_misfit(problem)),
            latents=z[:, None],
            trace={"energy": end.history, "residual": residual[None]},
        )

    def _begin(self, problem: Problem, prior: Counted, image_shape: tuple[int, ...]) -> Tensor:
        shape = (len(problem.y), *prior.latent_shape)
        if None in prior.latent_shape:  # a prior of any size, whose latents are like images
            shape = (len(problem.y), *image_shape)
        if isinstance(self.start, Tensor):
            return self.start.to(problem.y).expand(shape).clone()
        if self.start == "zero":
            return problem.y.new_zeros(shape)
        return prior.encode(problem.linear_operator.pinv(problem.y).clamp(1e-3, 1 - 1e-3))


def image_energy(
    problem: Problem, prior: Counted, image_shape: tuple[int, ...], *, gamma: float
) -> Function:
    """Return f(x, rows) = -log p(y | x) - gamma log p(x), x flat, and its gradient."""

    def energy(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        mine = problem if len(rows) == len(problem.y) else problem.take(rows)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            image = x.view(-1, *image_shape)
            value = -mine.log_likelihood(image)
            if gamma:
                value = value - gamma * prior.log_prob(image)
            (gradient,) = torch.autograd.grad(value.sum(), x)
        return value.detach(), gradient

    return energy
