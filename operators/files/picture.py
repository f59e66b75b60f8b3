"""The one decoder of images: what a file holds, and all that it says of itself."""

from __future__ import annotations

import io
import math
import struct
import tokenize
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from genprior.operators.files import PIXELS, extra, read_bytes
from genprior.operators.files.deep import (
    Deep,
    check_size,
    full_range,
    read_png16,
    read_pnm16,
    read_tiff,
    upright,
)

Range = tuple[float, float] | Literal["auto"] | None
"""The values of black and white in a file; auto: its least and its largest; None: the format's."""

FORMATS = (*("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF"),)
"""What Pillow may try; its others run programs, or cut and drop in silence."""

ROUNDING = 1 / 255
"""How far outside [0, 1] a floating-point photo may stray before it is refused."""

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# What Pillow and numpy raise on bytes that are no image, or only the beginning of one.
_UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, ArithmeticError, TypeError),
    *(struct.error, zlib.error, tokenize.TokenError, RuntimeError, MemoryError),
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Picture:
    """What one image file holds.

    Attributes:
        values: (C, H, W), upright: uint8 and uint16 over their whole range, or the numbers of the
            file where their range is not known.
        depth: Bits of a sample in the file.
        form: The format's name, "PNG".
        dpi: Pixels an inch, across and down.
        profile: An ICC profile that has not been applied, and belongs into what is written.
        steps: (8, 8) steps that a JPEG's brightness was rounded to, by frequency, of 255.
        transparent: Some pixels were seen through; they were laid on white.
        notes: What was left out or changed, one sentence each.
    """

    values: np.ndarray
    depth: int = 8
    form: str = ""
    dpi: tuple[float, float] | None = None
    profile: bytes | None = None
    steps: np.ndarray | None = None
    transparent: bool = False
    notes: tuple[str, ...] = ()


def decode(data: bytes, name: str, *, managed: bool = True) -> Picture:
    """Decode an encoded image or .npy array.

    Args:
        data: The file's content.
        name: What to call it in errors; .npy and .dcm are known by it.
        managed: Convert colours to sRGB from the profile that the file holds.
    Raises:
        ValueError: It is empty, truncated, damaged, no image, or too large; it is named.
    """
    if not data:
        raise ValueError(f"{name} is empty (0 bytes), not an image")
    with _named(data, name):
        if name.lower().endswith(".npy"):
            return _from_npy(data)
        if data[128:132] == b"DICM":
            return _from_dicom(data)
        return _from_image(data, managed)


def header_size(data: bytes, name: str) -> tuple[int, int] | None:
    """Read (height, width) without decoding; None where only decoding tells.

    Raises:
        ValueError: It is more than is read.
    """
    with _named(data, name), suppress(UnidentifiedImageError), _opened(data) as image:
        check_size(image.height, image.width)
        return image.height, image.width


@contextmanager
def _named(data: bytes, name: str) -> Iterator[None]:
    """Say which file it was that cannot be read, and why."""
    try:
        yield
    except _UNREADABLE as error:
        raise ValueError(f"{name} cannot be read as an image: {_reason(data, error)}") from error


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open with Pillow, without its warnings of odd metadata and large images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=_known_formats()) as image:
            yield image


def declared(file: IO[bytes]) -> tuple[tuple[int, ...], int]:
    """Read the header of a .npy: the shape of its array, and how many bytes of values follow."""
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"its version {version} of .npy is not read")
    shape, _, dtype = read[version](file)
    return shape, dtype.itemsize * math.prod(shape)


def _from_npy(data: bytes) -> Picture:
    file = io.BytesIO(data)
    _, size = declared(file)
    came = len(data) - file.tell()
    if size > came:  # it would be made room for
        raise ValueError(f"its header declares {size} bytes, {came} came")
    values = channels_first(np.load(io.BytesIO(data), allow_pickle=False))
    check_size(*values.shape[1:])
    if values.dtype.kind not in "buif":
        raise ValueError(f"pixels must be numbers, not {values.dtype}")
    return Picture(values, 8 * values.itemsize, "NPY")


