"""What a generative prior promises: small abstract classes, one for each capability.

A class line is its capability table: `class Gaussian(LatentPrior, EncodingPrior, ...)`. A class
that forgets a method cannot be built.
"""

from __future__ import annotations

import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from typing_extensions import Self

from genprior.operators.base import Shape, fits, per_row
from genprior.operators.files import hub
from genprior.operators.files.notebook import html_card, sizes
from genprior.operators.random import Generators, normal
from genprior.priors.files import check_fit, read_weights, write_weights

if TYPE_CHECKING:
    from genprior.operators import Problem


def plain(value: Any) -> Any:
    """Describe a constructor's argument in JSON: as it is, or by its own `config`.

    Raises:
        TypeError: It is neither plain data nor describes itself.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if hasattr(value, "config"):
        return plain(value.config)
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    raise TypeError(f"a {type(value).__name__} is no plain data and has no `config`")


def _recorded(initialise: Callable[..., None]) -> Callable[..., None]:
    """Make a constructor keep its arguments, described by `plain` where that can be."""
    signature = inspect.signature(initialise)

    @functools.wraps(initialise)
    def record_and_initialise(self: Model, *args: Any, **kwargs: Any) -> None:
        if "_arguments" not in vars(self):  # a subclass's constructor comes before its parent's
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            kept = vars(self)["_arguments"] = {}
            for name, value in list(bound.arguments.items())[1:]:
                try:
                    kept[name] = plain(value)
                except TypeError:
                    kept[name] = type(value)
        initialise(self, *args, **kwargs)

    return record_and_initialise


class Model(nn.Module, ABC):
    """Something with weights and a file: a prior, or what is none (an autoencoder, a critic).

    The constructor's arguments are recorded; `config` and `from_config` follow from them, so that
    a class of one's own is saved and loaded as it stands.

    Attributes:
        image_shape: (C, H, W); H and W are None where any size will do.
        families: Every model class by its name, third parties' included: how a weights file finds
            its class.
        quantisable: Tensors that int8 with one scale for each entry of the first axis serves.
        card: What its file said of the weights: data, its licence, steps, measured figures.
    """

    image_shape: Shape
    card: Mapping[str, Any] = MappingProxyType({})
    families: ClassVar[dict[str, type[Model]]] = {}
    quantisable: ClassVar[tuple[str, ...]] = ()
    _arguments: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Model.families[cls.__name__] = cls
        if "__init__" in vars(cls):
            # an assignment would tell type checkers that every __init__ is of an unknown type
            type.__setattr__(cls, "__init__", _recorded(cls.__init__))

    @property
    def config(self) -> dict[str, Any]:
        """Plain data (JSON) from which `from_config` rebuilds the model, weights aside.

        Options that the constructor completes are described by the attribute of their name, if
        that is a dict, a dataclass or has a `config`; other arguments are as they came.

        Raises:
            TypeError: An argument is neither plain data nor describes itself.
        """
        found = {}
        for name, came in self._arguments.items():
            made = getattr(self, name, None)
            whole = isinstance(made, dict) or is_dataclass(made) or hasattr(made, "config")
            found[name] = plain(made) if whole else came
            if isinstance(found[name], type):
                raise TypeError(
                    f"{type(self).__name__} was built with {name} of type {came.__name__}, which "
                    "is no plain data: give it a `config`, or the model its own `config` and "
                    "`from_config`"
                )
        return found

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the model that `config` describes, its weights still to be loaded."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()})

    def save(
        self,
        path: str | Path,
        *,
        card: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write weights, config and card to one safetensors file.

        A model that is read back computes the same up to rounding: its weights are the same
        numbers, but may lie otherwise in memory, which orders sums otherwise.

        Args:
            path: Where; an existing file is replaced atomically.
            card: Plain data on the weights: data, its licence, steps, seconds, measured figures.
            dtype: Floating-point type on disk, that of the weights if None; torch.int8 stores
                factors with one scale each, and all else as it is.
        Raises:
            ValueError: A weight overflows `dtype`, or int8 serves none.
            TypeError: Config or card is not plain data.
        """
        header = self._header(card or {})
        quantisable = [
            f"{prefix}.{name}".lstrip(".")
            for prefix, module in self.named_modules()
            if isinstance(module, Model)
            for name in module.quantisable
        ]
        write_weights(path, header, self.state_dict(), dtype=dtype, quantisable=quantisable)

    def _header(self, card: dict[str, Any]) -> dict[str, Any]:
        return {"family": type(self).__name__, "config": self.config, "card": card}

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        card: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
    ) -> str:
        """Put the weights and a model card on the Hugging Face hub, with the extra [hub].

        `genprior.load("hf://" + repository)` then loads them anywhere.

        Args:
            repository: OWNER/NAME, made if need be.
            private: Of a repository that is new; as its owner has it by default if None.
            revision: Branch, which must be there; the main one if None.
            card: As in `save`; that of the file that the model was loaded from if None.
            dtype: As in `save`.
        Returns:
            The address of the commit.
        Raises:
            ValueError: The extra is missing, access is refused, nobody answers, or the repository
                was to be private and is there and public.
        """
        card = dict(self.card) if card is None else card

        def save(path: Path) -> None:
            self.save(path, card=card, dtype=dtype)

        header = self._header(card)
        return hub.push(save, repository, header=header, private=private, revision=revision)

    @classmethod
    def load(cls, path: str | Path, *, dtype: torch.dtype = torch.float32) -> Self:
        """Rebuild the model that a file holds, on the CPU, in evaluation mode.

        Args:
            path: A file written by `save`.
            dtype: Floating-point type of the weights in memory.
        Raises:
            ValueError: The file is truncated, altered, of another family, or newer.
        """
        header, tensors = read_weights(path)
        family = Model.families.get(header["family"])
        if family is None:
            raise ValueError(
                f"{path}: a model of the family {header['family']!r}, which is not defined here: "
                "import the module that defines it"
            )
        if not issubclass(family, cls):
            raise ValueError(f"{path}: a {header['family']}, not a {cls.__name__}")
        check_fit(path, tensors, lambda: family.from_config(header["config"]))
        model = family.from_config(header["config"]).to(dtype)
        model.load_state_dict(tensors)
        model.card = header.get("card") or {}
        return model.eval()


