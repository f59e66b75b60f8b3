"""Solving K = A G A^T + sigma^2 I for one operator and a stationary covariance G.

In the order tried:
    identity or circular blur: diagonal in the Fourier basis;
    a mask that leaves, or lacks, at most `DENSE` numbers: a dense matrix over those, float64;
    any operator with at most `SMALL` measurements: a dense matrix, float64;
    anything else: conjugate gradients, for masks preconditioned by the Fourier basis.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from genprior.operators import (
    Blur,
    Identity,
    Inpainting,
    LinearOperator,
    Problem,
    conjugate_gradient,
)
from genprior.priors.gaussian.conditioning import noise_variance
from genprior.priors.gaussian.low_rank import precise
from genprior.priors.gaussian.texture.torus import TorusNormal

DENSE = 4096
"""Largest dense matrix for a mask: 23 billion operations, once."""

SMALL = 1024
"""Largest dense matrix for another operator: one pass through it for each measurement."""

STD_WORK = 2e11
"""Multiplications above which a posterior std is left to samples."""


class Kriging(ABC):
    """K of one operator and one noise level."""

    def __init__(self, law: TorusNormal, problem: Problem) -> None:
        self.law = law
        self.operator: LinearOperator = problem.linear_operator
        self.problem = problem
        self.sigma2: Tensor = noise_variance(problem).reshape(())

    @abstractmethod
    def solve(self, v: Tensor) -> Tensor:
        """K^-1 v for rows v (R, ...) that are zero where nothing is observed; so is the result."""

    @property
    @abstractmethod
    def log_determinant(self) -> Tensor:
        """log det K over the observed entries, (1,)."""

    @property
    @abstractmethod
    def variance(self) -> Tensor | None:
        """Posterior variance of every pixel, broadcasts to (1, C, H, W); None if too costly."""

    def correction(self, residual: Tensor) -> Tensor:
        """G A^T K^-1 residual, (R, C, H, W)."""
        return self.law.apply(self.operator.adjoint(self.solve(residual)), lambda v: v)


def kriging(law: TorusNormal, problem: Problem) -> Kriging:
    """Choose how K is solved for one row of a problem."""
    operator = problem.operator
    if isinstance(operator, Identity) or (
        isinstance(operator, Blur) and operator.boundary == "circular"
    ):
        return Fourier(law, problem)
    if isinstance(operator, Inpainting):
        seen = operator.mask.expand(1, *law.spot.shape)
        if min(int(seen.sum()), int((~seen).sum())) <= DENSE:
            return DenseMask(law, problem)
    elif problem.y[0].numel() <= SMALL:
        return Dense(law, problem)
    return Iterative(law, problem)


class Fourier(Kriging):
    """A is a convolution: K is a function of each frequency."""

    @cached_property
    def _power(self) -> Tensor:
        spectrum = self.operator.spectrum(self.problem.y)
        assert spectrum is not None
        kept = self.law.size[1] // 2 + 1
        return spectrum.eigenvalues.expand(-1, -1, *self.law.size)[..., :kept]

    def solve(self, v: Tensor) -> Tensor:
        return self.law.apply(v, lambda g: 1 / (self._power * g + self.sigma2))

    @property
    def log_determinant(self) -> Tensor:
        return self.law.trace(lambda g: (self._power * g + self.sigma2).log())

    @property
    def variance(self) -> Tensor:
        return self.law.diagonal(lambda g: g * self.sigma2 / (self._power * g + self.sigma2))


class DenseMask(Kriging):
    """A is a mask: K over the observed numbers, or K^-1 over the missing, whichever are fewer.

    With S = G + sigma^2 I on the whole torus and M the missing numbers,

        K^-1 = (S^-1 - S^-1_.M (S^-1_MM)^-1 S^-1_M.) on the observed,  det K = det S det S^-1_MM
    """

    def __init__(self, law: TorusNormal, problem: Problem) -> None:
        super().__init__(law, problem)
        dtype = precise(law.spot)
        self.wide = TorusNormal(*(t.to(dtype) for t in (law.mean, law.spot, law.residual)))
        assert isinstance(self.operator, Inpainting)
        self.seen: Tensor = self.operator.mask.expand(1, *law.spot.shape)
        self.direct = int(self.seen.sum()) <= int((~self.seen).sum())
        held = self.seen if self.direct else ~self.seen
        self.index: Tensor = held.flatten().nonzero()[:, 0]
        self.noise: Tensor = self.sigma2.to(dtype)

    @cached_property
    def _cholesky(self) -> Tensor:
        kernel = self.wide.kernel(lambda g: (g + self.noise) ** (1 if self.direct else -1))
        return torch.linalg.cholesky(_entries(kernel, self.index, self.index))

    def solve(self, v: Tensor) -> Tensor:
        if self.direct:
            return _solve_among(self.index, self._cholesky, v)
        whole = self._whiten(v.to(self.wide.spot))
        solved = whole - self._whiten(_solve_among(self.index, self._cholesky, whole))
        return torch.where(self.seen, solved, 0.0).to(v)

    def _whiten(self, v: Tensor) -> Tensor:
        return self.wide.apply(v, lambda g: 1 / (g + self.noise))

    @property
    def log_determinant(self) -> Tensor:
        part = 2 * self._cholesky.diagonal().log().sum()[None]
        return part if self.direct else part + self.wide.trace(lambda g: (g + self.noise).log())

    @cached_property
    def variance(self) -> Tensor | None:
        count, size = len(self.index), self.law.spot.numel()
        if count**2 * size > STD_WORK:
            return None
        if self.direct:
            base = self.wide.diagonal(lambda g: g)
            cross = self.wide.kernel(lambda g: g)
        else:
            base = self.wide.diagonal(lambda g: g * self.noise / (g + self.noise))
            cross = self.wide.kernel(lambda g: g / (g + self.noise))
        parts = []
        for pixels in torch.arange(size, device=cross.device).split(2**22 // max(1, count) + 1):
            columns = _entries(cross, self.index, pixels)
            half = torch.linalg.solve_triangular(self._cholesky, columns, upper=False)
            parts.append(half.square().sum(0))
        change = torch.cat(parts).reshape(1, *self.law.spot.shape)
        return base - change if self.direct else base + change


class Dense(Kriging):
    """Few measurements: K entry by entry, from impulses."""

    @cached_property
    def _observed(self) -> Tensor:
        seen = self.operator.keep_observed(torch.ones_like(self.problem.y))
        return seen.flatten().nonzero()[:, 0]

    @cached_property
    def _matrices(self) -> tuple[Tensor, Tensor]:
        """The Cholesky factor of K, (m, m), and G A^T as rows, (m, d)."""
        shape = self.problem.y.shape[1:]
        rows, crosses = [], []
        for index in self._observed.split(128):
            impulses = self.problem.y.new_zeros(len(index), shape.numel())
            impulses[torch.arange(len(index)), index] = 1
            cross = self.law.apply(
                self.operator.adjoint(impulses.reshape(-1, *shape)), lambda g: g
            )
            crosses.append(cross.flatten(1))
            rows.append(self.operator(cross).flatten(1)[:, self._observed])
        gram = torch.cat(rows).to(precise(self.law.spot))
        gram = (gram + gram.T) / 2
        gram = gram + self.sigma2.to(gram) * torch.eye(len(gram)).to(gram)
        return torch.linalg.cholesky(gram), torch.cat(crosses)

    def solve(self, v: Tensor) -> Tensor:
        return _solve_among(self._observed, self._matrices[0], v)

    @property
    def log_determinant(self) -> Tensor:
        return 2 * self._matrices[0].diagonal().log().sum()[None]

    @cached_property
    def variance(self) -> Tensor:
        cholesky, cross = self._matrices
        half = torch.linalg.solve_triangular(cholesky, cross.to(cholesky), upper=False)
        change = half.square().sum(0).reshape(1, *self.law.spot.shape)
        return self.law.diagonal(lambda g: g) - change


class Iterative(Kriging):
    """Conjugate gradients; no determinant, no exact variance."""

    tolerance = 1e-6
    max_iterations = 1000

    def solve(self, v: Tensor) -> Tensor:
        def apply(u: Tensor) -> Tensor:
            field = self.law.apply(self.operator.adjoint(u), lambda g: g)
            return self.operator(field) + self.sigma2 * u

        def precondition(u: Tensor) -> Tensor:
            whitened = self.law.apply(u, lambda g: 1 / (g + self.sigma2))
            return self.operator.keep_observed(whitened)

        masked = isinstance(self.operator, Inpainting)
        u, converged, _ = conjugate_gradient(
            apply,
            v,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
            precondition=precondition if masked else None,
        )
        if not converged.all():
            warnings.warn(
                f"kriging left {int((~converged).sum())} of {len(v)} systems above the relative "
                f"residual {self.tolerance:g} after {self.max_iterations} steps: raise sigma",
                RuntimeWarning,
                stacklevel=2,
            )
        return u

    @property
    def log_determinant(self) -> Tensor:
        raise ValueError(
            f"the evidence of {self.problem.y[0].numel()} measurements has no closed form here "
            f"and no dense matrix is made beyond {DENSE} numbers: use a smaller image"
        )

    @property
    def variance(self) -> None:
        return None


def _solve_among(index: Tensor, cholesky: Tensor, v: Tensor) -> Tensor:
    """Solve L L^T u = v for the entries `index` of rows v (R, ...); all others become zero."""
    flat = v.flatten(1)
    solved = torch.cholesky_solve(flat[:, index].T.to(cholesky), cholesky).T
    return torch.zeros_like(flat).index_copy(1, index, solved.to(v)).reshape(v.shape)


def _entries(kernel: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The matrix with entries kernel[c, e, (p - q) mod (H, W)] for flat indices (c, p), (e, q)."""
    channels, _, height, width = kernel.shape
    c, y, x = (t[:, None] for t in torch.unravel_index(rows, kernel.shape[1:]))
    e, v, u = torch.unravel_index(columns, kernel.shape[1:])
    place = ((c * channels + e) * height + (y - v) % height) * width + (x - u) % width
    return kernel.flatten()[place]
