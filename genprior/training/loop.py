"""One training loop for every trainable family, over Lightning Fabric.

What a run computes is a function of its settings alone: image number k of the run, its
augmentation and its noise follow from (seed, k). So a killed run resumes exactly where it was, and
neither the number of devices nor accumulation changes what is drawn.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from genprior.data import Images
from genprior.priors.base import Prior
from genprior.priors.training import Objective, TrainablePrior
from genprior.training import checkpoints
from genprior.training.options import (
    TrainingOptions,
    check_length,
    check_same,
    fingerprint,
)
from genprior.training.report import Report
from genprior.training.stream import as_images, generator_for, shares, stream

__all__ = ["TrainingOptions", "train"]

_PRECISION = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}


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
    run = _Run(prior, as_images(images), Path(out), steps, batch_size, options, card or {})
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
        self.fingerprint = fingerprint(prior, images, batch_size, options)
        saved = checkpoints.newest(out / "checkpoints")
        if saved is not None:
            check_same(saved["fingerprint"], self.fingerprint, out)
            check_length(saved["step"], saved["steps"], steps, options)
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
        batches = self._batches()
        with self.report:
            for step in range(self.first, self.steps):
                self._update(step, batches)
                done = step + 1
                self.report.progress(done)
                if done % self.options.checkpoint_every == 0 or done == self.steps:
                    self._checkpoint(done)
        return self.average.cpu()

    def _batches(self) -> Iterator[tuple[Sequence[int], Tensor]]:
        per_step = self.batch_size * len(self.turns)
        numbers = shares(
            self.first * per_step,
            self.steps * per_step,
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

    def _update(self, step: int, batches: Iterator[tuple[Sequence[int], Tensor]]) -> None:
        accumulate, device = self.options.accumulate, self.fabric.device
        rate = self.options.rate(step, self.steps)
        for group in self.turns:
            optimizer = self.optimizers[group]
            # Here and not after the step: other groups' losses leave gradients here too.
            optimizer.zero_grad(set_to_none=True)
            for settings in optimizer.param_groups:
                settings["lr"] = rate * settings.setdefault("peak", settings["lr"])
            for part in range(accumulate):
                numbers, batch = next(batches)
                generators = [generator_for(self.options.seed, k, 0, device) for k in numbers]
                with self.fabric.no_backward_sync(self.module, enabled=part < accumulate - 1):
                    loss, logs = self.module(group, self.fabric.to_device(batch), generators)
                    self.fabric.backward(loss / accumulate)
                self.report.add(group, loss.detach(), logs)
            if self.options.clip is not None:
                self.fabric.clip_gradients(
                    self.module, optimizer, max_norm=self.options.clip, error_if_nonfinite=False
                )
            optimizer.step()
        self._average((step + 1) * self.batch_size)

    @torch.no_grad()
    def _average(self, seen: int) -> None:
        half_life = min(self.options.ema_half_life, 0.1 * seen)
        weight = 1 - 0.5 ** (self.batch_size / half_life)
        trained = self.objective.prior
        average = get_ema_multi_avg_fn(1 - weight)
        average(list(self.average.parameters()), list(trained.parameters()), None)
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


def _fabric(options: TrainingOptions, out: Path, turns: int) -> Any:
    from lightning_fabric import Fabric
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger
    from lightning_fabric.strategies.ddp import DDPStrategy

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
        precision=_PRECISION[options.precision],  # pyright: ignore[reportArgumentType]
        loggers=TensorBoardLogger(out, name="tensorboard") if options.tensorboard else None,
    )
    fabric.launch()
    return fabric


def _check_images(images: Images, prior: Prior, options: TrainingOptions) -> None:
    crop = options.augment.crop if options.augment is not None else None
    came = (images[0].shape[0], crop, crop) if crop else tuple(images[0].shape)
    if any(own not in (None, got) for own, got in zip(prior.image_shape, came, strict=True)):
        raise ValueError(f"images of shape {came} came to a prior for {tuple(prior.image_shape)}")
