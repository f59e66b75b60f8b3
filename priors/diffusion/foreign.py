"""Denoisers from other libraries as priors, and priors as deepinv's denoisers."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping, Sequence
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
        options: What the denoiser's class, one of deepinv.models, was made with, as plain data:
            needed to save the prior, weights and all.
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
        options: dict[str, Any] | None = None,
    ) -> None:
        if not isinstance(denoiser, nn.Module):
            name = type(denoiser).__name__
            raise TypeError(f"denoiser must be a deepinv Denoiser, not a {name}")
        super().__init__()
        self.denoiser = denoiser
        self.options = options
        self.image_shape: Shape = tuple(image_shape)
        self.sigma_range = sigma_range
        mean = torch.as_tensor(data_mean, dtype=torch.float32).reshape(-1, 1, 1)
        self.data_mean: Tensor = nn.Buffer(mean, persistent=False)
        self.data_std: Tensor = nn.Buffer(torch.tensor(float(data_std)), persistent=False)

    @property
    def config(self) -> dict[str, Any]:
        name = type(self.denoiser).__name__
        if self.options is None or type(self.denoiser) is not _deepinv_class(name):
            raise TypeError(
                f"a {name} is saved where it is one of deepinv.models and its options are known: "
                "from_deepinv(denoiser, image_shape, options={...}) with what it was made with"
            )
        return {**self._arguments, "denoiser": {"name": name}}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DeepinvPrior:
        """Build the denoiser, its weights still to be loaded; nothing is downloaded.

        Raises:
            ValueError: deepinv.models has no such class.
        """
        name = config["denoiser"]["name"]
        kind = _deepinv_class(name)
        if kind is None:
            raise ValueError(f"deepinv.models has no denoiser {name!r}")
        options = dict(config["options"])
        if "pretrained" in inspect.signature(kind).parameters:
            options["pretrained"] = None
        with torch.random.fork_rng():  # its starting weights come from the global generator
            denoiser = kind(**options)
        return super().from_config({**config, "denoiser": denoiser})

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


def _deepinv_class(name: str) -> type[Denoiser] | None:
    """A class of deepinv.models by its name; None for what is none."""
    import deepinv

    kind: Any = getattr(deepinv.models, name, None)
    found = inspect.isclass(kind) and issubclass(kind, nn.Module)
    return kind if found else None  # pyright: ignore[reportReturnType]  # deepinv types it as Any


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
        # a model that has learned the variance of a step gives that in further channels
        return self.network(u, noise * self.steps).sample[:, : u.shape[1]]


_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
_TARGETS = {"epsilon": "noise", "sample": "image", "v_prediction": "velocity"}


def read_diffusers(source: Any, scheduler: Any = None) -> tuple[DiffusersUNet, DDPM, Shape]:
    """Read an unconditional pixel-space `UNet2DModel` and the noise schedule it was trained on.

    Args:
        source: A pipeline, its folder or its name on the hub; or a U-Net, or its folder.
        scheduler: Where the source has none: a scheduler, or its folder.
    Returns:
        The network, a copy if it came as an object; its objective; its image shape.
    Raises:
        ValueError: There is no U-Net or no scheduler, the model is conditional, or its schedule
            is none that is known here.
    """
    named = isinstance(source, str | Path)
    name = str(source) if named else type(source).__name__
    network = _read_network(source) if named else copy.deepcopy(getattr(source, "unet", source))
    shape: Any = getattr(network, "config", None)
    if type(network).__name__ != "UNet2DModel":
        raise ValueError(f"{name} has no UNet2DModel: only unconditional models of pixels serve")
    settings = _read_schedule(name, source if named else None, scheduler or _part(source))
    if shape.num_class_embeds or shape.class_embed_type:
        raise ValueError(f"{name} is conditional on a class: only unconditional models serve")
    if shape.out_channels not in (shape.in_channels, 2 * shape.in_channels):
        raise ValueError(
            f"{name} makes {shape.out_channels} channels of {shape.in_channels}: a denoiser makes "
            "as many, or twice as many where it has learned a variance"
        )
    objective = _objective(name, settings)
    size = shape.sample_size
    height, width = (size, size) if isinstance(size, int) else size or (None, None)
    wrapped = DiffusersUNet(network.eval(), objective.steps)
    return wrapped, objective, (shape.in_channels, height, width)


def _part(source: Any) -> Any:
    return None if isinstance(source, str | Path) else getattr(source, "scheduler", None)


def _read_network(source: str | Path) -> Any:
    folder = Path(source)
    inside = "unet" if not folder.is_dir() or (folder / "unet").is_dir() else ""
    if folder.is_dir() and not (folder / inside / "config.json").is_file():
        raise ValueError(
            f"{source} is no folder of diffusers: it has neither unet/config.json nor config.json"
        )
    from diffusers.models.unets.unet_2d import UNet2DModel  # takes seconds

    with torch.random.fork_rng():  # weights that are then replaced come from the global generator
        try:
            return UNet2DModel.from_pretrained(source, subfolder=inside, use_safetensors=True)
        except OSError as error:
            raise ValueError(f"{source} cannot be read: {error}") from error


def _read_schedule(name: str, folder: str | Path | None, scheduler: Any) -> Mapping[str, Any]:
    """Return the settings of a scheduler: of one that is given, else of a pipeline's folder."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    if scheduler is not None and not isinstance(scheduler, str | Path):
        return scheduler.config
    if scheduler is not None:
        folder, inside = scheduler, ""
    else:
        inside = "scheduler"
    if folder is None or (Path(folder).is_dir() and not (Path(folder) / inside).is_dir()):
        raise ValueError(
            f"{name} is a U-Net without the noise schedule it was trained on: pass scheduler=, a "
            "DDPMScheduler or the folder of one (in the shell, put it beside the U-Net: a folder "
            "with unet/ and scheduler/)"
        )
    settings: Any = DDPMScheduler.load_config(folder, subfolder=inside)
    return settings


def _objective(name: str, settings: Mapping[str, Any]) -> DDPM:
    schedule, target = settings.get("beta_schedule"), settings.get("prediction_type", "epsilon")
    betas = settings.get("trained_betas")
    zero = settings.get("rescale_betas_zero_snr", False)
    if (betas is None and schedule not in _SCHEDULES) or zero or target not in _TARGETS:
        raise ValueError(
            f"{name} has the noise schedule {schedule} (zero terminal SNR: {zero}) and predicts "
            f"{target}; known are {', '.join(_SCHEDULES)} without it, and {', '.join(_TARGETS)}"
        )
    return DDPM(
        schedule=_SCHEDULES.get(str(schedule), "linear"),  # pyright: ignore[reportArgumentType]
        steps=settings["num_train_timesteps"] if betas is None else len(betas),
        beta_range=(settings["beta_start"], settings["beta_end"]),
        target=_TARGETS[target],  # pyright: ignore[reportArgumentType]
        betas=None if betas is None else tuple(float(beta) for beta in betas),
    )
