"""Closed forms of a linear operator: the eigenvalues of A A^T and the singular values of A."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from genprior.operators.base import PerImage, per_row

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Spectrum:
    """The eigendecomposition A A^T = U diag(s^2) U^*, and with it A = U diag(s) V^*.

    Coefficients may be complex; those of real vectors, weighted by functions of the eigenvalues,
    map back to real vectors. White noise in these coordinates is `vt` of white noise on images,
    or `ut` of white noise on measurements.

    Attributes:
        eigenvalues: Real and >= 0, broadcasts against `to(y)`. Each coefficient counts once: for
            a sum over eigenvalues expand them to the shape of `to(y)`.
        to: y -> U^* y, (B, *measurement_shape) to coefficients, possibly complex. Unitary.
        back: The inverse, coefficients to (B, *measurement_shape).
        image_to: x -> U^* A x, images to coefficients, where that is cheaper than to(A x).
        image_back: c -> A^T U c, likewise.
    """

    eigenvalues: Tensor
    to: Map
    back: Map
    image_to: Map | None = None
    image_back: Map | None = None

    @cached_property
    def positive(self) -> Tensor:
        """Which eigenvalues are not zero: above 10 eps times the largest of their row, bool."""
        g = self.eigenvalues
        largest = g.amax(dim=tuple(range(1, g.ndim)), keepdim=True)
        return g > 10 * torch.finfo(g.dtype).eps * largest

    @cached_property
    def singular_values(self) -> Tensor:
        """s, exactly 0 where the eigenvalue is not `positive`."""
        return self.eigenvalues.where(self.positive, 0.0).sqrt()

    @cached_property
    def inverse_singular_values(self) -> Tensor:
        """1 / s, 0 where s = 0."""
        return torch.where(self.positive, 1 / self.singular_values, 0.0)

    def ut(self, y: Tensor) -> Tensor:
        """U^* y."""
        return self.to(y)

    def u(self, c: Tensor) -> Tensor:
        """U c."""
        return self.back(c)

    def vt(self, x: Tensor) -> Tensor:
        """V^* x, (B, C, H, W) to coefficients, 0 where s = 0."""
        return self.inverse_singular_values * self._image_map(self.image_to)(x)

    def v(self, c: Tensor) -> Tensor:
        """V c, the part of an image within the range of A^T."""
        return self._image_map(self.image_back)(self.inverse_singular_values * c)

    @staticmethod
    def _image_map(known: Map | None) -> Map:
        if known is None:
            raise TypeError("a bare Spectrum knows no images: take operator.svd(like)")
        return known

    def cast(self, like: Tensor) -> Spectrum:
        """Put the eigenvalues into the dtype and on the device of measurements `like`.

        Maps that give another dtype than they are given, as those of a float64 matrix do, are
        kept in theirs, and what they give is brought back.
        """
        g = self.eigenvalues
        if g.dtype == like.dtype and g.device == like.device:
            return self
        found = replace(self, eigenvalues=g.to(like))
        inner = self.to(like[:1]).dtype
        if inner.to_real() == like.dtype:
            return found
        outer = like.dtype.to_complex() if inner.is_complex else like.dtype

        def within(f: Map | None, given: torch.dtype, gives: torch.dtype) -> Map | None:
            return f and (lambda v: f(v.to(given)).to(gives))

        return replace(
            found,
            to=within(self.to, like.dtype, outer),
            back=within(self.back, inner, like.dtype),
            image_to=within(self.image_to, like.dtype, outer),
            image_back=within(self.image_back, inner, like.dtype),
        )

    def paired(self) -> Spectrum:
        """Hold complex coefficients as pairs of real numbers, on a last axis of 2."""
        g = self.eigenvalues[..., None]

        def real(f: Map) -> Map:
            return lambda v: torch.view_as_real(f(v))

        def unreal(f: Map) -> Map:
            return lambda c: f(torch.view_as_complex(c))

        return Spectrum(
            g.expand(*g.shape[:-1], 2).contiguous(),
            real(self.to),
            unreal(self.back),
            self.image_to and real(self.image_to),
            self.image_back and unreal(self.image_back),
        )

    def inverse(self, damping: PerImage, *, scale: PerImage = 1.0) -> Tensor:
        """Return 1 / (scale eigenvalues + damping), to multiply coefficients with.

        Args:
            damping, scale: Floats or (B,), >= 0. Where damping is 0, eigenvalues that are not
                `positive` count as zero and give 0: the pseudo-inverse.
        """
        g = self.eigenvalues
        damping = per_row(damping, g)
        if isinstance(scale, Tensor):
            denominator = torch.addcmul(damping, per_row(scale, g), g)
        else:
            denominator = torch.add(damping, g, alpha=scale)
        if damping.device.type == "cpu" and bool((damping > 0).all()):
            return 1 / denominator  # what follows, shorter; asking costs nothing on the CPU
        solvable = (denominator > 0) & ((damping > 0) | self.positive)
        return solvable / denominator.where(solvable, torch.ones_like(denominator))

    def solve(self, v: Tensor, damping: PerImage, *, scale: PerImage = 1.0) -> Tensor:
        """Return the u of least norm with (scale A A^T + damping I) u = v, as v (B, ...)."""
        return self.back(self.inverse(damping, scale=scale) * self.to(v))


def dense_spectrum(
    eigenvalues: Tensor, vectors: Tensor, measurement_shape: tuple[int, ...]
) -> Spectrum:
    """Build a `Spectrum` from eigenvalues (m,) or (B, m) and eigenvectors in columns.

    Measurements of another float dtype are served in their own.
    """

    def to(y: Tensor) -> Tensor:
        return (y.flatten(1).unsqueeze(1) @ vectors.to(y.dtype)).squeeze(1)

    def back(c: Tensor) -> Tensor:
        y = (c.unsqueeze(1) @ vectors.mT.to(c.dtype)).squeeze(1)
        return y.reshape(len(y), *measurement_shape)

    eigenvalues = eigenvalues.clamp(min=0)
    return Spectrum(eigenvalues if eigenvalues.ndim == 2 else eigenvalues[None], to, back)


SVD = Spectrum
"""What `LinearOperator.svd` gives: a spectrum that knows images."""