class Prior(Model):
    """A distribution over images (B, C, H, W) with pixels in [0, 1] (or on the real line)."""

    def __repr__(self) -> str:
        numbers = sum(t.numel() for t in self.state_dict().values())
        images = " x ".join("any" if n is None else str(n) for n in self.image_shape)
        return f"{type(self).__name__}({images}, {numbers:,} numbers; {capabilities(self)})"

    def _repr_html_(self) -> str:
        """What a notebook shows: four samples where they take seconds, and a table."""
        numbers = sum(t.numel() for t in self.state_dict().values())
        height, width = (32 if n is None else n for n in self.image_shape[1:])
        quick = numbers <= 10_000_000 and height * width <= 64 * 64
        table = {
            "images": sizes(self.image_shape),
            "numbers": f"{numbers:,}",
            "can do": capabilities(self),
            "trained on": self.card.get("data", "not recorded"),
            "licence of the data": self.card.get("licence", "not recorded"),
        }
        drawn: Sequence[Tensor] = []
        if quick or isinstance(self, ExactPrior):
            size = (height, width) if None in self.image_shape else None
            with torch.no_grad():
                generator = torch.Generator().manual_seed(0)
                drawn = list(self.sample(4, size=size, generator=generator))
        line = [(f"sample {i + 1}", x) for i, x in enumerate(drawn)]
        return html_card(type(self).__name__, table, [line])

    @abstractmethod
    def sample(
        self, n: int, *, size: tuple[int, int] | None = None, generator: Generators = None
    ) -> Tensor:
        """Draw n images, (n, C, H, W).

        Args:
            n: Number of images.
            size: (H, W), needed where `image_shape` has None, else it must agree.
            generator: None, one generator, or one for each image.
        """

    def check_size(self, size: tuple[int, int] | None) -> tuple[int, int, int]:
        """Return (C, H, W) of an image of `size`.

        Raises:
            ValueError: `size` is missing where the prior leaves it open, or contradicts it.
        """
        channels, *known = self.image_shape
        wanted = known if size is None else size
        if not fits(known, wanted) or not all(n is not None and n > 0 for n in wanted):
            raise ValueError(
                f"{type(self).__name__} has images {self.image_shape} (None is any size) and "
                f"size={size} came: give size=(H, W) where it has None, else leave it out"
            )
        return channels, *wanted  # type: ignore[return-value]  # None was ruled out


class ConditionalPrior(Prior):
    """Was trained with conditions: a class, words, an image. Unbound, it is p(x)."""

    @abstractmethod
    def given(self, condition: int | str | Tensor | None, *, guidance: float = 1.0) -> Prior:
        """Return p(x | condition): a view that is again a prior, which every solver takes.

        Args:
            condition: A class, words or an image (C, H, W); None is the unconditional branch.
            guidance: 1 is p(x | condition). Other values follow the condition more or less
                closely, and are no posterior.
        """


