"""Kriging and conditional simulation of stationary normal laws."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genprior.operators import Problem
from genprior.operators.random import Generators, normal
from genprior.priors.gaussian.conditioning import measurement_noise
from genprior.priors.gaussian.texture.kriging import Kriging, kriging

if TYPE_CHECKING:
    from genprior.priors.gaussian.texture.stationary import StationaryGaussian


class StationaryPosterior:
    """p(x | y) for a stationary x with covariance G, y = A x + sigma e.

        K = A G A^T + sigma^2 I,   E[x | y] = m + G A^T K^-1 (y - A m)

    and samples by Matheron's rule: a sample of the prior, moved by G A^T K^-1 (what it misses y
    by). `genprior.priors.kriging` says how K is solved.

    Source: Galerne, Leclaire 2017, "Texture inpainting using efficient Gaussian conditional
        simulation". Differs: all observed pixels are conditioned on, not a ring about the hole.
    """

    def __init__(self, prior: StationaryGaussian, problem: Problem) -> None:
        self._prior = prior
        self._problem = problem
        self._law = prior.law(problem.y.dtype)
        noise = problem.noise.sigma  # type: ignore[attr-defined]  # checked to be Gaussian
        if float(prior.residual) == 0 and bool((torch.as_tensor(noise) == 0).any()):
            raise ValueError(
                "y has no density: sigma = 0 and the texture has no residual. Give sigma > 0 "
                "(1e-3 is a quarter of an 8-bit grey level) or fit with a residual"
            )

    @cached_property
    def _solvers(self) -> list[Kriging]:
        """One for all images, or one for each."""
        problem = self._problem
        if problem.operator.rows is None and problem.noise.rows is None:
            return [kriging(self._law, problem.take(torch.zeros(1).long().to(problem.device)))]
        rows = torch.arange(problem.batch, device=problem.device)
        return [kriging(self._law, problem.take(row[None])) for row in rows]

    def _runs(self, residual: Tensor) -> Iterator[tuple[Kriging, Tensor]]:
        """Every solver with its images' rows, as many for each image."""
        return zip(self._solvers, residual.tensor_split(len(self._solvers)), strict=True)

    def _correct(self, x: Tensor, residual: Tensor) -> Tensor:
        """x + G A^T K^-1 residual."""
        return x + torch.cat([solver.correction(run) for solver, run in self._runs(residual)])

    @property
    def _start(self) -> Tensor:
        return self._law.mean.expand(self._problem.batch, *self._law.spot.shape)

    @cached_property
    def mean(self) -> Tensor:
        return self._correct(self._start, self._problem.residual(self._start))

    @cached_property
    def std(self) -> Tensor | None:
        """(B, C, H, W), or None where only samples tell."""
        variances = [solver.variance for solver in self._solvers]
        if any(variance is None for variance in variances):
            return None
        variance = torch.cat([v for v in variances if v is not None]).clamp(min=0)
        return variance.sqrt().to(self._problem.y).expand_as(self.mean)

    @cached_property
    def log_evidence(self) -> Tensor:
        """log p(y) in nats, (B,).

        Raises:
            ValueError: K is too large for its determinant.
        """
        residual = self._problem.residual(self._start)
        log_determinant = torch.cat([solver.log_determinant for solver in self._solvers])
        runs = self._runs(residual)
        quadratic = torch.cat([(run * s.solve(run)).flatten(1).sum(1) for s, run in runs])
        count = self._problem.observed_count
        log_determinant = log_determinant.to(residual) + count * math.log(2 * math.pi)
        return -0.5 * (quadratic + log_determinant)

    def log_prob(self, x: Tensor) -> Tensor:
        self._prior.check_density("log_prob")
        return self._law.log_prob(x) + self._problem.log_likelihood(x) - self.log_evidence

    def sample(self, n: int, *, generator: Generators = None) -> Tensor:
        y, count = self._problem.y, self._problem.batch
        latent = self._prior.latent_shape
        sizes = [math.prod(latent), y[0].numel()]
        drawn = normal((count, n * sum(sizes)), generator, dtype=y.dtype, device=y.device)
        field, noise = drawn.reshape(count * n, -1).split(sizes, 1)
        x = self._law.sample(field.reshape(-1, *latent))
        rows = torch.arange(count, device=y.device).repeat_interleave(n)
        problem = self._problem.take(rows)
        noise = measurement_noise(problem, noise.reshape(-1, *y.shape[1:]))
        x = self._correct(x, problem.residual(x) - noise)
        return x.reshape(count, n, *x.shape[1:])
