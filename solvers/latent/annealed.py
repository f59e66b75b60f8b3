"""Annealed importance sampling in the latent: weighted particles, and the evidence of y."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import compress
from typing import ClassVar

import torch
from torch import Tensor

from genprior.operators.random import normal, spawn, systematic
from genprior.priors.base import LatentPrior, Prior
from genprior.solvers.base import Counted, Solver
from genprior.solvers.chunks import WORST, Chunk, Solution
from genprior.solvers.latent.diagnostics import (
    FAMILIES,
    effective_size,
    family_shares,
    remark_on_families,
)
from genprior.solvers.latent.hmc import Point, StepSize, hmc_step
from genprior.solvers.latent.latent_posterior import LatentPosterior, latent_posterior

HALVINGS = 40
"""Of the bracket in which the next temperature lies."""

ACCEPTANCE = 0.8
"""The rate that step sizes adapt to."""

PATH = 2.5
"""Longest path of a proposal, in units of the particles' spread."""


@dataclass(frozen=True)
class AnnealedImportance(Solver):
    """Carry particles from p(z) to p(z | y) through p(z) p(y | z)^beta, beta from 0 to 1.

        log w += (beta' - beta) log p(y | z),   then Hamiltonian moves at beta'

    Each image has its own ladder: the next beta is where the weights' effective size falls to
    `share` of what it was. An image's particles are drawn anew where it falls below half. The
    mean weight is an unbiased estimate of p(y) for a fixed ladder, and nearly so for this one;
    modes keep their shares, which chains that cannot cross between them get wrong.

    The trace has, at its end, `log_evidence` (log p(y) in nats, where the noise's law is known in
    closed form), its standard error, and `ess`, the effective size of the particles from which
    the samples are drawn: more samples than that repeat each other. It has also `families`, the
    effective number of first particles that they descend from: the shares of modes are as sure as
    so many draws would make them. `converged` is False where beta did not reach 1 in `steps`, a
    sample's residual is far above the noise, or there are fewer than two families.

    Attributes:
        particles: For each image, or as many as samples where those are more.
        share: Of the effective size that a temperature may cost to keep, in (0, 1).
        moves: Hamiltonian moves at each temperature.
        leapfrog: Gradient evaluations of each.
        steps: Most temperatures.
        decoder_variance: Count the decoder's own spread (`decoder_std` of a VAE) in the
            likelihood; None does so wherever it can be done.

    Source: Neal 2001, arXiv:physics/9803008; Del Moral, Doucet, Jasra 2006, section 3 (drawing
        anew); Zhou, Johansen, Aston 2016, arXiv:1303.3123 (the ladder by conditional effective
        size).
    """

    needs: ClassVar[tuple[type[Prior], ...]] = (LatentPrior,)
    joint: ClassVar[bool] = True

    particles: int = 64
    share: float = 0.9
    moves: int = 2
    leapfrog: int = 5
    steps: int = 200
    decoder_variance: bool | None = None

    def __post_init__(self) -> None:
        counts = {n: getattr(self, n) for n in ("particles", "moves", "leapfrog", "steps")}
        if min(counts.values()) < 1 or self.particles < 4:
            raise ValueError(
                "AnnealedImportance takes particles >= 4, moves, leapfrog and steps >= 1, not "
                + ", ".join(map(str, counts.values()))
            )
        if not 0 < self.share < 1:
            raise ValueError(f"share must be between 0 and 1, not {self.share}")

    def _rows_per_image(self, num_samples: int) -> int:
        return max(self.particles, num_samples)

    def _solve(self, chunk: Chunk, prior: Counted) -> Solution:
        y, count = chunk.problem.y, self._rows_per_image(chunk.samples)
        images = torch.arange(len(y), device=y.device)
        rows = chunk.problem.take(images.repeat_interleave(count))
        posterior = latent_posterior(prior, rows, self.decoder_variance)
        generators = spawn(chunk.image_generators, len(y), per=count)
        system = _System(self, posterior, prior.latent_shape, generators, chunk.image_generators)
        ended: list[_Images] = []
        for _ in chunk.track(range(self.steps), "AnnealedImportance"):
            system.step()
            ended += system.take_out(system.images.beta == 1)
            if not len(system.images.beta):
                break
        ended += system.take_out(system.images.beta < 1)
        order = torch.cat([e.index for e in ended]).argsort()
        found = _Images(
            *(torch.cat([getattr(e, f.name) for e in ended])[order] for f in fields(_Images))
        )
        return self._finish(chunk, prior, found, posterior.log_constant)

    def _remark(self, found: Solution) -> str:
        return remark_on_families(found.trace["families"][0])

    def _finish(
        self, chunk: Chunk, prior: Counted, system: _Images, constant: Tensor | None
    ) -> Solution:
        count = system.log_w.shape[1]
        weights = system.log_w.softmax(1)
        families = effective_size(family_shares(weights, system.family))
        chosen = systematic(weights, chunk.samples, chunk.image_generators)
        # Samples that follow each other shall not come from neighbours in the list of particles.
        order = torch.randperm(chunk.samples, generator=torch.Generator().manual_seed(0))
        chosen = chosen[:, order.to(chosen.device)]
        each = torch.arange(len(weights), device=weights.device)[:, None]
        z = system.z[each, chosen].flatten(0, 1).unflatten(1, prior.latent_shape)
        found = latent_posterior(prior, chunk.rows, self.decoder_variance)
        residual = found.misfit(z)
        shape = (len(weights), chunk.samples)
        trace = {
            "residual": residual.view(shape).mean(1)[None],
            WORST: residual.view(shape).amax(1)[None],
            "ess": effective_size(weights)[None],
            "families": families[None],
            "temperatures": system.taken[None],
        }
        if constant is not None:
            trace["log_evidence"] = (system.log_evidence + constant.view(-1, count)[:, 0])[None]
            trace["log_evidence_std"] = system.variance.sqrt()[None]
        return Solution(
            samples=found.sample_image(z, chunk.generators).unflatten(0, shape),
            converged=(system.beta == 1)
            & found.explains(residual).view(shape).all(1)
            & (families >= FAMILIES),
            latents=z.unflatten(0, shape),
            trace=trace,
        )


