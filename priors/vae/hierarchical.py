"""A VAE whose latent comes in groups, each conditioned on those above it (NVAE, made small)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from genprior.operators.base import Shape
from genprior.operators.random import Generators, normal
from genprior.priors.training import Objective
from genprior.priors.vae import pixels as pixel_distributions
from genprior.priors.vae.coders import initialise
from genprior.priors.vae.hierarchy import (
    Group,
    Hierarchy,
    Levels,
    Whole,
    check_levels,
    group_shapes,
)
from genprior.priors.vae.vae import check_images
from genprior.priors.vae.variational import (
    BoundOptions,
    BoundTerms,
    VariationalPrior,
    VariationalTraining,
)


class HierarchicalVAE(VariationalPrior):
    """Groups z_1 ... z_L, coarse to fine, each normal given those before it.

        z_l = m_l(z_<l) + s_l(z_<l) e_l,   e_l ~ N(0, I) under the prior
        q(e_l | x, z_<l) = N(d_l, t_l^2),  KL_l = KL(N(d_l, t_l^2) || N(0, I))

    The latent of the contract is e = (e_1 ... e_L), flattened and joined, coarse first: the
    posterior that is learned is the residual relative to the prior.

    Args:
        image_shape: (C, H, W), H and W divisible by 2 to the power of the number of levels.
        widths: Channels of each level, fine to coarse, the first at half the image's size.
        groups: Groups of latents at each level.
        latent_channels: Channels of each group.
        whole: Length of a first group that is a vector without places, at the coarsest level; 0
            for none. It holds what concerns the image as a whole, as the latent of a plain VAE.
        pixels: 'kind' (gaussian, bernoulli or categorical) and its options.
        bound: Options of `BoundOptions`.
        seed: Of the starting weights.

    Source: Vahdat, Kautz 2020 (NVAE), arXiv:2007.03898, Sections 3.1 and 3.2. Differs: plain
        residual cells with group normalisation; weight decay, not spectral regularisation.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        widths: Sequence[int] = (32, 64, 96),
        groups: Sequence[int] = (1, 2, 2),
        latent_channels: int = 6,
        whole: int = 0,
        pixels: dict[str, Any] | None = None,
        bound: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        levels = Levels(tuple(widths), tuple(groups), latent_channels, whole)
        check_levels(image_shape, levels)
        self.image_shape: Shape = image_shape
        self.group_shapes: list[tuple[int, int, int]] = group_shapes(image_shape, levels)
        self.latent_shape: tuple[int, ...] = (sum(math.prod(s) for s in self.group_shapes),)
        self.pixels: pixel_distributions.PixelDistribution = pixel_distributions.from_config(
            pixels or {}
        )
        self.bound: BoundOptions = BoundOptions.from_config(bound or {})
        with torch.device("meta"):  # the default initialisation would move the global generator
            self.network = Hierarchy(image_shape, levels, self.pixels.outputs)
        initialise(self.network, torch.Generator().manual_seed(seed))
        self.network.start_at_the_prior()

    def split_latent(self, z: Tensor) -> list[Tensor]:
        """Separate latents (B, k) into their groups, coarse first, each (B, c, h, w)."""
        parts = z.split([math.prod(s) for s in self.group_shapes], dim=1)
        return [p.unflatten(1, s) for p, s in zip(parts, self.group_shapes, strict=True)]

    def sample(
        self,
        n: int,
        *,
        size: tuple[int, int] | None = None,
        generator: Generators = None,
        fixed: Sequence[Tensor] = (),
        temperature: float | Sequence[float] = 1.0,
    ) -> Tensor:
        """Draw n images, (n, C, H, W).

        Args:
            n: Number of images.
            size: None, or the prior's own (H, W).
            generator: None, one generator, or one for each image.
            fixed: The first groups, coarse first, as `split_latent` gives them, for one image or
                n; only the groups after them are drawn.
            temperature: Std of the draws of each group, or of all; below 1 images get smoother.
        """
        self.check_size(size)
        count = len(self.group_shapes)
        scales = [temperature] * count if isinstance(temperature, int | float) else temperature
        if len(scales) != count or len(fixed) > count:
            raise ValueError(
                f"this prior has {count} groups: {len(scales)} temperatures and {len(fixed)} "
                "fixed groups came"
            )
        drawn = self.split_latent(self._normal(n, generator))
        groups = [t * e for t, e in zip(scales, drawn, strict=True)]
        groups[: len(fixed)] = [e.expand(n, *e.shape[1:]) for e in fixed]
        with torch.no_grad():
            return self.decode(torch.cat([e.flatten(1) for e in groups], 1))

    def decode(self, z: Tensor) -> Tensor:
        """Return E[x | z], (B, C, H, W), for standardised residuals (B, k)."""
        groups = iter(self.split_latent(z.to(self.network.top.dtype)))
        output = self.network.descend(len(z), lambda group, h, level: next(groups))
        return self.pixels.mean(output.to(z.dtype))

    def encode(self, x: Tensor) -> Tensor:
        """Return the posterior means of the residuals, each given those above it, (B, k)."""
        mean, _, _ = self._infer(x, x.new_zeros(len(x), 1, *self.latent_shape))
        return mean[:, 0]

    def terms(self, x: Tensor, *, samples: int = 1, generator: Generators = None) -> BoundTerms:
        shape = (len(x), samples, *self.latent_shape)
        n = normal(shape, generator, dtype=x.dtype, device=x.device)
        mean, std, output = self._infer(x, n)
        log_likelihood = self.pixels.log_prob(x.repeat_interleave(samples, 0), output)
        return BoundTerms.from_draws(log_likelihood, n, mean=mean, std=std)

    def _infer(self, x: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw residuals mean + std n given x, each group given those above it.

        Returns mean and std, in the shape of n (B, K, k), and the network's output for the draws.
        """
        check_images(self, x)
        features = self.network.ascend(x.to(self.network.top.dtype))
        features = [f.repeat_interleave(n.shape[1], 0) for f in features]
        draws = iter(self.split_latent(n.flatten(0, 1)))
        found: list[tuple[Tensor, Tensor]] = []

        def draw(group: Group | Whole, h: Tensor, level: int) -> Tensor:
            found.append(group.posterior(h, features[level]))
            mean, std = found[-1]
            return mean + std * next(draws).to(mean.dtype)

        output = self.network.descend(len(n.flatten(0, 1)), draw).to(x.dtype)
        mean, std = (
            torch.cat([part.flatten(1) for part in parts], 1).to(x.dtype).view(n.shape)
            for parts in zip(*found, strict=True)
        )
        return mean, std, output

    def objective(self) -> Objective:
        return _HierarchicalTraining(self)


class _HierarchicalTraining(VariationalTraining):
    """Coarse groups warm up, the finest does not: what coarse ones can say is said by them.

    Else the finest, which learn first, say everything, and samples have details but no whole.
    Weights decay a little: deep posteriors are unstable without any regularisation.
    """

    weight_decay: ClassVar[float] = 0.01

    def __init__(self, prior: HierarchicalVAE) -> None:
        super().__init__(prior)
        sizes = torch.tensor([math.prod(shape) for shape in prior.group_shapes])
        shares = torch.linspace(1, 0, len(sizes)) if len(sizes) > 1 else torch.ones(1)
        self._shares = shares.repeat_interleave(sizes)

    def unit_weights(self, progress: float) -> Tensor:
        """Weights progress^share, with shares from 1 for the coarsest to 0 for the finest."""
        self._shares = self._shares.to(next(self.model.parameters()).device)
        return progress**self._shares
