"""Where a run computes: Lightning Fabric, set up for the devices that were asked for."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from genprior.priors.training import Trainable
from genprior.training.options import TrainingOptions

_PRECISION = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}


def fabric_for(options: TrainingOptions, out: Path | None, model: Trainable, groups: int) -> Any:
    """Start the processes of a run.

    Args:
        options: Devices, nodes, precision.
        out: The run's folder, if it has one.
        model: What is trained.
        groups: How many groups of parameters take turns.
    Raises:
        ValueError: The machine has not these devices, or the model cannot be shared among them.
    """
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
    if model.couples_rows and kind == "cpu" and not alone:
        raise ValueError(
            f"{type(model).__name__} couples the rows of a batch (batch statistics), which only "
            "CUDA devices can share: train it with devices=1 on a CPU"
        )
    if options.tensorboard and out is None:
        raise ValueError("tensorboard writes into the run's folder: give out")
    if options.tensorboard and find_spec("tensorboard") is None:
        raise ValueError("--tensorboard needs its package: pip install genprior[tensorboard]")
    fabric = Fabric(
        accelerator=kind,
        devices=options.devices,
        num_nodes=options.nodes,
        strategy="auto" if alone else DDPStrategy(find_unused_parameters=groups > 1),
        precision=_PRECISION[options.precision],  # pyright: ignore[reportArgumentType]
        loggers=TensorBoardLogger(str(out), name="tensorboard") if options.tensorboard else None,
    )
    fabric.launch()
    return fabric
