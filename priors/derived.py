"""What follows from a module's buffers, kept until they change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


class Derived(Generic[T]):
    """One value for each dtype, found again once a buffer is replaced (`to`) or written to.

    Buffers of a state_dict would be saved with the weights, and go stale when others are loaded.
    """

    def __init__(self) -> None:
        self._kept: dict[torch.dtype, tuple[list[Tensor], list[int], T]] = {}

    def get(self, dtype: torch.dtype, buffers: Sequence[Tensor], compute: Callable[[], T]) -> T:
        """Return compute(), anew only if `buffers` are not those of the last call."""
        versions = [_version(buffer) for buffer in buffers]
        if dtype in self._kept:
            known, seen, value = self._kept[dtype]
            if seen == versions and all(a is b for a, b in zip(known, buffers, strict=True)):
                return value
        value = compute()
        self._kept[dtype] = (list(buffers), versions, value)
        return value
