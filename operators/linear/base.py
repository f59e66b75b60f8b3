"""What every linear operator promises, and what follows from its spectrum."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import Self

from genprior.operators.base import Operator, PerImage, concrete, per_row
from genprior.operators.linear.conjugate_gradient import conjugate_gradient
from genprior.operators.linear.spectrum import Spectrum, dense_spectrum


class LinearOperator(Operator):
    """A linear map A. `spectrum` gives what is in closed form; the rest follows from it.

    A class without a spectrum solves by conjugate gradients to the relative residual
    `tolerance`, in at most `max_iterations` steps, and warns where it did not get there.

    Methods that do not take a measurement have an argument `like`: any measurement
    (B, *measurement_shape), for the sizes that the operator leaves open, dtype and device.
    Without it these are the buffers' (float64 where the operator has none).
    """

    tolerance: float = 1e-8
    max_iterations: int = 1000

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Compute A^T y for y (B, *measurement_shape), entries not observed ignored."""

    def spectrum(self, like: Tensor | None = None) -> Spectrum | None:
        """Diagonalise A A^T in closed form; None where there is none.

        The eigenvalues have one row, or one for each image of per-image state.
        """
        return None

    def solve_gram(self, v: Tensor, damping: PerImage, *, scale: PerImage = 1.0) -> Tensor:
        """Return u with (scale A A^T + damping I) u = v, on the whole space.

        Args:
            v: (B, *measurement_shape).
            damping, scale: Floats or (B,), >= 0. Where damping is 0 and A A^T is singular, u is
                the solution of least norm.
        """
        spectrum = self.spectrum(v)
        if spectrum is not None:
            return spectrum.cast(v).solve(v, damping, scale=scale)
        damping, scale = per_row(damping, v), per_row(scale, v)
        u = self._iterate(
            lambda u: scale * self(self.adjoint(u)) + damping * u, self.keep_observed(v)
        )
        if self.observed is None:
            return u
        # A A^T vanishes on entries that are not observed: the system is damping u = v there.
        elsewhere = torch.where(damping > 0, v / damping, 0.0)
        return torch.where(self.observed, u, elsewhere)

    def pinv(self, y: Tensor) -> Tensor:
        """Compute the least-squares x of least norm, A^+ y, for y (B, *measurement_shape)."""
        if self.spectrum(y) is not None:
            return self.adjoint(self.solve_gram(y, 0.0))
        return self._iterate(lambda x: self.adjoint(self(x)), self.adjoint(y))

    def svd(self, like: Tensor | None = None) -> Spectrum | None:
        """Return the thin singular value decomposition; None where there is no spectrum.

        It is `spectrum` in the dtype of `like`, with the maps of images.
        """
        spectrum = self.spectrum(like)
        if spectrum is None:
            return None
        spectrum = spectrum if like is None else spectrum.cast(like)
        return replace(
            spectrum,
            image_to=spectrum.image_to or (lambda x: spectrum.to(self(x))),
            image_back=spectrum.image_back or (lambda c: self.adjoint(spectrum.back(c))),
        )

    def gram_diagonal(
        self, damping: PerImage, *, scale: PerImage = 1.0, like: Tensor | None = None
    ) -> Tensor:
        """Return diag(A^T (scale A A^T + damping I)^-1 A), (1 or B, C, H, W).

        B rows come where the operator has per-image state or an argument is (B,). Where `diagonal`
        has no closed form, one unit impulse per pixel is sent through the operator.
        """
        like = self._example(like)
        spectrum = self.spectrum(like)
        if spectrum is not None:
            weights = spectrum.cast(like).inverse(damping, scale=scale)
            diagonal = self.diagonal(weights, spectrum, like)
            if diagonal is not None:
                return diagonal
        shape = self.adjoint(like[:1]).shape[1:]
        sizes = (len(v) for v in (damping, scale) if isinstance(v, Tensor) and v.ndim)
        step = max(1, 256 // max(self.rows or 1, *sizes, 1))
        parts = [
            self.gram_diagonal_of(range(start, start + step), damping, scale=scale, like=like)
            for start in range(0, shape.numel(), step)
        ]
        return torch.cat(parts, 1).unflatten(1, shape)

    def gram_diagonal_of(
        self, pixels: range, damping: PerImage, *, scale: PerImage = 1.0, like: Tensor
    ) -> Tensor:
        """Return some entries (1 or B, n) of `gram_diagonal`, flat, by one solve for each.

        Args:
            pixels: Which; what lies beyond the last is left out.
            damping, scale, like: As there.
        """
        shape = self.adjoint(like[:1]).shape[1:]
        sizes = (len(v) for v in (damping, scale) if isinstance(v, Tensor) and v.ndim)
        count = max(self.rows or 1, *sizes, 1)
        impulses = _impulses(shape, like, range(pixels.start, min(pixels.stop, shape.numel())))
        index = torch.arange(count, device=like.device).repeat_interleave(len(impulses))
        operator = self.take(index)
        y = operator(impulses.repeat(count, *[1] * len(shape)))
        u = operator.solve_gram(y, _pick(damping, index), scale=_pick(scale, index))
        return (y * u).flatten(1).sum(1).view(count, len(impulses))

    def gram_log_determinant(
        self, damping: PerImage, *, scale: PerImage = 1.0, like: Tensor | None = None
    ) -> Tensor:
        """Return log det(scale A A^T + damping I) over the observed entries of y, (1 or B,).

        Raises:
            ValueError: There is no spectrum and y is too large for `dense_spectrum`.
        """
        g, seen = self.observed_eigenvalues(self._example(like))
        values = per_row(scale, g) * g + per_row(damping, g)
        return torch.where(seen, values, 1.0).log().sum(1)

    def diagonal(self, weights: Tensor, spectrum: Spectrum, like: Tensor) -> Tensor | None:
        """Return diag(A^T U diag(weights) U^* A), (1 or B, C, H, W); None without a closed form.

        Args:
            weights: Of the coefficients of `spectrum`, in its eigenvalues' shape or for B images.
            spectrum: `spectrum(like)`, A A^T = U diag(s^2) U^*.
            like: A measurement.
        """
        return None

    def observed_eigenvalues(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the eigenvalues of A A^T (1 or B, m), and which are of observed entries, bool."""
        spectrum = (self.spectrum(like) or self.dense_spectrum(like)).cast(like)
        size = spectrum.to(torch.zeros_like(like[:1])).shape[1:]
        g = spectrum.eigenvalues.expand(-1, *size).flatten(1)
        if self.observed is None:
            return g, torch.ones_like(g, dtype=torch.bool)
        # Every entry that is not observed is one of the zero eigenvalues, which come first.
        total = like.shape[1:].numel()
        seen = self.observed.expand(-1, *like.shape[1:]).flatten(1).sum(1, keepdim=True)
        return g.sort(dim=1).values, torch.arange(total, device=g.device) >= total - seen

    def dense_matrix(self, like: Tensor | None = None) -> Tensor:
        """Return A as a matrix (m, d), or (B, m, d) where there is per-image state."""
        like = self._example(like)
        shape = self.adjoint(like[:1]).shape[1:]
        return self._dense(lambda operator, e: operator(e), shape, like)

    def dense_spectrum(self, like: Tensor | None = None) -> Spectrum:
        """Diagonalise A A^T as a dense matrix, for small measurements without a `spectrum`.

        Raises:
            ValueError: y has more than 4096 entries.
        """
        like = self._example(like)
        shape = like.shape[1:]
        if shape.numel() > 4096:
            raise ValueError(
                f"{type(self).__name__} has no closed-form spectrum and its measurement has "
                f"{shape.numel()} entries; a dense one is made for at most 4096: use smaller "
                "images"
            )
        gram = self._dense(lambda operator, e: operator(operator.adjoint(e)), shape, like)
        eigenvalues, vectors = torch.linalg.eigh(gram)
        return dense_spectrum(eigenvalues, vectors, tuple(shape))

    def _dense(
        self, apply: Callable[[Self, Tensor], Tensor], shape: torch.Size, like: Tensor
    ) -> Tensor:
        """Columns of a linear map on vectors of `shape`, once for each row of state."""
        matrices = []
        for row in range(self.rows or 1):
            columns = []
            size = shape.numel()
            for start in range(0, size, 256):
                e = _impulses(shape, like, range(start, min(start + 256, size)))
                index = torch.full((len(e),), row, device=like.device)
                columns.append(apply(self.take(index), e).flatten(1))
            matrices.append(torch.cat(columns).mT)
        return torch.stack(matrices) if self.rows else matrices[0]

    def _iterate(self, apply: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
        x, converged, _ = conjugate_gradient(
            apply, b, tolerance=self.tolerance, max_iterations=self.max_iterations
        )
        if not converged.all():
            warnings.warn(
                f"{type(self).__name__}: conjugate gradients left {int((~converged).sum())} of "
                f"{len(b)} rows above the relative residual {self.tolerance:g} after at most "
                f"{self.max_iterations} steps; raise `tolerance`, `max_iterations` or the "
                "damping",
                RuntimeWarning,
                stacklevel=3,
            )
        return x

    def _example(self, like: Tensor | None) -> Tensor:
        """A measurement with the size, dtype and device that `like` or the buffers give."""
        if like is not None:
            return like
        if None in self.measurement_shape:
            raise ValueError(
                f"{type(self).__name__} measures any size {self.measurement_shape}: pass a "
                "measurement as like= to fix it"
            )
        dtypes = (b.dtype for b in self.buffers() if b.is_floating_point())
        return torch.zeros(
            1,
            *concrete(self.measurement_shape),
            dtype=next(dtypes, torch.float64),
            device=next((b.device for b in self.buffers()), None),
        )


def _pick(value: PerImage, index: Tensor) -> PerImage:
    return value[index] if isinstance(value, Tensor) and value.numel() > 1 else value


def _impulses(shape: torch.Size, like: Tensor, pixels: range) -> Tensor:
    """Unit vectors (n, *shape) of some entries."""
    e = torch.zeros(len(pixels), shape.numel(), dtype=like.dtype, device=like.device)
    e[torch.arange(len(pixels)), torch.tensor(pixels, dtype=torch.long)] = 1
    return e.view(len(pixels), *shape)
