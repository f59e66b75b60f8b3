"""How a training run is set: its options, and what must agree when one resumes."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from genprior.data import Images
from genprior.priors.base import Prior
from genprior.training import checkpoints
from genprior.training.augmentation import Augmentation

Precision = Literal["bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class TrainingOptions:
    """Everything about a training run but its length and its data.

    Attributes:
        learning_rate: Peak, reached after `warmup` steps, kept, and brought linearly to zero over
            the last `cooldown` part of the run.
        warmup: Steps.
        cooldown: Fraction of the steps.
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
        checkpoint_every: Steps.
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
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    nodes: int = 1
    workers: int = 0
    seed: int = 0
    checkpoint_every: int = 1000
    grid: int = 16
    tensorboard: bool = False
    progress: bool = True

    def rate(self, step: int, steps: int) -> float:
        """Return the share of the peak learning rate that a step has."""
        up = (step + 1) / max(self.warmup, 1)
        down = (steps - step) / max(self.cooldown * steps, 1)
        return min(1.0, up, down)

    def constant_until(self, steps: int) -> int:
        """Return the step before which the length of the run plays no role."""
        return int(steps - max(self.cooldown * steps, 1))


# What may differ between the parts of a resumed run: it does not change what is computed.
_FREE = {
    "accelerator", "devices", "nodes", "workers", "checkpoint_every", "grid", "tensorboard",
    "progress", "accumulate",
}  # fmt: skip


def fingerprint(
    prior: Prior, images: Images, batch_size: int, options: TrainingOptions
) -> dict[str, Any]:
    """What must agree between a checkpoint and the run that resumes from it, plain data."""
    digest = hashlib.sha256()
    for i in itertools.chain(range(min(8, len(images))), [len(images) - 1]):
        digest.update(images.raw(i).tobytes())
    settings = {k: v for k, v in _plain(options).items() if k not in _FREE}
    return {
        "prior": {"family": type(prior).__name__, **prior.config},
        "data": {"images": len(images), "digest": digest.hexdigest()[:16]},
        "settings": {"batch_size": batch_size, **settings},
    }


def _plain(options: TrainingOptions) -> dict[str, Any]:
    values = asdict(options)
    if options.augment is not None:
        values["augment"]["scales"] = list(options.augment.scales)
    return values


def check_same(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    found = checkpoints.differences(before, now)
    if found:
        raise ValueError(
            f"{out} holds checkpoints of another run, so it cannot be resumed:\n  "
            + "\n  ".join(found)
            + "\nName another folder, or train with what was there before"
        )


def check_length(done: int, before: int, now: int, options: TrainingOptions) -> None:
    """Another length is fine as long as no step of the run so far depended on it."""
    if before != now and done > min(options.constant_until(n) for n in (before, now)):
        raise ValueError(
            f"steps: {before} before, {now} now, but the {done} steps that were done are past the "
            "point where the length can change: the learning rate was, or should be, falling"
        )
