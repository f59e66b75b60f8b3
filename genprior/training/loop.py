"""One training loop for every trainable family, over Lightning Fabric.

What a run computes is a function of its settings alone: image number k of the run and its
augmentation follow from (seed, k), its noise from the seed, the batch and its place there. So a
killed run resumes exactly where it was, and neither the number of devices nor accumulation changes
what is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from genprior.data import Images
from genprior.priors.base import Model
from genprior.priors.training import Trainable
from genprior.training.folder import Folder
from genprior.training.interrupts import Interrupts
from genprior.training.options import (
    Length,
    TrainingOptions,
    check_batch,
    check_images,
    fingerprint,
    warn_of_warmup,
)
from genprior.training.report import EVERY, Callback, Report
from genprior.training.state import State
from genprior.training.stream import as_images, noise_for, shares, stream

__all__ = ["TrainingOptions", "train"]

M = TypeVar("M", bound=Model)

Batches = Iterator[tuple[Sequence[int], Tensor]]
"""The numbers of images in the run, and the images."""

BETWEEN = 60.0
"""Seconds between the checkpoints of a run by time."""


def train(
    model: M,
    images: Images | Tensor,
    *,
    out: str | Path | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    batch_size: int = 64,
    options: TrainingOptions | None = None,
    card: dict[str, Any] | None = None,
    start: str | None = None,
    force: bool = False,
    callback: Callback | None = None,
) -> M:
    """Train a copy of a model; resume where `out` holds checkpoints of the same run.

    A run by steps that is resumed ends as one that was never stopped. One by time does not repeat
    exactly, as it takes the steps that fit; what each step draws is the same all the same.
    Ctrl-C and SIGTERM end the run after the step at hand and a checkpoint.

    Args:
        model: Of a trainable family; unchanged.
        images: A data set of `genprior.data`, or a tensor (N, C, H, W) in [0, 1] or uint8.
        out: Folder for checkpoints, the loss curve, sample grids and prior.safetensors; None
            writes nothing.
        steps: Updates.
        seconds: Instead of steps: the time to train for, over all parts of a resumed run.
        batch_size: Images in each update, over all devices together.
        options: The rest; the family's own defaults (`training_defaults`) if None.
        card: Plain data on the weights for prior.safetensors; steps, images seen and seconds are
            added.
        start: What the model's weights are, where they were trained before, such as their sha256;
            a run that resumes must have begun with the same.
        force: Replace a prior.safetensors in `out` that is not this run's.
        callback: Called every 50 steps with the step and the means of losses and logs since.
    Returns:
        The exponential moving average of the weights, on the CPU, ready for use.
    Raises:
        TypeError: The family has nothing to train by gradients.
        ValueError: Settings that do not fit together, the data or the machine; `out` holds
            another run (what differs is said).
        FileExistsError: `out` holds a prior.safetensors that is not this run's.
        BlockingIOError: Another run is at work in `out`.
        ArithmeticError: The loss stopped being finite; the last good checkpoint stays.
        MemoryError: Out of memory; the message says what to try.
        OSError: The disk is full; the last checkpoint is intact.
    """
    if not isinstance(model, Trainable):
        raise TypeError(
            f"{type(model).__name__} is not trained by gradients: use {type(model).__name__}.fit"
        )
    if options is None:
        options = TrainingOptions(**model.training_defaults)
    length = Length(steps, seconds)
    check_batch(model, batch_size, options)
    data = as_images(images)
    check_images(data, model, options)
    warn_of_warmup(length, options)
    folder = Folder(Path(out) if out is not None else None)
    # A caller may have gradients off; copies of the model's tensors then have them all the same.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        _memory_errors(batch_size, options.accumulate),
    ):
        state = State(model, options, batch_size, folder.path)
        identity = fingerprint(model, data, batch_size, options, start=start)
        with folder.held(state.fabric):
            saved = folder.resumed(identity, length, options, force=force)
            report = Report(folder.path, length, state, callback=callback)
            if saved is not None:
                state.restore(saved)
                report.restore(saved)
            return _Run(state, data, length, folder, report, card or {})(report.first)


@contextmanager
def _memory_errors(batch_size: int, accumulate: int) -> Iterator[None]:
    """Say what to try where memory runs out."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        part = batch_size // accumulate
        raise MemoryError(
            f"out of memory with batches of {part} images: try accumulate={accumulate * 2} (the "
            f"same result, {part // 2} images at a time) or batch_size={batch_size // 2}"
        ) from error


