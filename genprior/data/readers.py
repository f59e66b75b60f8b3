"""Find and open the images in folders, tars, arrays, idx files and torchvision data sets."""

from __future__ import annotations

import gzip
import inspect
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genprior.data.files import SUFFIXES, check_dtype, decode, in_range

_TAR = (".tar", ".tar.gz", ".tgz")
_ARCHIVES = (*_TAR, ".npz", ".npy", "-ubyte", "-ubyte.gz", ".idx", ".idx.gz")


class File(NamedTuple):
    """One image, not yet decoded."""

    name: str
    read: Callable[[], np.ndarray]


def open_source(source: str | Path, split: str) -> list[File] | np.ndarray:
    """Open what `genprior.data.images` describes.

    Returns:
        Files to decode one by one, or a whole array (N, C, H, W), uint8, uint16 or float32.
    """
    path = Path(source)
    if not path.exists():
        return _from_torchvision(str(source), split)
    if path.is_dir():
        path = _within(path, split)
    name = path.name.lower()
    if path.is_dir():
        return _from_folder(path)
    if name.endswith(_TAR):
        return _from_tar(path)
    if path.suffix.lower() in SUFFIXES:
        return [File(path.name, lambda: decode(path.read_bytes(), str(path)))]
    try:
        array = _read_array(path, split)
    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return _images_first(array, path)


def _within(folder: Path, split: str) -> Path:
    """Choose what a folder offers: itself, a sub-folder named after the split, or one archive."""
    content = sorted(folder.iterdir())
    if any(f.suffix.lower() in SUFFIXES for f in content):
        return folder
    if (folder / split).is_dir():
        return folder / split
    archives = [
        f for f in content if f.name.lower().endswith(_ARCHIVES) and "label" not in f.name.lower()
    ]
    marks = (split, "t10k", "t9800") if split == "test" else (split,)
    chosen = [f for f in archives if any(mark in f.name.lower() for mark in marks)]
    if not chosen and len(archives) == 1:
        chosen = archives
    if archives and len(chosen) != 1:
        raise ValueError(
            f"{folder} holds {', '.join(f.name for f in archives)}: which is the {split} set? "
            "Name the file itself"
        )
    return chosen[0] if chosen else folder


def _from_folder(folder: Path) -> list[File]:
    paths = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    if not paths:
        raise ValueError(
            f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}), no tar, array or idx file"
        )
    return [
        File(str(f.relative_to(folder)), lambda f=f: decode(f.read_bytes(), str(f))) for f in paths
    ]


def _from_tar(path: Path) -> list[File]:
    """Read members by their offset: no open file is shared, so worker processes may read."""

    def member(name: str, offset: int, size: int) -> np.ndarray:
        with open(path, "rb") as file:
            file.seek(offset)
            return decode(file.read(size), f"{path}:{name}")

    try:
        with tarfile.open(path, "r:") as tar:
            found = [m for m in tar if m.isfile() and Path(m.name).suffix.lower() in SUFFIXES]
    except tarfile.ReadError as error:
        raise ValueError(f"{path} cannot be read as a tar (uncompressed): {error}") from error
    if not found:
        raise ValueError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))})")
    found.sort(key=lambda m: m.name)
    return [File(m.name, lambda m=m: member(m.name, m.offset_data, m.size)) for m in found]


def _read_array(path: Path, split: str) -> np.ndarray:
    if path.suffix.lower() == ".npy":
        return np.load(path, mmap_mode="r", allow_pickle=False)
    return _read_npz(path, split) if path.suffix.lower() == ".npz" else _read_idx(path)


def _read_npz(path: Path, split: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        found = {key: arrays[key] for key in arrays.files if arrays[key].ndim in (3, 4)}
    if len(found) > 1:
        found = {k: v for k, v in found.items() if split in k.lower()} or found
    if len(found) != 1:
        raise ValueError(
            "it must hold one array of images (N, H, W) or (N, H, W, C), and holds "
            f"{', '.join(found) or 'none'}"
        )
    return next(iter(found.values()))


def _read_idx(path: Path) -> np.ndarray:
    """Read the format of MNIST: 0, 0, type, number of axes, their lengths, the values."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    if len(content) < 4 or content[:3] != b"\0\0\x08" or content[3] not in (3, 4):
        raise ValueError(
            "it is no source of images: a folder, tar, .npz, .npy or idx file was expected"
        )
    shape = struct.unpack_from(f">{content[3]}I", content, 4)
    start = 4 + 4 * len(shape)
    if len(content) - start != int(np.prod(shape)):
        raise ValueError(f"{len(content) - start} bytes came for {int(np.prod(shape))} pixels")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _images_first(array: np.ndarray, path: Path) -> np.ndarray:
    """Bring an array to (N, C, H, W); of the axes that may be channels the shorter one is."""
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] <= array.shape[1]:
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or 0 in array.shape:
        raise ValueError(
            f"{path}: an array (N, H, W), (N, H, W, C) or (N, C, H, W) was expected, "
            f"{array.shape} came"
        )
    try:
        array = check_dtype(array)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return in_range(array, str(path)) if array.dtype == np.float32 else array


def _from_torchvision(name: str, split: str) -> list[File]:
    import torchvision

    kind = getattr(torchvision.datasets, name, None) if name.isidentifier() else None
    if not (inspect.isclass(kind) and issubclass(kind, torchvision.datasets.VisionDataset)):
        raise ValueError(f"{name} is no file, no folder and no torchvision data set")
    root = os.environ.get("GENPRIOR_DATA") or str(Path.home() / ".cache" / "genprior")
    offered = {"root": root, "train": split == "train", "split": split, "download": True}
    accepted = inspect.signature(kind).parameters
    dataset: Any = kind(**{key: value for key, value in offered.items() if key in accepted})

    def read(index: int) -> np.ndarray:
        image = dataset[index][0]
        array = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)

    return [File(f"{name}[{i}]", lambda i=i: read(i)) for i in range(len(dataset))]
