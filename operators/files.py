"""Files: written whole or not at all; images read as grey values."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor


def read_grey(path: str | Path) -> Tensor:
    """Read a grey, colour or palette image without transparency as (H, W), float64 in [0, 1].

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no image, damaged, or partly transparent.
    """
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)  # as the photo that it belongs to
            if (
                image.has_transparency_data
                and np.asarray(image.convert("RGBA"))[..., 3].min() < 255
            ):
                raise ValueError(f"{path} is partly transparent: flatten it to black and white")
            # I and F hold more than 8 bits; everything else becomes 8-bit grey.
            deep = image.mode[0] in "IF"
            values = np.array(image if deep else image.convert("L"), dtype=np.float64)
            scale = {"I": 65535.0, "F": 1.0}.get(image.mode[0], 255.0)
    except FileNotFoundError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    return torch.from_numpy(values / scale)


def write_atomically(path: str | Path, content: bytes | memoryview) -> None:
    """Write `content` beside `path` and move it there in one step, safe from a crash.

    Raises:
        OSError: It cannot be written; what was at `path` is intact.
    """
    path = Path(path)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)  # mkstemp makes it private
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
