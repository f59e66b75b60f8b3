"""The diffusion prior: a denoiser trained on images, and what follows from it.

One coordinate at every door: x_sigma = x0 + sigma n in pixel units. How the network was trained
(EDM, DDPM, flow matching) stays inside.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from genprior.operators.base import Shape, fits, per_row
from genprior.operators.random import Generators
from genprior.priors import samplers
from genprior.priors.base import DenoisingPrior, EncodingPrior, LatentPrior, plain
from genprior.priors.diffusion import parametrisations
from genprior.priors.diffusion.likelihood import log_prob_estimate
from genprior.priors.diffusion.parametrisations import EDM, Parametrisation
from genprior.priors.diffusion.tiles import in_tiles, needs_tiles
from genprior.priors.diffusion.unet import UNet
from genprior.priors.training import Objective, SingleLoss, Trainable, check_options


class Diffusion(Trainable, LatentPrior, EncodingPrior, DenoisingPrior):
    """A prior given by a trained denoiser.

    The latent z ~ N(0, I) is the start of the probability flow at the largest sigma, scaled to
    unit variance; `decode` follows the flow down and `encode` follows it up, in `flow_steps`
    evaluations, so that they invert each other only up to the discretisation.

    Attributes:
        autocast: Precision of the network's arithmetic, e.g. torch.bfloat16; weights, noise levels
            and images keep theirs. None, the default, is the weights' own.

    Args:
        network: Called as network(u (B, C, H, W), noise (B,)), both of about unit scale.
        image_shape: (C, H, W); H and W None for a fully convolutional network: any size.
        objective: How the network is read, and trained.
        data_mean: Mean pixel of each channel, or one for all.
        data_std: Standard deviation of a pixel about it.
    """

    exact_encoder: ClassVar[bool] = False
    flow_steps: ClassVar[int] = 48
    autocast: torch.dtype | None = None

    def __init__(
        self,
        network: nn.Module,
        image_shape: Shape,
        *,
        objective: Parametrisation | None = None,
        data_mean: float | Sequence[float] = 0.5,
        data_std: float = 0.5,
    ) -> None:
        super().__init__()
        if not data_std > 0:
            raise ValueError(f"data_std must be positive, not {data_std}")
        self.network = network
        self.image_shape: Shape = tuple(image_shape)
        self.latent_shape: tuple[int, ...] = self.image_shape  # pyright: ignore[reportAttributeAccessIssue]
        self.training_objective: Parametrisation = objective if objective is not None else EDM()
        mean = torch.as_tensor(data_mean, dtype=torch.float64).reshape(-1, 1, 1)
        if len(mean) not in (1, self.image_shape[0]):
            raise ValueError(
                f"data_mean must be one number, or one for each of {self.image_shape[0]} "
                f"channels, not {data_mean}"
            )
        self.data_mean: Tensor = nn.Buffer(mean.float(), persistent=False)
        self.data_std: Tensor = nn.Buffer(torch.tensor(float(data_std)), persistent=False)
        # As Python numbers too: a float64 input is not normalised by float32 figures.
        self._normalisation = mean, float(data_std)
        self._warned = False

    @classmethod
    def for_images(
        cls,
        images: Iterable[Tensor],
        *,
        any_size: bool = False,
        network: dict[str, Any] | None = None,
        objective: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Measure a data set: shape, channels, mean and spread.

        Args:
            images: At most 5,000 of these (C, H, W) are read.
            any_size: Serve images of any size; train on crops (augment.crop).
            network: Options of `UNet`; one that CPU cores can train if None.
            objective: 'kind' (edm, ddpm or flow_matching) and its options.
        """
        count, total, squares, shape = 0, 0.0, 0.0, None
        for _, image in zip(range(5000), images, strict=False):
            pixels = image.double().flatten(1)
            count += pixels.shape[1]
            total = total + pixels.sum(1)
            squares = squares + pixels.square().sum(1)
            shape = (len(image), None, None) if any_size else tuple(image.shape)
        if shape is None:
            raise ValueError("no image came to build a diffusion prior for")
        mean = torch.as_tensor(total) / count
        variance = (torch.as_tensor(squares) / count - mean**2).mean().clamp(min=1e-8)
        options = dict(network) if network is not None else small_network(shape)
        if options.pop("channels", shape[0]) != shape[0]:
            raise ValueError(f"network.channels follows from the images, which have {shape[0]}")
        check_options("network", options, UNet)
        return {
            "image_shape": shape,
            "network": UNet(shape[0], **options),
            "objective": parametrisations.from_config(objective or {}),
            "data_mean": [round(m, 4) for m in mean.tolist()],
            "data_std": round(variance.sqrt().item(), 4),
        }

    @classmethod
    def from_diffusers(cls, source: Any, *, scheduler: Any = None) -> Diffusion:
        """Read an unconditional `UNet2DModel` with its scheduler.

        Args:
            source: A pipeline, its folder (with unet/ and scheduler/) or its name on the hub; or
                a U-Net, or its folder.
            scheduler: Where the source has none: a scheduler, or its folder.
        """
        from genprior.priors.diffusion.foreign import read_diffusers

        network, objective, shape = read_diffusers(source, scheduler)
        return cls(network, shape, objective=objective)

    @property
    def config(self) -> dict[str, Any]:
        return {**super().config, "objective": plain(self.training_objective)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Diffusion:
        plan, objective = config["network"], parametrisations.from_config(config["objective"])
        network: nn.Module
        if plan.get("kind") == "diffusers":
            from genprior.priors.diffusion.foreign import DiffusersUNet

            network = DiffusersUNet.from_config(plan)
        else:
            network = UNet(**plan)
        return super().from_config({**config, "network": network, "objective": objective})

    @property
    def sigma_range(self) -> tuple[float, float]:
        low, high = self.training_objective.s_range
        std = self._normalisation[1]
        return low * std, high * std

    def normalise(self, x: Tensor) -> Tensor:
        """Return u = (x - data_mean) / data_std."""
        mean, std = self._normalisation
        return (x - mean.to(x)) / std

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Return E[x0 | x0 + sigma n = x], differentiable in x.

        Args:
            x: Noisy images, (B, C, H, W).
            sigma: Noise std in pixel units, float or (B,), >= 0. Where 0, x itself returns;
                beyond `sigma_range` the network's label is clamped, which is said once.
        Raises:
            ValueError: The images do not fit `image_shape`; sigma is negative or NaN.
        """
        self._check(x)
        levels = self._levels(sigma, len(x))
        mean, std = self._normalisation
        u0 = self.training_objective.denoise(
            self._evaluate, self.normalise(x), [level / std for level in levels]
        )
        x0 = torch.add(mean.to(x), u0, alpha=std)
        if min(levels, default=1.0) > 0:
            return x0
        return torch.where(per_row(x.new_tensor(levels), x) > 0, x0, x)

    def _evaluate(self, u: Tensor, noise: Tensor) -> Tensor:
        """Run the network in its own precision or in `autocast`, a large image in tiles."""
        network, kind = self.network, self.autocast
        dtype = next(network.parameters()).dtype
        given, label = u.to(dtype), noise.to(dtype)
        with nullcontext() if kind is None else torch.autocast(u.device.type, kind):
            if isinstance(network, UNet) and network.reach is not None and needs_tiles(given):
                cut = {"reach": network.reach, "multiple": network.multiple}
                output = in_tiles(lambda part: network(part, label), given, **cut)
            else:
                output = network(given, label)
        return output.to(u.dtype)

    def _check(self, x: Tensor) -> None:
        if not fits(x.shape[1:], self.image_shape):
            raise ValueError(
                f"images of shape {tuple(x.shape)} came to a prior for (B, C, H, W) = "
                f"(B, {', '.join('any' if n is None else str(n) for n in self.image_shape)})"
            )

    def _levels(self, sigma: float | Tensor, batch: int) -> list[float]:
        """Return one level if all images share it, else those of all, each one checked."""
        given = sigma.reshape(-1).tolist() if isinstance(sigma, Tensor) else [float(sigma)]
        levels = given[:1] if len(set(given)) == 1 else given
        if len(given) not in (1, batch):
            raise ValueError(f"{len(given)} levels sigma came with {batch} images")
        if not all(level >= 0 for level in levels):
            raise ValueError(f"sigma must be a standard deviation >= 0, not {levels}")
        low, high = self.sigma_range
        outside = [s for s in levels if s > 0 and not 0.99 * low <= s <= 1.01 * high]
        if outside and not self._warned:
            self._warned = True
            warnings.warn(
                f"sigma {outside[0]:.3g} is outside the trained range "
                f"{low:.3g} to {high:.3g}; the nearest trained level is used",
                stacklevel=3,
            )
        return levels

    def sample(
        self,
        n: int,
        *,
        size: tuple[int, int] | None = None,
        generator: Generators = None,
        steps: int = 18,
        sampler: samplers.Sampler | None = None,
    ) -> Tensor:
        """Draw n images, (n, C, H, W).

        Args:
            n: Number of images.
            size: (H, W), needed where `image_shape` has None, else it must agree.
            generator: None, one generator, or one for each image.
            steps: Network evaluations for each image.
            sampler: How noise is walked down; see `samplers.sample`.
        """
        return samplers.sample(
            self, n, size=size, generator=generator, steps=steps, sampler=sampler
        )

    def _flow(self, like: Tensor) -> tuple[Tensor, Tensor, float]:
        """Falling levels of the probability flow, and mean and std of its start."""
        low, high = samplers.walk_range(self)
        mean, std = self._normalisation
        sigmas = samplers.log_uniform(high, low, self.flow_steps, like=like)
        return sigmas, mean.to(like), math.hypot(std, high)

    def decode(self, z: Tensor) -> Tensor:
        """Follow the probability flow from latents (B, C, H, W) down to images."""
        self._check(z)
        sigmas, mean, std = self._flow(z)
        return samplers.DPMSolver()(self.denoise, mean + std * z, sigmas)

    def encode(self, x: Tensor) -> Tensor:
        """Follow the probability flow from images (B, C, H, W) up to latents; approximate.

        The image is taken as its own start at the smallest sigma.
        """
        self._check(x)
        sigmas, mean, std = self._flow(x)
        top = samplers.DPMSolver()(self.denoise, x, sigmas.flip(0), to_zero=False)
        return (top - mean) / std

    def log_prob_estimate(
        self, x: Tensor, *, steps: int = 64, probes: int = 1, generator: Generators = None
    ) -> Tensor:
        """Estimate log p(x) in nats, (B,), as `likelihood.log_prob_estimate` does."""
        low, _ = samplers.walk_range(self)
        return log_prob_estimate(
            self, x, sigma_min=low, steps=steps, probes=probes, generator=generator
        )

    def objective(self) -> Objective:
        return SingleLoss(self, self._denoising_loss)

    def _denoising_loss(self, batch: Tensor, generator: Generators) -> Tensor:
        u0 = self.normalise(batch)
        return self.training_objective.loss(self.network, u0, generator).mean()


ATTENTION = 64 * 64
"""Images up to so many pixels get attention at the lowest resolution."""


def small_network(shape: Shape) -> dict[str, Any]:
    """Choose a network that CPU cores can train: its lowest resolution is 4 to 8 pixels."""
    height, width = shape[1:]
    if height is None or width is None:
        return {"widths": [64, 96, 160], "blocks": [2, 2, 2]}
    levels = max(1, round(math.log2(min(height, width) / 12)) + 1)
    widths = [min(48 * 2**level, 192) for level in range(levels)]
    return {"widths": widths, "blocks": [2] * levels, "attention": height * width <= ATTENTION}
