"""What every diffusion solver shares: a grid that follows the noise, the start, and a watch."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from genprior.operators import (
    GaussianNoise,
    Inpainting,
    LinearOperator,
    PoissonNoise,
    Problem,
)
from genprior.operators.base import per_row
from genprior.operators.random import normal
from genprior.priors.base import DenoisingPrior, Prior
from genprior.priors.samplers import DPMSolver, Sampler
from genprior.solvers.base import Counted, Solver
from genprior.solvers.chunks import Chunk, Solution
from genprior.solvers.walk.data_term import DataTerm
from genprior.solvers.walk.levels import noise_grid, noise_level, noise_std, poisson_std


def finite_rows(x: Tensor) -> Tensor:
    """Return which rows of x (R, ...) hold finite values only, (R,) bool."""
    return (0 * x).flatten(1).sum(1) == 0  # five times as fast as isfinite().all()


def surely_finite(*tensors: Tensor) -> bool:
    """Whether all values are finite, by one sum each; False where asking would make it wait."""
    return all(t.device.type == "cpu" and math.isfinite(t.sum().item()) for t in tensors)


def where_rows(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Take the rows of `a` (R, ...) where `rows` (R,) is True, else those of `b`."""
    return torch.where(rows.reshape(-1, *[1] * (a.ndim - 1)), a, b)


