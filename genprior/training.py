"""One training loop for every trainable family, over Lightning Fabric.

What a run computes is a function of its settings alone: image number k of the run, its
augmentation and its noise follow from (seed, k). So a killed run resumes exactly where it was, and
neither the number of devices nor accumulation changes what is drawn.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from genprior import checkpoints
from genprior.augment import Augmentation
from genprior.data import ArrayImages, Images
from genprior.priors.base import Prior
from genprior.priors.trainable import Objective, TrainablePrior
from genprior.training_report import Report

Precision = Literal["bf16", "fp16", "fp32"]
_FABRIC_PRECISION = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}


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


def train(
    prior: Prior,
    images: Images | Tensor,
    *,
    out: str | Path,
    steps: int,
    batch_size: int = 64,
    options: TrainingOptions | None = None,
    card: dict[str, Any] | None = None,
) -> Prior:
    """Train a copy of a prior; resume where `out` holds checkpoints of the same run.

    Args:
        prior: Of a trainable family; unchanged.
        images: A data set of `genprior.data`, or a tensor (N, C, H, W) in [0, 1] or uint8.
        out: Folder for checkpoints, the loss curve, sample grids and prior.safetensors.
        steps: Updates.
        batch_size: Images in each update, over all devices together.
        options: The rest.
        card: Plain data on the weights for prior.safetensors; steps, images seen and seconds are
            added.
    Returns:
        The exponential moving average of the weights, on the CPU, ready for use.
    Raises:
        TypeError: The family has nothing to train by gradients.
        ValueError: Settings that do not fit together, the data or the machine; `out` holds
            another run (what differs is said).
        ArithmeticError: The loss stopped being finite; the last good checkpoint stays.
        MemoryError: Out of memory; the message says what to try.
        OSError: The disk is full; the last checkpoint is intact.
    """
    options = options if options is not None else TrainingOptions()
    if not isinstance(prior, TrainablePrior):
        raise TypeError(
            f"{type(prior).__name__} is not trained by gradients: use {type(prior).__name__}.fit"
        )
    run = _Run(prior, _as_images(images), Path(out), steps, batch_size, options, card or {})
    try:
        return run()
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        part = batch_size // options.accumulate
        raise MemoryError(
            f"out of memory with batches of {part} images: try accumulate={options.accumulate * 2}"
            f" (the same result, {part // 2} images at a time) or batch_size={batch_size // 2}"
        ) from error


class _Step(nn.Module):
    """The objective as a module, whose forward Fabric wraps in its precision and its devices."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.networks = objective.networks
        self._loss = objective.loss

    def forward(
        self, group: str, batch: Tensor, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, dict[str, float]]:
        return self._loss(group, batch, generators)