def _reason(data: bytes, error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {PIXELS / 1e6:.0f} million pixels: make it smaller first"
    if isinstance(error, UnidentifiedImageError):
        text = not (set(data[:512]) & set(range(9)))
        return "it holds text" if text else "its format is unknown, or its beginning is damaged"
    return str(error) or type(error).__name__


def _from_image(data: bytes, managed: bool) -> Picture:
    try:
        with _opened(data) as image:
            check_size(image.height, image.width)
            form = "JPEG" if image.format == "MPO" else image.format or ""
            dpi, steps = _dpi(image), _steps(image)
            deep = _deep(image, data)
            if deep:
                turn = image.getexif().get(0x0112, 1) if form == "PNG" else 1
                picture = _from_deep(deep, image.info.get("icc_profile"), turn)
            else:
                picture = _from_pillow(image, managed)
            notes = picture.notes + tuple(_left_out(image, data))
            return replace(picture, notes=notes, form=form, dpi=dpi, steps=steps)
    except UnidentifiedImageError:
        if data[:4] not in _TIFF:
            raise
        # more samples or bits than Pillow has modes for
        return replace(_from_deep(read_tiff(data)), form="TIFF")


@cache
def _known_formats() -> tuple[str, ...]:
    Image.init()
    if "HEIF" not in Image.OPEN:
        with suppress(ImportError):
            import_module("pillow_heif").register_heif_opener()  # of the extra [formats]
    return tuple(form for form in FORMATS if form in Image.OPEN)


def _from_dicom(data: bytes) -> Picture:
    pydicom = extra("DICOM", "pydicom")
    try:
        file = pydicom.dcmread(io.BytesIO(data))
        if file.get("NumberOfFrames", 1) != 1 or file.SamplesPerPixel != 1:
            raise ValueError("DICOM is read of one grey frame only")
        check_size(int(file.Rows), int(file.Columns))
        values, top = file.pixel_array[None], 2 ** int(file.BitsStored) - 1
    except (AttributeError, pydicom.errors.InvalidDicomError) as error:
        raise ValueError(f"it is damaged ({error})") from error
    notes = ()
    if "RescaleSlope" in file or "WindowCenter" in file:
        notes = ("its rescaling and window are not applied: these are the numbers as stored",)
    if file.PhotometricInterpretation == "MONOCHROME1":
        values = top - values if values.dtype.kind == "u" else ~values  # white is the least
    if values.dtype.kind == "u":
        values = values if top == 255 else full_range(values, top)
    return Picture(values, int(file.BitsStored), "DICOM", notes=notes)


def _deep(image: Image.Image, data: bytes) -> Deep | None:
    """Read what Pillow would cut to 8 bits or take for something else; None for all others."""
    mode = image.mode
    if image.format == "PNG" and data[24] == 16:
        return read_png16(data)
    if image.format == "PPM" and data[:2] in (b"P3", b"P5", b"P6") and _largest(image) > 255:
        return read_pnm16(data)
    if image.format == "JPEG2000" and mode == "I;16":
        depth = _depth_declared(data)
        values = np.asarray(image) >> (16 - depth)  # Pillow shifts them up
        return Deep(full_range(values, 2**depth - 1)[None], None, depth)
    if image.format != "TIFF":
        return None
    tags: dict[int, Any] = dict(getattr(image, "tag_v2", {}))
    if tags.get(254, 0) & 1:
        raise ValueError("it shows a preview first, as a camera's raw file does: save it as PNG")
    depth, samples = max(tags.get(258, (1,))), tags.get(277, 1)
    if depth <= 8 and samples == len(image.getbands()):
        return None
    white_is_least = tags.get(262) == 0
    if (mode, depth) == ("F", 32) and not white_is_least:
        return Deep(np.asarray(image)[None], None, 32)
    if not mode.startswith("I;16"):
        return read_tiff(data)
    values = full_range(np.asarray(image).astype(np.uint16), 2**depth - 1)[None]
    return Deep(65535 - values if white_is_least else values, None, depth)  # already upright


_LAID_ON_WHITE = ("its transparent pixels are laid on white",)


def _from_deep(deep: Deep, profile: bytes | None = None, turn: int = 1) -> Picture:
    values, alpha, depth, notes = deep
    if profile and "sRGB" not in (name := _profile_name(profile)):
        notes += (f"its colour profile ({name}) is not applied to {depth} bits",)
    transparent = False
    if alpha is not None and (alpha < 1).any():
        transparent = True
        white = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1
        laid = values * alpha + white * (1 - alpha)
        values = (laid if white == 1 else np.rint(laid)).astype(values.dtype)
        notes += _LAID_ON_WHITE
    return Picture(
        upright(values, turn), depth, profile=profile, transparent=transparent, notes=notes
    )


def _from_pillow(image: Image.Image, managed: bool) -> Picture:
    """Bring 8 bits of any mode to grey or sRGB."""
    depth = 1 if image.mode == "1" else 8
    profile = image.info.get("icc_profile")
    image.load()
    image = ImageOps.exif_transpose(image)
    grey = image.mode in ("1", "L", "LA", "La")
    transparent, notes = False, ()
    if image.mode in ("I", "F"):  # plain PGM of 16 bits, PFM
        values = np.asarray(image)[None]
        return Picture(values, 32) if image.mode == "F" else Picture(values.astype(np.uint16), 16)
    if image.has_transparency_data:
        full = image.convert("RGBA")
        alpha = full.getchannel("A")
        image = Image.new("RGB", full.size, "white")
        image.paste(full, mask=alpha)
        transparent = alpha.getextrema() != (255, 255)
        notes += _LAID_ON_WHITE if transparent else ()
    if image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("L" if grey else "RGB")
    if image.mode in ("CMYK", "LAB") or (profile and managed):
        image, note = _in_srgb(image, profile)
        notes += (note,) if note else ()
    values = np.asarray(image.convert("L") if grey else image)
    values = np.atleast_3d(values).transpose(2, 0, 1)
    return Picture(values, depth, transparent=transparent, notes=notes)


def _in_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str]:
    """Convert colours to sRGB, and say from what."""
    name = _profile_name(profile) if profile else ""
    if "sRGB" in name and image.mode in ("L", "RGB"):
        return image, ""
    if image.mode == "CMYK" and not profile:
        return image.convert("RGB"), "is CMYK without a profile; its colours are rough"
    try:
        source = io.BytesIO(profile) if profile else ImageCms.createProfile("LAB")
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.buildTransform(source, srgb, image.mode, "RGB").apply(image)
    except (ImageCms.PyCMSError, OSError) as error:
        if image.mode == "LAB":
            raise ValueError(f"its Lab colours cannot be converted: {error}") from error
        return image.convert("RGB") if image.mode == "CMYK" else image, (
            f"its colour profile ({name}) does not fit and is ignored"
        )
    return converted, f"its colours are converted from {name or 'Lab'} to sRGB"


