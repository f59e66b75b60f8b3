"""One chunk's way down the noise levels: what a method needs, and the watch over its rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from genprior.operators import PoissonNoise, Problem
from genprior.operators.base import per_row
from genprior.operators.random import normal
from genprior.solvers.base import Counted
from genprior.solvers.data_term import DataTerm
from genprior.solvers.fit import noise_std
from genprior.solvers.walk.krylov import Known
from genprior.solvers.walk.levels import largest_singular_value, noise_level
from genprior.solvers.walk.steps import finite_rows, row_norm, surely_finite, where_rows


@dataclass
class Walk:
    """The state of a walk: R rows, b images times S samples, image-major.

    Attributes:
        problem: R measurements.
        prior: The counted prior.
        sigmas: Noise levels, (N, R), decreasing.
        shape: (R, C, H, W).
        generators: One for each row, or one for each image's rows.
        samples: Asked of each image, S; a method may walk with more rows.
        ticks: Advances the progress bar.
        sound: (R,) bool, False once a row's network output was not finite.
        doubted: False while all rows are known to be sound.
        mean: E[x0 | y] of each row, where a method knows it exactly.
        effective: Effective sizes of a method's systems of particles, one tensor a step.
        families: Effective number of first particles that a system's last descend from, (b,).
        white_error: What `walk.control` says of each image, where a method asks it, (b,).
        known: Of one step's linear system, for the next.
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
    effective: list[Tensor] = field(default_factory=list)
    families: Tensor = field(init=False, repr=False)
    white_error: Tensor | None = None
    known: Known | None = field(init=False, repr=False, default=None)
    trace: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sound = torch.ones(self.shape[0], dtype=torch.bool, device=self.problem.y.device)

    def take(self, index: Tensor) -> Walk:
        """Return a walk of the rows `index` (int64), each with a generator of its own."""
        return replace(
            self,
            problem=self.problem.take(index),
            sigmas=self.sigmas[:, index],
            shape=(len(index), *self.shape[1:]),
            generators=[self.generators[i] for i in index.tolist()],
            ticks=iter(()),
            trace=[],
        )

    def noise(self, like: Tensor) -> Tensor:
        """Draw standard normal noise in the shape of `like` (R, ...), rows image-major."""
        count = len(self.generators)
        shape = (count, len(like) // count, *like.shape[1:])
        drawn = normal(shape, self.generators, dtype=like.dtype, device=like.device)
        return drawn.reshape(like.shape)

    def denoise_with_graph(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return x as a leaf and x0 = denoise(x, sigma), through which gradients reach it."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return x, self.prior.denoise(x, sigma)

    @cached_property
    def lower(self) -> Tensor:
        """The level after each, (N, R); 0 after the last."""
        return torch.cat([self.sigmas[1:], torch.zeros_like(self.sigmas[:1])])

    @property
    def last(self) -> bool:
        """Whether the step to be recorded next is the last, to 0."""
        return len(self.trace) == len(self.sigmas) - 1

    @cached_property
    def sigma_y(self) -> Tensor:
        """The measurement noise's standard deviation, (R,); see `noise_level`."""
        return noise_level(self.problem)

    def uncertainty(self, sigma: Tensor) -> Tensor:
        """r^2 = sigma^2 s^2 / (sigma^2 + s^2): variance of x0 given x_sigma for white data."""
        sigma2, s2 = sigma**2, self.prior.data_scale**2
        return sigma2 * s2 / (sigma2 + s2)

    def variances(self, sigma: Tensor, damping: float) -> tuple[Tensor, Tensor]:
        """Return r^2 (see `uncertainty`) and sigma_y^2, at least `damping` gain^2 r^2.

        That keeps noise-free systems solvable where a network's Jacobian is all but singular, and
        vanishes with sigma.
        """
        r2 = self.uncertainty(sigma)
        return r2, torch.maximum(self.sigma_y**2, damping * self.gain**2 * r2)

    @cached_property
    def gain(self) -> Tensor:
        """A's largest singular value, (R,)."""
        return largest_singular_value(self.problem)

    @cached_property
    def data(self) -> DataTerm:
        """The problem in the coordinates of its operator's spectrum."""
        return DataTerm.of(self.problem)

    def weights(self, residual: Tensor) -> Tensor | float:
        """What brings each entry of y - A x0 to the noise level of an average one.

            w = min(1, sigma_y / std(y | A x0))

        1 for Gaussian noise; Poisson's follows x0, and gradients treat it as a constant. Never
        more: dark pixels would weigh tenfold, and the steps of a method that has one number for
        A A^T would overshoot there until the walk blows up.
        """
        if not isinstance(self.problem.noise, PoissonNoise):
            return 1.0
        std = noise_std(self.problem, self.data.y - residual.detach())
        return (per_row(self.sigma_y, std) / std).clamp(max=1)

    def weighted(self, residual: Tensor) -> Tensor:
        """Return `weights` times the residual y - A x0."""
        return self.weights(residual) * residual

    def residual_norm(self, x0: Tensor) -> Tensor:
        """Return |y - A(x0)|, weighted, (R,)."""
        return row_norm(self.weighted(self.data.residual(x0)))

    def residual_gradient(
        self, x0: Tensor, *, about: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return |y - A(x0)|, weighted as at `about` (x0 if None), (R,), and its gradient."""
        there = None  # for other noise than Poisson's the weights are 1 anywhere
        if about is not None and isinstance(self.problem.noise, PoissonNoise):
            there = self.data.residual(about)
        if not self.problem.linear:
            with torch.enable_grad():
                x0 = x0.detach().requires_grad_()
                residual = self.data.residual(x0)
                weights = self.weights(residual if there is None else there)
                norm = row_norm(weights * residual)
                return norm.detach(), torch.autograd.grad(norm.sum(), x0)[0]
        residual = self.data.residual(x0)
        weights = self.weights(residual if there is None else there)
        residual = weights * residual
        norm = row_norm(residual)
        downhill = residual / per_row(torch.where(norm > 0, -norm, 1.0), residual)
        return norm, self.data.adjoint(weights * downhill)

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
        unit = torch.where(self.sigma_y > 0, self.sigma_y, 1.0)
        return torch.where(sound, norms / (unit * self.problem.observed_count.sqrt()), torch.nan)