def row_norm(x: Tensor) -> Tensor:
    """Return the Euclidean norm of each row of x (R, ...), (R,)."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


@dataclass
class Walk:
    """One chunk's way down: what a method needs, and the watch over its rows.

    Attributes:
        problem: R rows, b images times S samples, image-major.
        prior: The counted prior.
        sigmas: Noise levels, (N, R), decreasing.
        shape: (R, C, H, W).
        generators: One for each row, or one for each image's rows.
        samples: Asked of each image, S; a method may walk with more rows.
        ticks: Advances the progress bar.
        sound: (R,) bool, False once a row's network output was not finite.
        doubted: False while all rows are known to be sound.
        mean: E[x0 | y] of each row, where a method knows it exactly.
        trace: What `record` noted: residual norms and soundness, each (R,).
    """

    problem: Problem
    prior: Counted
    sigmas: Tensor
    shape: tuple[int, ...]
    generators: list[torch.Generator]
    samples: int
    ticks: Iterator[int]
    sound: Tensor = field(init=False)
    doubted: bool = field(init=False, default=False)
    mean: Tensor | None = None
    trace: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sound = torch.ones(self.shape[0], dtype=torch.bool, device=self.problem.y.device)

    def start(self) -> Tensor:
        """Draw x at the first level: mean data_mean, variance data_std^2 + sigma^2.

        Leaving out the data's own spread starts wrong wherever sigma does not dwarf it.
        """
        n = self.noise(self.problem.y.new_empty(self.shape))
        mean, std = self.prior.data_mean.to(n), self.prior.data_std.to(n)
        return mean + (std**2 + per_row(self.sigmas[0], n) ** 2).sqrt() * n

    def noise(self, like: Tensor) -> Tensor:
        """Draw standard normal noise in the shape of `like` (R, ...), rows image-major."""
        count = len(self.generators)
        shape = (count, len(like) // count, *like.shape[1:])
        drawn = normal(shape, self.generators, dtype=like.dtype, device=like.device)
        return drawn.reshape(like.shape)

    @cached_property
    def lower(self) -> Tensor:
        """The level after each, (N, R); 0 after the last."""
        return torch.cat([self.sigmas[1:], torch.zeros_like(self.sigmas[:1])])

    @property
    def last(self) -> bool:
        """Whether the step to be recorded next is the last, to 0."""
        return len(self.trace) == len(self.sigmas) - 1

    def renewal(self, eta: float) -> tuple[Tensor, Tensor]:
        """Return (fresh, kept) of `renewal` for the step down from each level, (N, R)."""
        return renewal(self.sigmas, self.lower, eta)

    @cached_property
    def sigma_y(self) -> Tensor:
        """The measurement noise's standard deviation, (R,); see `noise_level`."""
        return noise_level(self.problem)

    def uncertainty(self, sigma: Tensor) -> Tensor:
        """r^2 = sigma^2 s^2 / (sigma^2 + s^2): variance of x0 given x_sigma for white data."""
        sigma2, s2 = sigma**2, self.prior.data_scale**2
        return sigma2 * s2 / (sigma2 + s2)

    @cached_property
    def data(self) -> DataTerm:
        """The problem in the coordinates of its operator's spectrum."""
        return DataTerm.of(self.problem)

    @cached_property
    def observed_count(self) -> Tensor:
        """Number of observed entries of y, (R,)."""
        y, observed = self.problem.y, self.problem.operator.observed
        if observed is None:
            return y.new_full((len(y),), y[0].numel())
        return observed.expand_as(y).flatten(1).sum(1).to(y)

    @cached_property
    def weights(self) -> Tensor | None:
        """What brings each entry of y to the noise level of an average one; None for 1."""
        if not isinstance(self.problem.noise, PoissonNoise):
            return None
        std = poisson_std(self.problem)
        return per_row(self.sigma_y, std) / std

    def residual_norm(self, x0: Tensor) -> Tensor:
        """Return |y - A(x0)|, weighted, (R,)."""
        residual = self.data.residual(x0)
        return row_norm(residual if self.weights is None else self.weights * residual)

    def residual_gradient(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Return |y - A(x0)|, weighted, (R,), and its gradient in x0."""
        if not isinstance(self.problem.operator, LinearOperator):
            with torch.enable_grad():
                x0 = x0.detach().requires_grad_()
                norm = self.residual_norm(x0)
                return norm.detach(), torch.autograd.grad(norm.sum(), x0)[0]
        residual = self.data.residual(x0)
        residual = residual if self.weights is None else self.weights * residual
        norm = row_norm(residual)
        downhill = residual / per_row(torch.where(norm > 0, -norm, 1.0), residual)
        return norm, self.data.adjoint(
            downhill if self.weights is None else self.weights * downhill
        )

    def keep_sound(self, x: Tensor, before: Tensor) -> Tensor:
        """Return x, and `before` in rows that are or were not finite."""
        if not self.doubted and surely_finite(x):
            return x
        self.doubt(finite_rows(x))
        return where_rows(self.sound, x, before)

    def doubt(self, sound: Tensor) -> None:
        """Keep in mind that rows are not `sound` (R,)."""
        self.sound, self.doubted = self.sound & sound, True

    def record(self, x0: Tensor, norm: Tensor | None = None) -> None:
        """Note how far A x0 is from y: `residual_norm`, where the caller has it not yet."""
        norm = self.residual_norm(x0) if norm is None else norm
        self.trace.append((norm, self.sound))
        next(self.ticks, None)

    def residuals(self) -> Tensor:
        """What was noted, in units of the noise (of 1 where there is none), (N, R)."""
        norms, sound = (torch.stack(values) for values in zip(*self.trace, strict=True))
        unit = torch.where(self.sigma_y > 0, self.sigma_y, 1.0) * self.observed_count.sqrt()
        return torch.where(sound, norms / unit, torch.nan)


def images(*coefficients: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield each step's coefficients, given as (N, R), in a shape that multiplies images."""
    return zip(*(c.reshape(*c.shape, 1, 1, 1).unbind() for c in coefficients), strict=True)


def renewal(sigma: Tensor, lower: Tensor, eta: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return (fresh, kept) of a step x' = x0 + kept (x - x0) + fresh n from sigma to `lower`.

    A share eta of the noise is fresh: 1 is ancestral sampling, 0 the probability flow.

    Source: Song, Meng, Ermon 2021, arXiv:2010.02502, equations 12 and 16, in x / sqrt(alpha).
    """
    fresh = eta * lower / sigma * (sigma**2 - lower**2).clamp(min=0).sqrt()
    return fresh, (lower**2 - fresh**2).clamp(min=0).sqrt() / sigma


@dataclass(frozen=True)
class _Walk(Solver):
    """Base of the solvers that walk down the noise levels of a `DenoisingPrior`.

    Attributes:
        steps: Noise levels, as many as there are network evaluations unless the solver says so.
        keep_measured: Return measured pixels unchanged; for inpainting without noise.
        antithetic: Draw samples in pairs with opposite noise. Each sample keeps its law, but what
            is linear in the noise cancels in a pair, so the mean of few comes near the
            posterior's; the two of a pair are not independent.
    """

    needs: ClassVar[type[Prior]] = DenoisingPrior

    steps: int = 100
    keep_measured: bool = False
    antithetic: bool = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.steps < 1:
            raise ValueError(f"{name}: steps must be at least 1, not {self.steps}")
        if self.antithetic and (self.joint or self.point_estimate):
            raise ValueError(f"{name} draws no independent samples that antithetic could pair")

    @property
    def _paired(self) -> bool:
        return self.antithetic

    @abstractmethod
    def _descend(self, walk: Walk) -> Tensor:
        """Walk down `walk.sigmas` and return x, (R, C, H, W)."""

    def _grid(self, problem: Problem, prior: Counted) -> Tensor:
        """Return the noise levels, (N, R)."""
        return noise_grid(problem, prior, self.steps)

    def _refuse(self, problem: Problem) -> None:
        """Raise where this method cannot serve the problem."""
        if not self.keep_measured:
            return
        exact = isinstance(problem.noise, GaussianNoise) and bool((noise_std(problem) == 0).all())
        if not (isinstance(problem.operator, Inpainting) and exact):
            raise ValueError(
                "keep_measured=True is for Inpainting with GaussianNoise(0): noisy measurements "
                "are not the image's pixels"
            )

    def _solve(self, chunk: Chunk, prior: Counted) -> Solution:
        walk = self._begin(chunk, prior)
        return self._finish(walk, self._descend(walk))

    def _begin(self, chunk: Chunk, prior: Counted) -> Walk:
        rows = replace(chunk, samples=self._rows_per_image(chunk.samples)).rows
        self._refuse(rows)
        sigmas = self._grid(rows, prior)
        return Walk(
            problem=rows,
            prior=prior,
            sigmas=sigmas,
            shape=(len(rows.y), *chunk.image_shape),
            generators=chunk.image_generators if self.joint else chunk.generators,
            samples=chunk.samples,
            ticks=chunk.track(range(len(sigmas)), type(self).__name__),
        )

    def _finish(self, walk: Walk, x: Tensor) -> Solution:
        count = len(x) // walk.samples
        if self.keep_measured:
            y = walk.problem.y.reshape(count, -1, *x.shape[1:])[:, : walk.samples]
            mask = walk.problem.operator.observed.expand_as(walk.problem.y)  # type: ignore
            mask = mask.reshape(count, -1, *x.shape[1:])[:, : walk.samples]
            x = torch.where(mask.flatten(0, 1), y.flatten(0, 1), x)

        def per_image(values: Tensor) -> Tensor:
            return values.reshape(*values.shape[:-1], count, -1)

        residual = walk.residuals()
        return Solution(
            samples=x.reshape(count, walk.samples, *x.shape[1:]),
            mean=None if walk.mean is None else walk.mean[:: walk.samples],
            converged=per_image(walk.sound).all(-1),
            trace={
                "sigma": per_image(walk.sigmas[: len(residual)]).mean(-1),
                "residual": per_image(residual).mean(-1),
            },
        )


@dataclass(frozen=True)
class _GuidedWalk(_Walk):
    """A method that approximates E[x0 | x_sigma, y], walked down by any sampler.

    Attributes:
        sampler: How sigma is walked down.
    """

    sampler: Sampler = DPMSolver()  # noqa: RUF009 (frozen)

    @abstractmethod
    def _guide(self, walk: Walk, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the method's E[x0 | x_sigma = x, y], (R, C, H, W); sigma is (R,)."""

    def _grid(self, problem: Problem, prior: Counted) -> Tensor:
        return noise_grid(problem, prior, self.sampler.steps(self.steps))

    def _start(self, walk: Walk) -> Tensor:
        """Return x at the first level."""
        return walk.start()

    def _descend(self, walk: Walk) -> Tensor:
        def guided(x: Tensor, sigma: Tensor) -> Tensor:
            return walk.keep_sound(self._guide(walk, x, sigma), x)

        return self.sampler(
            guided,
            self._start(walk),
            walk.sigmas,
            generator=walk.generators,
            callback=lambda step, sigma, x, x0: walk.record(x0),
        )
