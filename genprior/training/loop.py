"""One training loop for every trainable family, over Lightning Fabric.

What a run computes is a function of its settings alone: image number k of the run, its
augmentation and its noise follow from (seed, k). So a killed run resumes exactly where it was, and
neither the number of devices nor accumulation changes what is drawn.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from genprior.data import Images
from genprior.priors.base import Model
from genprior.priors.training import Loss, Objective, Trainable, Turn
from genprior.training import checkpoints
from genprior.training.devices import fabric_for
from genprior.training.interrupts import Interrupts
from genprior.training.lock import sole_use
from genprior.training.options import (
    Length,
    TrainingOptions,
    check_batch,
    check_images,
    check_length,
    check_own,
    check_same,
    fingerprint,
    name_of,
    warn_of_warmup,
)
from genprior.training.report import EVERY, Callback, Report
from genprior.training.stream import as_images, generator_for, shares, stream

__all__ = ["TrainingOptions", "train"]

M = TypeVar("M", bound=Model)

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
    place = Path(out) if out is not None else None
    # A caller may have gradients off; copies of the model's tensors then have them all the same.
    with ExitStack() as held, torch.inference_mode(False), torch.enable_grad():
        run = _Run(
            model,
            as_images(images),
            out=place,
            length=Length(steps, seconds),
            batch_size=batch_size,
            options=options,
            card=card or {},
            start=start,
            force=force,
            held=held,
            callback=callback,
        )
        try:
            return run()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
                raise
            raise MemoryError(_smaller(batch_size, options.accumulate)) from error


def _smaller(batch_size: int, accumulate: int) -> str:
    part = batch_size // accumulate
    return (
        f"out of memory with batches of {part} images: try accumulate={accumulate * 2} (the same "
        f"result, {part // 2} images at a time) or batch_size={batch_size // 2}"
    )


class _Step(nn.Module):
    """The objective as a module, whose forward Fabric wraps in its precision and its devices."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.networks = objective.networks
        self._loss = objective.loss

    def forward(
        self, turn: dict[str, Any], batch: Tensor, generators: Sequence[torch.Generator]
    ) -> Loss:
        return self._loss(Turn(**turn), batch, generators)


