"""The data term as the diffusion solvers use it: residuals, their adjoint, and solves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from genprior.operators import GaussianNoise, LinearOperator, Problem, Spectrum


@dataclass(frozen=True)
class DataTerm:
    """y = A x + n in coordinates in which A A^T is diagonal, where there are any.

        ybar = U^* y = U^* A x + U^* n,   A A^T = U diag(g) U^*

    Norms are those of y, a solve is a division, and for a blur a residual or an adjoint takes
    one Fourier transform. Complex coefficients are held as pairs of real numbers. Without a
    spectrum, or with noise that is not white, U = I and solves are the operator's own.

    Attributes:
        problem: In the operator's own coordinates.
        y: ybar, 0 where nothing is observed.
        spectrum: Of A A^T, eigenvalues in the shape of ybar; None where U = I.
        paired: Whether coefficients are complex.
    """

    problem: Problem
    y: Tensor
    spectrum: Spectrum | None = None
    paired: bool = False

    @classmethod
    def of(cls, problem: Problem) -> DataTerm:
        operator, y = problem.operator, problem.y
        if operator.observed is not None:
            y = torch.where(operator.observed, y, 0.0)
        spectrum = None
        if isinstance(operator, LinearOperator) and isinstance(problem.noise, GaussianNoise):
            spectrum = operator.spectrum(y)
        if spectrum is None:
            return cls(problem, y)
        c = spectrum.to(y)
        if not c.is_complex():
            return cls(problem, c, spectrum)
        g = spectrum.eigenvalues[..., None].expand(*spectrum.eigenvalues.shape, 2).contiguous()
        pairs = Spectrum(g, spectrum.to, spectrum.back, spectrum.image_to, spectrum.image_back)
        return cls(problem, torch.view_as_real(c), pairs, paired=True)

    def _real(self, c: Tensor) -> Tensor:
        return torch.view_as_real(c) if self.paired else c

    def _complex(self, c: Tensor) -> Tensor:
        return torch.view_as_complex(c) if self.paired else c

    def coefficients(self, v: Tensor) -> Tensor:
        """U^* v for v (R, *measurement_shape)."""
        return v if self.spectrum is None else self._real(self.spectrum.to(v))

    def forward(self, x: Tensor) -> Tensor:
        """U^* A x."""
        if self.spectrum is None or self.spectrum.image_to is None:
            return self.coefficients(self.problem.operator(x))
        return self._real(self.spectrum.image_to(x))

    def residual(self, x: Tensor) -> Tensor:
        """U^* (y - A x), 0 where nothing is observed."""
        if self.spectrum is None:
            return self.problem.residual(x)
        return self.y - self.forward(x)

    def adjoint(self, c: Tensor) -> Tensor:
        """A^T U c."""
        operator = self.problem.operator
        assert isinstance(operator, LinearOperator)
        if self.spectrum is None:
            return operator.adjoint(c)
        c = self._complex(c)
        if self.spectrum.image_back is None:
            return operator.adjoint(self.spectrum.back(c))
        return self.spectrum.image_back(c)

    def solve(self, c: Tensor, damping: Tensor, *, scale: float | Tensor = 1.0) -> Tensor:
        """U^* (scale A A^T + damping I)^-1 U c, as `LinearOperator.solve_gram`."""
        if self.spectrum is not None:
            return self.spectrum.inverse(damping, scale=scale) * c
        operator = self.problem.operator
        assert isinstance(operator, LinearOperator)
        return operator.solve_gram(c, damping, scale=scale)