@dataclass
class _Images:
    """Where b images stand, P particles each.

    Attributes:
        index: Their places in the chunk, (b,).
        z: Particles, (b, P, d).
        loss, slope: -log p(y | z), (b, P), and its gradient, (b, P, d).
        log_w: Log weights, (b, P).
        family: Which first particle each descends from, int64 (b, P).
        beta, log_evidence, variance, taken: The temperature, the estimate of log p(y) and its
            variance so far, and temperatures taken, (b,).
    """

    index: Tensor
    z: Tensor
    loss: Tensor
    slope: Tensor
    log_w: Tensor
    family: Tensor
    beta: Tensor
    log_evidence: Tensor
    variance: Tensor
    taken: Tensor

    def of(self, mask: Tensor) -> _Images:
        return _Images(*(getattr(self, f.name)[mask] for f in fields(self)))


class _System:
    """The images of a chunk that are still on their way."""

    def __init__(
        self,
        solver: AnnealedImportance,
        posterior: LatentPosterior,
        latent_shape: tuple[int, ...],
        generators: list[torch.Generator],
        image_generators: list[torch.Generator],
    ) -> None:
        self.solver, self.posterior, self.latent_shape = solver, posterior, latent_shape
        self.generators, self.image_generators = generators, image_generators
        y, images = posterior.problem.y, len(image_generators)
        shape = (len(generators), torch.Size(latent_shape).numel())
        z = normal(shape, generators, dtype=y.dtype, device=y.device).unflatten(0, (images, -1))
        loss, slope = self._look(z)
        index, zero = torch.arange(images, device=y.device), y.new_zeros(images)
        numbers = (zero.clone() for _ in range(4))
        family = torch.arange(z.shape[1], device=y.device).expand(images, -1)
        self.images = _Images(index, z, loss, slope, torch.zeros_like(loss), family, *numbers)
        limit = PATH / solver.leapfrog
        self.step_size = StepSize(zero + 0.5 * limit, ACCEPTANCE, limit=limit)

    def take_out(self, done: Tensor) -> list[_Images]:
        """Let the images `done` (b,) go, and go on without them."""
        if not bool(done.any()):
            return []
        gone, left = self.images.of(done), ~done
        self.images = self.images.of(left)
        count = gone.log_w.shape[1]
        rows = left.repeat_interleave(count)
        self.posterior = self.posterior.take(rows.nonzero()[:, 0])
        self.generators = list(compress(self.generators, rows.tolist()))
        self.image_generators = list(compress(self.image_generators, left.tolist()))
        self.step_size.keep(left)
        return [gone]

    def _look(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return -log p(y | z) and its gradient, for z (b, P, d); infinite where not finite."""
        flat = z.flatten(0, 1).unflatten(1, self.latent_shape)
        value, gradient = self.posterior.value_and_gradient(flat)
        value = value.nan_to_num(nan=torch.inf, posinf=torch.inf)
        return value.view(z.shape[:2]), gradient.flatten(1).view(z.shape)

    def step(self) -> None:
        """Go to each image's next temperature, and move."""
        at = self.images
        log_w, log_p = at.log_w.log_softmax(1), -at.loss
        delta = self._next(log_w, log_p)
        grown = log_w + delta[:, None] * log_p
        gain = grown.logsumexp(1)
        at.log_evidence = at.log_evidence + gain
        # Variance of the mean of the incremental weights, over its square (the delta method).
        increments = (grown - gain[:, None] - log_w).exp()
        at.variance = at.variance + (log_w.exp() ** 2 * (increments - 1) ** 2).sum(1)
        at.taken = at.taken + 1
        at.beta = torch.where(delta >= 1 - at.beta, 1.0, at.beta + delta)
        at.log_w = grown - gain[:, None]
        self._draw_anew()
        for _ in range(self.solver.moves):
            self._move()

    def _next(self, log_w: Tensor, log_p: Tensor) -> Tensor:
        """Return how far beta may grow, by halving a bracket, (b,)."""

        def kept(delta: Tensor) -> Tensor:
            """(sum w v)^2 / sum w v^2 for v = p^delta: 1 where nothing is lost."""
            grown = delta[:, None] * log_p
            return (2 * (log_w + grown).logsumexp(1) - (log_w + 2 * grown).logsumexp(1)).exp()

        left = 1 - self.images.beta
        low, high = torch.zeros_like(left), left
        whole = kept(left) >= self.solver.share
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            good = kept(middle) >= self.solver.share
            low, high = torch.where(good, middle, low), torch.where(good, high, middle)
        return torch.where(whole, left, low)

    def _draw_anew(self) -> None:
        """Draw the particles of images whose effective size is below half by their weights."""
        at, count = self.images, self.images.log_w.shape[1]
        weights = at.log_w.softmax(1)
        poor = (1 / weights.square().sum(1) < count / 2)[:, None]
        drawn = systematic(weights, count, self.image_generators)
        index = torch.where(poor, drawn, torch.arange(count, device=drawn.device))
        each = torch.arange(len(index), device=index.device)[:, None]
        at.z, at.loss, at.slope = at.z[each, index], at.loss[each, index], at.slope[each, index]
        at.family = at.family.gather(1, index)
        at.log_w = torch.where(poor, 0.0, at.log_w)

    def _move(self) -> None:
        """One Hamiltonian move of every particle at its image's beta."""
        at, (images, count, d) = self.images, self.images.z.shape
        beta = at.beta.repeat_interleave(count)

        def energy(z: Tensor, loss: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
            return beta * loss + 0.5 * z.square().sum(1), beta[:, None] * slope + z

        def potential(z: Tensor) -> tuple[Tensor, Tensor]:
            loss, slope = self._look(z.view(images, count, d))
            return energy(z, loss.flatten(), slope.flatten(0, 1))

        z = at.z.flatten(0, 1)
        moved, acceptance = hmc_step(
            potential,
            Point(z, *energy(z, at.loss.flatten(), at.slope.flatten(0, 1))),
            self.step_size.step.repeat_interleave(count),
            metric=self._spread().repeat_interleave(count, 0),
            leapfrog=self.solver.leapfrog,
            generators=self.generators,
        )
        self.step_size.update(acceptance.view(images, count).mean(1))
        at.z = moved.z.view(at.z.shape)
        at.loss = ((moved.value - 0.5 * moved.z.square().sum(1)) / beta).view(images, count)
        at.slope = ((moved.gradient - moved.z) / beta[:, None]).view(at.z.shape)

    def _spread(self) -> Tensor:
        """Return the standard deviation of every coordinate over an image's particles, (b, d)."""
        w, z = self.images.log_w.softmax(1)[..., None], self.images.z
        mean = (w * z).sum(1, keepdim=True)
        return (w * (z - mean) ** 2).sum(1).sqrt().clamp(min=1e-3)
