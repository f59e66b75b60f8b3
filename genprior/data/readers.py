"""Find and open the images in folders, tars, arrays, idx files and torchvision data sets."""

from __future__ import annotations

import gzip
import inspect
import math
import os
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from genprior.data.files import EXTRA, SUFFIXES, UNREAD, refusal
from genprior.operators.files import ARRAY, FILE, extra, read_bytes, regular_file
from genprior.operators.files.picture import Picture, channels_first, declared, decode

_TAR = (".tar", ".tar.gz", ".tgz")
_VOLUMES = (".h5", ".hdf5", ".nii", ".nii.gz")
_ARCHIVES = (*_TAR, ".npz", ".npy", "-ubyte", "-ubyte.gz", ".idx", ".idx.gz", *_VOLUMES)
_IMAGES = SUFFIXES | EXTRA.keys() | UNREAD
_UNREADABLE = (
    *(OSError, EOFError, LookupError, ValueError, RuntimeError, ImportError),
    *(zlib.error, struct.error, zipfile.BadZipFile),
)


class File(NamedTuple):
    """One image, not yet decoded; or the reason why it is not read."""

    name: str
    read: Callable[[], Picture]
    refused: str = ""


def open_source(source: str | Path, split: str) -> list[File] | np.ndarray:
    """Open what `genprior.data.images` describes.

    Returns:
        Files to decode one by one, or a whole array (N, C, H, W) of numbers.
    """
    path = Path(source)
    if not os.path.lexists(path):
        return _from_torchvision(str(source), split)
    if path.is_dir():
        path = _within(path, split)
    if path.is_dir():
        return _from_folder(path)
    regular_file(path)
    if path.name.lower().endswith(_TAR):
        return _from_tar(path)
    if path.suffix.lower() in _IMAGES:
        return [_single(path.name, path)]
    try:
        return channels_first(_read_array(path, split), stacked=True)
    except _UNREADABLE as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _single(name: str, path: Path) -> File:
    """Make an image of a file, and say by its suffix whether it can be read."""
    refused = refusal(path)

    def read() -> Picture:
        if refused:
            raise ValueError(refused)
        return decode(read_bytes(path), str(path))

    return File(name, read, refused)


def is_image(name: str) -> bool:
    path = Path(name)  # ._NAME beside NAME is what macOS keeps of it, no image
    return path.suffix.lower() in _IMAGES and not path.name.startswith("._")


def _within(folder: Path, split: str) -> Path:
    """Choose what a folder offers: itself, a sub-folder named after the split, or one archive."""
    content = sorted(folder.iterdir())
    archives = [
        f for f in content if f.name.lower().endswith(_ARCHIVES) and "label" not in f.name.lower()
    ]
    if any(is_image(f.name) for f in content) or (folder / split).is_dir():
        if archives:
            listed = ", ".join(f.name for f in archives[:5])
            warnings.warn(f"{folder}: not read beside the images: {listed}", stacklevel=4)
        return folder if any(is_image(f.name) for f in content) else folder / split
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


def walk(folder: Path) -> Iterator[Path]:
    """Find the files in a folder and below, through links, each folder once."""

    def refuse(error: OSError) -> None:
        raise ValueError(f"{error.filename} cannot be read: {error.strerror}") from error

    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = [f for f in folders if os.path.realpath(os.path.join(place, f)) not in seen]
        seen.add(os.path.realpath(place))
        yield from (Path(place) / name for name in names)


def _from_folder(folder: Path) -> list[File]:
    paths = sorted(f for f in walk(folder) if is_image(f.name))
    if not paths:
        raise ValueError(
            f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}), no tar, array or idx file"
        )
    return [_single(str(f.relative_to(folder)), f) for f in paths]