@dataclass(frozen=True)
class _Run:
    """One run from its first step, or from where it is resumed, to its last."""

    state: State
    images: Images
    length: Length
    folder: Folder
    report: Report
    card: dict[str, Any]

    def __call__(self, first: int) -> Any:
        batches, step, total = self._batches(first), first, self.length.total
        with Interrupts() as interrupts, self.report:
            kept = now = self._seconds()
            while (done := self.length.done(step, now)) < total:
                self._update(step, done / total, batches)
                step, now = step + 1, self._seconds()
                self.report.progress(step)
                last = self.length.done(step, now) >= total
                stopped = self._is_stopped(interrupts, step)
                if last or stopped or self._is_due(step, now - kept):
                    self._checkpoint(step)
                    kept = now
                if stopped:
                    self.report.stopped(step)
                    break
            else:  # also where it was killed after the last checkpoint
                self._finish()
                self._save(step)
        return self.state.average.cpu()

    def _update(self, step: int, share: float, batches: Batches) -> None:
        """Take one step of training, `share` of the run done: every group's turns, in order."""
        state, options, fabric = self.state, self.state.options, self.state.fabric
        rate = options.rate(step, share)
        for place, group in enumerate(state.turns, step * len(state.turns)):
            # Plain data, as Fabric's precision takes no frozen dataclass.
            turn = {"group": group, "step": step, "images_seen": place * state.batch_size}
            optimizer = state.optimizers[group]
            state.freeze_all_but(group)
            optimizer.zero_grad(set_to_none=True)
            for settings in optimizer.param_groups:
                settings["lr"] = rate * settings.setdefault("peak", settings["lr"])
            for part in range(options.accumulate):
                numbers, batch = next(batches)
                generator = noise_for(
                    options.seed,
                    numbers,
                    begin=turn["images_seen"],
                    whole=state.batch_size,
                    device=fabric.device,
                )
                more = part < options.accumulate - 1
                with fabric.no_backward_sync(state.module, enabled=more):
                    loss, logs = state.module(turn, fabric.to_device(batch), generator)
                    fabric.backward(loss / options.accumulate)
                self.report.add(group, loss.detach(), logs)
            if options.clip is not None:
                fabric.clip_gradients(
                    state.module, optimizer, max_norm=options.clip, error_if_nonfinite=False
                )
            optimizer.step()
        state.update_average((step + 1) * state.batch_size)

    def _batches(self, first: int) -> Batches:
        options, fabric = self.state.options, self.state.fabric
        steps, images = self.length.steps, self.state.images_per_step
        numbers = shares(
            first * images,
            None if steps is None else steps * images,
            size=self.state.batch_size,
            parts=options.accumulate,
            rank=fabric.global_rank,
            world=fabric.world_size,
        )
        pin = fabric.device.type == "cuda"
        return stream(self.images, numbers, options=options, pin=pin)

    def _is_stopped(self, interrupts: Interrupts, step: int) -> bool:
        """Whether a signal came. Devices agree on that, and seldom, as it makes them wait."""
        fabric = self.state.fabric
        if fabric.world_size > 1 and step % EVERY == 0:
            came = torch.tensor(float(interrupts.came), device=fabric.device)
            interrupts.came = int(fabric.all_reduce(came, reduce_op="max"))
            return interrupts.came > 0
        return interrupts.came > 0 and fabric.world_size == 1

    def _seconds(self) -> float:
        """Seconds trained; where they decide, all devices go by the first one's clock."""
        now, fabric = self.report.seconds, self.state.fabric
        several = self.length.seconds is not None and fabric.world_size > 1
        return fabric.broadcast(now) if several else now

    def _is_due(self, step: int, seconds: float) -> bool:
        if self.length.seconds is not None:
            return seconds >= BETWEEN
        return step % self.state.options.checkpoint_every == 0

    def _checkpoint(self, step: int) -> None:
        """Stop a run that broke, else keep it: a checkpoint never holds NaN."""
        self.report.check_finite(step)
        self.state.fabric.barrier()
        if self.folder.path is None or not self.state.fabric.is_global_zero:
            return
        self.folder.write(step, self.length, {**self.state.saved(), **self.report.saved()})
        self._save(step)
        self.report.line(step)
        self.report.pictures(self.state.average, self.folder.path, step)

    def _finish(self) -> None:
        """Let the family measure its average of the weights at images as it was trained on."""
        options = replace(self.state.options, workers=0)
        _, images = next(stream(self.images, [range(self.state.batch_size)], options=options))
        generator = torch.Generator().manual_seed(options.seed)
        self.state.finish(self.state.fabric.to_device(images), generator)

    def _save(self, step: int) -> None:
        if self.folder.path is None or not self.state.fabric.is_global_zero:
            return
        seen = step * self.state.images_per_step
        figures = {"steps": step, "images_seen": seen, "seconds": round(self.report.seconds)}
        self.folder.write_weights(self.state.average, {**self.card, "training": figures})
