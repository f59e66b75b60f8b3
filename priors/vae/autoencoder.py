"""The autoencoder: a code without a distribution, the baseline that the VAE mends."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from genprior.operators.base import Shape
from genprior.operators.random import Generators
from genprior.priors.training import Objective, SingleLoss, Trainable
from genprior.priors.vae.coders import coders
from genprior.priors.vae.vae import check_images, check_latent_size


class Autoencoder(Trainable):
    """z = encode(x), x ~ decode(z), trained for least squared error.

    It is trained, saved and loaded as a prior is, but it is none: nothing says which codes are
    likely. Without hidden layers it finds the principal subspace.

    Args:
        image_shape: (C, H, W).
        latent_size: Length of the code, from 1 to the number of pixel values.
        network: 'kind' (perceptron or convolutional), its options, and 'seed'; that of the VAE
            if None.

    Source: Baldi, Hornik 1989 (the linear case); Hinton, Salakhutdinov 2006.
    """

    encoder: nn.Module
    decoder: nn.Module

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_size: int = 20,
        *,
        network: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_latent_size(latent_size, math.prod(image_shape))
        self.image_shape: Shape = image_shape
        self.latent_shape: tuple[int, ...] = (latent_size,)
        self.network: dict[str, Any] = {"kind": "perceptron", **(network or {})}
        sizes = (latent_size, latent_size)
        self.encoder, self.decoder = coders(image_shape, sizes, 1, self.network)

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes (B, k) of images (B, C, H, W)."""
        check_images(self, x)
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return the images (B, C, H, W) of codes (B, k)."""
        return self.decoder(z)

    def objective(self) -> Objective:
        return SingleLoss(self, self._error)

    def _error(self, batch: Tensor, generator: Generators) -> Tensor:
        """Return the mean squared error of decode(encode(x))."""
        return (self.decode(self.encode(batch)).to(batch.dtype) - batch).square().mean()
