"""What every diffusion solver shares: a grid that follows the noise, the start, and a watch."""

from __future__ import annotations

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
from genprior.priors import samplers
from genprior.priors.base import DenoisingPrior, Prior
from genprior.priors.samplers import DPMSolver, Sampler
from genprior.solvers.base import Chunk, Counted, Solution, Solver

NOISE_FREE = 0.03
"""The last sigma as a share of the data's standard deviation where y has no noise."""

ABOVE_DATA = 100.0
"""The first sigma as a multiple of the data's standard deviation, where the prior goes so far."""


def data_scale(prior: DenoisingPrior | Counted) -> float:
    """Return the root mean square of the prior's standard deviation over pixels."""
    return float(prior.data_std.double().square().mean().sqrt())


def noise_std(problem: Problem) -> Tensor:
    """Return the measurement noise's sigma for each row, (B,)."""
    assert isinstance(problem.noise, GaussianNoise)
    sigma = torch.as_tensor(problem.noise.sigma).to(problem.y)
    return sigma.reshape(-1).expand(len(problem.y))


def noise_level(problem: Problem) -> Tensor:
    """Return the std of an average entry of y, (B,): sigma, or that of Poisson counts."""
    if isinstance(problem.noise, PoissonNoise):
        return _poisson_std(problem).flatten(1).square().mean(1).sqrt()
    return noise_std(problem)


def _poisson_std(problem: Problem) -> Tensor:
    """Estimate each entry's std sqrt(y / peak); a count of zero passes for one."""
    assert isinstance(problem.noise, PoissonNoise)
    peak = per_row(problem.noise.peak, problem.y)
    return torch.maximum(problem.y, 1 / peak).div(peak).sqrt()


def noise_grid(
    problem: Problem,
    prior: DenoisingPrior | Counted,
    steps: int,
    *,
    below_noise: float = 0.1,
    below_data: float = 0.03,
) -> Tensor:
    """Space noise levels evenly in log sigma, down to a share of each row's own noise.

    The last level sets what the walk can resolve: a posterior is about sigma_y / s wide along a
    singular vector of A with value s, so the largest s counts where it is known.

    Args:
        below_noise: The last sigma as a share of that width; the walk loses its square from the
            variance.
        below_data: The same for the data's standard deviation.
    Returns:
        (steps, B).
    """
    scale = data_scale(prior)
    low = torch.full((len(problem.y),), NOISE_FREE * scale).to(problem.y)
    width = noise_level(problem) / _largest_singular_value(problem)
    low = torch.where(width > 0, (below_noise * width).clamp(max=below_data * scale), low)
    smallest, largest = prior.sigma_range
    low = low.clamp(min=smallest)
    high = torch.maximum(low, torch.full_like(low, min(largest, ABOVE_DATA * scale)))
    return samplers.log_uniform(high, low, steps, like=problem.y)


def _largest_singular_value(problem: Problem) -> Tensor:
    spectrum = None
    if isinstance(problem.operator, LinearOperator):
        spectrum = problem.operator.spectrum(problem.y)
    if spectrum is None:
        return problem.y.new_ones(len(problem.y))
    return spectrum.eigenvalues.flatten(1).amax(1).sqrt().expand(len(problem.y))


def ddpm_grid(problem: Problem, steps: int) -> Tensor:
    """Stride the 1000 noise levels of DDPM's linear schedule, as the papers' codes do.

        sigma = sqrt(1 / alpha_bar - 1) / 2,  beta from 1e-4 to 0.02

    The half turns units of [-1, 1] into ours of [0, 1]. It ends at sigma = .005 whatever the
    measurement noise.

    Returns:
        (steps, B).
    Source: Ho et al. 2020, arXiv:2006.11239.
    """
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    sigmas = (1 / (1 - betas).cumprod(0) - 1).sqrt() / 2
    chosen = torch.linspace(999, 0, min(steps, 1000)).round().long()
    return sigmas[chosen].to(problem.y)[:, None].expand(-1, len(problem.y))


