"""Denoisers from other libraries as priors, and priors as deepinv's denoisers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from genprior.operators.base import Shape
from genprior.operators.random import Generators
from genprior.priors import samplers
from genprior.priors.base import DenoisingPrior
from genprior.priors.diffusion.parametrisations import DDPM

if TYPE_CHECKING:
    from deepinv.models import Denoiser


class DeepinvPrior(DenoisingPrior):
    """Make a prior of any deepinv denoiser.

    Args:
        denoiser: Called as denoiser(x, sigma), images in [0, 1]; it is used as it is, not copied.
        image_shape: (C, H, W) that it serves; H and W None for any size.
        sigma_range: Noise levels that it was trained for. Within walks a larger one gives it the
            largest as label.
        data_mean, data_std: Of the pixels that it expects; they matter only at the start of a
            walk.
    Raises:
        TypeError: It is not a module.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        image_shape: Shape,
        *,
        sigma_range: tuple[float, float] = (0.005, 20.0),
        data_mean: float | Sequence[float] = 0.5,
        data_std: float = 0.25,
    ) -> None:
        if not isinstance(denoiser, nn.Module):
            name = type(denoiser).__name__
            raise TypeError(f"denoiser must be a deepinv Denoiser, not a {name}")
        super().__init__()
        self.denoiser = denoiser
        self.image_shape = tuple(image_shape)
        self.sigma_range = sigma_range
        mean = torch.as_tensor(data_mean, dtype=torch.float32).reshape(-1, 1, 1)
        self.data_mean = nn.Buffer(mean, persistent=False)
        self.data_std = nn.Buffer(torch.tensor(float(data_std)), persistent=False)

    @property
    def config(self) -> dict[str, Any]:
        raise TypeError(
            "a deepinv model is not saved as a prior: keep its own weights file and call "
            "from_deepinv again"
        )

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).detach()
        sigma = sigma.reshape(-1).expand(len(x))
        if not bool((sigma >= 0).all()):
            raise ValueError(f"sigma must be a standard deviation >= 0, not {sigma.min().item()}")
        label = sigma.clamp(*self.sigma_range)
        first = next(self.denoiser.parameters(), None)
        dtype = x.dtype if first is None else first.dtype
        denoised = x.clone()
        # Not every model takes one sigma for each image; those that share one go together.
        for value in sigma.unique():
            rows = (sigma == value).nonzero().flatten()
            if value > 0:
                given = x[rows].to(dtype)
                restored = self.denoiser(given, label[rows[0]].item()).to(x.dtype)
                denoised = denoised.index_copy(0, rows, restored)
        return denoised

    def sample(
        self,
        n: int,
        *,
        size: tuple[int, int] | None = None,
        generator: Generators = None,
        steps: int = 50,
    ) -> Tensor:
        return samplers.sample(self, n, size=size, generator=generator, steps=steps)


from_deepinv = DeepinvPrior
"""The name for users, beside `to_deepinv`."""


def to_deepinv(prior: DenoisingPrior) -> Denoiser:
    """Make a deepinv `Denoiser` of a prior, for deepinv's own algorithms."""
    if not isinstance(prior, DenoisingPrior):
        raise TypeError(f"to_deepinv needs a DenoisingPrior, not a {type(prior).__name__}")
    from genprior.priors.diffusion.deepinv_denoiser import PriorDenoiser

    return PriorDenoiser(prior)


class DiffusersUNet(nn.Module):
    """A diffusers `UNet2DModel`, called as the networks of this package are."""

    def __init__(self, network: nn.Module, steps: int) -> None:
        super().__init__()
        self.network = network
        self.steps = steps

    @property
    def config(self) -> dict[str, Any]:
        """Plain data for `from_config`."""
        network: Any = self.network
        options = json.loads(network.to_json_string())
        return {"kind": "diffusers", "steps": self.steps, "options": options}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DiffusersUNet:
        """Build the network, its weights still to be loaded.

        Raises:
            ValueError: The options are not the network's own but a name: that would be looked up.
        """
        if not isinstance(config["options"], dict):
            raise ValueError(
                f"options of a diffusers network must be a table, not {config['options']!r}: a "
                "weights file names no folder and no hub. Read those by Diffusion.from_diffusers"
            )
        from diffusers.models.unets.unet_2d import UNet2DModel

        with torch.random.fork_rng():  # its starting weights come from the global generator
            network: Any = UNet2DModel.from_config(config["options"])
        return cls(network, config["steps"])

    def forward(self, u: Tensor, noise: Tensor) -> Tensor:
        return self.network(u, noise * self.steps).sample


_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_TARGETS = {"epsilon": "noise", "sample": "image", "v_prediction": "velocity"}


def read_diffusers(source: str | Path) -> tuple[DiffusersUNet, DDPM, Shape]:
    """Read an unconditional pixel-space pipeline of diffusers.

    Args:
        source: A local pipeline folder, or a name on the hub.
    Returns:
        The network, its objective, its image shape.
    Raises:
        ValueError: The model is conditional, or its schedule is none that is known here.
    """
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    with torch.random.fork_rng():  # weights that are then replaced come from the global generator
        network: Any = UNet2DModel.from_pretrained(source, subfolder="unet")
    scheduler: Any = DDPMScheduler.from_pretrained(source, subfolder="scheduler")
    settings, shape = scheduler.config, network.config
    if shape.num_class_embeds or shape.class_embed_type:
        raise ValueError(f"{source} is conditional on a class: only unconditional models serve")
    if settings.beta_schedule not in _SCHEDULES or settings.rescale_betas_zero_snr:
        raise ValueError(
            f"{source} has the noise schedule {settings.beta_schedule} (zero terminal SNR: "
            f"{settings.rescale_betas_zero_snr}); known are {', '.join(_SCHEDULES)} without it"
        )
    objective = DDPM(
        schedule=_SCHEDULES[settings.beta_schedule],  # pyright: ignore[reportArgumentType]
        steps=settings.num_train_timesteps,
        beta_range=(settings.beta_start, settings.beta_end),
        target=_TARGETS[settings.prediction_type],  # pyright: ignore[reportArgumentType]
    )
    size = shape.sample_size
    height, width = (size, size) if isinstance(size, int) else size or (None, None)
    wrapped = DiffusersUNet(network.eval(), objective.steps)
    return wrapped, objective, (shape.in_channels, height, width)
