"""What numbers can mean at all: bounds that are the same in Python and in the shell."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

LIMITS: dict[str, tuple[float, float]] = {
    "accumulate": (1, 10_000), "at_once": (1, 10_000), "batch_size": (1, 1_000_000),
    "channels": (1, 10_000), "checkpoint_every": (1, 100_000_000), "clip": (1e-9, 1e6),
    "columns": (1, 10_000), "components": (1, 10_000), "cooldown": (0, 1),
    "couplings": (1, 1000), "crop": (1, 16_384),
    "data_mean": (0, 1), "data_std": (1e-6, 1e6), "depth": (1, 1000), "devices": (1, 1024),
    "ema_half_life": (1e-9, 1e8), "factor": (1, 64), "grid": (0, 1024),
    "iterations": (1, 1_000_000),
    "latent_channels": (1, 10_000), "latent_size": (1, 100_000), "learning_rate": (1e-9, 10),
    "levels": (1, 16), "limit": (1, 100_000_000), "margin": (1e-9, 0.49),
    "max_megabytes": (1, 1024), "max_pixels": (1, 2**27), "max_waiting": (1, 1000),
    "nodes": (1, 10_000), "num_samples": (1, 10_000),
    "number": (1, 10_000), "peak": (1e-3, 1e8), "port": (0, 65_535), "rank": (1, 100_000),
    "residual": (0, 1),
    "samples": (1, 10_000), "scales": (1, 1024), "seconds": (1e-3, 1e8), "seed": (0, 2**32 - 1),
    "size": (1, 16_384), "steps": (1, 100_000_000), "temperature": (1e-3, 2),
    "truncation": (1e-3, 1), "warmup": (0, 100_000_000),
    "whole": (0, 100_000), "workers": (0, 1024),
}  # fmt: skip
"""Least and most of what a number can mean. The most is far above any use: it keeps a slip of the
finger from taking all memory."""


def option(name: str) -> str:
    """Write an option as it is typed: batch_size is --batch-size."""
    return "--" + name.replace("_", "-")


def refuse_outside(values: Mapping[str, Any], *, said: Callable[[str], str] = str) -> None:
    """Refuse numbers that are not finite, or outside what they can mean.

    Args:
        values: By name; what is no number passes.
        said: How a name is written.
    Raises:
        ValueError: It names the option.
    """
    for name, value in values.items():
        low, high = LIMITS.get(name, (-math.inf, math.inf))
        for number in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(number, bool) or not isinstance(number, Real):
                continue
            if not math.isfinite(number):
                raise ValueError(f"{said(name)} must be finite, not {number}")
            if not low <= float(number) <= high:
                bound = f"least {low}" if number < low else f"most {high}"
                raise ValueError(f"{said(name)} must be at {bound}, not {number}")
