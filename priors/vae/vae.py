"""The variational autoencoder: a latent-variable model with a learned approximate posterior."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from genprior.operators.base import Shape
from genprior.operators.random import Generators, normal
from genprior.priors.base import Model
from genprior.priors.flows.vectors import VectorFlow
from genprior.priors.training import check_options
from genprior.priors.vae import pixels as pixel_distributions
from genprior.priors.vae.coders import coders
from genprior.priors.vae.variational import BoundOptions, BoundTerms, VariationalPrior


class VAE(VariationalPrior):
    """z ~ N(0, I), x ~ p(x | decoder(z)), with an encoder q(z | x) = N(mean(x), std(x)^2).

    With a flow p(z) is learned too: z = f^-1(e), e ~ N(0, I). The latent of the contract, which
    solvers see and `decode` takes, is then e; `encode_distribution` speaks of z. The KL is that
    of the draws, and counts as of one latent unit.

    Args:
        image_shape: (C, H, W).
        latent_size: k, from 1 to the number of pixel values; latents are (B, k).
        network: 'kind' (perceptron or convolutional), its options, and 'seed'; that of CSGM if
            None: fully connected, 500 and 500 hidden units, softplus.
        pixels: 'kind' (gaussian, bernoulli or categorical) and its options; a Gaussian of learned
            std if None.
        bound: Options of `BoundOptions`: what is trained.
        flow: Options of `VectorFlow`, {} for its defaults; no flow if None.
    Raises:
        ValueError: The latent size or an option is out of range, or of an unknown kind.

    Source: Kingma, Welling 2014, arXiv:1312.6114; Chen et al. 2017, arXiv:1611.02731 (the flow).
        Differs: the KL may be weighted while training.
    """

    encoder: nn.Module
    decoder: nn.Module

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_size: int = 20,
        *,
        network: dict[str, Any] | None = None,
        pixels: dict[str, Any] | None = None,
        bound: dict[str, Any] | None = None,
        flow: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        size = math.prod(image_shape)
        check_latent_size(latent_size, size)
        self.image_shape: Shape = image_shape
        self.latent_shape: tuple[int, ...] = (latent_size,)
        self.network: dict[str, Any] = {"kind": "perceptron", **(network or {})}
        self.pixels: pixel_distributions.PixelDistribution = pixel_distributions.from_config(
            pixels or {}
        )
        self.bound: BoundOptions = BoundOptions.from_config(bound or {})
        self.encoder, self.decoder = coders(
            image_shape, (2 * latent_size, latent_size), self.pixels.outputs, self.network
        )
        if flow is not None:
            check_options("flow", flow, VectorFlow)
            self.flow: VectorFlow | None = VectorFlow(latent_size, **flow)

    def decode(self, z: Tensor) -> Tensor:
        """Return E[x | z], (B, C, H, W), for latents (B, k); with a flow they are its e."""
        if self.flow is not None:
            z = self.flow.inverse(z.to(self._dtype)).flatten(1).to(z.dtype)
        return self.pixels.mean(self._output(z))

    def encode(self, x: Tensor) -> Tensor:
        """Return the mean of q(z | x), or what the flow makes of it, (B, k)."""
        mean, _ = self.encode_distribution(x)
        return mean if self.flow is None else self._through_flow(mean)[0]

    def encode_distribution(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of q(z | x), each (B, k)."""
        check_images(self, x)
        code = self.encoder(x.to(self._dtype)).to(x.dtype)
        mean, log_std = code.chunk(2, dim=1)
        # A std beyond these bounds (e^-8 to e^3) is an overflow on its way.
        return mean, log_std.clamp(-8.0, 3.0).exp()

    def terms(self, x: Tensor, *, samples: int = 1, generator: Generators = None) -> BoundTerms:
        mean, std = self.encode_distribution(x)
        shape = (len(x), samples, *self.latent_shape)
        n = normal(shape, generator, dtype=x.dtype, device=x.device)
        mean, std = mean[:, None], std[:, None]
        z = (mean + std * n).flatten(0, 1)
        log_likelihood = self.pixels.log_prob(x.repeat_interleave(samples, 0), self._output(z))
        terms = BoundTerms.from_draws(log_likelihood, n, mean=mean, std=std)
        if self.flow is None:
            return terms
        e, log_det = self._through_flow(z)
        gain = log_det + 0.5 * (z.square() - e.square()).sum(1)  # log p(z) - log N(z; 0, I)
        log_ratio = terms.log_ratio + gain.view(n.shape[:2])
        return replace(terms, log_ratio=log_ratio, kl=-log_ratio.mean(1, keepdim=True))

    @property
    def _dtype(self) -> torch.dtype:
        """That of the weights, in which everything is computed."""
        return next(self.decoder.parameters()).dtype

    def _output(self, z: Tensor) -> Tensor:
        return self.decoder(z.to(self._dtype)).to(z.dtype)

    def _through_flow(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return e = f(z) and log |det df/dz| for z (B, k)."""
        assert self.flow is not None
        e, log_det = self.flow(z.to(self._dtype)[..., None, None])
        return e.to(z.dtype), log_det.to(z.dtype)


def check_latent_size(latent_size: int, pixel_values: int) -> None:
    """Raise unless a latent is between 1 and the image in size."""
    if not 1 <= latent_size <= pixel_values:
        raise ValueError(
            f"latent_size must be between 1 and the image's {pixel_values} values, "
            f"not {latent_size}"
        )


def check_images(prior: Model, x: Tensor) -> None:
    """Raise unless x is (B, *prior.image_shape)."""
    if tuple(x.shape[1:]) != tuple(prior.image_shape):
        raise ValueError(
            f"images of shape {tuple(x.shape)} came to a {type(prior).__name__} for "
            f"(B, *{tuple(prior.image_shape)})"
        )
