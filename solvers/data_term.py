"""A problem in the coordinates of its operator's singular vectors: what solvers do with y."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genprior.operators import Problem, Spectrum
from genprior.operators.base import per_row
from genprior.operators.linear.spectrum import Map


@dataclass(frozen=True)
class DataTerm:
    """y = A x + n in coordinates in which A A^T is diagonal, where there are any.

        c = U^* y = U^* A x + U^* n,   A = U diag(s) V^*

    Norms are those of y, a solve is a division, and for a blur a residual or an adjoint takes
    one Fourier transform. Complex coefficients are held as pairs of real numbers. Without a
    spectrum, or with noise that is not white, U = I and solves are the operator's own.

    Attributes:
        problem: In the operator's own coordinates.
        y: c, 0 where nothing is observed.
        spectrum: Of A A^T, in the shape of c; None where U = I.
    """

    problem: Problem
    y: Tensor
    spectrum: Spectrum | None = None

    @classmethod
    def of(cls, problem: Problem) -> DataTerm:
        """Take `problem` to these coordinates."""
        y = problem.operator.keep_observed(problem.y)
        spectrum = problem.linear_operator.svd(y) if problem.linear_gaussian else None
        if spectrum is None:
            return cls(problem, y)
        c = spectrum.ut(y)
        if not c.is_complex():
            return cls(problem, c, spectrum)
        return cls(problem, torch.view_as_real(c), spectrum.paired())

    def coefficients(self, v: Tensor) -> Tensor:
        """U^* v for v (R, *measurement_shape)."""
        return v if self.spectrum is None else self.spectrum.ut(v)

    def forward(self, x: Tensor) -> Tensor:
        """U^* A x."""
        if self.spectrum is None or self.spectrum.image_to is None:
            return self.problem.operator(x)
        return self.spectrum.image_to(x)

    def residual(self, x: Tensor) -> Tensor:
        """U^* (y - A x), 0 where nothing is observed."""
        if self.spectrum is None:
            return self.problem.residual(x)
        return self.y - self.forward(x)

    def adjoint(self, c: Tensor) -> Tensor:
        """A^T U c."""
        if self.spectrum is None or self.spectrum.image_back is None:
            return self.problem.linear_operator.adjoint(c)
        return self.spectrum.image_back(c)

    def solver(self, damping: Tensor, *, scale: float | Tensor = 1.0) -> Map:
        """Return c -> U^* (scale A A^T + damping I)^-1 U c, worked out once."""
        if self.spectrum is None:
            operator = self.problem.linear_operator
            return lambda c: operator.solve_gram(c, damping, scale=scale)
        inverse = self.spectrum.inverse(damping, scale=scale)
        return lambda c: inverse * c

    def decomposed(self, name: str, *, smallest: float = 0.0) -> tuple[Spectrum, Tensor, Tensor]:
        """Return the decomposition of A, and y as a noisy look at V^* x; 0 where s = 0.

            ybar = U^* y / s = V^* x + (sigma_y / s) n

        Args:
            name: Of the solver that asks.
            smallest: Singular values below it count as zero.
        Returns:
            The spectrum, ybar, and its noise's standard deviation sigma_y / s.
        Raises:
            TypeError: The operator has no singular value decomposition in closed form.
        """
        if self.spectrum is None:
            raise TypeError(
                f"{name} needs a singular value decomposition, which "
                f"{type(self.problem.operator).__name__} does not have in closed form. Try MMPS, "
                "or operators with one: masks, circular blur, downsampling, matrices."
            )
        spectrum = self.spectrum
        if smallest > 0:
            g = spectrum.eigenvalues
            spectrum = replace(spectrum, eigenvalues=g.where(g >= smallest**2, 0.0))
        inverse = spectrum.inverse_singular_values
        return spectrum, inverse * self.y, inverse * per_row(self.problem.sigma, inverse)
