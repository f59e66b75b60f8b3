"""Images of more than 8 bits, which Pillow would cut: PNG, PNM, TIFF, and arrays."""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import re
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np

from genprior.operators.files import PIXELS, SIDE

PNG = b"\x89PNG\r\n\x1a\n"
_SAMPLES = {0: 1, 2: 3, 4: 2, 6: 4}
"""PNG's colour type -> samples a pixel: grey, colour, and both with alpha."""
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
"""Top, left and the steps down and across of the first six of seven passes."""


class Deep(NamedTuple):
    """Samples (C, H, W) as the file holds them, without alpha.

    Attributes:
        alpha: (1, H, W) in [0, 1], None where all is opaque.
        depth: Bits of a sample.
        notes: What was left out or changed.
    """

    values: np.ndarray
    alpha: np.ndarray | None = None
    depth: int = 16
    notes: tuple[str, ...] = ()


def check_size(height: int, width: int) -> None:
    """Refuse sizes that no memory is given for; ask before decoding."""
    if not (0 < height <= SIDE and 0 < width <= SIDE and height * width <= PIXELS):
        raise ValueError(
            f"it is {height}x{width} (height x width); at most {PIXELS / 1e6:.0f} million pixels "
            "are read: crop it or make it smaller first"
        )


def inflated(data: bytes, size: int) -> bytes:
    """Unpack a zlib stream that must hold `size` bytes, neither more nor fewer."""
    stream = zlib.decompressobj()
    content = stream.decompress(data, size + 1)
    if len(content) != size or not stream.eof:
        raise ValueError("its pixels are damaged, or fewer or more than its header says")
    return content


def png(chunks: dict[bytes, bytes]) -> bytes:
    """Put a PNG together."""
    return PNG + b"".join(_chunk(kind, content) for kind, content in chunks.items())


def _chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def _png_chunks(data: bytes) -> dict[bytes, bytes]:
    """Read the chunks of a PNG, every checksum verified, those of a kind joined."""
    found: dict[bytes, bytes] = {}
    pixels, place = [], len(PNG)
    while b"IEND" not in found:
        size = int.from_bytes(data[place : place + 4], "big")
        kind, content = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        if data[place : place + 12 + size] != _chunk(kind, content):
            raise ValueError(f"it is cut short or damaged in its chunk {kind!r}")
        pixels += [content] if kind == b"IDAT" else []
        found.setdefault(kind, content)
        place += 12 + size
    return found | {b"IDAT": b"".join(pixels)}


def read_png16(data: bytes) -> Deep:
    """Decode a 16-bit PNG.

    The decoder kills the process on a stream of another length than the header says, so it is
    given only what has been unpacked and measured here.
    """
    chunks = _png_chunks(data)
    width, height, depth, kind, packing, filters, interlaced = struct.unpack(
        ">IIBBBBB", chunks[b"IHDR"]
    )
    check_size(height, width)
    if depth != 16 or kind not in _SAMPLES or packing or filters or interlaced > 1:
        raise ValueError("its header is damaged")
    passes = (*_ADAM7, (1, 0, 2, 1)) if interlaced else ((0, 0, 1, 1),)
    sizes = [
        (len(range(top, height, down)), 1 + 2 * _SAMPLES[kind] * len(range(left, width, across)))
        for top, left, down, across in passes
        if left < width
    ]
    raw = inflated(chunks[b"IDAT"], sum(rows * line for rows, line in sizes))
    place = 0
    for rows, line in sizes:
        if rows and max(raw[place : place + rows * line : line]) > 4:
            raise ValueError("its pixels are damaged")
        place += rows * line
    import torch
    from torchvision.io import ImageReadMode, decode_png

    safe = png({b"IHDR": chunks[b"IHDR"], b"IDAT": zlib.compress(raw, 0), b"IEND": b""})
    encoded = torch.frombuffer(bytearray(safe), dtype=torch.uint8)
    values = decode_png(encoded, ImageReadMode.UNCHANGED).numpy().astype(np.uint16)
    if kind in (4, 6):
        return Deep(values[:-1], values[-1:] / 65535)
    if b"tRNS" not in chunks:
        return Deep(values)
    key = np.frombuffer(chunks[b"tRNS"], ">u2")
    if len(key) != len(values):
        raise ValueError("its transparent colour is damaged")
    return Deep(values, 1.0 - (values == key[:, None, None]).all(0, keepdims=True))