class _Run:
    """One run: its networks, its optimisers and its place in the data."""

    def __init__(
        self,
        prior: TrainablePrior,
        images: Images,
        out: Path,
        steps: int,
        batch_size: int,
        options: TrainingOptions,
        card: dict[str, Any],
    ) -> None:
        self.card = card
        self.images, self.out, self.steps, self.options = images, out, steps, options
        self.batch_size = batch_size
        self.fabric = _fabric(options, out, len(prior.objective().turns))
        parts = self.fabric.world_size * options.accumulate
        if steps < 1 or batch_size < 1 or batch_size % parts:
            raise ValueError(
                f"steps {steps} and batch_size {batch_size} must be positive, and the batch "
                f"divisible by devices x nodes x accumulate = {parts}"
            )
        _check_images(images, prior, options)
        self.fingerprint = _fingerprint(prior, images, batch_size, options)
        saved = checkpoints.newest(out / "checkpoints")
        if saved is not None:
            _check_same(saved["fingerprint"], self.fingerprint, out)
            _check_length(saved["step"], saved["steps"], steps, options)
        objective = copy.deepcopy(prior).train().requires_grad_(True).objective()
        self.objective = objective
        self.average = copy.deepcopy(objective.prior).eval().requires_grad_(False)
        self.turns = [g for g, repeats in objective.turns for _ in range(repeats)]
        self.groups = {g: list(objective.parameters(g)) for g, _ in objective.turns}
        optimizers = {
            g: objective.optimizer(g, options.learning_rate, parameters)
            for g, parameters in self.groups.items()
        }
        if saved is not None:
            objective.networks.load_state_dict(saved["networks"])
            self.average.load_state_dict(saved["average"])
        set_up = self.fabric.setup(_Step(objective), *optimizers.values())
        self.module, self.optimizers = set_up[0], dict(zip(optimizers, set_up[1:], strict=True))
        self.average.to(self.fabric.device)
        self.first = 0
        self.report = Report(out, steps, batch_size * len(self.turns), options, self.fabric)
        if saved is not None:
            self._restore(saved)

    def _restore(self, saved: dict[str, Any]) -> None:
        self.first = saved["step"]
        for group, optimizer in self.optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][group])
        self.fabric.strategy.precision.load_state_dict(saved["precision"])
        self.report.restore(saved["history"], saved["seconds"])

    def __call__(self) -> Prior:
        batches = iter(self._loader())
        with self.report:
            for step in range(self.first, self.steps):
                self._update(step, batches)
                done = step + 1
                self.report.progress(done)
                if done % self.options.checkpoint_every == 0 or done == self.steps:
                    self._checkpoint(done)
        return self.average.cpu()

    def _loader(self) -> DataLoader[Tensor]:
        per_step = self.batch_size * len(self.turns)
        share = self.batch_size // (self.fabric.world_size * self.options.accumulate)
        first = range(self.first * per_step, self.steps * per_step, share)
        mine = (
            list(range(k, k + share))
            for number, k in enumerate(first)
            if number // self.options.accumulate % self.fabric.world_size
            == self.fabric.global_rank
        )
        view = _Views(self.images, self.options.augment, self.options.seed)
        return DataLoader(
            view,
            batch_sampler=_Once(mine),
            collate_fn=_as_is,
            num_workers=self.options.workers,
            generator=torch.Generator(),  # a loader draws a seed, else from the global one
            pin_memory=self.fabric.device.type == "cuda",
        )

    def _update(self, step: int, batches: Iterator[tuple[Sequence[int], Tensor]]) -> None:
        accumulate, device = self.options.accumulate, self.fabric.device
        rate = self.options.rate(step, self.steps)
        for group in self.turns:
            optimizer = self.optimizers[group]
            for settings in optimizer.param_groups:
                settings["lr"] = rate * settings.setdefault("peak", settings["lr"])
            for part in range(accumulate):
                numbers, batch = next(batches)
                generators = [_generator(self.options.seed, k, 0, device) for k in numbers]
                with self.fabric.no_backward_sync(self.module, enabled=part < accumulate - 1):
                    loss, logs = self.module(group, self.fabric.to_device(batch), generators)
                    self.fabric.backward(loss / accumulate)
                self.report.add(group, loss.detach(), logs)
            if self.options.clip is not None:
                self.fabric.clip_gradients(
                    self.module, optimizer, max_norm=self.options.clip, error_if_nonfinite=False
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._average((step + 1) * self.batch_size)

    @torch.no_grad()
    def _average(self, seen: int) -> None:
        half_life = min(self.options.ema_half_life, 0.1 * seen)
        weight = 1 - 0.5 ** (self.batch_size / half_life)
        trained = self.objective.prior
        torch._foreach_lerp_(
            list(self.average.parameters()), [p.detach() for p in trained.parameters()], weight
        )
        for kept, buffer in zip(self.average.buffers(), trained.buffers(), strict=True):
            kept.copy_(buffer)

    def _checkpoint(self, step: int) -> None:
        """Stop a run that broke, else keep it: a checkpoint never holds NaN."""
        self.report.check_finite(step, self.out)
        self.fabric.barrier()
        if not self.fabric.is_global_zero:
            return
        state = {
            "steps": self.steps,
            "fingerprint": self.fingerprint,
            "networks": self.objective.networks.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": {g: o.state_dict() for g, o in self.optimizers.items()},
            "precision": self.fabric.strategy.precision.state_dict(),
            "history": self.report.history,
            "seconds": self.report.seconds,
        }
        checkpoints.write(self.out / "checkpoints", step, state)
        seen = step * self.batch_size * len(self.turns)
        figures = {"steps": step, "images_seen": seen, "seconds": round(self.report.seconds)}
        card = {**self.card, "training": figures}
        self.average.save(self.out / "prior.safetensors", card=card)
        self.report.line(step)
        self.report.pictures(self.average, step)


class _Views(Dataset[tuple[Sequence[int], Tensor]]):
    """Image number k of the run: one epoch after the other, each in its own random order."""

    def __init__(self, images: Images, augment: Augmentation | None, seed: int) -> None:
        self.images, self.augment, self.seed = images, augment, seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __getitems__(self, numbers: Sequence[int]) -> tuple[Sequence[int], Tensor]:
        index = [self._place(k) for k in numbers]
        if self.augment is None:
            return numbers, self.images.batch(index)
        cpu = torch.device("cpu")
        return numbers, torch.stack(
            [
                self.augment(self.images.raw(i), _generator(self.seed, k, 1, cpu))
                for i, k in zip(index, numbers, strict=True)
            ]
        )

    def __getitem__(self, number: int) -> tuple[Sequence[int], Tensor]:
        return self.__getitems__([number])

    def _place(self, number: int) -> int:
        epoch, place = divmod(number, len(self.images))
        if epoch != self._epoch:
            shuffle = _generator(self.seed, epoch, 2, torch.device("cpu"))
            self._epoch = epoch
            self._order = torch.randperm(len(self.images), generator=shuffle)
        return int(self._order[place])


class _Once:
    """A batch sampler that gives prepared batches in order."""

    def __init__(self, batches: Iterator[list[int]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return self.batches


def _as_is(batch: tuple[Sequence[int], Tensor]) -> tuple[Sequence[int], Tensor]:
    return batch


def _generator(seed: int, number: int, stream: int, device: torch.device) -> torch.Generator:
    """A generator that depends on its arguments alone; streams: 0 noise, 1 views, 2 order."""
    mixed = (seed * 0x9E3779B97F4A7C15 + number * 0xD1342543DE82EF95 + stream) % 2**63
    return torch.Generator(device).manual_seed(mixed)


def _fabric(options: TrainingOptions, out: Path, turns: int) -> Any:
    from lightning_fabric import Fabric
    from lightning_fabric.loggers import TensorBoardLogger
    from lightning_fabric.strategies import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # else it greets
    cuda = torch.cuda.device_count()
    kind = options.accelerator if options.accelerator != "auto" else "cuda" if cuda else "cpu"
    if kind == "cuda" and options.devices > cuda:
        raise ValueError(
            f"{options.devices} devices were asked for, this machine has {cuda} CUDA devices"
        )
    if options.accelerator == "auto" and kind == "cpu" and options.devices > 1:
        raise ValueError(
            f"{options.devices} devices were asked for, this machine has only its CPU: "
            "accelerator='cpu' runs that many processes on it"
        )
    alone = options.devices * options.nodes == 1
    fabric = Fabric(
        accelerator=kind,
        devices=options.devices,
        num_nodes=options.nodes,
        strategy="auto" if alone else DDPStrategy(find_unused_parameters=turns > 1),
        precision=_FABRIC_PRECISION[options.precision],  # pyright: ignore[reportArgumentType]
        loggers=TensorBoardLogger(out, name="tensorboard") if options.tensorboard else None,
    )
    fabric.launch()
    return fabric


def _as_images(images: Images | Tensor) -> Images:
    if isinstance(images, Tensor):
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(f"images must be (N, C, H, W), not {tuple(images.shape)}")
        kept = images if images.dtype == torch.uint8 else images.float()
        return ArrayImages(kept.cpu().numpy())
    return images


def _check_images(images: Images, prior: Prior, options: TrainingOptions) -> None:
    crop = options.augment.crop if options.augment is not None else None
    came = (images[0].shape[0], crop, crop) if crop else tuple(images[0].shape)
    if any(own not in (None, got) for own, got in zip(prior.image_shape, came, strict=True)):
        raise ValueError(f"images of shape {came} came to a prior for {tuple(prior.image_shape)}")


def _fingerprint(
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


def _check_same(before: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    found = checkpoints.differences(before, now)
    if found:
        raise ValueError(
            f"{out} holds checkpoints of another run, so it cannot be resumed:\n  "
            + "\n  ".join(found)
            + "\nName another folder, or train with what was there before"
        )


def _check_length(done: int, before: int, now: int, options: TrainingOptions) -> None:
    """Another length is fine as long as no step of the run so far depended on it."""
    if before != now and done > min(options.constant_until(n) for n in (before, now)):
        raise ValueError(
            f"steps: {before} before, {now} now, but the {done} steps that were done are past the "
            "point where the length can change: the learning rate was, or should be, falling"
        )
