"""What a family must offer to be trained by gradients: the objective that the loop minimises."""

from __future__ import annotations

import inspect
import math
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from typing_extensions import Self

from genprior.operators.random import Generators
from genprior.priors.base import Model

T = TypeVar("T")

Loss = tuple[Tensor, Mapping[str, float | Tensor]]
"""The mean loss over a batch, and figures to log: tensors, without gradients, wait for nothing."""


@dataclass(frozen=True)
class Turn:
    """Whose turn it is, and when: all that a loss may depend on besides weights and images.

    Attributes:
        group: Whose parameters are updated; all others are frozen.
        step: Steps of training before this one.
        images_seen: Images that training drew before this turn, over all groups and devices.
    """

    group: str = "all"
    step: int = 0
    images_seen: int = 0


class Objective(ABC):
    """The training of one model; the loop knows no more of a family than this.

    It is built once, holds no state that a turn changes but weights, and seeds its helpers (a
    GAN's critic) from the model's configuration.

    Attributes:
        model: What is trained, and what training returns.
        networks: Everything with weights, the model and its helpers.
        turns: (group, repeats) in order: one step of training draws `repeats` batches for each
            group in turn and updates that group's parameters, which have their own optimiser.
        weight_decay: Of the optimisers.
    """

    weight_decay: ClassVar[float] = 0.0
    turns: Sequence[tuple[str, int]] = (("all", 1),)

    def __init__(self, model: Model, networks: nn.Module | None = None) -> None:
        self.model = model
        self.networks: nn.Module = networks if networks is not None else model

    def parameters(self, group: str) -> Iterable[nn.Parameter]:
        """Return what the group's optimiser updates; by default everything."""
        return self.networks.parameters()

    def optimizer(
        self, group: str, learning_rate: float, parameters: Iterable[nn.Parameter]
    ) -> torch.optim.Optimizer:
        """Build the group's optimiser; the loop sets its learning rate at every step."""
        decay = self.weight_decay
        return torch.optim.AdamW(
            parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=decay, fused=True
        )

    @abstractmethod
    def loss(self, turn: Turn, batch: Tensor, generator: Generators) -> Loss:
        """Compute what the group whose turn it is minimises.

        Args:
            turn: Whose turn it is, and when.
            batch: Images, (B, C, H, W), pixels in [0, 1].
            generator: Of the noise, drawn by `operators.random` in shapes (B, ...): then the
                loss does not depend on how a batch is split among devices.
        """

    def finish(self, model: Model, images: Tensor, generator: Generators) -> None:  # noqa: B027
        """Set what a trained model is to know of itself besides its weights; nothing by default.

        Called once, when a run has come to its end.

        Args:
            model: The average of the weights, which training returns.
            images: A batch as it was trained on, (B, C, H, W).
            generator: Of what is drawn.
        """


class SingleLoss(Objective):
    """One group, one loss: what most families need.

    Args:
        model: What is trained.
        loss: loss(batch, generator) -> the mean loss over the batch.
    """

    def __init__(self, model: Model, loss: Callable[[Tensor, Generators], Tensor]) -> None:
        super().__init__(model)
        self._loss = loss

    def loss(self, turn: Turn, batch: Tensor, generator: Generators) -> Loss:
        return self._loss(batch, generator), {}


class Trainable(Model):
    """Is trained by `genprior.train`, and by `genprior train FAMILY`.

    The options of that command are the constructor's keywords and those of `for_images`.

    Attributes:
        training_defaults: Fields of `genprior.training.TrainingOptions` whose defaults differ for
            this family.
        couples_rows: Whether an image's loss depends on the others of its batch, as with batch
            normalisation; such batches cannot be computed in parts.
    """

    training_defaults: ClassVar[Mapping[str, Any]] = {}
    couples_rows: bool = False

    @abstractmethod
    def objective(self) -> Objective:
        """Return what training minimises."""

    @classmethod
    def for_images(cls, images: Iterable[Tensor]) -> dict[str, Any]:
        """Return the constructor's arguments that follow from a data set, here its images' shape.

        A family that measures more overrides this; keywords that it adds are options too.

        Args:
            images: Images (C, H, W), all of one shape.
        """
        return {"image_shape": tuple(first_image(images).shape)}

    @classmethod
    def from_images(cls, images: Iterable[Tensor], **options: Any) -> Self:
        """Build an untrained model for a data set.

        Args:
            images: Images (C, H, W).
            options: Those of `for_images`, and keywords of the constructor.
        """
        asked = inspect.signature(cls.for_images).parameters
        found = cls.for_images(images, **{k: v for k, v in options.items() if k in asked})
        return cls(**{**found, **{k: v for k, v in options.items() if k not in asked}})


def first_image(images: Iterable[Tensor]) -> Tensor:
    """Return the first image of a data set.

    Raises:
        ValueError: There is none.
    """
    image = next(iter(images), None)
    if image is None:
        raise ValueError("no image came to build a model for")
    return image


def pick(what: str, config: Mapping[str, Any], kinds: Mapping[str, T]) -> tuple[T, dict[str, Any]]:
    """Return what plain data name by their 'kind', or the first of `kinds`, and the other options.

    Raises:
        ValueError: There is no such kind, or an option is none of that kind's.
    """
    options = dict(config)
    kind = options.pop("kind", next(iter(kinds)))
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{what}.kind must be one of {', '.join(kinds)}, not {kind!r}")
    return kinds[kind], options


def check_options(what: str, options: Mapping[str, Any], *takers: Callable[..., Any]) -> None:
    """Raise unless each of `options` is a keyword of one of `takers`, and of that keyword's type.

    Args:
        what: Whose options they are, as 'network'.
        options: Plain data, from a shell, a recipe or a caller.
        takers: Functions or classes; what they name without a default is no option.
    Raises:
        ValueError: It names the option, and says what would do.
    """
    known: dict[str, Any] = {}
    for taker in takers:
        hints = get_type_hints(taker.__init__ if isinstance(taker, type) else taker)
        parameters = inspect.signature(taker).parameters.values()
        known |= {p.name: hints[p.name] for p in parameters if p.default is not p.empty}
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"{what} has no option {name!r}, only {', '.join(known) or 'kind'}")
        if not _is(value, known[name]):
            raise ValueError(f"{what}.{name} must be {_in_words(known[name])}, not {value!r}")


def _is(value: Any, kind: Any) -> bool:
    """Whether plain data is of a type; numbers must be finite, and true is no number."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return value in parts
    if get_origin(kind) in (Union, types.UnionType):
        return any(_is(value, part) for part in parts)
    if parts:  # a list of any length, or a tuple of its own
        if not isinstance(value, list | tuple):
            return False
        long = get_origin(kind) is not tuple or parts[-1] is ... or len(value) == len(parts)
        return long and all(_is(v, parts[0]) for v in value)
    if kind in (int, float):
        number = isinstance(value, int | kind) and not isinstance(value, bool)
        return number and math.isfinite(value)
    return isinstance(value, kind)


_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}


def _in_words(kind: Any) -> str:
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(parts)}"
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_in_words(part) for part in parts if part is not types.NoneType)
    if parts:
        return "a list as [1, 2]"
    return _WORDS[kind]
