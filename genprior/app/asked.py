"""What the page asks for, taken from what came: nothing in it may name a file of this machine."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args, get_type_hints

from genprior.commands.outputs import command_line
from genprior.commands.restore import restore
from genprior.data.limits import refuse_outside
from genprior.restoration.degradation import Degradation
from genprior.restoration.posing import Fit
from genprior.restoration.settings import Solving

MASK = "mask.png"
"""What the painted mask is called in the command that repeats a restoration."""

SAMPLES, STEPS, LONGEST = 16, 1000, 4096
"""Most that a page may ask for: samples, steps, pixels of the longest side that it resizes to."""

KERNEL = re.compile(r"auto|(gaussian|disk|uniform):[\d.]{1,8}|motion:[\d.]{1,8},-?[\d.]{1,8}")
"""Kernels that are drawn; others would be files."""

KINDS = {
    "name": str, "photo": str, "mask": str, "task": str, "kernel": str, "factor": int,
    "sigma": str, "simulate": bool, "fit": str, "longest": int, "channels": int,
    "prior": str, "samples": int, "steps": int, "seed": int,
}  # fmt: skip
"""What the page sends, and of which type each is where it is not null."""


@dataclass(frozen=True)
class Asked:
    """One restoration.

    Attributes:
        photo: The content of its file.
        name: What that file is called where it came from.
        mask: The content of a picture, white where measured; None where the task has none.
        degradation: What to undo.
        solving: With what.
        simulate: Degrade the photo first.
        fit: How to fit the photo to the prior, or to `longest`.
        longest: Pixels that its longest side is to have; None for its own size.
        channels: 1 to turn it grey.
    """

    photo: bytes
    name: str
    mask: bytes | None
    degradation: Degradation
    solving: Solving
    simulate: bool
    fit: Fit | None
    longest: int | None
    channels: int | None

    def size(self, height: int, width: int) -> tuple[int, int] | None:
        """Return the (H, W) that a photo is to have; None for its own."""
        if self.longest is None or self.longest >= max(height, width):
            return None
        step = (self.degradation.factor or 1) if self.simulate else 1
        share = self.longest / max(height, width) / step
        return step * max(1, round(height * share)), step * max(1, round(width * share))

    def command(self, size: tuple[int, int] | None) -> str:
        """Write the line of the shell that repeats it, of files called as they were here."""
        photo = f"./{self.name}" if self.name.startswith("-") else self.name
        fit = "resize" if size else self.fit
        options = {"simulate": self.simulate, "fit": fit, "size": size, "channels": self.channels}
        return command_line(restore, {"photo": photo, **options}, self.degradation, self.solving)


def read(data: bytes, *, offered: Sequence[str], machine: Solving) -> Asked:
    """Take what the page sent.

    Args:
        data: JSON.
        offered: Names of the priors that may be chosen.
        machine: Device and precision.
    Raises:
        ValueError: It says what is wrong.
    """
    sent = _fields(data)
    prior, kernel, task = sent["prior"], sent["kernel"], sent["task"]
    if prior not in offered:
        raise ValueError("that prior is not offered here")
    if kernel is not None and not KERNEL.fullmatch(kernel):
        raise ValueError("the kernel must be one of those that are offered")
    if task not in get_args(get_type_hints(Degradation)["task"]):
        raise ValueError("the task must be one of those that are offered")
    if (sent["mask"] is None) == (task == "inpaint"):
        raise ValueError("a mask goes with what is missing, and with nothing else")
    if sent["fit"] not in (None, *get_args(Fit)) or sent["channels"] not in (None, 1):
        raise ValueError("fit and channels must be of those that are offered")
    for name, most in (("samples", SAMPLES), ("steps", STEPS), ("longest", LONGEST)):
        if sent[name] is not None and not 1 <= sent[name] <= most:
            raise ValueError(f"{name} must be 1 to {most} on this page")
    mask = None if sent["mask"] is None else _bytes(sent["mask"])
    degradation = Degradation(
        task,
        mask=None if mask is None else MASK,
        kernel=kernel,
        factor=sent["factor"],
        sigma=sent["sigma"],
    )
    solving = replace(
        machine,
        prior=prior,
        steps=sent["steps"],
        samples=machine.samples if sent["samples"] is None else sent["samples"],
        seed=sent["seed"] or 0,
    )
    return Asked(
        photo=_bytes(sent["photo"] or ""),
        name=file_name(sent["name"] or ""),
        mask=mask,
        degradation=degradation,
        solving=solving,
        simulate=bool(sent["simulate"]),
        fit=sent["fit"],
        longest=sent["longest"],
        channels=sent["channels"],
    )


def file_name(said: str) -> str:
    """Return the last part of a file's name, in printable characters."""
    last = re.split(r"[/\\]", said)[-1]
    return "".join(c for c in last if c.isprintable())[:200].strip() or "photo.png"


def _fields(data: bytes) -> dict[str, Any]:
    try:
        sent = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError("what came is no JSON") from error
    if not isinstance(sent, dict) or not sent.keys() <= KINDS.keys():
        raise ValueError("what came holds more than the page sends")
    for name, value in sent.items():
        if value is not None and type(value) is not KINDS[name]:
            raise ValueError(f"{name} must be {KINDS[name].__name__}")
    refuse_outside({key: sent.get(key) for key in ("factor", "seed")})
    return {name: sent.get(name) for name in KINDS}


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError("a file did not come as base64") from error
