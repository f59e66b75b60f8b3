"""Read and write single images, as (C, H, W) in [0, 1], with what files say beside the pixels."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genprior.operators.files import read_bytes, write_atomically
from genprior.operators.files.deep import png
from genprior.operators.files.picture import Range, decode, header_size, in_unit, with_channels

SUFFIXES = frozenset(
    (
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".gif"),
        *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
        *(".jp2", ".j2k", ".jpf", ".jpx", ".avif"),
    )
)
"""What is read without an extra."""

EXTRA = {**dict.fromkeys((".heic", ".heif", ".hif"), "pillow_heif"), ".dcm": "pydicom"}
"""What is read with the extra [formats]: suffix -> its library."""

UNREAD = frozenset(
    (
        *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef"),
        *(".psd", ".xcf", ".svg", ".eps", ".tga", ".ico", ".qoi", ".pcx", ".sgi", ".rgb", ".dds"),
        *(".exr", ".hdr", ".jxl", ".fits", ".fit", ".svs", ".ndpi", ".czi", ".lif", ".nd2"),
    )
)
"""What is an image by its suffix and is not read: said, not passed over."""

WRITTEN = {
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".jpg", ".jpeg", ".jfif"), "JPEG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm"), "PPM"),
    **{".bmp": "BMP", ".webp": "WEBP", ".npy": "NPY"},
}
"""Suffix -> format of what is written; all keep every level but JPEG, at quality 95."""


@dataclass(frozen=True)
class Photo:
    """One image and what its file says of it.

    Attributes:
        pixels: (C, H, W) float32 in [0, 1], upright, sRGB where the file says how to convert.
        depth: Bits of a sample in the file: 1, 8, 12, 16, 32.
        grey: One channel, or equal ones.
        form: The format's name: "PNG", "JPEG", "TIFF", "NPY", ...
        dpi: Pixels an inch, across and down; None where the file does not say.
        profile: An ICC profile that has not been applied: pass it to `write_image`.
        steps: A JPEG's (8, 8) steps of rounding, by frequency, in units of 1/255; else None.
        notes: What was left out or changed in reading, and has been warned of.
    """

    pixels: Tensor
    depth: int
    grey: bool
    form: str
    dpi: tuple[float, float] | None = None
    profile: bytes | None = None
    steps: Tensor | None = None
    notes: tuple[str, ...] = ()


def read_photo(
    path: str | Path, *, channels: int | None = None, value_range: Range = None
) -> Photo:
    """Read one image file, or one .npy array, with what it says beside its pixels.

    EXIF orientation is applied, colours are converted to sRGB, transparency is laid on white,
    deep images keep their depth (the result is float32). What else is left out or changed, such
    as further pages, is warned of, one line a file.

    Args:
        path: The file.
        channels: 1 (colour becomes luma) or 3 (grey is repeated); None keeps what the file has.
        value_range: The file's values that become 0 and 1, as (0, 4095) for 12 bits in 16;
            "auto": its least and its largest; None: what the format says.
    Raises:
        ValueError: The file is empty, truncated, no image, not a regular file, too large, or
            strays from [0, 1]; it is named.
        FileNotFoundError: There is no such file.
    """
    if refused := refusal(path):
        raise ValueError(refused)
    photo = photo_of(read_bytes(path), str(path), channels=channels, value_range=value_range)
    if photo.notes:
        warnings.warn(f"{path}: {'; '.join(photo.notes)}", stacklevel=2)
    return photo


def photo_of(
    data: bytes, name: str, *, channels: int | None = None, value_range: Range = None
) -> Photo:
    """Decode what `read_photo` reads, called `name` in errors; its notes are not warned of."""
    picture = decode(data, name)
    values, notes = in_unit(picture.values, name, value_range)
    notes = picture.notes + notes
    grey = len(values) == 1 or (len(values) == 3 and bool((values == values[:1]).all()))
    if channels is not None:
        values = with_channels(values, channels, name)
    said = {name: getattr(picture, name) for name in ("depth", "form", "dpi", "profile")}
    steps = None if picture.steps is None else torch.from_numpy(picture.steps)
    return Photo(to_float(values), grey=grey, steps=steps, notes=notes, **said)


def read_image(
    path: str | Path, *, channels: int | None = None, value_range: Range = None
) -> Tensor:
    """Read one image file's pixels, (C, H, W) float32 in [0, 1], as `read_photo` does."""
    return read_photo(path, channels=channels, value_range=value_range).pixels


def refusal(path: str | Path) -> str:
    """Say why a file is not read, by its suffix; empty where it is."""
    suffix = Path(path).suffix.lower()
    if suffix in UNREAD:
        return f"{path}: {suffix} is not read: convert it to PNG or TIFF"
    if suffix in EXTRA and find_spec(EXTRA[suffix]) is None:
        return f"{path}: {suffix} needs {EXTRA[suffix]}: pip install genprior[formats]"
    return ""


def image_size(path: str | Path) -> tuple[int, int]:
    """Read the (height, width) of an image file, in most formats without decoding its pixels.

    Raises:
        ValueError: It is no image, or has more pixels than are read.
    """
    data = read_bytes(path)
    return header_size(data, str(path)) or decode(data, str(path)).values.shape[1:]


