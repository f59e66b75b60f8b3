"""p(z | y) for a prior x = decode(z): the function that latent solvers descend or sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.linalg import vecdot

from genprior.operators import GaussianNoise, Identity, Inpainting, Problem
from genprior.operators.base import per_row
from genprior.operators.linear.spectrum import Map
from genprior.operators.random import normal
from genprior.solvers.base import Counted
from genprior.solvers.data_term import DataTerm
from genprior.solvers.fit import MISFIT, largest_misfit, misfit


@dataclass(frozen=True)
class LatentPosterior:
    """-log p(y | z) and its gradient, for rows of a problem.

    Without a decoder std, y = A(decode(z)) + noise. With one, s, the image scatters about
    decode(z), and for linear A and Gaussian noise x is integrated out in closed form:

        x = decode(z) + s e,   y | z ~ N(A decode(z), sigma^2 I + s^2 A A^T)

    Attributes:
        prior: Decodes z (n, *latent_shape).
        problem: n rows.
        decoder_std: s, or 0.
    """

    prior: Counted
    problem: Problem
    decoder_std: float

    def take(self, index: Tensor) -> LatentPosterior:
        """Keep the rows `index`."""
        return replace(self, problem=self.problem.take(index))

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return -log p(y | z) up to a constant, (n,), and its gradient in z (n, *latent)."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            x = self.prior.decode(z)
            if self.decoder_std:
                value, slope = self._scattered(x.detach())
                (gradient,) = torch.autograd.grad(x, z, slope)
            else:
                value = -self.problem.log_likelihood(x)
                (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient

    @torch.no_grad()
    def _scattered(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return -log p(y | z) where x scatters about decode(z), and its gradient in decode(z)."""
        residual = self._data.residual(x)
        u = self._precision(residual)
        return 0.5 * vecdot(residual.flatten(1), u.flatten(1)), self._data.adjoint(-u)

    @cached_property
    def _data(self) -> DataTerm:
        return DataTerm.of(self.problem)

    @cached_property
    def _precision(self) -> Map:
        """What applies (sigma^2 I + s^2 A A^T)^-1 to coefficients."""
        return self._data.solver(self.problem.sigma**2, scale=self.decoder_std**2)

    @cached_property
    def log_constant(self) -> Tensor | None:
        """What `value_and_gradient` leaves out of log p(y | z), (n,); None where not known.

        Nothing without a decoder std; with one, the normaliser of N(0, (sigma^2 + s^2) I) where
        A shows pixels as they are.
        """
        if not self.decoder_std:
            return torch.zeros_like(self.problem.observed_count)
        if not isinstance(self.problem.operator, Identity | Inpainting):
            return None
        variance = self.problem.sigma**2 + self.decoder_std**2
        return -0.5 * self.problem.observed_count * (2 * torch.pi * variance).log()

    def misfit(self, z: Tensor) -> Tensor:
        """Root mean square of y - A(decode(z)) in units of what its spread should be, (n,)."""
        x = self.prior.decode(z)
        if self.decoder_std:
            value, _ = self._scattered(x)
            return (2 * value / self.problem.observed_count).sqrt()
        return misfit(self.problem, x)

    def explains(self, misfit: Tensor) -> Tensor:
        """Say for which rows a misfit is no worse than noise, roughly, makes it, (n,) bool."""
        if self.decoder_std:
            return misfit <= MISFIT + 5 / (2 * self.problem.observed_count).sqrt()
        return misfit <= largest_misfit(self.problem)

    def mean_image(self, z: Tensor) -> Tensor:
        """Return E[x | z, y], (n, C, H, W): decode(z), moved towards y where x scatters."""
        return self.towards_y(self.prior.decode(z))

    def sample_image(self, z: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Draw x given z and y (Matheron's rule); decode(z) where x does not scatter."""
        x = self.prior.decode(z)
        if not self.decoder_std:
            return x
        like = {"dtype": x.dtype, "device": x.device}
        x = x + self.decoder_std * normal(x.shape, generators, **like)
        y = self.problem.y
        return self.towards_y(
            x, per_row(self.problem.sigma, y) * normal(y.shape, generators, **like)
        )

    def towards_y(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the mean of x + s e given A(x + s e) + noise = y, (n, C, H, W)."""
        if not self.decoder_std:
            return x
        data = self._data
        residual = data.residual(x)
        if noise is not None:
            residual = residual - data.coefficients(self.problem.operator.keep_observed(noise))
        return x + self.decoder_std**2 * data.adjoint(self._precision(residual))


def latent_posterior(
    prior: Counted, problem: Problem, decoder_variance: bool | None
) -> LatentPosterior:
    """Set up p(z | y), with the decoder's own spread where it can and should count.

    Args:
        prior: Its `decoder_std`, if not None, is the spread of x about decode(z).
        problem: Rows.
        decoder_variance: True or False; None counts it wherever the prior has one, the operator
            is linear and the noise Gaussian.
    Raises:
        ValueError: It was asked for and cannot count; or sigma is 0 and nothing else scatters.
    """
    std = prior.decoder_std
    closed = problem.linear_gaussian
    if decoder_variance and (std is None or not closed):
        raise ValueError(
            "decoder_variance needs a prior with a decoder_std (a VAE with Gaussian pixels), a "
            f"linear operator and Gaussian noise, not {type(prior.prior).__name__}, "
            f"{type(problem.operator).__name__} and {type(problem.noise).__name__}: leave it None"
        )
    if std is None or not closed or decoder_variance is False:
        std = 0.0
    posterior = LatentPosterior(prior, problem, float(std))
    gaussian = isinstance(problem.noise, GaussianNoise)
    if gaussian and not posterior.decoder_std and bool((problem.sigma == 0).any()):
        raise ValueError(
            "sigma = 0 leaves no density over latents: say the noise's std, or a small one (1e-3 "
            "is a quarter of an 8-bit grey level)"
        )
    return posterior
