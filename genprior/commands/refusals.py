"""Refusals in the shell's words: the option as it is typed, what it takes, what came."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

LIMITS: dict[str, tuple[float, float]] = {
    "accumulate": (1, 10_000), "at_once": (1, 10_000), "batch_size": (1, 1_000_000),
    "channels": (1, 3), "checkpoint_every": (1, 100_000_000), "clip": (1e-9, 1e6),
    "columns": (1, 10_000), "components": (1, 10_000), "cooldown": (0, 1), "data_mean": (0, 1),
    "data_std": (1e-6, 1e6), "devices": (1, 1024), "ema_half_life": (1, 1e8),
    "factor": (1, 64), "grid": (0, 1024), "iterations": (1, 1_000_000),
    "latent_channels": (1, 10_000), "latent_size": (1, 100_000), "learning_rate": (1e-9, 10),
    "limit": (1, 100_000_000), "nodes": (1, 10_000), "number": (1, 10_000), "peak": (1e-3, 1e8),
    "rank": (1, 100_000), "residual": (0, 1), "samples": (1, 10_000), "seconds": (1e-3, 1e8),
    "seed": (0, 2**32 - 1), "size": (1, 16_384), "steps": (1, 100_000_000),
    "warmup": (0, 100_000_000), "whole": (0, 100_000), "workers": (0, 1024),
}  # fmt: skip
"""Least and most of what a number can mean. The most is far above any use: it keeps a slip of the
finger from taking all memory."""

KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "[HEIGHT, WIDTH]",
    list: "a list as [1, 2]",
    dict: "options as {name: value}",
}


def option(name: str) -> str:
    """Write an option as it is typed: batch_size is --batch-size."""
    return "--" + name.replace("_", "-")


def refuse_outside(values: Mapping[str, Any]) -> None:
    """Refuse numbers that are not finite, or outside what they can mean.

    Raises:
        ValueError: It names the option.
    """
    for name, value in values.items():
        low, high = LIMITS.get(name, (-math.inf, math.inf))
        for number in value if isinstance(value, (tuple, list)) else (value,):
            if type(number) not in (int, float):
                continue
            if not math.isfinite(number):
                raise ValueError(f"{option(name)} must be finite, not {number}")
            if not low <= number <= high:
                bound = f"least {low}" if number < low else f"most {high}"
                raise ValueError(f"{option(name)} must be at {bound}, not {number}")


def refuse_empty(values: Mapping[str, Any]) -> None:
    """Refuse words that are empty, as those of a script's variable that is not set.

    Raises:
        ValueError: It names the option.
    """
    for name, value in values.items():
        if value == "":
            raise ValueError(f"{option(name)} is empty: give it a value, or leave it out")


def in_words(error: Exception, kinds: Mapping[str, Any]) -> str:
    """Say what a parser found wrong.

    Args:
        error: The parser's.
        kinds: Type of each option.
    """
    text = " ".join(str(error).split())
    if text.startswith("Unexpected config"):
        return "--config must be a YAML file that holds options as NAME: VALUE"
    if found := re.fullmatch(r"argument (\S+): expected one argument", text):
        return f"{option(found[1].lstrip('-'))} needs a value"
    found = re.match(r'Parser key "([\w.]+)": (.*)', text)
    if not found:
        return text
    name, about = found.groups()
    kind = _kind_of(name.split("."), kinds)
    came = re.findall(
        r"(?:Given value|Got value):\s?(.*?)(?= - Expected| Given value type|$)", about
    )
    if kind is None or not came:
        return f"{option(name)}: {about}"
    return f"{option(name)} must be {_takes(kind)}, not {came[-1] or 'empty'}"


def _kind_of(path: list[str], kinds: Mapping[str, Any]) -> Any:
    """Find the type of an option, or of one in a dataclass."""
    kind = kinds.get(path[0])
    if len(path) == 1 or kind is None:
        return kind
    inner = [k for k in (kind, *get_args(kind)) if dataclasses.is_dataclass(k)]
    return _kind_of(path[1:], typing.get_type_hints(inner[0])) if inner else None


def _takes(kind: Any) -> str:
    """Describe a type: 'a whole number or [HEIGHT, WIDTH]'."""
    if get_origin(kind) is Literal:
        return " or ".join(str(word) for word in get_args(kind))
    if get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_takes(k) for k in get_args(kind) if k is not types.NoneType)
    if dataclasses.is_dataclass(kind):
        return "options as {" + ", ".join(f"{f.name}: ..." for f in dataclasses.fields(kind)) + "}"
    return KINDS.get(get_origin(kind) or kind, KINDS[list])


def naming(message: str, values: Mapping[str, Any]) -> str:
    """Name the option whose text a message speaks of, if it names none."""
    if re.search(r"--[a-z]", message):
        return message
    nested = {name: value for name, value in values.items() if isinstance(value, dict)}
    first = re.split(r"\W", message.replace("-", "_"), maxsplit=1)[0]
    if first in nested:
        return f"--{message}"
    if within := [name for name, value in nested.items() if first in value]:
        return f"--{within[0]}.{message}"
    meant = [
        name
        for name, value in values.items()
        if isinstance(value, str) and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", message)
    ]
    if not meant:
        return message
    name = max(reversed(meant), key=lambda name: name in message)
    between = " " if message.startswith(values[name]) else f" {values[name]}: "
    return f"{option(name)}{between}{message}"