def _profile_name(profile: bytes) -> str:
    try:
        return ImageCms.getProfileDescription(io.BytesIO(profile)).strip()
    except (ImageCms.PyCMSError, OSError):
        return "damaged"


def _left_out(image: Image.Image, data: bytes) -> list[str]:
    """Say what the first page at 8 bits does not show."""
    notes = []
    if getattr(image, "is_animated", False):
        notes.append("holds several pages or frames; only the first is read")
    if image.format in ("JPEG2000", "AVIF", "HEIF") and not image.mode.startswith("I"):
        depth = _depth_declared(data)
        if depth > 8:
            notes.append(f"its {depth} bits are cut to 8: save it as 16-bit PNG or TIFF")
    gamma = image.info.get("gamma")
    if gamma and abs(gamma * 2.2 - 1) > 0.05 and "icc_profile" not in image.info:
        notes.append(f"is written for a gamma of {1 / gamma:.2g}; it is read as sRGB")
    return notes


def _depth_declared(data: bytes) -> int:
    """Read the bits of a sample from the headers of JPEG 2000, AVIF or HEIF."""
    codestream, box = data.find(b"\xff\x4f\xff\x51"), data.find(b"pixi")
    if data[4:8] == b"ftyp":
        return data[box + 9] if box > 0 else 8
    return (data[codestream + 42] & 127) + 1


def _largest(image: Image.Image) -> int:
    """The largest value of a PNM, which Pillow keeps for its decoder only."""
    arguments: Any = vars(image)["tile"][0][3]
    if image.mode == "I" or arguments[0] == "I;16B":
        return 65535
    return arguments[1] if isinstance(arguments[1], int) else 255


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    dpi = image.info.get("dpi")
    if not isinstance(dpi, tuple) or not all(1 <= float(d) <= 1e5 for d in dpi):
        return None
    return float(dpi[0]), float(dpi[1])


def _steps(image: Image.Image) -> np.ndarray | None:
    table = getattr(image, "quantization", {}).get(0)
    if table is None:
        return None
    steps = np.array(table, dtype=float).reshape(8, 8)
    return steps.T if image.getexif().get(0x0112, 1) > 4 else steps


# Values


def channels_first(array: np.ndarray, *, stacked: bool = False) -> np.ndarray:
    """Bring (H, W), (H, W, C) or (C, H, W) to (C, H, W), behind a first axis N if `stacked`.

    Of the axes that may be channels the shorter one is.
    """
    first = int(stacked)
    if array.ndim == first + 2:
        array = np.expand_dims(array, first)
    elif array.ndim == first + 3 and array.shape[-1] <= array.shape[first]:
        array = np.moveaxis(array, -1, first)
    if array.ndim != first + 3 or 0 in array.shape:
        n = "N, " if stacked else ""
        wanted = f"({n}H, W), ({n}H, W, C) or ({n}C, H, W)"
        raise ValueError(f"{wanted} was expected, {array.shape} came")
    return array


