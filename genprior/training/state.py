"""What training changes: networks, their optimisers, and the average of the weights."""

from __future__ import annotations

import copy
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from genprior.priors.base import Model
from genprior.priors.training import Loss, Objective, Trainable, Turn
from genprior.training.devices import fabric_for
from genprior.training.options import TrainingOptions


class _Step(nn.Module):
    """The objective as a module, whose forward Fabric wraps in its precision and its devices."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.networks = objective.networks
        self._loss = objective.loss

    def forward(self, turn: dict[str, Any], batch: Tensor, generator: torch.Generator) -> Loss:
        return self._loss(Turn(**turn), batch, generator)


class State:
    """A copy of a model in training, on its devices.

    Attributes:
        fabric: Lightning Fabric, which knows the devices.
        turns: The group of parameters that each turn of a step updates.
        images_per_step: Over all turns and devices.
        module: The objective, as Fabric runs it.
        optimizers: Of each group.
        average: The model with the moving average of its weights.
    Raises:
        ValueError: The machine has not the devices that were asked for, or the model or the
            batch cannot be shared among them.
    """

    options: TrainingOptions
    batch_size: int
    fabric: Any
    module: Any

    def __init__(
        self, model: Trainable, options: TrainingOptions, batch_size: int, out: Path | None
    ) -> None:
        self.options, self.batch_size = options, batch_size
        objective = copy.deepcopy(model).train().requires_grad_(False).objective()
        self.turns: list[str] = [g for g, repeats in objective.turns for _ in range(repeats)]
        self.images_per_step: int = batch_size * len(self.turns)
        self._groups = {g: list(objective.parameters(g)) for g, _ in objective.turns}
        for parameter in chain(*self._groups.values()):
            parameter.requires_grad_(True)
        self.fabric = fabric_for(options, out, model, len(self._groups))
        if batch_size % (self.fabric.world_size * options.accumulate):
            raise ValueError(
                f"batch_size {batch_size} must be divisible by devices x nodes x accumulate = "
                f"{self.fabric.world_size * options.accumulate}"
            )
        self.average: Model = copy.deepcopy(objective.model).eval().requires_grad_(False)
        if model.couples_rows and self.fabric.world_size > 1:
            objective.networks = nn.SyncBatchNorm.convert_sync_batchnorm(objective.networks)
        optimizers = {
            g: objective.optimizer(g, options.learning_rate, parameters)
            for g, parameters in self._groups.items()
        }
        self._objective = objective
        self.module, *ready = self.fabric.setup(_Step(objective), *optimizers.values())
        self.optimizers: dict[str, Any] = dict(zip(optimizers, ready, strict=True))
        self.average.to(self.fabric.device)

    def freeze_all_but(self, group: str) -> None:
        if len(self._groups) > 1:
            for parameter in chain(*self._groups.values()):
                parameter.requires_grad_(False)
            for parameter in self._groups[group]:
                parameter.requires_grad_(True)

    @torch.no_grad()
    def update_average(self, seen: int) -> None:
        """Take the weights into the average, `seen` images of one turn into the run."""
        half_life = min(self.options.ema_half_life, 0.1 * seen)
        trained = self._objective.model
        average = get_ema_multi_avg_fn(0.5 ** (self.batch_size / half_life))
        average(list(self.average.parameters()), list(trained.parameters()), None)
        for kept, buffer in zip(self.average.buffers(), trained.buffers(), strict=True):
            kept.copy_(buffer)

    @property
    def finite(self) -> bool:
        """Whether all weights are: a finite loss may have slopes that are not."""
        return all(
            bool(t.isfinite().all()) for t in self._objective.networks.state_dict().values()
        )

    def finish(self, images: Tensor, generator: torch.Generator) -> None:
        self._objective.finish(self.average, images, generator)

    def saved(self) -> dict[str, Any]:
        """Return all from which `restore` continues."""
        return {
            "networks": self._objective.networks.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": {g: o.state_dict() for g, o in self.optimizers.items()},
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def restore(self, saved: dict[str, Any]) -> None:
        self._objective.networks.load_state_dict(saved["networks"])
        self.average.load_state_dict(saved["average"])
        for group, optimizer in self.optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][group])
        self.fabric.strategy.precision.load_state_dict(saved["precision"])
