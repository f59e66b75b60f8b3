"""Read and write single images: any format that Pillow knows, and arrays, as (C, H, W)."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from genprior.operators.files import write_atomically

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"})
ROUNDING = 1 / 255
"""How far outside [0, 1] a floating-point photo may stray before it is refused."""

_PNG = b"\x89PNG\r\n\x1a\n"
# What Pillow raises on bytes that are no image, or only the beginning of one.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def read_image(path: str | Path, *, channels: int | None = None) -> Tensor:
    """Read one image file, or one .npy array, as floats.

    EXIF orientation is honoured, transparency laid on white; palette, CMYK and 16-bit images are
    converted (16 bits lose nothing: the result is float32).

    Args:
        path: The file.
        channels: 1 (colour becomes luma) or 3 (grey is repeated); None keeps what the file has.
    Returns:
        The image, (C, H, W) float32, pixels in [0, 1].
    Raises:
        ValueError: The file is empty, truncated, no image, or strays from [0, 1]; it is named.
        FileNotFoundError: There is no such file.
    """
    return to_float(decode(Path(path).read_bytes(), str(path), channels=channels))


def image_size(path: str | Path) -> tuple[int, int]:
    """Read the (height, width) of an image file without decoding its pixels.

    Raises:
        ValueError: It is no image, or has more pixels than are read.
    """
    data = Path(path).read_bytes()
    if not data:
        raise ValueError(f"{path} is empty (0 bytes), not an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                return image.height, image.width
    except _UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as an image: {_reason(data, error)}") from error


def write_image(path: str | Path, x: Tensor, *, bits: int = 8, force: bool = False) -> None:
    """Write one image, atomically: a reader sees the old file or the whole new one.

    Pixels outside [0, 1], which no image file can hold, are clipped to it.

    Args:
        path: Where; the suffix gives the format.
        x: The image, (C, H, W) or (H, W), C = 1 or 3, floats in [0, 1].
        bits: 8, or 16 (PNG only).
        force: Replace an existing file.
    Raises:
        FileExistsError: The file exists and `force` is not set.
        ValueError: NaN in x, or a shape, suffix or bit depth that cannot be written.
    """
    path = Path(path)
    pixels = x.detach().to("cpu", torch.float64)
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(f"an image (1 or 3, H, W) was expected, {tuple(x.shape)} came")
    if not torch.isfinite(pixels).all():
        raise ValueError(f"{path} is not written: the image has NaN or infinite pixels")
    if path.suffix.lower() not in SUFFIXES or bits not in (8, 16):
        raise ValueError(f"cannot write {bits} bits to {path.name!r}; try .png with bits=8 or 16")
    if bits == 16 and path.suffix.lower() != ".png":
        raise ValueError(f"16 bits are written to .png only, not to {path.name!r}")
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists; force=True (--force) replaces it")
    top = 2**bits - 1
    values = (pixels.clamp(0, 1) * top).round().permute(1, 2, 0).numpy()
    if bits == 16:
        encoded = _encode_png16(values.astype(">u2"))
    else:
        buffer = io.BytesIO()
        pixels8 = values.astype(np.uint8)
        image = Image.fromarray(pixels8[..., 0] if pixels8.shape[-1] == 1 else pixels8)
        image.save(buffer, format=Image.registered_extensions()[path.suffix.lower()])
        encoded = buffer.getvalue()
    write_atomically(path, encoded)


def decode(data: bytes, name: str, *, channels: int | None = None) -> np.ndarray:
    """Decode one encoded image or .npy array.

    Args:
        data: The file's content.
        name: What to call it in errors.
        channels: As in `read_image`.
    Returns:
        (C, H, W): uint8, uint16, or float32 in [0, 1].
    Raises:
        ValueError: As in `read_image`.
    """
    if not data:
        raise ValueError(f"{name} is empty (0 bytes), not an image")
    try:
        if name.lower().endswith(".npy"):
            array = channels_first(np.load(io.BytesIO(data), allow_pickle=False))
        else:
            array = _from_pillow(data)
    except _UNREADABLE as error:
        raise ValueError(f"{name} cannot be read as an image: {_reason(data, error)}") from error
    return array if channels is None else with_channels(array, channels, name)


def with_channels(array: np.ndarray, channels: int, name: str) -> np.ndarray:
    """Convert (..., C, H, W) to the asked channel count: grey repeated, colour to luma."""
    have = array.shape[-3]
    if have == channels:
        return array
    if have == 1:
        return np.repeat(array, channels, axis=-3)
    if have == 3 and channels == 1:  # ITU-R 601, as Pillow's own conversion
        luma = np.tensordot(array, np.array([0.299, 0.587, 0.114]), axes=([-3], [0]))
        if array.dtype != np.float32:
            luma = np.rint(luma)
        return np.expand_dims(luma, -3).astype(array.dtype)
    raise ValueError(f"{name} has {have} channels, which cannot become {channels}")


def to_float(array: np.ndarray) -> Tensor:
    """Map uint8 or uint16 to float32 in [0, 1]; floats pass."""
    if array.dtype == np.uint8:
        return torch.tensor(array).float().div_(255)  # in torch: several times faster
    if array.dtype == np.uint16:
        return torch.from_numpy(array.astype(np.float32)).div_(65535)
    return torch.tensor(array, dtype=torch.float32)


def _reason(data: bytes, error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        text = not (set(data[:512]) & set(range(9)))
        return "it holds text" if text else "its format is unknown, or its beginning is damaged"
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return f"it has more than {most:.0f} million pixels: crop it or make it smaller first"
    return str(error) or type(error).__name__


def _from_pillow(data: bytes) -> np.ndarray:
    if data.startswith(_PNG) and data[24:25] == b"\x10" and data[25:26] in b"\x02\x04\x06":
        return _from_png16(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow's own, on odd metadata and large images
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        return np.asarray(image).clip(0, 65535).astype(np.uint16)[None]
    if image.mode == "F":
        return in_range(np.asarray(image), "the image")[None]
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        grey = image.mode in ("L", "LA", "La")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("L" if grey else "RGB")
    if image.mode not in ("L", "RGB"):
        grey = image.mode == "1"
        image = image.convert("L" if grey else "RGB")
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _from_png16(data: bytes) -> np.ndarray:
    """Decode what Pillow would cut to 8 bits: 16-bit colour, and grey with alpha."""
    from torchvision.io import ImageReadMode, decode_png

    with Image.open(io.BytesIO(data)) as image:
        image.verify()  # every checksum: torchvision's decoder kills the process on damaged data
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    try:
        array = decode_png(encoded, ImageReadMode.UNCHANGED, apply_exif_orientation=True).numpy()
    except RuntimeError as error:
        raise OSError(str(error).splitlines()[0]) from error
    if array.shape[0] in (2, 4):
        alpha = array[-1:] / 65535
        array = np.rint(array[:-1] * alpha + 65535 * (1 - alpha))
    return array.astype(np.uint16)


def channels_first(array: np.ndarray) -> np.ndarray:
    """Bring (H, W), (H, W, C) or (C, H, W) to (C, H, W), uint8, uint16 or float32 in [0, 1]."""
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[-1] <= array.shape[0]:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(f"(H, W), (H, W, C) or (C, H, W) was expected, {array.shape} came")
    array = check_dtype(array)
    return in_range(array, "the image") if array.dtype == np.float32 else array


def check_dtype(array: np.ndarray) -> np.ndarray:
    """Return uint8 and uint16 arrays as they are, bool and floats as float32."""
    if array.dtype in (np.uint8, np.uint16):
        return array
    if array.dtype == np.bool_ or np.issubdtype(array.dtype, np.floating):
        return array.astype(np.float32, copy=False)
    raise ValueError(f"pixels must be uint8, uint16 or floats in [0, 1], not {array.dtype}")


def in_range(array: np.ndarray, name: str) -> np.ndarray:
    """Clip floats that stray from [0, 1] by rounding; refuse those that stray further."""
    low, high = float(array.min()), float(array.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # NaN fails too
        raise ValueError(
            f"{name} has pixels from {low:.4g} to {high:.4g}; they must lie in [0, 1]: "
            "divide by the largest value that the format can hold"
        )
    return array if low >= 0 and high <= 1 else array.clip(0, 1)


def _encode_png16(values: np.ndarray) -> bytes:
    """Encode (H, W, C) big-endian uint16; Pillow writes no 16-bit colour."""
    height, width, channels = values.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 16, 0 if channels == 1 else 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values)  # filter 0: as it is
    return (
        _PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
