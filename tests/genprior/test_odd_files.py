"""Odd files: each is kept value for value, or what is changed is said, or it is refused."""

import contextlib
import gzip
import io
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from tools import identical

from genprior.cli import main
from genprior.commands.source import Source
from genprior.data import images, read_image, read_photo, write_image
from genprior.operators import kernels, masks

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)
GREY = COLOUR[..., 0].copy()
DEEP = RNG.integers(0, 65536, (12, 10, 3), dtype=np.uint16)
DEEP[0, 0], DEEP[0, 1] = 0, 65535


class Odd(NamedTuple):
    """A file and its verdict.

    Attributes:
        name: With its suffix.
        content: Its bytes.
        values: What comes, (H, W) or (H, W, C) in [0, 1]; None where it is refused.
        says: What the warning or the refusal says; None where nothing is to be said.
        within: How far the values may be off.
    """

    name: str
    content: bytes
    values: np.ndarray | None = None
    says: str | None = None
    within: float = 1e-6


def pillow(image, form, **options):
    file = io.BytesIO()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(file, form, **options)
    return file.getvalue()


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def npy(array, save=np.save):
    file = io.BytesIO()
    save(file, array)
    return file.getvalue()


def chunk(kind, content):
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(width, height, depth, kind, rows, *between, interlaced=0):
    """A PNG whose pixel stream is whatever is given."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    parts = [(b"IHDR", header), *between, (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def png16(array, *between):
    height, width = array.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[array.reshape(height, width, -1).shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return png(width, height, 16, kind, zlib.compress(rows), *between)


def interlaced16(array):
    """As Adam7 asks: seven passes over every eighth, fourth and second pixel."""
    steps = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
    steps += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b""
    for top, left, down, across in steps:
        part = array[top::down, left::across]
        rows += b"".join(b"\0" + row.astype(">u2").tobytes() for row in part)
    return png(10, 12, 16, 2, zlib.compress(rows), interlaced=1)


def laid(values, alpha):
    return values * alpha[..., None] + 1 - alpha[..., None]


ALPHA = np.full((12, 10), 51, np.uint8)
SEEN = np.where((DEEP[3, 3] == DEEP).all(-1, keepdims=True), 1.0, DEEP / 65535)
TWELVE = (DEEP >> 4).astype(np.uint16)
PALETTE = Image.fromarray(COLOUR).quantize(16)
COLOURS = np.asarray(PALETTE.convert("RGB"))
CMYK = Image.fromarray(COLOUR).convert("CMYK")
EXIF = Image.Exif()
EXIF[0x0112] = 6
BIG_TIFF = tiff(DEEP, photometric="rgb", byteorder=">", bigtiff=True)
WAVE = (127 + 100 * np.sin(np.arange(64) / 5)[:, None] * np.ones(64)).astype(np.uint8)
LAB = ImageCms.profileToProfile(
    Image.fromarray(COLOUR),
    ImageCms.createProfile("sRGB"),
    ImageCms.createProfile("LAB"),
    outputMode="LAB",
)


def with_profile(form="PNG", deep=False):
    """An image in a profile that is not sRGB."""
    profile = bytearray(SRGB)
    for kind, value in ((b"rXYZ", 0.6), (b"desc", None)):
        place = profile.index(kind, 128)
        (start,) = struct.unpack_from(">I", profile, place + 4)
        if value is None:
            text = profile[start:].find("sRGB".encode("utf-16-be"))
            profile[start + text : start + text + 8] = "Wide".encode("utf-16-be")
        else:
            struct.pack_into(">i", profile, start + 8, int(value * 65536))
    if deep:
        return png16(DEEP, (b"iCCP", b"wide\0\0" + zlib.compress(bytes(profile))))
    return pillow(COLOUR, form, icc_profile=bytes(profile))


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LARGE = np.kron(COLOUR, np.ones((8, 8, 1), np.uint8))
LINEAR = (b"gAMA", struct.pack(">I", 100000))
BOMB = png(13300, 9500 + 3800, 1, 3, zlib.compress(bytes(1 + 13300 // 8) * 13300, 9))

ODD = [
    # Eight bits: every mode, exactly
    Odd("bit.png", pillow(Image.fromarray(GREY).convert("1"), "PNG"), (GREY > 300) * 1.0, None, 1),
    Odd("grey.png", pillow(GREY, "PNG"), GREY / 255),
    Odd("colour.apng", pillow(COLOUR, "PNG"), COLOUR / 255),
    Odd("palette.png", pillow(PALETTE, "PNG"), COLOURS / 255),
    Odd("palette.gif", pillow(PALETTE, "GIF"), COLOURS / 255),
    Odd("lossless.webp", pillow(COLOUR, "WEBP", lossless=True), COLOUR / 255),
    Odd("colour.bmp", pillow(COLOUR, "BMP"), COLOUR / 255),
    Odd("colour.ppm", pillow(COLOUR, "PPM"), COLOUR / 255),
    Odd("exact.jp2", pillow(COLOUR, "JPEG2000", irreversible=False), COLOUR / 255),
    Odd("lzw.tif", pillow(COLOUR, "TIFF", compression="tiff_lzw"), COLOUR / 255),
    Odd("white0.tif", tiff(GREY, photometric="miniswhite"), 1 - GREY / 255),
    Odd("good.jfif", pillow(WAVE, "JPEG", quality=98), WAVE / 255, None, 0.02),
    Odd("good.avif", pillow(LARGE, "AVIF", quality=98), LARGE / 255, None, 0.5),
    Odd("turned.jpg", pillow(WAVE, "JPEG", exif=EXIF), np.rot90(WAVE, -1) / 255, None, 0.05),
    Odd("srgb.png", pillow(COLOUR, "PNG", icc_profile=SRGB), COLOUR / 255),
    Odd("opaque.png", pillow(np.dstack([COLOUR, ALPHA | 255]), "PNG"), COLOUR / 255),
    # ... or with a word
    Odd("alpha.png", pillow(np.dstack([COLOUR, ALPHA]), "PNG"), laid(COLOUR / 255, ALPHA / 255),
        "laid on white", 1 / 255),
    Odd("grey-alpha.png", pillow(np.dstack([GREY, ALPHA]), "PNG"),
        laid(GREY[..., None] / 255, ALPHA / 255)[..., 0], "laid on white", 1 / 255),
    Odd("key.png", pillow(GREY, "PNG", transparency=int(GREY[3, 3])),
        np.where(GREY[3, 3] == GREY, 1, GREY / 255), "laid on white"),
    Odd("cmyk.jpg", pillow(CMYK, "JPEG", quality=100), np.asarray(CMYK.convert("RGB")) / 255,
        "CMYK without a profile", 0.4),
    Odd("lab.tif", pillow(LAB, "TIFF"), COLOUR / 255, "from Lab.* to sRGB", 0.35),
    Odd("wide.png", with_profile(), None, "converted from Wide.* to sRGB"),
    Odd("wide16.png", with_profile(deep=True), DEEP / 65535,
        r"profile \(Wide.* not applied to 16"),
    Odd("broken.png", pillow(COLOUR, "PNG", icc_profile=b"no profile at all"), COLOUR / 255,
        "does not fit and is ignored"),
    Odd("linear.png", png(1, 1, 8, 0, zlib.compress(b"\0\x80"), LINEAR),
        np.full((1, 1), 128 / 255), "gamma of 1"),
    Odd("pages.tif", pillow(COLOUR, "TIFF", save_all=True,
                            append_images=[Image.fromarray(COLOUR[::-1])]),
        COLOUR / 255, "several pages"),
    Odd("moving.gif", pillow(PALETTE, "GIF", save_all=True,
                             append_images=[PALETTE.transpose(Image.Transpose.ROTATE_180)]),
        COLOURS / 255, "several pages or frames"),
    Odd("moving.png", pillow(COLOUR, "PNG", save_all=True,
                             append_images=[Image.fromarray(COLOUR[::-1].copy())]),
        COLOUR / 255, "several pages or frames"),
    Odd("moving.webp", pillow(COLOUR, "WEBP", save_all=True, lossless=True,
                              append_images=[Image.fromarray(COLOUR[::-1].copy())]),
        COLOUR / 255, "several pages or frames"),
    Odd("two.mpo", pillow(WAVE, "MPO", save_all=True, append_images=[Image.fromarray(WAVE)]),
        WAVE / 255, "several pages or frames", 0.05),
    # More than eight
    Odd("grey16.png", png16(DEEP[..., 0]), DEEP[..., 0] / 65535),
    Odd("colour16.png", png16(DEEP), DEEP / 65535),
    Odd("interlaced16.png", interlaced16(DEEP), DEEP / 65535),
    Odd("turned16.png", png16(DEEP, (b"eXIf", EXIF.tobytes()[6:])), np.rot90(DEEP, -1) / 65535),
    Odd("alpha16.png", png16(np.dstack([DEEP, DEEP[..., 1]])),
        laid(DEEP / 65535, DEEP[..., 1] / 65535), "laid on white", 1e-5),
    Odd("key16.png", png16(DEEP, (b"tRNS", DEEP[3, 3].astype(">u2").tobytes())), SEEN,
        "laid on white"),
    Odd("key16-grey.png", png16(DEEP[..., 0], (b"tRNS", DEEP[3, 3, :1].astype(">u2").tobytes())),
        np.where(DEEP[..., 0] == DEEP[3, 3, 0], 1, DEEP[..., 0] / 65535), "laid on white"),
    Odd("grey16.tif", tiff(DEEP[..., 0]), DEEP[..., 0] / 65535),
    Odd("grey16-lzw.tif", pillow(DEEP[..., 0].copy(), "TIFF", compression="tiff_lzw"),
        DEEP[..., 0] / 65535),
    Odd("white0-16.tif", tiff(DEEP[..., 0], photometric="miniswhite"), 1 - DEEP[..., 0] / 65535),
    Odd("colour16.tif", tiff(DEEP, photometric="rgb"), DEEP / 65535),
    Odd("packed16.tif", tiff(DEEP, photometric="rgb", compression="zlib", predictor=2),
        DEEP / 65535),
    Odd("planes16.tif", tiff(DEEP.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
        DEEP / 65535),
    Odd("big-endian.tif", BIG_TIFF, DEEP / 65535),
    Odd("turned16.tif", tiff(DEEP, photometric="rgb", extratags=[(274, 3, 1, 6, True)]),
        np.rot90(DEEP, -1) / 65535),
    Odd("alpha16.tif", tiff(np.dstack([DEEP, DEEP[..., 1]]), photometric="rgb",
                            extrasamples=["unassalpha"]),
        laid(DEEP / 65535, DEEP[..., 1] / 65535), "laid on white", 1e-5),
    Odd("alpha-float.tif", tiff(np.dstack([COLOUR, ALPHA]).astype(np.float32) / 255,
                                photometric="rgb", extrasamples=["unassalpha"]),
        laid(COLOUR / 255, ALPHA / 255), "laid on white"),
    Odd("bands.tif", tiff(np.dstack([COLOUR, COLOUR[..., :2]]), photometric="minisblack",
                          planarconfig="contig"), np.dstack([COLOUR, COLOUR[..., :2]]) / 255),
    Odd("stack16.tif", tiff(DEEP.transpose(2, 0, 1), photometric="minisblack"),
        DEEP[..., 0] / 65535, "several pages"),
    Odd("colour16.ppm", b"P6 # by hand\n10 12\n65535\n" + DEEP.astype(">u2").tobytes(),
        DEEP / 65535),
    Odd("colour12.ppm", b"P6 10 12 4095 " + TWELVE.astype(">u2").tobytes(), TWELVE / 4095, None,
        1e-5),
    Odd("grey16.pgm", b"P5 10 12 65535 " + DEEP[..., 0].astype(">u2").tobytes(),
        DEEP[..., 0] / 65535),
    Odd("grey16.jp2", pillow(DEEP[..., 0].copy(), "JPEG2000", irreversible=False),
        DEEP[..., 0] / 65535),
    Odd("float.tif", tiff(GREY.astype(np.float32) / 255), GREY / 255),
    Odd("half.tif", tiff((GREY / 256).astype(np.float16)), GREY / 256),
    Odd("double.npy", npy(COLOUR / 256), COLOUR / 256),
    Odd("dark.tif", tiff(TWELVE, photometric="rgb"), TWELVE / 65535,
        "nearly black: 4095 of 65535"),
    Odd("float.pfm", pillow(Image.fromarray(GREY.astype(np.float32) / 255), "PPM"), GREY / 255),
    Odd("plain16.pgm", b"P2 2 1 65535 7 65535", np.array([[7, 65535]]) / 65535),
    Odd("grey-in-srgb.jpg", pillow(WAVE, "JPEG", icc_profile=SRGB), WAVE / 255, None, 0.05),
    # What means nothing without a word of the user
    Odd("negative.tif", tiff(GREY.astype(np.int16) - 9), None, r"int16 from -8 .*value_range"),
    Odd("wide.tif", tiff(DEEP[..., 0].astype(np.uint32) * 60000), None,
        "from 0 to 3.9.*value_range"),
    Odd("bright.tif", tiff(GREY.astype(np.float32)), None, "from .* to 2.*value_range"),
    Odd("whole.npy", npy(GREY.astype(np.int64)), None, "int64.*value_range"),
    Odd("nan.npy", npy(np.full((4, 4), np.nan)), None, "nan"),
    Odd("complex.npy", npy(GREY * 1j), None, "must be numbers"),
    Odd("words.npy", npy(np.array([["a", "b"]])), None, "must be numbers"),
    Odd("empty.npy", npy(np.zeros((0, 3))), None, "was expected"),
    Odd("cmyk16.tif", tiff(np.dstack([DEEP, DEEP[..., 0]]), photometric="separated"), None,
        "SEPARATED.*8 bits only"),
    Odd("plain16.ppm", b"P3 1 1 65535 1 2 3", None, "binary PGM and PPM only"),
    Odd("preview.tif", tiff(COLOUR, photometric="rgb", subfiletype=1), None, "preview first"),
    Odd("raw.nef", tiff(COLOUR, photometric="rgb"), None, r"\.nef is not read"),
    # Damaged
    Odd("empty.png", b"", None, "0 bytes"),
    Odd("text.png", b"no picture " * 99, None, "holds text"),
    Odd("cut.png", pillow(COLOUR, "PNG")[:-60], None, "truncated|broken|cut short"),
    Odd("cut.jpg", pillow(LARGE, "JPEG")[:-600], None,
        "truncated"),
    Odd("cut.webp", pillow(LARGE, "WEBP")[:-300], None, ""),
    Odd("cut.gif", pillow(PALETTE, "GIF")[:-40], None, "truncated"),
    Odd("cut.bmp", pillow(COLOUR, "BMP")[:-40], None, "truncated"),
    Odd("cut.jp2", pillow(COLOUR, "JPEG2000", irreversible=False)[:-100], None, ""),
    Odd("cut16.ppm", b"P6 10 12 65535 " + DEEP.tobytes()[:-9], None, "cut short"),
    Odd("cut16.tif", tiff(DEEP, photometric="rgb")[:-40], None, "cut short"),
    Odd("cut16.png", png16(DEEP)[:-40], None, "cut short"),
    Odd("cut.npy", npy(COLOUR)[:-40], None, "declares 360 bytes"),
    # Larger than is read
    Odd("bomb.png", BOMB, None, "13300x13300.*million pixels"),
    Odd("long.png", png(2**31 - 1, 1, 16, 2, b""), None, "million pixels"),
    Odd("huge.tif", tiff(np.zeros((1, 1), np.uint16)).replace(
        struct.pack("<HHII", 256, 4, 1, 1), struct.pack("<HHII", 256, 4, 1, 2**30)), None,
        "million pixels|cut short|damaged|truncated"),
    Odd("huge.npy", npy(np.zeros((1, 1))).replace(b"(1, 1)", b"(9**9,1)"), None,
        "cannot be read"),
    Odd("tall.npy", npy(COLOUR).replace(b"(12, 10, 3)", b"(12, 10,999999)"), None,
        "declares|read"),
]  # fmt: skip


def shaped(values):
    values = np.asarray(values, dtype=np.float64)
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.name)
def test_each_is_kept_or_said_or_refused(tmp_path, odd):
    """Would catch bits cut, keys of transparency, pages, profiles or planes dropped in silence."""
    path = tmp_path / odd.name
    path.write_bytes(odd.content)
    if odd.values is None and "converted" not in (odd.says or ""):
        with pytest.raises(ValueError, match=rf"{odd.name}.*(?:{odd.says})") as refusal:
            read_image(path)
        assert "\n" not in str(refusal.value)
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        x = read_image(path)
    assert x.dtype == torch.float32
    if odd.values is not None:
        np.testing.assert_allclose(x.numpy(), shaped(odd.values), atol=odd.within, rtol=0)
    texts = [str(warning.message) for warning in said]
    assert len(texts) == (odd.says is not None), texts
    for text in texts:
        assert re.search(rf"{odd.name}: .*(?:{odd.says})[^\n]*$", text), text


DANGEROUS = """
import json, resource, sys, warnings
from pathlib import Path
from genprior.cli import main
from genprior.commands.source import Source
from genprior.data import images, read_image
from genprior.data.files import image_size
from genprior.operators import kernels, masks

