"""A VAE whose latent comes in groups, each conditioned on those above it (NVAE, made small)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from genprior.operators.random import Generators, normal
from genprior.priors.training import Objective
from genprior.priors.vae import pixels as pixel_distributions
from genprior.priors.vae.coders import ResidualCell, initialise
from genprior.priors.vae.vae import check_images, check_size, first_image
from genprior.priors.vae.variational import (
    BoundOptions,
    BoundTerms,
    VariationalPrior,
    VariationalTraining,
    normal_kl,
)


@dataclass(frozen=True)
class _Levels:
    """Sizes of the hierarchy, fine to coarse."""

    widths: Sequence[int]
    groups: Sequence[int]
    latent_channels: int
    whole: int


class _Group(nn.Module):
    """One group of latents: its prior given h, the posterior's residual, its effect on h."""

    def __init__(self, width: int, latent_channels: int) -> None:
        super().__init__()
        self.prior = nn.Sequential(
            ResidualCell(width), nn.SiLU(), nn.Conv2d(width, 2 * latent_channels, 1)
        )
        self.residual = nn.Sequential(
            nn.Conv2d(2 * width, width, 1),
            ResidualCell(width),
            nn.SiLU(),
            nn.Conv2d(width, 2 * latent_channels, 1),
        )
        self.enter = nn.Conv2d(latent_channels, width, 1)
        self.cell = ResidualCell(width)

    def posterior(self, h: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std of the standardised residual e given the image."""
        mean, log_std = self.residual(torch.cat([h, features], 1)).chunk(2, 1)
        return mean, _bounded(log_std).exp()

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """Take z = mean(h) + std(h) e in."""
        mean, log_std = self.prior(h).chunk(2, 1)
        return self.cell(h + self.enter(mean + _bounded(log_std).exp() * e))


class _Whole(nn.Module):
    """The first group where it is a vector that belongs to no place: it reaches all of h."""

    def __init__(self, whole: int, coarse: tuple[int, int, int]) -> None:
        super().__init__()
        size = math.prod(coarse)
        self.residual = nn.Sequential(nn.SiLU(), nn.Flatten(), nn.Linear(size, 2 * whole))
        self.enter = nn.Sequential(
            nn.Flatten(), nn.Linear(whole, size), nn.Unflatten(1, coarse), ResidualCell(coarse[0])
        )

    def posterior(self, h: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.residual(features)[:, :, None, None].chunk(2, 1)
        return mean, _bounded(log_std).exp()

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        return h + self.enter(e)


def _bounded(log_std: Tensor) -> Tensor:
    """Keep a log std within 5 of 0, smoothly."""
    return 5 * torch.tanh(log_std / 5)


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
        self._levels = _Levels(tuple(widths), tuple(groups), latent_channels, whole)
        self._seed = seed
        _check_levels(image_shape, self._levels)
        self.image_shape = image_shape
        self.group_shapes = _group_shapes(image_shape, self._levels)
        self.latent_shape = (sum(math.prod(s) for s in self.group_shapes),)
        self.pixels = pixel_distributions.from_config(pixels or {})
        self.bound = BoundOptions(**(bound or {}))
        with torch.device("meta"):  # the default initialisation would move the global generator
            self.network = _Network(image_shape, self._levels, self.pixels.outputs)
        initialise(self.network, torch.Generator().manual_seed(seed))
        self.network.start_at_the_prior()

    @classmethod
    def from_images(
        cls,
        images: Iterable[Tensor],
        *,
        widths: Sequence[int] = (32, 64, 96),
        groups: Sequence[int] = (1, 2, 2),
        latent_channels: int = 6,
        whole: int = 0,
        pixels: dict[str, Any] | None = None,
        bound: dict[str, Any] | None = None,
    ) -> HierarchicalVAE:
        """Build an untrained one for a data set, of which one image is read for its shape."""
        channels, height, width = first_image(images).shape
        return cls(
            (channels, height, width),
            widths=widths,
            groups=groups,
            latent_channels=latent_channels,
            whole=whole,
            pixels=pixels,
            bound=bound,
        )

    @property
    def config(self) -> dict[str, Any]:
        return {
            "image_shape": list(self.image_shape),
            "widths": list(self._levels.widths),
            "groups": list(self._levels.groups),
            "latent_channels": self._levels.latent_channels,
            "whole": self._levels.whole,
            "pixels": self.pixels.config,
            "bound": asdict(self.bound),
            "seed": self._seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> HierarchicalVAE:
        options = dict(config)
        return cls(tuple(options.pop("image_shape")), **options)

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
        check_size(self, size)
        count = len(self.group_shapes)
        scales = [temperature] * count if isinstance(temperature, int | float) else temperature
        if len(scales) != count or len(fixed) > count:
            raise ValueError(
                f"this prior has {count} groups: {len(scales)} temperatures and {len(fixed)} "
                "fixed groups came"
            )
        weight = next(self.parameters())
        z = normal((n, *self.latent_shape), generator, dtype=weight.dtype, device=weight.device)
        groups = [t * e for t, e in zip(scales, self.split_latent(z), strict=True)]
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
        check_images(self, x)
        features = self.network.ascend(x.to(self.network.top.dtype))
        means = []

        def take_mean(group: _Group | _Whole, h: Tensor, level: int) -> Tensor:
            means.append(group.posterior(h, features[level])[0])
            return means[-1]

        self.network.descend(len(x), take_mean)
        return torch.cat([m.flatten(1) for m in means], 1).to(x.dtype)

    def terms(self, x: Tensor, *, samples: int = 1, generator: Generators = None) -> BoundTerms:
        check_images(self, x)
        features = self.network.ascend(x.to(self.network.top.dtype))
        features = [f.repeat_interleave(samples, 0) for f in features]
        shape = (len(x), samples, *self.latent_shape)
        n = normal(shape, generator, dtype=x.dtype, device=x.device)
        draws = iter(self.split_latent(n.flatten(0, 1)))
        found: list[tuple[Tensor, Tensor]] = []

        def draw(group: _Group | _Whole, h: Tensor, level: int) -> Tensor:
            found.append(group.posterior(h, features[level]))
            mean, std = found[-1]
            return mean + std * next(draws).to(mean.dtype)

        output = self.network.descend(len(x) * samples, draw).to(x.dtype)
        mean, std = (
            torch.cat([part.flatten(1) for part in parts], 1).to(x.dtype).view(shape)
            for parts in zip(*found, strict=True)
        )
        log_ratio = 0.5 * (n.square() - (mean + std * n).square()) + std.log()
        log_likelihood = self.pixels.log_prob(x.repeat_interleave(samples, 0), output)
        return BoundTerms(
            log_likelihood=log_likelihood.view(len(x), samples),
            log_ratio=log_ratio.sum(2),
            kl=normal_kl(mean, std).mean(1),
            means=mean.mean(1),
        )

    def objective(self) -> Objective:
        return _HierarchicalTraining(self)


class _HierarchicalTraining(VariationalTraining):
    """Coarse groups warm up, the finest does not: what coarse ones can say is said by them.

    Else the finest, which learn first, say everything, and samples have details but no whole.
    Weights decay a little: deep posteriors are unstable without any regularisation.
    """

    def __init__(self, prior: HierarchicalVAE) -> None:
        super().__init__(prior)
        sizes = torch.tensor([math.prod(shape) for shape in prior.group_shapes])
        shares = torch.linspace(1, 0, len(sizes)) if len(sizes) > 1 else torch.ones(1)
        self._shares = shares.repeat_interleave(sizes)

    def unit_weights(self, progress: float) -> Tensor:
        """Weights progress^share, with shares from 1 for the coarsest to 0 for the finest."""
        self._shares = self._shares.to(self._networks.seen.device)
        return progress**self._shares

    def optimizer(
        self, group: str, learning_rate: float, parameters: Iterable[nn.Parameter]
    ) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )


class _Network(nn.Module):
    """Bottom-up features of the image, and the top-down path that all groups write to."""

    def __init__(self, image_shape: tuple[int, int, int], levels: _Levels, outputs: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        widths = levels.widths
        factor = 2 ** len(widths)
        self.top = nn.Parameter(torch.empty(1, widths[-1], height // factor, width // factor))
        self.entrance = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(4 * channels, widths[0], 3, padding=1)
        )
        self.up = nn.ModuleList(ResidualCell(w) for w in widths)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.groups = nn.ModuleList(
            nn.ModuleList(_Group(w, levels.latent_channels) for _ in range(n))
            for w, n in zip(widths, levels.groups, strict=True)
        )
        if levels.whole:
            coarse = (widths[-1], height // factor, width // factor)
            self.groups[-1].insert(0, _Whole(levels.whole, coarse))  # pyright: ignore
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths)
        )
        self.exit = nn.Sequential(
            ResidualCell(widths[0]),
            nn.SiLU(),
            nn.Conv2d(widths[0], 4 * channels * outputs, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def start_at_the_prior(self) -> None:
        """Set what must start at zero: every group's prior and posterior are then N(0, I)."""
        nn.init.zeros_(self.top)
        for group in self.modules():
            heads = {_Group: ("prior", "residual"), _Whole: ("residual",)}.get(type(group), ())
            for name in heads:
                nn.init.zeros_(getattr(group, name)[-1].weight)

    def ascend(self, x: Tensor) -> list[Tensor]:
        """Return the features of each level, fine to coarse."""
        h = self.entrance(x)
        features = []
        for level, cell in enumerate(self.up):
            h = cell(h)
            features.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h)
        return features

    def descend(self, count: int, choose: Any) -> Tensor:
        """Run top-down; `choose(group, h, level)` gives each group's e, coarse first."""
        h = self.top.expand(count, -1, -1, -1)
        for level in reversed(range(len(self.up))):
            for group in self.groups[level]:  # pyright: ignore[reportGeneralTypeIssues]
                h = group(h, choose(group, h, level))
            if level:
                h = self.grow[level - 1](h)
        return self.exit(h)


def _group_shapes(
    image_shape: tuple[int, int, int], levels: _Levels
) -> list[tuple[int, int, int]]:
    _, height, width = image_shape
    whole = [(levels.whole, 1, 1)] if levels.whole else []
    return whole + [
        (levels.latent_channels, height >> (level + 1), width >> (level + 1))
        for level in reversed(range(len(levels.widths)))
        for _ in range(levels.groups[level])
    ]


def _check_levels(image_shape: tuple[int, int, int], levels: _Levels) -> None:
    widths, groups = levels.widths, levels.groups
    factor = 2 ** len(widths)
    if (
        not widths
        or len(widths) != len(groups)
        or min(groups) < 0
        or (sum(groups) + levels.whole < 1 or levels.whole < 0)
    ):
        raise ValueError(
            f"widths {tuple(widths)} and groups {tuple(groups)} must name the same levels, with "
            "at least one group"
        )
    if levels.latent_channels < 1 or image_shape[1] % factor or image_shape[2] % factor:
        raise ValueError(
            f"latent_channels must be at least 1, not {levels.latent_channels}, and images of "
            f"{image_shape[1]}x{image_shape[2]} be divisible by {factor}"
        )
