"""Samples of the latent given the measurement, by Hamiltonian Monte Carlo."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from genprior.operators.random import normal, spawn
from genprior.priors.base import LatentPrior, Prior
from genprior.solvers.base import Counted, Solver
from genprior.solvers.chunks import WORST, Chunk, Solution
from genprior.solvers.latent.diagnostics import effective_sample_size, split_r_hat
from genprior.solvers.latent.hmc import Point, Potential, StepSize, fit_metric, hmc_step
from genprior.solvers.latent.latent_posterior import LatentPosterior, latent_posterior

PATH = 2.5
"""Longest path of a proposal, in units of the metric: after 2 pi a Gaussian is where it began."""

R_HAT = 1.05
"""Chains that agree to within this are taken as converged."""


@dataclass(frozen=True)
class LatentSampler(Solver):
    """Draw z from p(z | y) and return the images.

        U(z) = -log p(y | z) + |z|^2 / 2,   z ~ exp(-U),   x ~ p(x | z, y)

    Several chains an image start from the prior. In the warm-up the likelihood's weight first
    grows from 1/1000 to 1, which leads chains into probable modes, then the metric and every
    chain's step size adapt. The trace has the largest split R-hat ("r_hat") and the smallest
    effective sample size ("ess") over the latent's coordinates; `converged` is False where R-hat
    exceeds 1.05 (chains disagree: the posterior has modes that they do not cross) or a sample's
    residual is far above the noise.

    Attributes:
        steps: Draws of each chain after the warm-up.
        warm_up: Draws before, which are dropped.
        chains: For each image; its samples are spread over them.
        leapfrog: Gradient evaluations for each draw. With 1 this is MALA (Langevin's step with
            Metropolis' correction), which mixes best at an acceptance of 0.574.
        acceptance: The acceptance rate that step sizes adapt to.
        decoder_variance: Count the decoder's own spread (`decoder_std` of a VAE) in the
            likelihood; None does so wherever it can be done.

    Source: Neal 2011, arXiv:1206.1901 (HMC, and MALA as one leapfrog step); Hoffman, Gelman 2014,
    arXiv:1111.4246 (step sizes); Roberts, Rosenthal 1998 (MALA's acceptance).
    """

    needs: ClassVar[tuple[type[Prior], ...]] = (LatentPrior,)
    joint: ClassVar[bool] = True

    steps: int = 300
    warm_up: int = 300
    chains: int = 4
    leapfrog: int = 8
    acceptance: float = 0.8
    decoder_variance: bool | None = None

    def __post_init__(self) -> None:
        if self.steps < 4 or self.warm_up < 20 or self.chains < 1 or self.leapfrog < 1:
            raise ValueError(
                "LatentSampler takes steps >= 4, warm_up >= 20, chains and leapfrog >= 1, not "
                f"{self.steps}, {self.warm_up}, {self.chains}, {self.leapfrog}"
            )
        if not 0 < self.acceptance < 1:
            raise ValueError(f"acceptance must be between 0 and 1, not {self.acceptance}")

    def _rows_per_image(self, num_samples: int) -> int:
        return max(self.chains, num_samples)

    def _solve(self, chunk: Chunk, prior: Counted) -> Solution:
        if chunk.samples > self.chains * self.steps:
            raise ValueError(
                f"{chunk.samples} samples were asked of {self.chains} chains with {self.steps} "
                "draws each: raise steps"
            )
        y = chunk.problem.y
        images = torch.arange(len(y), device=y.device)
        rows = chunk.problem.take(images.repeat_interleave(self.chains))
        posterior = latent_posterior(prior, rows, self.decoder_variance)
        generators = spawn(chunk.image_generators, len(y), per=self.chains)
        chains = Chains(self, posterior, prior.latent_shape, generators)
        draws, energies, acceptance = chains.run(chunk)
        z = self._spread(draws, chunk.samples)
        found = latent_posterior(prior, chunk.rows, self.decoder_variance)
        z = z.flatten(0, 1).unflatten(1, prior.latent_shape)
        misfit = found.misfit(z).view(len(y), -1)
        worst = misfit.amax(1)
        r_hat = split_r_hat(draws).amax(1)
        shape = (len(y), chunk.samples)
        return Solution(
            samples=found.sample_image(z, chunk.generators).unflatten(0, shape),
            converged=(r_hat <= R_HAT) & posterior.take(images * self.chains).explains(worst),
            latents=z.unflatten(0, shape),
            trace={
                "energy": energies,
                "residual": misfit.mean(1)[None],
                WORST: worst[None],
                "r_hat": r_hat[None],
                "ess": effective_sample_size(draws).amin(1)[None],
                "acceptance": acceptance[None],
            },
        )

    def _spread(self, draws: Tensor, count: int) -> Tensor:
        """Pick `count` of the draws (b, chains, steps, d), far apart, from all chains alike."""
        sample = torch.arange(count, device=draws.device)
        chain = sample % self.chains
        per_chain = -(-count // self.chains)
        step = self.steps - 1 - sample // self.chains * self.steps // per_chain
        return draws[:, chain, step]


class Chains:
    """The chains of one chunk: n = b * chains rows."""

    solver: LatentSampler
    posterior: LatentPosterior
    latent_shape: tuple[int, ...]
    generators: list[torch.Generator]
    z: Tensor
    metric: Tensor
    step: Tensor
    point: Point

    def __init__(
        self,
        solver: LatentSampler,
        posterior: LatentPosterior,
        latent_shape: tuple[int, ...],
        generators: list[torch.Generator],
    ) -> None:
        self.solver, self.posterior = solver, posterior
        self.latent_shape, self.generators = latent_shape, generators
        y = posterior.problem.y
        shape = (len(generators), torch.Size(latent_shape).numel())
        self.z = normal(shape, generators, dtype=y.dtype, device=y.device)
        self.metric = torch.ones_like(self.z)
        self.step = self.z.new_full((len(self.z),), 0.1)

    def run(self, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
        """Warm up, then draw.

        Returns:
            Draws (b, chains, steps, d), energies (warm_up + steps, b), acceptance rates (b,).
        """
        solver, count = self.solver, self.solver.warm_up
        ticks = iter(chunk.track(range(count + solver.steps), "LatentSampler"))
        energies = self._anneal(count * 2 // 5, ticks)
        potential = self._potential(1.0)
        self.point = Point(self.z, *potential(self.z))
        # Three windows, each with the metric that the one before it has shown.
        ends = [count * 2 // 5, count * 11 // 20, count * 3 // 4, count]
        for i, (begin, end) in enumerate(pairwise(ends)):
            points = self._adapt(potential, end - begin, ticks)
            energies += [p.value for p in points]
            if i < 2:
                self._refit(points[len(points) // 4 :])
        points, acceptance = self._sample(potential, ticks)
        energies += [p.value for p in points]
        draws = self._by_image(torch.stack([p.z for p in points], 1))
        energy = self._by_image(torch.stack(energies, 1)).mean(1).T
        return draws, energy, self._by_image(acceptance).mean(1)

    def _potential(self, weight: float) -> Potential:
        """U with the likelihood to the power `weight`."""

        def potential(z: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = self.posterior.value_and_gradient(z.unflatten(1, self.latent_shape))
            return (
                weight * value + 0.5 * z.square().sum(1),
                weight * gradient.flatten(1) + z,
            )

        return potential

    def _anneal(self, count: int, ticks: Iterable[int]) -> list[Tensor]:
        adapted = self._step_size()
        energies = []
        for i, _ in zip(range(count), ticks, strict=False):
            potential = self._potential(1e-3 ** (1 - i / count))
            point, acceptance = self._move(
                potential, Point(self.z, *potential(self.z)), adapted.step
            )
            adapted.update(acceptance)
            self.z = point.z
            energies.append(point.value)
        self.step = adapted.final
        return energies

    def _step_size(self) -> StepSize:
        limit = PATH / self.solver.leapfrog
        return StepSize(self.step.clamp(max=limit), self.solver.acceptance, limit=limit)

    def _adapt(self, potential: Potential, count: int, ticks: Iterable[int]) -> list[Point]:
        adapted, points = self._step_size(), []
        for _, _ in zip(range(count), ticks, strict=False):
            self.point, acceptance = self._move(potential, self.point, adapted.step)
            adapted.update(acceptance)
            points.append(self.point)
        self.step = adapted.final
        return points

    def _sample(self, potential: Potential, ticks: Iterable[int]) -> tuple[list[Point], Tensor]:
        points, total = [], torch.zeros_like(self.step)
        for _, _ in zip(range(self.solver.steps), ticks, strict=False):
            self.point, acceptance = self._move(potential, self.point, self.step)
            points.append(self.point)
            total += acceptance
        return points, total / self.solver.steps

    def _move(self, potential: Potential, point: Point, step: Tensor) -> tuple[Point, Tensor]:
        return hmc_step(
            potential,
            point,
            step,
            metric=self.metric,
            leapfrog=self.solver.leapfrog,
            generators=self.generators,
        )

    def _refit(self, points: list[Point]) -> None:
        z, gradient = (
            self._by_image(torch.stack([getattr(p, name) for p in points], 1))
            for name in ("z", "gradient")
        )
        self.metric = fit_metric(z, gradient).repeat_interleave(self.solver.chains, 0)
        # In units of the metric, steps shrink with the dimension alone.
        self.step = torch.full_like(self.step, 0.5 * z.shape[-1] ** -0.25)

    def _by_image(self, rows: Tensor) -> Tensor:
        return rows.unflatten(0, (-1, self.solver.chains))