def in_unit(
    array: np.ndarray, name: str, value_range: Range = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Bring values to what stands for [0, 1]: uint8 and uint16 as they are, else float32.

    Args:
        array: Of any shape.
        name: What to call it in errors.
        value_range: The values of black and white.
    Returns:
        The array, and notes on what was changed or is odd.
    Raises:
        ValueError: No numbers; floats outside [0, 1] or other whole numbers without a range.
    """
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name}: pixels must be numbers, not {array.dtype}")
    if value_range is not None:
        return _spread(array, name, value_range)
    if array.dtype == np.uint8:
        return array, ()
    if array.dtype == np.uint16:
        top = int(array.max())
        if 0 < top * 8 < 65536:
            return array, (
                f"is nearly black: {top} of 65535 is its largest value; value_range=(0, {top}) or "
                "'auto' (--value-range) makes it white",
            )
        return array, ()
    low, high = float(array.min()), float(array.max())
    if array.dtype.kind in "iu":
        raise ValueError(
            f"{name} holds {array.dtype} from {low:.6g} to {high:.6g}, and nothing says what is "
            f"white: give value_range=({min(low, 0):.6g}, {high:.6g}) or 'auto' (--value-range)"
        )
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # NaN fails too
        raise ValueError(
            f"{name} has pixels from {low:.4g} to {high:.4g}; they must lie in [0, 1]: divide by "
            "the largest value that the format can hold, or give value_range (--value-range)"
        )
    array = array.astype(np.float32, copy=False)
    return (array if low >= 0 and high <= 1 else array.clip(0, 1)), ()


def _spread(
    array: np.ndarray, name: str, value_range: tuple[float, float] | Literal["auto"]
) -> tuple[np.ndarray, tuple[str, ...]]:
    low, high = float(array.min()), float(array.max())
    if not np.isfinite(low + high):
        raise ValueError(f"{name} has NaN or infinite pixels")
    black, white = (low, high) if value_range == "auto" else value_range
    if not white > black:
        raise ValueError(f"{name}: a range of values must rise, not go from {black} to {white}")
    values = ((array - np.float64(black)) / (white - black)).astype(np.float32)
    if low >= black and high <= white:
        return values, ()
    share = float(((array < black) | (array > white)).mean())
    return values.clip(0, 1), (f"{share:.1%} of its values lie outside the range and are clipped",)


def with_channels(array: np.ndarray, channels: int, name: str) -> np.ndarray:
    """Convert (..., C, H, W) to the asked channel count: grey repeated, colour to luma."""
    have = array.shape[-3]
    if have == channels:
        return array
    if have == 1:
        return np.repeat(array, channels, axis=-3)
    if have == 3 and channels == 1:  # ITU-R 601, as Pillow's own conversion
        luma = np.tensordot(array, np.array([0.299, 0.587, 0.114]), axes=([-3], [0]))
        if array.dtype.kind != "f":
            luma = np.rint(luma)
        return np.expand_dims(luma, -3).astype(array.dtype)
    raise ValueError(f"{name} has {have} channels, which cannot become {channels}")


def read_grey(path: str | Path, *, any_range: bool = False) -> np.ndarray:
    """Read a mask or kernel as (H, W), float64 in [0, 1]; its colours are taken as they stand.

    Args:
        path: An image or .npy file.
        any_range: Numbers whose white is not known, and floats, are returned as they are.
    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no image, damaged, or partly transparent.
    """
    return grey_of(read_bytes(path), str(path), any_range=any_range)


def grey_of(data: bytes, name: str, *, any_range: bool = False) -> np.ndarray:
    """Decode what `read_grey` reads; it is called `name` in errors."""
    picture = decode(data, name, managed=False)
    if picture.transparent:
        raise ValueError(f"{name} is partly transparent: flatten it to black and white")
    if picture.notes:
        warnings.warn(f"{name}: {'; '.join(picture.notes)}", stacklevel=4)
    if picture.form == "NPY" and len(picture.values) != 1:
        raise ValueError(f"{name} must be (H, W), not {picture.values.shape}")
    values = with_channels(picture.values, 1, name)[0]
    if not any_range and values.dtype not in (np.uint8, np.uint16):
        values, _ = in_unit(values, name)
    top = np.iinfo(values.dtype).max if values.dtype in (np.uint8, np.uint16) else 1
    return values.astype(np.float64) / top