def where_rows(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Take the rows of `a` (R, ...) where `rows` (R,) is True, else those of `b`."""
    if bool(rows.all()):
        return a
    return torch.where(rows.reshape(-1, *[1] * (a.ndim - 1)), a, b)


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
    """

    problem: Problem
    prior: Counted
    sigmas: Tensor
    shape: tuple[int, ...]
    generators: list[torch.Generator]
    samples: int
    ticks: Iterator[int]
    sound: Tensor = field(init=False)
    residuals: list[Tensor] = field(default_factory=list)

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

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (sigma, next sigma), each (R,); the last next one is 0."""
        yield from zip(self.sigmas, [*self.sigmas[1:], 0 * self.sigmas[0]], strict=True)

    @cached_property
    def sigma_y(self) -> Tensor:
        """The measurement noise's standard deviation, (R,); see `noise_level`."""
        return noise_level(self.problem)

    @cached_property
    def data_scale(self) -> float:
        """s, the prior's standard deviation; some priors take a while to say it."""
        return data_scale(self.prior)

    def uncertainty(self, sigma: Tensor) -> Tensor:
        """r^2 = sigma^2 s^2 / (sigma^2 + s^2): variance of x0 given x_sigma for white data."""
        sigma2, s2 = sigma**2, self.data_scale**2
        return sigma2 * s2 / (sigma2 + s2)

    @cached_property
    def observed_count(self) -> Tensor:
        """Number of observed entries of y, (R,)."""
        y, observed = self.problem.y, self.problem.operator.observed
        count = torch.ones_like(y) if observed is None else observed.expand_as(y).to(y)
        return count.flatten(1).sum(1)

    def whitened_residual(self, x0: Tensor) -> Tensor:
        """Return y - A(x0), entries weighted to the noise level of an average one."""
        residual = self.problem.residual(x0)
        if isinstance(self.problem.noise, PoissonNoise):
            std = _poisson_std(self.problem)
            residual = residual * per_row(self.sigma_y, std) / std
        return residual

    def keep_sound(self, x: Tensor, before: Tensor) -> Tensor:
        """Return x, and `before` in rows that are or were not finite."""
        self.sound = self.sound & x.flatten(1).isfinite().all(1)
        return where_rows(self.sound, x, before)

    def record(self, x0: Tensor) -> None:
        """Note how far A x0 is from y, in units of the noise (of 1 where there is none)."""
        size = self.problem.residual(x0).flatten(1).square().sum(1)
        size = (size / self.observed_count).sqrt() / torch.where(
            self.sigma_y > 0, self.sigma_y, 1.0
        )
        self.residuals.append(torch.where(self.sound, size, torch.nan))
        next(self.ticks, None)


def ancestral(
    walk: Walk, x: Tensor, x0: Tensor, sigma: Tensor, lower: Tensor, *, eta: float = 1.0
) -> Tensor:
    """Step from sigma to `lower`, (R,), given E[x0 | x]; a share eta of the noise is fresh.

    The last step, to 0, returns x0.

    Source: Song, Meng, Ermon 2021, arXiv:2010.02502, equations 12 and 16, in x / sqrt(alpha).
    """
    fresh = eta * lower / sigma * (sigma**2 - lower**2).clamp(min=0).sqrt()
    kept = (lower**2 - fresh**2).clamp(min=0).sqrt() / sigma
    ahead = x0 + per_row(kept, x) * (x - x0)
    return ahead + per_row(fresh, x) * walk.noise(x) if bool((fresh > 0).any()) else ahead


@dataclass(frozen=True)
class _Walk(Solver):
    """Base of the solvers that walk down the noise levels of a `DenoisingPrior`.

    Attributes:
        steps: Noise levels, as many as there are network evaluations unless the solver says so.
        keep_measured: Return measured pixels unchanged; for inpainting without noise.
    """

    needs: ClassVar[type[Prior]] = DenoisingPrior

    steps: int = 100
    keep_measured: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"{type(self).__name__}: steps must be at least 1, not {self.steps}")

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

        residual = torch.stack(walk.residuals)
        return Solution(
            samples=x.reshape(count, walk.samples, *x.shape[1:]),
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