warnings.simplefilter("ignore")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = {}
for path in sys.argv[1:]:
    for door in (read_image, images, image_size, masks.from_file, kernels.from_file):
        try:
            door(path, **({"size": 8} if door is images else {}))
            said = "read"
        except (ValueError, FileNotFoundError) as error:
            said = str(error)
        found.setdefault(path, {})[door.__module__ + "." + door.__name__] = said
found["MB"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps(found))
"""


def retagged(array, strip):
    """A TIFF that says of a strip that it holds this array's pixels, deflated."""
    data = bytearray(tiff(array, photometric="rgb"))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    values = {259: 8, 273: len(data), 279: len(strip)}
    for i in range(count):
        place = start + 2 + 12 * i
        tag, kind = struct.unpack_from("<HH", data, place)
        if tag in values:
            struct.pack_into({3: "<H", 4: "<I"}[kind], data, place + 8, values[tag])
    return bytes(data) + strip


def dangerous(folder):
    """Files that end a process, fill its memory, or never end; each with what is said of it."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEEP)
    flipped = bytearray(zlib.compress(rows, 0))
    flipped[400] ^= 1
    wrong = b"".join(b"\7" + row.astype(">u2").tobytes() for row in DEEP)
    content = {
        "short.png": png(10, 12, 16, 2, zlib.compress(rows[:-100])),
        "long.png": png(10, 12, 16, 2, zlib.compress(rows + bytes(100))),
        "flip.png": png(10, 12, 16, 2, bytes(flipped)),
        "filter.png": png(10, 12, 16, 2, zlib.compress(wrong)),
        "open.png": png(10, 12, 16, 2, zlib.compress(rows)[:-4]),
        "palette.png": BOMB,
        "bomb16.png": png(10, 12, 16, 2, zlib.compress(bytes(10**8), 9)),
        "bomb16.tif": retagged(DEEP, zlib.compress(bytes(10**8), 9)),
    }
    for name, data in content.items():
        (folder / name).write_bytes(data)
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "loop.png").symlink_to("loop.png")
    return {
        **dict.fromkeys(("short.png", "long.png", "flip.png", "filter.png"), "read as an image"),
        "open.png": "its pixels are damaged",
        "palette.png": "million pixels",
        **dict.fromkeys(("bomb16.png", "bomb16.tif"), "more than its header"),
        "pipe.png": "is a pipe or a device",
        "folder.png": "is a folder|holds no images",
        "zero.png": "is a pipe or a device",
        "loop.png": "cannot be read",
    }


def test_no_file_kills_the_process(tmp_path):
    """Would catch a decoder that ends the process on a damaged 16-bit PNG (signal 11), a pipe that
    is waited for, a device without end, and 22 KB that become gigabytes."""
    wanted = dangerous(tmp_path)
    command = [sys.executable, "-c", DANGEROUS, *(str(tmp_path / name) for name in wanted)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found.pop("MB") < 300
    for path, doors in found.items():
        for door, said in doors.items():
            name = Path(path).name
            by_header = door.endswith("image_size") and name not in ("pipe.png", "palette.png")
            assert by_header or re.search(wanted[name], said), (door, name, said)
            if not door.startswith("genprior.data.datasets"):
                assert by_header or name in said


# Ranges, and what is written


def test_value_range(tmp_path):
    """Would catch 12 bits in 16 left black, and values outside a range clipped in silence."""
    (tmp_path / "a.tif").write_bytes(tiff(TWELVE, photometric="rgb"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = read_image(tmp_path / "a.tif", value_range=(0, 4095))
        whole = read_image(tmp_path / "a.tif", value_range="auto")
    np.testing.assert_allclose(x.numpy(), shaped(TWELVE / 4095), atol=1e-6)
    assert (whole.min(), whole.max()) == (0, 1)
    with pytest.warns(UserWarning, match=r"a\.tif: [\d.]+% of its values lie outside"):
        assert read_image(tmp_path / "a.tif", value_range=(0, 2000)).max() == 1
    with pytest.raises(ValueError, match="must rise"):
        read_image(tmp_path / "a.tif", value_range=(5, 5))
    signed = GREY.astype(np.int16) - 9
    np.save(tmp_path / "b.npy", np.stack([signed, signed]))
    data = images(tmp_path / "b.npy", value_range=(-9, 246))
    np.testing.assert_allclose(data[1].numpy(), shaped(GREY / 255), atol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_tiff_and_npy_keep_depth_channels_and_dpi(tmp_path, bits, channels):
    """Would catch 16-bit TIFF cut to 8, a fifth channel dropped, dpi lost."""
    x = torch.rand((channels, 9, 7), generator=torch.Generator().manual_seed(0))
    write_image(tmp_path / "a.tif", x, bits=bits, dpi=(300, 150))
    photo = read_photo(tmp_path / "a.tif")
    assert (photo.pixels - x).abs().max() <= 0.51 / (2**bits - 1)
    assert (photo.depth, photo.form, photo.grey) == (bits, "TIFF", channels == 1)
    if channels < 5:
        assert photo.dpi == pytest.approx((300, 150), rel=1e-3)
    write_image(tmp_path / "a.npy", 3 * x - 1)
    assert identical(torch.from_numpy(np.load(tmp_path / "a.npy")), 3 * x - 1)
    if channels == 5:
        with pytest.raises(ValueError, match=r"5 channels go into \.tif or \.npy"):
            write_image(tmp_path / "a.png", x)


def test_what_a_file_says_comes_back(tmp_path):
    """Would catch a profile lost on the way through 16 bits: colours would come out wrong."""
    (tmp_path / "a.png").write_bytes(with_profile(deep=True))
    with pytest.warns(UserWarning, match="not applied"):
        photo = read_photo(tmp_path / "a.png")
    assert photo.profile is not None
    for name in ("b.png", "b.tif"):
        path = tmp_path / name
        write_image(path, photo.pixels, bits=16, dpi=(72, 96), profile=photo.profile)
        with pytest.warns(UserWarning, match="not applied"):
            again = read_photo(path)
        assert identical(again.pixels, photo.pixels)
        assert again.profile == photo.profile
        assert again.dpi == pytest.approx((72, 96), rel=1e-2)
    (tmp_path / "c.jpg").write_bytes(pillow(WAVE, "JPEG", quality=50, dpi=(300, 300)))
    photo = read_photo(tmp_path / "c.jpg", channels=3)
    assert (photo.form, photo.depth, photo.grey, photo.dpi) == ("JPEG", 8, True, (300, 300))
    assert photo.steps is not None
    assert photo.steps[0, 0] == 16  # of the standard's table


def test_lossless_formats_are_written_without_loss(tmp_path):
    """Would catch WebP's and JPEG's losses taken by default, and palettes of 256 colours."""
    x = torch.rand((3, 16, 16), generator=torch.Generator().manual_seed(0))
    for suffix in ("png", "tif", "webp", "bmp", "ppm"):
        write_image(tmp_path / f"a.{suffix}", x)
        assert (read_image(tmp_path / f"a.{suffix}") - x).abs().max() <= 0.51 / 255
    with pytest.raises(ValueError, match=r"try \.png"):
        write_image(tmp_path / "a.gif", x)


def test_nothing_but_files_is_replaced(tmp_path):
    """Would catch a pipe or a link replaced by a result."""
    x = torch.zeros(1, 4, 4)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(OSError, match="no regular file"):
        write_image(tmp_path / "pipe.png", x, force=True)
    write_image(tmp_path / "a.png", x)
    (tmp_path / "link.png").symlink_to("a.png")
    write_image(tmp_path / "link.png", x + 1, force=True)
    assert (tmp_path / "link.png").is_symlink()
    assert read_image(tmp_path / "a.png").min() == 1


def test_the_shell_takes_a_range_and_no_limit_of_nothing(tmp_path):
    """Would catch 12 bits trained on as black, and --limit 0 that scores every image."""
    (tmp_path / "a.tif").write_bytes(tiff(TWELVE, photometric="rgb"))
    data = Source(str(tmp_path), value_range="0,4095").open()
    np.testing.assert_allclose(data[0].numpy(), shaped(TWELVE / 4095), atol=1e-6)
    assert Source(str(tmp_path), value_range="auto").open()[0].max() == 1
    with pytest.raises(ValueError, match="auto, or LOW,HIGH that rises, not bright"):
        Source(str(tmp_path), value_range="bright").open()
    words = ["--data", str(tmp_path), "--task", "denoise", "--sigma", "0.1", "--prior", "none"]
    for limit in ("0", "-1"):
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            assert main(["evaluate", *words, "--out", "x.csv", "--limit", limit]) == 2
        assert f"--limit must be at least 1, not {limit}" in said.getvalue()


# Data sets


def test_a_mixed_folder_skips_nothing_in_silence(tmp_path):
    """Would catch .avif, .jfif and .heic passed over, links and pipes too; and --skip-bad that
    stops at a file that may not be read."""
    good = {o.name: o.content for o in ODD if o.name in ("exact.jp2", "good.avif", "colour.ppm")}
    (tmp_path / "below").mkdir()
    for name, content in {**good, "below/a.png": pillow(COLOUR, "PNG")}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "._a.png").write_bytes(b"what macOS keeps beside a file")
    assert len(images(tmp_path, size=8)) == 4
    (tmp_path / "raw.nef").write_bytes(b"II*\0")
    with pytest.raises(ValueError, match=r"1 files .* not read.*raw\.nef.*--skip-bad"):
        images(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "below" / "up").symlink_to("..")
    for size in (8, None):
        with pytest.warns(UserWarning, match="4 images left out") as said:
            data = images(tmp_path, size=size, skip_bad=True)
        assert len(data) == 4
        listed = str(said[0].message)
        assert all(name in listed for name in ("raw.nef", "pipe.png", "gone.png", "loop.png"))


def test_an_unreadable_file_is_left_out(tmp_path, monkeypatch):
    """Would catch --skip-bad that stops at a file whose permissions forbid it."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(pillow(COLOUR, "PNG"))
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda p, m: not str(p).endswith("a.png") and allowed(p, m))
    with pytest.raises(ValueError, match=r"a\.png may not be read"):
        images(tmp_path, size=8)
    with pytest.warns(UserWarning, match=r"a\.png may not be read"):
        assert len(images(tmp_path, size=8, skip_bad=True)) == 1


