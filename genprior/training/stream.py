"""The images of a training run, in an order that follows from (seed, number) alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from genprior.data import ArrayImages, Images
from genprior.operators.random import Shared
from genprior.training.augmentation import Augmentation
from genprior.training.interrupts import leave_to_parent
from genprior.training.options import TrainingOptions


class _Views(Dataset[tuple[Sequence[int], Tensor]]):
    """Image number k of the run: one epoch after the other, each in its own random order."""

    def __init__(self, images: Images, augment: Augmentation | None, seed: int) -> None:
        self.images, self.augment, self.seed = images, augment, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitems__(self, numbers: Sequence[int]) -> tuple[Sequence[int], Tensor]:
        index = [self._place(k) for k in numbers]
        if self.augment is None:
            return numbers, self.images.batch(index)
        views = [
            self.augment(self.images.raw(i), generator_for(self.seed, k, 1))
            for i, k in zip(index, numbers, strict=True)
        ]
        return numbers, torch.stack(views)

    def _place(self, number: int) -> int:
        epoch, place = divmod(number, len(self.images))
        if epoch != self._epoch:
            shuffle = generator_for(self.seed, epoch, 2)
            self._epoch = epoch
            self._order = torch.randperm(len(self.images), generator=shuffle).numpy()
        return int(self._order[place])


def _as_is(batch: Any) -> Any:
    return batch


def stream(
    images: Images,
    numbers: Iterable[Sequence[int]],
    *,
    options: TrainingOptions,
    pin: bool = False,
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Give batches of images.

    Args:
        images: The data set.
        numbers: Which images of the run make each batch, counted from its first.
        options: Random views, seed of order and views, processes that read ahead.
        pin: Keep batches in memory that a CUDA device reads directly.
    Yields:
        The numbers and the images, (B, C, H, W).
    """
    loader = DataLoader(
        _Views(images, options.augment, options.seed),
        batch_sampler=map(list, numbers),
        collate_fn=_as_is,
        num_workers=options.workers,
        worker_init_fn=leave_to_parent,
        generator=torch.Generator(),  # a loader draws a seed, else from the global one
        pin_memory=pin,
    )
    return iter(loader)


def shares(
    first: int, last: int | None, *, size: int, parts: int, rank: int, world: int
) -> Iterator[Sequence[int]]:
    """Cut the images first ... last - 1 of a run into batches, and each among devices and parts.

    Args:
        first, last: Multiples of `size`; None has no end.
        size: Images in a whole batch.
        parts: Pieces in which each device computes its share.
        rank, world: This device, and how many there are.
    Yields:
        The numbers of this device's pieces, in order.
    """
    share = size // (world * parts)
    for batch in itertools.count(first, size) if last is None else range(first, last, size):
        for part in range(parts):
            start = batch + (rank * parts + part) * share
            yield range(start, start + share)


def generator_for(seed: int, number: int, purpose: int) -> torch.Generator:
    """A generator that depends on its arguments alone; purposes: 1 views, 2 order."""
    return torch.Generator().manual_seed(_mixed(seed, number, purpose))


def noise_for(
    seed: int, numbers: Sequence[int], *, begin: int, whole: int, device: torch.device | str
) -> Shared:
    """A generator of the noise of images `numbers` in the batch `begin` ... begin + whole - 1.

    One for each image would cost more time than a fast network: milliseconds a batch on a GPU.
    """
    rows = {"first": numbers[0] - begin, "count": len(numbers), "whole": whole}
    return Shared.seeded(_mixed(seed, begin, 0), device, **rows)


def _mixed(seed: int, number: int, purpose: int) -> int:
    return (seed * 0x9E3779B97F4A7C15 + number * 0xD1342543DE82EF95 + purpose) % 2**63


def as_images(images: Images | Tensor) -> Images:
    """Take a tensor (N, C, H, W) for a data set."""
    if not isinstance(images, Tensor):
        return images
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images must be (N, C, H, W), not {tuple(images.shape)}")
    kept = images if images.dtype == torch.uint8 else images.float()
    return ArrayImages(kept.cpu().numpy())
