"""Refusals in the shell's words: the option as it is typed, what it takes, what came."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from genprior.data.limits import option

KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "[HEIGHT, WIDTH]",
    list: "a list as [1, 2]",
    dict: "options as {name: value}",
}


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