@pytest.mark.parametrize("size", [8, None])
def test_a_data_set_says_each_kind_once(tmp_path, size):
    """Would catch a thousand warnings for a thousand files, or none."""
    pages = next(o.content for o in ODD if o.name == "pages.tif")
    for i in range(5):
        (tmp_path / f"{i}.tif").write_bytes(pages)
    with pytest.warns(UserWarning, match=r"0\.tif: .*several pages") as said:
        assert len([x for data in [images(tmp_path, size=size)] for x in (*data, *data)]) == 10
    assert len(said) == 1
    assert ("4 more" in str(said[0].message)) == (size is not None)


def tar_of(path, number=5):
    with tarfile.open(path, "w") as tar:
        for i in range(number):
            info = tarfile.TarInfo(f"{i}.png")
            content = pillow(COLOUR, "PNG")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return bytearray(path.read_bytes())


def test_damaged_tars_are_refused(tmp_path):
    """Would catch a tar read short in silence: cut anywhere, or with one damaged header."""
    path = tmp_path / "a.tar"
    whole = tar_of(path)
    assert len(images(path)) == 5
    with tarfile.open(path) as tar:
        starts = [member.offset for member in tar]
    for cut in (starts[3], starts[3] + 100, starts[3] + 512, starts[3] + 700, starts[4] + 1100):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"a\.tar.*cut short|a\.tar cannot be read"):
            images(path)
    for place in (starts[0] + 5, starts[2] + 5, starts[2] + 150, starts[4] + 130):
        damaged = whole.copy()
        damaged[place] ^= 85
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.tar.*damaged|a\.tar cannot be read"):
            images(path)
    path.write_bytes(whole + whole)
    with pytest.raises(ValueError, match="goes on after its end"):
        images(path)


