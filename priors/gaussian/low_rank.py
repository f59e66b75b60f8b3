"""The normal law N(m, V L V^T + r^2 I) on R^d, with never a d x d matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def precise(like: Tensor) -> torch.dtype:
    """The type for small factorisations: float64, or what the device has."""
    return torch.float32 if like.device.type == "mps" else torch.float64


def as_residual(residual: float | Tensor, like: Tensor) -> Tensor:
    """Return a copy of the residual as a 0-d tensor like `like`.

    Raises:
        ValueError: It is negative or NaN.
    """
    if not float(residual) >= 0:
        raise ValueError(f"residual must be >= 0, not {float(residual)}")
    return torch.as_tensor(residual, dtype=like.dtype, device=like.device).detach().clone()


def wiener_gain(variance: Tensor, noise_variance: Tensor) -> Tensor:
    """Return v / (v + noise), the gain of E[x0 | x0 + n] along a direction of variance v."""
    gain = variance / (variance + noise_variance)
    return torch.where(noise_variance > 0, gain, 1.0)  # 0/0 is 1 here


@dataclass(frozen=True)
class LowRankNormal:
    """N(mean, V^T diag(variances) V + residual^2 I), images flattened to d numbers.

    Attributes:
        mean: (d,).
        basis: V, k orthonormal rows, (k, d).
        variances: Variance along each row beyond the residual's, (k,), >= 0.
        residual: r, std of the isotropic rest, a 0-d tensor, >= 0.
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor
    residual: Tensor

    @classmethod
    def from_factors(cls, mean: Tensor, factors: Tensor, residual: Tensor) -> LowRankNormal:
        """Build from any factors (k, d) of the covariance sum_k f_k f_k^T + r^2 I.

        By a QR and a small singular value decomposition, in float64: eigenvectors of the Gram
        matrix would lose the orthogonality of directions with little variance.
        """
        q, r = torch.linalg.qr(factors.to(precise(factors)).T)
        u, scales, _ = torch.linalg.svd(r, full_matrices=False)
        dtype = factors.dtype
        return cls(mean, (q @ u).T.to(dtype).contiguous(), scales.square().to(dtype), residual)

    @property
    def rank(self) -> int:
        return self.basis.shape[0]

    @property
    def dimension(self) -> int:
        return self.basis.shape[1]

    @property
    def factors(self) -> Tensor:
        """F = V^T diag(variances)^(1/2) as rows, (k, d)."""
        return self.basis * self.variances.sqrt()[:, None]

    def apply(self, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return f(covariance) x for rows x (B, d).

        Args:
            x: Rows, (B, d).
            function: f on eigenvalues, (1, k) or (1, 1) to (B or 1, k) or (B or 1, 1).
        """
        floor = self.residual.square().reshape(1, 1)
        return self._filter(x, function(floor), function(self.variances + floor))

    def _filter(self, x: Tensor, rest: Tensor, along: Tensor) -> Tensor:
        return rest * x + ((x @ self.basis.T) * (along - rest)) @ self.basis

    def log_prob(self, x: Tensor, noise_variance: float | Tensor = 0.0) -> Tensor:
        """Return log N(x; mean, covariance + noise_variance I) for rows x (B, d), (B,).

        The caller sees to residual^2 + noise_variance > 0 (or k = d).
        """
        floor = self.residual.square() + torch.as_tensor(noise_variance).to(x)
        floor = floor.reshape(-1, 1)
        centred = x - self.mean
        along = centred @ self.basis.T
        variances = self.variances + floor
        quadratic = (along.square() / variances).sum(1)
        log_determinant = variances.log().sum(1)
        missing = self.dimension - self.rank
        if missing:  # |x|^2 - |Vx|^2 would cancel badly; the rest itself does not
            rest = centred - along @ self.basis if self.rank else centred
            quadratic = quadratic + torch.linalg.vector_norm(rest, dim=1).square() / floor[:, 0]
            log_determinant = log_determinant + missing * floor[:, 0].log()
        return -0.5 * (quadratic + log_determinant + self.dimension * math.log(2 * math.pi))

    def wiener(self, noise_variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gains of E[x0 | x0 + n], n ~ N(0, noise_variance I).

        Args:
            noise_variance: Scalar or (B,), >= 0.
        Returns:
            The gain off the basis, (B or 1, 1), and along it, (B or 1, k).
        """
        noise = noise_variance.to(self.mean).reshape(-1, 1)
        floor = self.residual.square().reshape(1, 1)
        return wiener_gain(floor, noise), wiener_gain(self.variances + floor, noise)

    def denoise(self, x: Tensor, noise_variance: Tensor) -> Tensor:
        """Return E[x0 | x0 + n = x], n ~ N(0, noise_variance I), for rows x (B, d)."""
        rest, along = self.wiener(noise_variance)
        denoised = self.mean + self._filter(x - self.mean, rest, along)
        return torch.where(noise_variance.to(x).reshape(-1, 1) > 0, denoised, x)

    def variance(self) -> Tensor:
        """Return the variance of every coordinate, (d,)."""
        return self.factors.square().sum(0) + self.residual.square()