class _Run:
    """One run: its networks, its optimisers and its place in the data."""

    def __init__(
        self,
        model: Trainable,
        images: Images,
        *,
        out: Path | None,
        length: Length,
        batch_size: int,
        options: TrainingOptions,
        card: dict[str, Any],
        held: ExitStack,
        start: str | None = None,
        force: bool = False,
        callback: Callback | None = None,
    ) -> None:
        self.images, self.out, self.length, self.options = images, out, length, options
        self.batch_size, self.card = batch_size, card
        check_batch(model, batch_size, options)
        check_images(images, model, options)
        warn_of_warmup(length, options)
        objective = copy.deepcopy(model).train().requires_grad_(False).objective()
        self.objective = objective
        self.turns = [g for g, repeats in objective.turns for _ in range(repeats)]
        self.groups = {g: list(objective.parameters(g)) for g, _ in objective.turns}
        for parameter in chain(*self.groups.values()):
            parameter.requires_grad_(True)
        self.fabric = fabric_for(options, out, model, len(self.groups))
        if batch_size % (self.fabric.world_size * options.accumulate):
            raise ValueError(
                f"batch_size {batch_size} must be divisible by devices x nodes x accumulate = "
                f"{self.fabric.world_size * options.accumulate}"
            )
        self.fingerprint = fingerprint(model, images, batch_size, options, start=start)
        saved = None
        if out is not None:
            self._take(out, held)
            saved = checkpoints.newest(out / "checkpoints")
            if saved is not None:
                check_same(saved["fingerprint"], self.fingerprint, out)
                check_length(saved, length, options)
            check_own(out / "prior.safetensors", name_of(self.fingerprint), force)
        self.average = copy.deepcopy(objective.model).eval().requires_grad_(False)
        if model.couples_rows and self.fabric.world_size > 1:
            objective.networks = nn.SyncBatchNorm.convert_sync_batchnorm(objective.networks)
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
        self.interrupts = Interrupts()
        self.report = Report(
            out,
            length,
            images=batch_size * len(self.turns),
            options=options,
            fabric=self.fabric,
            callback=callback,
        )
        if saved is not None:
            self._restore(saved)

    def _take(self, out: Path, held: ExitStack) -> None:
        """Hold the folder, on behalf of all devices, until `held` is closed."""
        refusal = None
        if self.fabric.is_global_zero:
            try:
                held.enter_context(sole_use(out))
                checkpoints.sweep(out)
            except BlockingIOError as error:
                refusal = str(error)
        if refusal := self.fabric.broadcast(refusal):
            raise BlockingIOError(refusal)

    def _restore(self, saved: dict[str, Any]) -> None:
        self.first = saved["step"]
        for group, optimizer in self.optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][group])
        self.fabric.strategy.precision.load_state_dict(saved["precision"])
        self.report.restore(saved)

    def __call__(self) -> Any:
        batches, step = self._batches(), self.first
        with self.interrupts, self.report:
            kept = now = self._seconds()
            if self.first > 0 and self.length.done(self.first, now) >= self.length.total:
                self._save(self.first)  # it may have been killed between the two files
            while (done := self.length.done(step, now)) < self.length.total:
                self._update(step, done / self.length.total, batches)
                step, now = step + 1, self._seconds()
                self.report.progress(step)
                last = self.length.done(step, now) >= self.length.total
                stopped = self._is_stopped(step)
                if last or stopped or self._is_due(step, now - kept):
                    self._checkpoint(step)
                    kept = now
                if stopped:
                    self.report.stopped(step)
                    break
        return self.average.cpu()

    def _is_stopped(self, step: int) -> bool:
        """Whether a signal came. Devices agree on that, and seldom, as it makes them wait."""
        if self.fabric.world_size > 1 and step % EVERY == 0:
            came = torch.tensor(float(self.interrupts.came), device=self.fabric.device)
            self.interrupts.came = int(self.fabric.all_reduce(came, reduce_op="max"))
            return self.interrupts.came > 0
        return self.interrupts.came > 0 and self.fabric.world_size == 1

    def _seconds(self) -> float:
        """Seconds trained; where they decide, all devices go by the first one's clock."""
        now = self.report.seconds
        several = self.length.seconds is not None and self.fabric.world_size > 1
        return self.fabric.broadcast(now) if several else now

    def _is_due(self, step: int, seconds: float) -> bool:
        if self.length.seconds is not None:
            return seconds >= BETWEEN
        return step % self.options.checkpoint_every == 0

    def _batches(self) -> Iterator[tuple[Sequence[int], Tensor]]:
        per_step = self.batch_size * len(self.turns)
        numbers = shares(
            self.first * per_step,
            self.length.steps * per_step if self.length.steps is not None else None,
            size=self.batch_size,
            parts=self.options.accumulate,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
        )
        return stream(
            self.images,
            self.options.augment,
            numbers,
            seed=self.options.seed,
            workers=self.options.workers,
            pin=self.fabric.device.type == "cuda",
        )

    def _update(
        self, step: int, share: float, batches: Iterator[tuple[Sequence[int], Tensor]]
    ) -> None:
        accumulate, device = self.options.accumulate, self.fabric.device
        rate = self.options.rate(step, share)
        for place, group in enumerate(self.turns, step * len(self.turns)):
            # Plain data, as Fabric's precision takes no frozen dataclass.
            turn = {"group": group, "step": step, "images_seen": place * self.batch_size}
            optimizer = self.optimizers[group]
            self._freeze_all_but(group)
            optimizer.zero_grad(set_to_none=True)
            for settings in optimizer.param_groups:
                settings["lr"] = rate * settings.setdefault("peak", settings["lr"])
            for part in range(accumulate):
                numbers, batch = next(batches)
                generators = [generator_for(self.options.seed, k, 0, device) for k in numbers]
                with self.fabric.no_backward_sync(self.module, enabled=part < accumulate - 1):
                    loss, logs = self.module(turn, self.fabric.to_device(batch), generators)
                    self.fabric.backward(loss / accumulate)
                self.report.add(group, loss.detach(), logs)
            if self.options.clip is not None:
                self.fabric.clip_gradients(
                    self.module, optimizer, max_norm=self.options.clip, error_if_nonfinite=False
                )
            optimizer.step()
        self._average((step + 1) * self.batch_size)

    def _freeze_all_but(self, group: str) -> None:
        if len(self.groups) > 1:
            for parameter in chain(*self.groups.values()):
                parameter.requires_grad_(False)
            for parameter in self.groups[group]:
                parameter.requires_grad_(True)

    @torch.no_grad()
    def _average(self, seen: int) -> None:
        half_life = min(self.options.ema_half_life, 0.1 * seen)
        weight = 1 - 0.5 ** (self.batch_size / half_life)
        trained = self.objective.model
        average = get_ema_multi_avg_fn(1 - weight)
        average(list(self.average.parameters()), list(trained.parameters()), None)
        for kept, buffer in zip(self.average.buffers(), trained.buffers(), strict=True):
            kept.copy_(buffer)

    def _checkpoint(self, step: int) -> None:
        """Stop a run that broke, else keep it: a checkpoint never holds NaN."""
        self.report.check_finite(step)
        self.fabric.barrier()
        if self.out is None or not self.fabric.is_global_zero:
            return
        state = {
            "length": asdict(self.length),
            "fingerprint": self.fingerprint,
            "networks": self.objective.networks.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": {g: o.state_dict() for g, o in self.optimizers.items()},
            "precision": self.fabric.strategy.precision.state_dict(),
            "history": self.report.history,
            "seconds": self.report.seconds,
        }
        checkpoints.write(self.out / "checkpoints", step, state)
        self._save(step)
        self.report.line(step)
        self.report.pictures(self.average, self.out, step)

    def _save(self, step: int) -> None:
        if self.out is None or not self.fabric.is_global_zero:
            return
        seen = step * self.batch_size * len(self.turns)
        figures = {"steps": step, "images_seen": seen, "seconds": round(self.report.seconds)}
        card = {**self.card, "training": figures, "run": name_of(self.fingerprint)}
        self.average.save(self.out / "prior.safetensors", card=card)