class LatentPrior(Prior):
    """x = decode(z) with z ~ N(0, I): GANs, VAEs, flows, and whatever else has a latent."""

    latent_shape: tuple[int, ...]

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Map latents (B, *latent_shape) to images (B, C, H, W), differentiably."""

    def sample(
        self, n: int, *, size: tuple[int, int] | None = None, generator: Generators = None
    ) -> Tensor:
        """Decode n draws of z ~ N(0, I), (n, C, H, W)."""
        self.check_size(size)
        with torch.no_grad():
            return self.decode(self._normal(n, generator))

    def _normal(self, n: int, generator: Generators) -> Tensor:
        """Draw z (n, *latent_shape) in the dtype and on the device of the weights."""
        weights = (t for t in chain(self.parameters(), self.buffers()) if t.is_floating_point())
        like = next(weights, torch.zeros(()))
        shape = (n, *self.latent_shape)
        return normal(shape, generator, dtype=like.dtype, device=like.device)

    def latent_log_prob(self, z: Tensor) -> Tensor:
        """Return log N(z; 0, I) in nats, (B,)."""
        flat = z.flatten(1)
        return -0.5 * (flat.square().sum(1) + flat.shape[1] * math.log(2 * math.pi))

    @property
    def decoder_std(self) -> Tensor | float | None:
        """Standard deviation of x about decode(z) where it is one number; None: x is decode(z)."""
        return None


class EncodingPrior(Prior):
    """Has an encoder x -> z. `exact_encoder`: decode(encode(x)) = x, as for a flow."""

    exact_encoder: ClassVar[bool]

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to latents (B, *latent_shape)."""


class DensityPrior(Prior):
    """Has an exact density."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, (B,), density with respect to pixels in [0, 1]."""


class DenoisingPrior(Prior):
    """Gives the posterior mean under Gaussian noise of every level.

    Attributes:
        sigma_range: Smallest and largest sigma that `denoise` serves, pixel units; 0 is always
            served besides (it returns x).
        data_mean: Mean image, broadcasts to (C, H, W).
        data_std: Standard deviation of a pixel about `data_mean`, broadcasts likewise. A walk
            started at sigma_max has mean data_mean and variance data_std^2 + sigma_max^2.
    """

    sigma_range: tuple[float, float]
    data_mean: Tensor
    data_std: Tensor

    @abstractmethod
    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Return E[x0 | x0 + sigma n = x], n ~ N(0, I), differentiable in x.

        Args:
            x: Noisy images, (B, C, H, W).
            sigma: Noise std in pixel units, float or (B,), >= 0; where 0, x itself returns.
        """

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Return grad log p_sigma(x) = (denoise(x, sigma) - x) / sigma^2 (Tweedie), sigma > 0."""
        return (self.denoise(x, sigma) - x) / per_row(sigma, x) ** 2


class Posterior(Protocol):
    """p(x | y) in closed form for B measurements; S samples each."""

    @property
    def mean(self) -> Tensor:
        """Posterior mean, (B, C, H, W)."""
        ...

    @property
    def std(self) -> Tensor | None:
        """Posterior standard deviation of every pixel, (B, C, H, W); None where too costly."""
        ...

    @property
    def log_evidence(self) -> Tensor:
        """log p(y) in nats, observed entries only, (B,)."""
        ...

    def sample(self, n: int, *, generator: Generators = None) -> Tensor:
        """Draw n exact samples for each measurement, (B, n, C, H, W)."""
        ...

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x | y) in nats for x (B, C, H, W), (B,)."""
        ...


class ExactPrior(Prior):
    """Has its posterior in closed form for linear operators and Gaussian noise."""

    def has_posterior(self, problem: Problem) -> bool:
        """Whether `posterior` serves the problem's kind; some know fewer operators."""
        return problem.linear_gaussian

    @abstractmethod
    def posterior(self, problem: Problem) -> Posterior:
        """Condition on `problem`.

        Raises:
            TypeError: The operator is not linear or the noise is not Gaussian.
            ValueError: The problem does not fit the prior.
        """


def check_counts(name: str, counts: int | Sequence[int], *, least: int = 1) -> None:
    """Raise unless the option `name` is a whole number, or several, each `least` to a million."""
    if isinstance(counts, Sequence) and not isinstance(counts, str):
        values: Sequence[Any] = counts
    else:
        values = [counts]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= least for n in values):
        raise ValueError(f"{name} must be whole numbers of at least {least}, not {counts!r}")
    if any(n > 1_000_000 for n in values):
        raise ValueError(f"{name} must be at most a million, not {counts!r}")


def as_prior(model: Model) -> Prior:
    """Return `model` if it is a prior.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(model, Prior):
        raise TypeError(
            f"{type(model).__name__} is a model without a distribution over images: it cannot be "
            "sampled and no solver takes it; take a prior, such as a VAE"
        )
    return model


def capabilities(prior: Model) -> str:
    """Say in words what a prior can do: 'latent, encoder'."""
    named = {
        "latent": LatentPrior,
        "encoder": EncodingPrior,
        "density": DensityPrior,
        "denoiser": DenoisingPrior,
        "exact posterior": ExactPrior,
    }
    words = [name for name, kind in named.items() if isinstance(prior, kind)]
    return ", ".join(words) or ("samples only" if isinstance(prior, Prior) else "no prior")