def _from_tar(path: Path) -> list[File]:
    """Read members by their offset: no open file is shared, so worker processes may read."""

    def member(name: str, offset: int, size: int) -> Picture:
        if size > FILE:
            raise ValueError(f"{path}:{name} has {size / 1e6:.0f} MB, more than is read at once")
        with open(path, "rb") as file:
            file.seek(offset)
            return decode(file.read(size), f"{path}:{name}")

    try:
        with tarfile.open(path, "r:") as tar:
            members = list(tar)
            end = tar.offset
    except (tarfile.TarError, ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a tar (uncompressed): {error}") from error
    _check_end(path, members, end)
    by_name = {os.path.normpath(m.name): m for m in members}
    files = []
    for m in sorted(
        (m for m in members if is_image(m.name) and not m.isdir()), key=attrgetter("name")
    ):
        file = _single(m.name, Path(f"{path}:{m.name}"))
        target = m
        for _ in range(8):  # a link to a link to ...
            if not (target.islnk() or target.issym()):
                break
            base = "" if target.islnk() else os.path.dirname(target.name)
            target = by_name.get(os.path.normpath(os.path.join(base, target.linkname)), m)
        if not file.refused and target.isreg() and not target.issparse():
            at = target.offset_data, target.size
            file = file._replace(read=lambda m=m, at=at: member(m.name, *at))
        files.append(file)
    if not files:
        raise ValueError(f"{path} holds no images ({', '.join(sorted(SUFFIXES))})")
    return files


def _check_end(path: Path, members: list[tarfile.TarInfo], end: int) -> None:
    """Refuse a tar that ends before its end mark, or whose members stop at a damaged header."""
    size = path.stat().st_size
    cut = any(m.isreg() and m.offset_data + m.size > size for m in members)
    with open(path, "rb") as file:
        file.seek(end)
        if cut or end + 512 > size or any(file.read(512)):
            raise ValueError(
                f"{path} is cut short or damaged after {len(members)} members: fetch it again, or "
                "unpack what is left of it into a folder"
            )
        while block := file.read(2**20):
            if any(block):
                raise ValueError(f"{path} goes on after its end, as tars put together: unpack it")


def _read_array(path: Path, split: str) -> np.ndarray:
    name = path.name.lower()
    if name.endswith(".npy"):
        return np.load(path, mmap_mode="r", allow_pickle=False)
    if name.endswith(".npz"):
        return _read_npz(path, split)
    if name.endswith((".h5", ".hdf5")):
        return _read_hdf5(path, split)
    return _read_nifti(path) if name.endswith((".nii", ".nii.gz")) else _read_idx(path)


def _choose(found: dict[str, int], split: str) -> str:
    """Choose the array of images by its name, and refuse one that is too large.

    Args:
        found: Name -> bytes of every array of 3 or 4 axes.
        split: Which to take of several.
    """
    if len(found) > 1:
        found = {k: v for k, v in found.items() if split in k.lower()} or found
    if len(found) != 1:
        raise ValueError(
            "it must hold one array of images (N, H, W) or (N, H, W, C), and holds "
            f"{', '.join(found) or 'none'}"
        )
    ((name, size),) = found.items()
    if size > ARRAY:
        raise ValueError(
            f"{name} unpacks to {size / 1e9:.1f} GB, more than {ARRAY / 1e9:.1f}: save it as "
            ".npy, which is read bit by bit"
        )
    return name


def _read_npz(path: Path, split: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        found = {}
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                with archive.open(member) as file:
                    shape, size = declared(file)
                if size > member.file_size:
                    raise ValueError(f"{member.filename} declares more than it holds")
                if len(shape) in (3, 4):
                    found[member.filename] = size
        with archive.open(_choose(found, split)) as file:
            return np.lib.format.read_array(file, allow_pickle=False)


def _read_hdf5(path: Path, split: str) -> np.ndarray:
    h5py = extra("HDF5", "h5py")
    found: dict[str, int] = {}

    def look(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim in (3, 4):
            found[name] = item.nbytes

    with h5py.File(path) as file:
        file.visititems(look)
        return np.asarray(file[_choose(found, split)])


def _read_nifti(path: Path) -> np.ndarray:
    """Read the slices across the last axis of a volume (X, Y, Z), as (Z, Y, X)."""
    nibabel = extra("NIfTI", "nibabel")
    broken = (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError)
    try:
        volume = nibabel.load(path)
    except broken as error:
        raise ValueError(f"it is no NIfTI volume: {error}") from error
    if len(volume.shape) != 3:
        raise ValueError(f"a volume of three axes was expected, {volume.shape} came")
    _choose({"the volume": 8 * math.prod(volume.shape)}, "")
    return np.asarray(volume.dataobj, dtype=np.float32).T


def _read_idx(path: Path) -> np.ndarray:
    """Read the format of MNIST: 0, 0, type, number of axes, their lengths, the values."""
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else open(path, "rb") as file:
        header = file.read(4)
        if len(header) < 4 or header[:3] != b"\0\0\x08" or header[3] not in (3, 4):
            raise ValueError(
                "it is no source of images: a folder, tar, .npz, .npy or idx file was expected"
            )
        lengths = file.read(4 * header[3])
        if len(lengths) < 4 * header[3]:
            raise ValueError("its header is cut short")
        shape = struct.unpack(f">{header[3]}I", lengths)
        size = math.prod(shape)
        _choose({"it": size}, "")
        content = file.read(size + 1)
    if len(content) != size:
        raise ValueError(f"{len(content)} bytes or more came for {size} pixels")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _from_torchvision(name: str, split: str) -> list[File]:
    import torchvision

    kind = getattr(torchvision.datasets, name, None) if name.isidentifier() else None
    if not (inspect.isclass(kind) and issubclass(kind, torchvision.datasets.VisionDataset)):
        raise ValueError(f"{name} is no file, no folder and no torchvision data set")
    root = os.environ.get("GENPRIOR_DATA") or str(Path.home() / ".cache" / "genprior")
    offered = {"root": root, "train": split == "train", "split": split, "download": True}
    accepted = inspect.signature(kind).parameters
    dataset: Any = kind(**{key: value for key, value in offered.items() if key in accepted})

    def read(index: int) -> Picture:
        image = dataset[index][0]
        image = image if image.mode in ("L", "RGB") else image.convert("RGB")
        return Picture(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1))

    return [File(f"{name}[{i}]", lambda i=i: read(i)) for i in range(len(dataset))]