def test_links_in_a_tar(tmp_path):
    """Would catch a linked image left out, or one whose target is not there passed over."""
    path = tmp_path / "a.tar"
    tar_of(path, 1)
    with tarfile.open(path, "a") as tar:
        for name, kind, target in (
            ("hard.png", tarfile.LNKTYPE, "0.png"),
            ("sub/soft.png", tarfile.SYMTYPE, "../hard.png"),
            ("none.png", tarfile.SYMTYPE, "/etc/none.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    with pytest.warns(UserWarning, match=r"none\.png"):
        data = images(path, size=(12, 10), skip_bad=True)
    assert len(data) == 3
    for x in data:
        np.testing.assert_allclose(x.numpy(), shaped(COLOUR / 255), atol=1e-6)


def zip_of(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_arrays_are_measured_before_they_are_read(tmp_path, monkeypatch):
    """Would catch npz, npy and gz bombs, headers that declare more than there is or end too
    early; and an npz with a text file in it, which ended in a traceback."""
    stack = np.stack([COLOUR] * 3)
    zip_of(tmp_path / "text.npz", {"readme.txt": "words", "images.npy": npy(stack)})
    assert len(images(tmp_path / "text.npz")) == 3
    lying = npy(stack).replace(b"(3, 12, 10, 3)", b"(9**9,12,10,3)")
    more = npy(stack).replace(b"(3, 12, 10, 3)", b"(7, 12, 10, 3)")
    zip_of(tmp_path / "more.npz", {"images.npy": more})
    zip_of(tmp_path / "lying.npz", {"images.npy": lying})
    (tmp_path / "more.npy").write_bytes(more)
    header = b"\0\0\x08\x03" + struct.pack(">3I", 3, 12, 10)
    pixels = stack[..., 0].tobytes()
    for name, content in {
        "cut.idx": header[:9],
        "cut.idx.gz": gzip.compress(header[:9]),
        "few.idx": header + pixels[:-1],
        "few.idx.gz": gzip.compress(header + pixels[:-1]),
        "many.idx.gz": gzip.compress(header + pixels + bytes(10**6)),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} cannot be read: .*(cut short|came for)"):
            images(tmp_path / name)
    for name in ("more.npz", "lying.npz", "more.npy"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read"):
            images(tmp_path / name)
    (tmp_path / "good.idx").write_bytes(header + pixels)
    (tmp_path / "good.idx.gz").write_bytes(gzip.compress(header + pixels))
    (tmp_path / "good.npz").write_bytes((tmp_path / "text.npz").read_bytes())
    np.save(tmp_path / "wide.npy", stack / 255)
    np.save(tmp_path / "good.npy", stack)
    for module in ("readers", "datasets"):
        monkeypatch.setattr(f"genprior.data.{module}.ARRAY", 300)
    assert len(images(tmp_path / "good.npy")) == 3  # memory-mapped
    for name in ("good.idx", "good.idx.gz", "good.npz"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read.* GB"):
            images(tmp_path / name)
    with pytest.raises(ValueError, match=r"float64.*GB as float32"):
        images(tmp_path / "wide.npy")


def test_hdf5(tmp_path):
    """Would catch the wrong array chosen, or one that is too large opened."""
    h5py = pytest.importorskip("h5py")
    stack = np.stack([COLOUR] * 3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["group/test_images"] = stack
        file["group/train_images"] = stack[:2]
        file["labels"] = np.arange(3)
    assert len(images(tmp_path / "a.h5")) == 2
    assert len(images(tmp_path / "a.h5", split="test")) == 3
    (tmp_path / "b.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(ValueError, match=r"b\.h5 cannot be read"):
        images(tmp_path / "b.h5")


# Masks and kernels


def test_masks_and_kernels_keep_their_numbers(tmp_path):
    """Would catch a kernel's floats refused or cut, an empty one in a traceback, colours of a
    mask converted by its profile."""
    weights = np.array([[0.0, 2.5], [7.25, 0.25]], np.float32)
    for name, content in {"k.tif": tiff(weights), "k.npy": npy(weights)}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.warns(UserWarning, match="sums to 10"):
            kernel = kernels.from_file(tmp_path / name)
        np.testing.assert_allclose(kernel.numpy(), weights / 10, atol=1e-12)
    for array in (np.zeros((0, 0)), np.ones((2, 3, 3)), np.ones((2, 2)) * 1j):
        np.save(tmp_path / "bad.npy", array)
        with pytest.raises(ValueError, match=r"bad\.npy"):
            kernels.from_file(tmp_path / "bad.npy")
    painted = Image.fromarray(np.where(GREY > 99, 255, 0).astype(np.uint8)).convert("RGB")
    profile = Image.open(io.BytesIO(with_profile())).info["icc_profile"]
    painted.save(tmp_path / "mask.png", icc_profile=profile)
    assert masks.from_file(tmp_path / "mask.png")[0].tolist() == (GREY > 99).tolist()


# With the extra [formats]


def test_heic_and_deep_avif(tmp_path):
    """Would catch HEIC called damaged, or 10 bits cut to 8 without a word."""
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    (tmp_path / "a.heic").write_bytes(pillow(np.dstack([np.kron(WAVE, np.ones((2, 2)))] * 3)
                                             .astype(np.uint8), "HEIF", quality=100))  # fmt: skip
    x = read_image(tmp_path / "a.heic")
    np.testing.assert_allclose(x[0].numpy(), np.kron(WAVE, np.ones((2, 2))) / 255, atol=0.02)
    assert len(images(tmp_path, size=8)) == 1
    deep = np.kron(DEEP, np.ones((8, 8, 1))).astype(np.uint16)
    file = heif.from_bytes("RGB;16", (80, 96), deep.tobytes())
    file.save(tmp_path / "b.heic", quality=100)
    with pytest.warns(UserWarning, match=r"b\.heic: its 1[02] bits are cut to 8"):
        read_image(tmp_path / "b.heic")


def test_dicom(tmp_path):
    """Would catch 12 bits of a scan left black, or white taken for black."""
    pydicom = pytest.importorskip("pydicom")
    values = TWELVE[..., 0].copy()
    for name, kind in (("a.dcm", "MONOCHROME2"), ("b.dcm", "MONOCHROME1")):
        scan = pydicom.Dataset()
        scan.file_meta = pydicom.dataset.FileMetaDataset()
        scan.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        scan.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
        scan.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        scan.Rows, scan.Columns, scan.SamplesPerPixel = 12, 10, 1
        scan.BitsAllocated, scan.BitsStored, scan.HighBit = 16, 12, 11
        scan.PixelRepresentation, scan.PhotometricInterpretation = 0, kind
        scan.PixelData = values.tobytes()
        scan.save_as(tmp_path / name, enforce_file_format=True)
    want = shaped(values / 4095)
    np.testing.assert_allclose(read_image(tmp_path / "a.dcm").numpy(), want, atol=1e-5)
    np.testing.assert_allclose(read_image(tmp_path / "b.dcm").numpy(), 1 - want, atol=1e-5)
    cut = (tmp_path / "a.dcm").read_bytes()[:-50]
    (tmp_path / "cut.dcm").write_bytes(cut)
    with pytest.raises(ValueError, match=r"cut\.dcm cannot be read"):
        read_image(tmp_path / "cut.dcm")


def test_nifti(tmp_path):
    """Would catch slices taken along another axis, or lying on their side."""
    nibabel = pytest.importorskip("nibabel")
    volume = np.moveaxis(np.stack([TWELVE[..., 0], TWELVE[..., 1]]), 0, -1).transpose(1, 0, 2)
    nibabel.save(nibabel.Nifti1Image(volume.astype(np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    data = images(tmp_path / "a.nii.gz", value_range=(0, 4095))
    assert len(data) == 2
    np.testing.assert_allclose(data[1].numpy(), shaped(TWELVE[..., 1] / 4095), atol=1e-6)
    (tmp_path / "b.nii").write_bytes(b"no volume")
    with pytest.raises(ValueError, match=r"b\.nii cannot be read"):
        images(tmp_path / "b.nii")


def test_lzw_of_sixteen_bits(tmp_path):
    """Would catch Photoshop's 16-bit TIFF cut to 8 bits, or refused without saying what helps."""
    path = tmp_path / "a.tif"
    try:
        path.write_bytes(tiff(DEEP, photometric="rgb", compression="lzw", predictor=2))
    except KeyError:  # no imagecodecs
        data = bytearray(tiff(DEEP, photometric="rgb"))
        place = data.index(struct.pack("<HHI", 259, 3, 1))
        data[place + 8] = 5
        path.write_bytes(bytes(data))
        with pytest.raises(ValueError, match=r"LZW.*imagecodecs"):
            read_image(path)
    else:
        np.testing.assert_allclose(read_image(path).numpy(), shaped(DEEP / 65535), atol=1e-6)