def read_pnm16(data: bytes) -> Deep:
    """Decode a binary PGM or PPM of more than 8 bits, scaled from its largest value to 65535."""
    header = re.match(rb"P([56])" + 3 * rb"(?:\s+|#[^\n]*\n)+(\d{1,9})" + rb"\s", data)
    if header is None:
        raise ValueError("more than 8 bits are read of binary PGM and PPM only: save it as PNG")
    kind, width, height, top = (int(word) for word in header.groups())
    check_size(height, width)
    samples = 3 if kind == 6 else 1
    count = height * width * samples
    if len(data) - header.end() < 2 * count:
        raise ValueError("it is cut short")
    values = np.frombuffer(data, ">u2", count, header.end()).reshape(height, width, samples)
    if int(values.max()) > top:
        raise ValueError(f"it has values above {top}, the largest that its header allows")
    more = len(data) - header.end() - 2 * count
    notes = ("holds more than one picture; only the first is read",) if more > 1 else ()
    return Deep(full_range(values.transpose(2, 0, 1), top), None, top.bit_length(), notes)


def full_range(values: np.ndarray, top: int) -> np.ndarray:
    """Scale whole numbers 0 ... top to uint16, 0 ... 65535."""
    if top == 65535:
        return values.astype(np.uint16)
    return np.rint(values * (65535 / top)).astype(np.uint16)


logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it says is said once

_READ = {"MINISWHITE", "MINISBLACK", "RGB"}
_PLAIN, _DEFLATE, _PACKBITS = 1, (8, 32946), 32773
# What tifffile raises on damaged files, besides its own error.
_DAMAGED = (LookupError, TypeError, ArithmeticError, AttributeError, AssertionError, RuntimeError)


def read_tiff(data: bytes) -> Deep:
    """Decode the first page of a TIFF: any number of samples, whole numbers or floats.

    Grey and colour of 9 to 15 bits are scaled to 16; floats and wider whole numbers are as they
    are in the file.
    """
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages[0]
            if not isinstance(page, tifffile.TiffPage):
                raise ValueError("its first page is damaged")
            _check_tiff(page, data)
            values = page.asarray()
            several = len(file.pages) > 1
            orientation = page.tags.valueof(274, 1)
    except (tifffile.TiffFileError, struct.error, *_DAMAGED) as error:
        raise ValueError(f"it is damaged ({error})") from error
    if page.axes not in ("YX", "YXS", "SYX"):
        raise ValueError(f"its first page has the axes {page.axes}, not one height and width")
    values = values[None] if page.axes == "YX" else values
    values = values.transpose(2, 0, 1) if page.axes == "YXS" else values
    notes = ("holds several pages; only the first is read",) if several else ()
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        if values.dtype.kind != "u":
            raise ValueError("its white is 0 and its samples are no whole numbers from 0")
        values = (2**page.bitspersample - 1) - values
    alpha = None
    colours = 3 if page.photometric == tifffile.PHOTOMETRIC.RGB else 1
    if len(page.extrasamples) == 1 and int(page.extrasamples[0]) in (1, 2):
        values, alpha = values[:colours], values[colours:]
        top = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
        alpha = alpha / top
        if int(page.extrasamples[0]) == 1:  # colours are stored times alpha
            opaque = np.divide(values, alpha, out=np.zeros(values.shape), where=alpha > 0)
            values = np.rint(opaque).clip(0, top).astype(values.dtype) if top > 1 else opaque
    values = upright(values, int(orientation))
    alpha = None if alpha is None else upright(alpha, int(orientation))
    if values.dtype == np.uint16 and 8 < page.bitspersample < 16:
        values = full_range(values, 2**page.bitspersample - 1)
    return Deep(values, alpha, page.bitspersample, notes)


def _check_tiff(page: Any, data: bytes) -> None:
    """Refuse what would be read wrongly, cut short, or without bound."""
    check_size(page.imagelength, page.imagewidth)
    if page.imagedepth != 1 or math.prod(page.shape) > 16 * PIXELS:
        raise ValueError("it has more samples than are read")
    if page.photometric.name not in _READ:
        raise ValueError(
            f"its colours ({page.photometric.name}) are read of 8 bits only: save it as RGB"
        )
    if page.dtype is None or page.dtype.kind not in "uif":
        raise ValueError(f"its samples ({page.dtype}) are no numbers that are read")
    for start, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        if size == 0 or start + size > len(data):
            raise ValueError("it is cut short")
        if page.compression in _DEFLATE:
            most = math.prod(page.chunks) * page.dtype.itemsize
            unpacked = zlib.decompressobj().decompress(data[start : start + size], most + 1)
            if len(unpacked) > most:
                raise ValueError("it unpacks to more than its header says")
    if page.compression in (_PLAIN, *_DEFLATE, _PACKBITS):
        return
    if importlib.util.find_spec("imagecodecs") is None:
        raise ValueError(
            f"its compression ({page.compression.name}) of {page.bitspersample} bits needs "
            "imagecodecs (pip install genprior[formats]), or save it without compression"
        )


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror (C, H, W) as EXIF's orientation 1 ... 8 says."""
    if orientation > 4:
        values = values.transpose(0, 2, 1)
    across = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    down = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    return values[:, down, across] if orientation in range(2, 9) else values
