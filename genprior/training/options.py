"""How a training run is set: its options, and what must agree when one resumes."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from genprior.data import Images
from genprior.data.limits import refuse_outside
from genprior.priors.base import Model
from genprior.priors.training import Trainable
from genprior.training.augmentation import Augmentation

Precision = Literal["bf16", "fp16", "fp32"]
Accelerator = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class TrainingOptions:
    """Everything about a training run but its length and its data.

    Attributes:
        learning_rate: Peak, reached after `warmup` steps, kept, and brought linearly to zero over
            the last `cooldown` part of the run.
        warmup: Steps.
        cooldown: Fraction of the run, 0 to 1.
        clip: Largest gradient norm; None for no clipping.
        accumulate: Parts that each batch is computed in, to save memory; the result is the same.
        ema_half_life: Images after which the average has forgotten half; early in a run it is a
            tenth of the images seen where that is less.
        augment: Random views of the training images; None takes them as they are.
        precision: Of the network's arithmetic; weights stay float32.
        accelerator: 'auto', 'cpu' or 'cuda'.
        devices: Processes on each node, a device each.
        nodes: Machines, started by torchrun or SLURM.
        workers: Processes that read images, for data that is not in memory.
        seed: Of everything drawn.
        checkpoint_every: Steps; a run by time writes one a minute.
        grid: Images in the sample grid written beside each checkpoint, 0 for none.
        tensorboard: Write event files too.
        progress: Show a progress bar.
    """

    learning_rate: float = 1e-3
    warmup: int = 200
    cooldown: float = 0.4
    clip: float | None = 1.0
    accumulate: int = 1
    ema_half_life: float = 50_000.0
    augment: Augmentation | None = None
    precision: Precision = "bf16"
    accelerator: Accelerator = "auto"
    devices: int = 1
    nodes: int = 1
    workers: int = 0
    seed: int = 0
    checkpoint_every: int = 1000
    grid: int = 16
    tensorboard: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        refuse_outside(vars(self))
        for name, kinds in (("precision", Precision), ("accelerator", Accelerator)):
            if getattr(self, name) not in get_args(kinds):
                choices = ", ".join(get_args(kinds))
                raise ValueError(f"{name} must be one of {choices}, not {getattr(self, name)!r}")

    def rate(self, step: int, share: float) -> float:
        """Return the share of the peak learning rate that a step has, `share` of the run done."""
        up = (step + 1) / max(self.warmup, 1)
        down = (1 - share) / max(self.cooldown, 1e-12)
        return min(1.0, up, down)


@dataclass(frozen=True)
class Length:
    """How long a run is: so many steps, or so many seconds."""

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise ValueError("a run has steps or seconds: give one of the two")
        refuse_outside(vars(self))

    @property
    def unit(self) -> str:
        return "steps" if self.steps is not None else "seconds"

    @property
    def total(self) -> float:
        """In its own unit."""
        return self.steps if self.steps is not None else self.seconds or 0

    def done(self, step: int, seconds: float) -> float:
        """What of it is done after `step` steps in `seconds`, in its own unit."""
        return step if self.steps is not None else seconds


# What may differ between the parts of a resumed run: it does not change what is computed.
_FREE = {
    "accelerator", "devices", "nodes", "workers", "checkpoint_every", "grid", "tensorboard",
    "progress", "accumulate",
}  # fmt: skip


def fingerprint(
    model: Model,
    images: Images,
    batch_size: int,
    options: TrainingOptions,
    *,
    start: str | None = None,
) -> dict[str, Any]:
    """What must agree between a checkpoint and the run that resumes from it, plain data.

    Every pixel counts, in order; names of files do not, as nothing is computed from them.
    """
    digest = hashlib.sha256()
    for i in range(len(images)):
        raw = images.raw(i)
        digest.update(f"{raw.dtype} {raw.shape}".encode())
        digest.update(raw.tobytes())
    settings = {k: v for k, v in _plain(options).items() if k not in _FREE}
    return {
        "prior": {"family": type(model).__name__, **model.config},
        "start": start,
        "data": {"images": len(images), "digest": digest.hexdigest()[:16]},
        "settings": {"batch_size": batch_size, **settings},
    }


def _plain(options: TrainingOptions) -> dict[str, Any]:
    values = asdict(options)
    if options.augment is not None:
        values["augment"]["scales"] = list(options.augment.scales)
    return values


def check_length(saved: dict[str, Any], now: Length, options: TrainingOptions) -> None:
    """Another length is fine as long as no step of the run so far depended on it."""
    before = Length(**saved["length"])
    if before.unit != now.unit:
        raise ValueError(
            f"the run was to last {before.total:g} {before.unit}, now {now.total:g} {now.unit}: "
            "keep to the one or the other, or name another folder"
        )
    constant = (1 - options.cooldown) * min(before.total, now.total)
    done = now.done(saved["step"], saved["seconds"])
    if before != now and done > constant:
        raise ValueError(
            f"{now.unit}: {before.total:g} before, {now.total:g} now, but the {done:g} {now.unit} "
            "that were done are past the point where the length can change: the learning rate "
            "was, or should be, falling"
        )


def warn_of_warmup(length: Length, options: TrainingOptions) -> None:
    if length.steps is not None and options.warmup > length.steps:
        warnings.warn(
            f"the learning rate reaches {length.steps / options.warmup:.0%} of its peak only: the "
            f"warm-up takes {options.warmup} steps, and the run has {length.steps}",
            stacklevel=4,
        )


def check_batch(model: Trainable, batch_size: int, options: TrainingOptions) -> None:
    refuse_outside({"batch_size": batch_size})
    if model.couples_rows and options.accumulate > 1:
        raise ValueError(
            f"{type(model).__name__} couples the rows of a batch (batch statistics): in parts it "
            f"would train another model, so accumulate must be 1, not {options.accumulate}"
        )


def check_images(images: Images, model: Model, options: TrainingOptions) -> None:
    crop = options.augment.crop if options.augment is not None else None
    came = (images[0].shape[0], crop, crop) if crop else tuple(images[0].shape)
    if any(own not in (None, got) for own, got in zip(model.image_shape, came, strict=True)):
        raise ValueError(f"images of shape {came} came to a model for {tuple(model.image_shape)}")
