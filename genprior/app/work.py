"""From what the page asked for to pictures, as `genprior restore` makes them; all in memory."""

from __future__ import annotations

import base64
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from genprior.app.asked import MASK, Asked
from genprior.app.jobs import Job
from genprior.data import Photo
from genprior.data.files import encode_image, photo_of
from genprior.operators import masks
from genprior.operators.files.picture import grey_of, header_size
from genprior.restoration import memory
from genprior.restoration.restored import restore_photo

VIEW = 1600
"""Most pixels along a side of the picture that is painted on."""

REPORTED = (
    "prior", "solver", "samples", "antithetic", "forwards", "vjps", "seconds", "converged",
    "sigma", "noise_from", "kernel", "kept", "residual_in_sigma", "psnr_mean", "coverage_90",
    "r_hat",
)  # fmt: skip
"""What the page shows of a report."""

ONE_AT_A_TIME = threading.Lock()
"""Held while a file is decoded: that takes memory, and silences warnings for all threads."""


@dataclass(frozen=True)
class Answer:
    """What is found of a photo.

    Attributes:
        about: Plain data: the report, notes, the command that repeats it.
        pictures: Name -> PNG: the mean, the samples, twice their standard deviation, and what was
            measured.
    """

    about: dict[str, Any]
    pictures: dict[str, bytes]


def decode(data: bytes, *, most: int, channels: int | None = None) -> Photo:
    """Decode a photo of at most so many pixels, of which there are too many before it is decoded.

    Raises:
        ValueError: It is no photo that the page can show, or too large.
        MemoryError: Decoding it would take more than is free.
    """
    size = None if data[128:132] == b"DICM" else header_size(data, "the photo")
    if size is None:
        raise ValueError(
            "the photo is of no format that this page reads, as PNG, JPEG, TIFF, WebP"
        )
    if size[0] * size[1] > most:
        raise ValueError(
            f"the photo has {size[0]}x{size[1]} pixels (height x width); this page takes "
            f"{most / 1e6:.3g} million: make it smaller, or start it with --max-pixels"
        )
    memory.refuse_to_decode("the photo", size)
    photo = photo_of(data, "the photo", channels=channels)
    if len(photo.pixels) not in (1, 3):
        raise ValueError(
            f"the photo has {len(photo.pixels)} channels, and this page shows 1 or 3: genprior "
            "restore takes others"
        )
    return photo if channels is None else replace(photo, profile=None)  # of other colours


def view(data: bytes, *, most: int) -> dict[str, Any]:
    """Make the picture that is painted on, and say what the photo is.

    Raises:
        ValueError, MemoryError: As in `decode`.
    """
    with ONE_AT_A_TIME:
        photo = decode(data, most=most)
        height, width = photo.pixels.shape[1:]
        shrink = max(height, width) / VIEW
        shown = photo.pixels
        if shrink > 1:
            size = max(1, round(height / shrink)), max(1, round(width / shrink))
            shown = torch.nn.functional.adaptive_avg_pool2d(shown, size)
        return {
            "height": height,
            "width": width,
            "channels": len(photo.pixels),
            "notes": list(photo.notes),
            "view": base64.b64encode(encode_image("view.png", shown, quick=True)).decode(),
        }


def restore(asked: Asked, job: Job, *, most: int) -> Answer:
    """Restore what was asked for.

    Args:
        asked: The photo and the rest.
        job: Is told how far it is, and may stop it.
        most: Pixels of the photo.
    Raises:
        ValueError, MemoryError: It cannot be done; it is said why.
        Stopped: The job was stopped.
    """
    job.check()
    prior = asked.solving.load_prior()
    with _heard() as warned:
        with ONE_AT_A_TIME:
            photo = decode(asked.photo, most=most, channels=asked.channels)
            mask = None if asked.mask is None else _mask(asked.mask, photo)
        job.check()
        size = asked.size(*photo.pixels.shape[1:])
        restored = restore_photo(
            photo,
            asked.degradation.settled(simulate=asked.simulate),
            asked.solving,
            prior=prior,
            simulate=asked.simulate,
            fit="resize" if size else asked.fit,
            size=size,
            mask=mask,
            say=job.said.append,
            follow=job.follow,
        )
    job.finish("Making the pictures")
    about = {key: restored.report.get(key) for key in REPORTED}
    about |= {
        "command": asked.command(size),
        "name": asked.name,
        "notes": [*photo.notes, *(str(warning.message) for warning in warned)],
    }
    result = restored.result
    shown = {"mean": result.mean[0]}
    shown |= {f"sample_{i + 1}": x for i, x in enumerate(result.samples[0])}
    shown |= {} if result.std is None else {"std": result.std[0] * 2}
    shown["measurement"] = restored.posed.measured.y[0]
    return Answer(about, {name: _png(name, x, photo, job) for name, x in shown.items()})


def _png(name: str, x: Tensor, photo: Photo, job: Job) -> bytes:
    """Encode a picture as the shell does."""
    job.check()
    bits = 16 if photo.depth > 8 else 8
    return encode_image(
        f"{name}.png", x, bits=bits, dpi=photo.dpi, profile=photo.profile, quick=True
    )


def _mask(data: bytes, photo: Photo) -> Tensor:
    """Decode a painted mask (1, 1, H, W), which must be of the photo's size."""
    size = photo.pixels.shape[1:]
    if header_size(data, MASK) != tuple(size):
        raise ValueError(f"the mask is not of the photo's size, {size[0]}x{size[1]}")
    return masks.from_grey(torch.from_numpy(grey_of(data, MASK)), MASK)[None]


@contextmanager
def _heard() -> Iterator[list[warnings.WarningMessage]]:
    """Collect the warnings of a restoration, entered and left while no file is decoded."""
    catching = warnings.catch_warnings(record=True)
    with ONE_AT_A_TIME:
        warned = catching.__enter__()
        warnings.simplefilter("always")
    try:
        assert warned is not None
        yield warned
    finally:
        with ONE_AT_A_TIME:
            catching.__exit__(None, None, None)
