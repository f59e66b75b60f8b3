"""The training loop of `genprior.train` and a bare one, as functions that take one step."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genprior.data import Images
from genprior.priors import Trainable, Turn
from genprior.training import TrainingOptions
from genprior.training.folder import Folder
from genprior.training.loop import _Run
from genprior.training.options import Length
from genprior.training.report import Report
from genprior.training.state import State
from genprior.training.stream import as_images

Step = Callable[[], Any]


def bare(model: Trainable, images: Tensor, *, batch_size: int, device: str = "cpu") -> Step:
    """Return a step in bfloat16 without average, clipping, logging or reproducible draws.

    Args:
        model: One loss, no turns; a copy is trained.
        images: (N, C, H, W) in [0, 1], N >= batch_size; kept on `device`.
        batch_size: Images in each step.
        device: "cpu" or "cuda".
    """
    model = copy.deepcopy(model).to(device).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), fused=True)
    generator = torch.Generator(device).manual_seed(0)
    objective = model.objective()
    whole = len(images) // batch_size * batch_size
    batches = itertools.cycle(images[:whole].to(device).split(batch_size))

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            loss, _ = objective.loss(Turn(), next(batches), generator)
        loss.backward()
        optimizer.step()

    return step


def ours(
    model: Trainable, images: Images | Tensor, *, batch_size: int, options: TrainingOptions
) -> Step:
    """Return a step of `genprior.train`, its report included, its checkpoints not."""
    length, state = Length(steps=10**6), State(model, options, batch_size, None)
    report = Report(None, length, state)
    run = _Run(state, as_images(images), length, Folder(None), report, {})
    report.__enter__()
    batches, count = run._batches(0), itertools.count()

    def step() -> None:
        number = next(count)
        run._update(number, number / 10**6, batches)
        report.progress(number + 1)

    return step
