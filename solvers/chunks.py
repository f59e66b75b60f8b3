"""What a solver works on at once, what it found there, and how these parts go together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar, Union

import torch
from torch import Tensor

from genprior.operators import Problem

T = TypeVar("T")

Tracking = Union[bool, Callable[[Iterable[Any], str], Iterator[Any]]]  # noqa: UP007 (3.10)
"""Whether to show a bar, or what follows the steps instead: called with them and a label."""


@dataclass(frozen=True)
class Chunk:
    """The images that a solver works on at once.

    Attributes:
        problem: b measurements.
        samples: Samples asked of each, S.
        image_shape: (C, H, W), resolved.
        image_generators: b generators, for what an image's samples share.
        generators: b * S generators, image-major, one for each row.
    """

    problem: Problem
    samples: int
    image_shape: tuple[int, int, int]
    image_generators: list[torch.Generator]
    generators: list[torch.Generator]
    progress: Tracking = False

    @cached_property
    def rows(self) -> Problem:
        """The problem with every measurement repeated S times, image-major."""
        if self.samples == 1:
            return self.problem
        y = self.problem.y
        index = torch.arange(y.shape[0], device=y.device)
        return self.problem.take(index.repeat_interleave(self.samples))

    def track(self, steps: Iterable[T], label: str) -> Iterator[T]:
        """Iterate with a progress bar where one was asked for."""
        if not self.progress:
            return iter(steps)
        if callable(self.progress):
            return self.progress(steps, label)
        from tqdm.auto import tqdm

        return iter(tqdm(steps, desc=label, leave=False))


WORST = "worst_residual"
"""The trace of the largest residual |y - A x| among an image's samples: one astray is enough to
call an image not converged, and must not be hidden by the mean over the others."""


@dataclass(frozen=True)
class Solution:
    """What a solver found for one chunk of b images, S samples each.

    Attributes:
        samples: (b, S, C, H, W).
        converged: (b,) bool; where left out, whether all of an image's samples are finite.
        mean, std: (b, C, H, W) where known exactly.
        latents: (b, S, *latent_shape).
        trace: Named (steps, b) tensors.
    """

    samples: Tensor
    converged: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    mean: Tensor | None = None
    std: Tensor | None = None
    latents: Tensor | None = None
    trace: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.converged):
            object.__setattr__(self, "converged", self.samples.isfinite().flatten(1).all(1))


def join(parts: list[tuple[int, Solution]]) -> Solution:
    """Put chunks together: those of the same images along S, then along B."""
    by_images: dict[int, list[Solution]] = {}
    for first, part in parts:
        by_images.setdefault(first, []).append(part)
    groups = [_join_samples(group) for group in by_images.values()]
    if len(groups) == 1:
        return groups[0]

    def along_images(values: list[Tensor | None]) -> Tensor | None:
        found = [v for v in values if v is not None]
        return torch.cat(found) if found else None

    steps = {k: max(len(g.trace[k]) for g in groups) for k in groups[0].trace}
    return Solution(
        samples=torch.cat([g.samples for g in groups]),
        converged=torch.cat([g.converged for g in groups]),
        mean=along_images([g.mean for g in groups]),
        std=along_images([g.std for g in groups]),
        latents=along_images([g.latents for g in groups]),
        trace={
            k: torch.cat([_padded(g.trace[k], n) for g in groups], 1) for k, n in steps.items()
        },
    )


def _join_samples(group: list[Solution]) -> Solution:
    """Put together the chunks that hold different samples of the same images."""
    first = group[0]
    if len(group) == 1:
        return first
    counts = [p.samples.shape[1] for p in group]
    steps = {k: max(len(p.trace[k]) for p in group) for k in first.trace}
    latents = [p.latents for p in group if p.latents is not None]
    return Solution(
        samples=torch.cat([p.samples for p in group], 1),
        converged=torch.stack([p.converged for p in group]).all(0),
        mean=first.mean,
        std=first.std,
        latents=torch.cat(latents, 1) if latents else None,
        trace={
            k: _over_samples(k, [_padded(p.trace[k], n) for p in group], counts)
            for k, n in steps.items()
        },
    )


def _over_samples(name: str, traces: list[Tensor], counts: list[int]) -> Tensor:
    """Return the mean over all samples: a chunk counts by how many it holds. Or the worst."""
    stacked = torch.stack(traces)
    if name == WORST:
        return stacked.amax(0)
    weights = stacked.new_tensor(counts) / sum(counts)
    return torch.tensordot(weights, stacked, 1)


def _padded(trace: Tensor, steps: int) -> Tensor:
    """Fill a trace (n, b) that ended early up to `steps` with NaN."""
    return torch.cat([trace, trace.new_full((steps - len(trace), trace.shape[1]), torch.nan)])
