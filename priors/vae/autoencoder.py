"""The autoencoder: a code without a distribution, the baseline that the VAE mends."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NoReturn

from torch import Tensor

from genprior.operators.random import Generators
from genprior.priors.training import Objective, TrainablePrior
from genprior.priors.vae.coders import coders
from genprior.priors.vae.vae import check_images, check_latent_size, first_image


class Autoencoder(TrainablePrior):
    """z = encode(x), x ~ decode(z), trained for least squared error.

    It is trained, saved and loaded as a prior is, but it is none: nothing says which codes are
    likely, so it cannot be sampled and no solver takes it. Without hidden layers it finds the
    principal subspace.

    Args:
        image_shape: (C, H, W).
        latent_size: Length of the code, from 1 to the number of pixel values.
        network: 'kind' (perceptron or convolutional), its options, and 'seed'; that of the VAE
            if None.

    Source: Baldi, Hornik 1989 (the linear case); Hinton, Salakhutdinov 2006.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_size: int,
        *,
        network: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_latent_size(latent_size, math.prod(image_shape))
        self.image_shape = image_shape
        self.latent_shape = (latent_size,)
        self._network = {"kind": "perceptron", **(network or {})}
        sizes = (latent_size, latent_size)
        self.encoder, self.decoder = coders(image_shape, sizes, 1, self._network)

    @classmethod
    def from_images(
        cls,
        images: Iterable[Tensor],
        *,
        latent_size: int = 20,
        network: dict[str, Any] | None = None,
    ) -> Autoencoder:
        """Build an untrained one for a data set, of which one image is read for its shape."""
        channels, height, width = first_image(images).shape
        return cls((channels, height, width), latent_size, network=network)

    @property
    def config(self) -> dict[str, Any]:
        return {
            "image_shape": list(self.image_shape),
            "latent_size": self.latent_shape[0],
            "network": dict(self._network),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Autoencoder:
        options = dict(config)
        return cls(tuple(options.pop("image_shape")), options.pop("latent_size"), **options)

    def sample(
        self, n: int, *, size: tuple[int, int] | None = None, generator: Generators = None
    ) -> NoReturn:
        """Refuse.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "an Autoencoder has no distribution over its codes, so it cannot be sampled: take a "
            "VAE, or train with grid=0"
        )

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes (B, k) of images (B, C, H, W)."""
        check_images(self, x)
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return the images (B, C, H, W) of codes (B, k)."""
        return self.decoder(z)

    def objective(self) -> Objective:
        return _Reconstruction(self)


class _Reconstruction(Objective):
    """The mean squared error of decode(encode(x))."""

    def loss(
        self, group: str, batch: Tensor, generator: Generators
    ) -> tuple[Tensor, dict[str, float]]:
        prior = self.prior
        assert isinstance(prior, Autoencoder)
        error = prior.decode(prior.encode(batch)).to(batch.dtype) - batch
        return error.square().mean(), {}