def write_image(
    path: str | Path,
    x: Tensor,
    *,
    bits: int = 8,
    dpi: tuple[float, float] | None = None,
    profile: bytes | None = None,
    force: bool = False,
) -> None:
    """Write one image, atomically: a reader sees the old file or the whole new one.

    Args:
        path: By its suffix a PNG, JPEG, TIFF, WebP (lossless), BMP, PPM, or .npy (float32 as it
            is, any number of channels).
        x: The image, (C, H, W) or (H, W), C = 1 or 3 (any number in a TIFF or .npy), floats in
            [0, 1]; pixels outside are clipped, but not in a .npy.
        bits: 8, or 16 (PNG and TIFF).
        dpi: Pixels an inch, across and down (PNG, TIFF and JPEG keep it).
        profile: ICC profile of the colours (PNG, TIFF and JPEG keep it).
        force: Replace an existing file.
    Raises:
        FileExistsError: The file exists and `force` is not set.
        ValueError: NaN in x, or a shape, suffix or bit depth that cannot be written.
    """
    path = Path(path)
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists; force=True (--force) replaces it")
    write_atomically(path, encode_image(path, x, bits=bits, dpi=dpi, profile=profile))


def encode_image(
    path: str | Path,
    x: Tensor,
    *,
    bits: int = 8,
    dpi: tuple[float, float] | None = None,
    profile: bytes | None = None,
    quick: bool = False,
) -> bytes:
    """Return what `write_image` writes to a path, for the same arguments.

    A `quick` PNG of 8 bits takes a third of the time and a tenth more room.
    """
    path = Path(path)
    form = WRITTEN.get(path.suffix.lower())
    pixels = x.detach().to("cpu", torch.float64)
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if form is None or bits not in (8, 16) or (bits == 16 and form not in ("PNG", "TIFF", "NPY")):
        raise ValueError(f"cannot write {bits} bits to {path.name!r}; try .png with bits=8 or 16")
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise ValueError(f"an image (C, H, W) was expected, {tuple(x.shape)} came")
    if pixels.shape[0] not in (1, 3) and form not in ("TIFF", "NPY"):
        raise ValueError(f"{len(pixels)} channels go into .tif or .npy, not into {path.name!r}")
    if not torch.isfinite(pixels).all():
        raise ValueError(f"{path} is not written: the image has NaN or infinite pixels")
    if form == "NPY":
        file = io.BytesIO()
        np.save(file, pixels.float().numpy())
        return file.getvalue()
    values = (pixels.clamp(0, 1) * (2**bits - 1)).round().permute(1, 2, 0).numpy()
    values = values.astype(np.uint16 if bits == 16 else np.uint8)
    about = {"compress_level": 1} if quick and form == "PNG" else {}
    return _encoded(values, form, dpi, profile, about)


def to_float(array: np.ndarray) -> Tensor:
    """Map uint8 or uint16 to float32 in [0, 1]; floats pass."""
    if array.dtype == np.uint8:
        return torch.tensor(array).float().div_(255)  # in torch: several times faster
    if array.dtype == np.uint16:
        return torch.from_numpy(array.astype(np.float32)).div_(65535)
    return torch.tensor(array, dtype=torch.float32)


def _encoded(
    values: np.ndarray,
    form: str,
    dpi: tuple[float, float] | None,
    profile: bytes | None,
    options: dict[str, Any],
) -> bytes:
    """Encode (H, W, C) uint8 or uint16."""
    file = io.BytesIO()
    values = values[..., 0] if values.shape[-1] == 1 else values
    if form == "TIFF":
        import tifffile

        colour = values.shape[2:] == (3,)
        tifffile.imwrite(
            file,
            values,
            photometric="rgb" if colour else "minisblack",
            planarconfig="contig" if values.ndim == 3 else None,
            compression="zlib",
            resolution=dpi,
            resolutionunit=None if dpi is None else "inch",
            iccprofile=profile,
        )
        return file.getvalue()
    if values.dtype == np.uint16:
        return _encode_png16(values, dpi, profile)
    about: dict[str, Any] = {"dpi": dpi, "icc_profile": profile}
    about = {key: value for key, value in about.items() if value is not None}
    about |= {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(
        form, options
    )
    Image.fromarray(values).save(file, format=form, **about)
    return file.getvalue()


def _encode_png16(
    values: np.ndarray, dpi: tuple[float, float] | None, profile: bytes | None
) -> bytes:
    """Encode (H, W) or (H, W, 3) uint16; Pillow writes no 16-bit colour."""
    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 0 if values.ndim == 2 else 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values.astype(">u2"))  # filter 0: as it is
    chunks = {b"IHDR": header}
    if profile is not None:
        chunks[b"iCCP"] = b"profile\0\0" + zlib.compress(profile)
    if dpi is not None:
        chunks[b"pHYs"] = struct.pack(">IIB", *(round(d / 0.0254) for d in dpi), 1)
    return png(chunks | {b"IDAT": zlib.compress(rows), b"IEND": b""})
