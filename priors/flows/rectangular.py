"""A flow from few numbers to many: a density on a curved surface, not on the whole space."""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from genprior.operators.base import Shape
from genprior.operators.random import Generators
from genprior.priors.base import EncodingPrior, LatentPrior
from genprior.priors.flows.vectors import VectorFlow
from genprior.priors.training import Objective, SingleLoss, Trainable, check_options
from genprior.priors.vae.vae import check_images, check_latent_size


class RectangularFlow(Trainable, LatentPrior, EncodingPrior):
    """x = g(z) = f^-1(z, 0), z ~ N(0, I) of k numbers, with an invertible f of all d > k.

        encode(x) = the first k numbers of f(x)
        log p(x) = log N(z; 0, I) - 1/2 log det J^T J,   J = dg/dz (d, k)

    Images lie on a surface of k dimensions, so there is no density of pixels: p is that of the
    surface's own k-dimensional volume. J takes k derivatives, so k should be small, at most 10
    or so. Trained by

        mean of |x - g(encode(x))|^2 / (2 std^2) - log p(g(encode(x)))

    Args:
        image_shape: (C, H, W).
        latent_size: k, from 1 to the number of pixel values.
        flow: Options of `VectorFlow`, its defaults if None.
        std: By which the distance of images from the surface is measured in training, > 0.
    Raises:
        ValueError: The latent size or an option is out of range.

    Source: Caterini et al. 2021, arXiv:2106.01413, with the determinant taken exactly, by k
        forward derivatives. Differs: no second flow of the k numbers.
    """

    exact_encoder: ClassVar[bool] = False
    training_defaults: ClassVar[dict[str, Any]] = {"precision": "fp32"}
    flow: VectorFlow

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_size: int = 2,
        *,
        flow: dict[str, Any] | None = None,
        std: float = 0.05,
    ) -> None:
        super().__init__()
        size = math.prod(image_shape)
        check_latent_size(latent_size, size)
        if not 0 < std < math.inf:
            raise ValueError(f"std must be positive, not {std}")
        self._shape = tuple(image_shape)
        self.image_shape: Shape = self._shape
        self.latent_shape: tuple[int, ...] = (latent_size,)
        self.std = std
        check_options("flow", flow or {}, VectorFlow)
        self.flow = VectorFlow(size, **(flow or {}))

    def decode(self, z: Tensor) -> Tensor:
        """Return g(z), (B, C, H, W), for latents (B, k)."""
        padded = F.pad(z.to(self._dtype), (0, self.flow.size - z.shape[1]))
        return self.flow.inverse(padded).view(-1, *self._shape).to(z.dtype)

    def encode(self, x: Tensor) -> Tensor:
        """Return z (B, k), with which g(z) is an image's projection onto the surface.

        encode(decode(z)) = z. Off the surface the projection need not be the nearest point.
        """
        check_images(self, x)
        e, _ = self.flow(x.to(self._dtype).flatten(1)[..., None, None])
        return e[:, : self.latent_shape[0]].to(x.dtype)

    def log_volume(self, z: Tensor) -> Tensor:
        """Return the logarithm of how much g stretches volume, 1/2 log det J^T J, (B,)."""

        def along(direction: Tensor) -> Tensor:
            pushed: Any = torch.func.jvp(self.decode, (z,), (direction.expand_as(z),))
            return pushed[1].flatten(1)

        axes = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        with warnings.catch_warnings():  # torch's own, of its first forward derivative
            warnings.simplefilter("ignore", FutureWarning)
            columns = torch.func.vmap(along)(axes)
        gram = torch.einsum("ibd,jbd->bij", columns, columns)
        return 0.5 * torch.linalg.slogdet(gram).logabsdet

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p of the projections of images in nats, (B,).

        The density is with respect to the surface's own volume (for k = 1: length), so it
        compares with densities on surfaces of k dimensions only. How far x is from the surface
        has no part in it.
        """
        z = self.encode(x)
        return self.latent_log_prob(z) - self.log_volume(z)

    def objective(self) -> Objective:
        return SingleLoss(self, self._loss)

    def _loss(self, batch: Tensor, generator: Generators) -> Tensor:
        z = self.encode(batch)
        distance = (self.decode(z) - batch).square().flatten(1).sum(1) / (2 * self.std**2)
        log_prob = self.latent_log_prob(z) - self.log_volume(z)
        return (distance - log_prob).mean() / batch[0].numel()

    @property
    def _dtype(self) -> torch.dtype:
        """That of the weights, in which everything is computed."""
        return next(self.flow.parameters()).dtype
