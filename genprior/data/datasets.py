"""Images to train and evaluate on, from wherever they are kept."""

from __future__ import annotations

import math
import re
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from genprior.data.files import to_float
from genprior.data.limits import refuse_outside
from genprior.data.readers import File, open_source
from genprior.operators.files import ARRAY
from genprior.operators.files.picture import Range, channels_first, in_unit, with_channels

MEMORY = 2 * 2**30
"""Bytes of decoded images that a data set keeps in memory."""

Shape = tuple[int | None, int | None, int | None]


class Images(Dataset[Tensor]):
    """N images; `data[i]` is one (C, H, W) float32 in [0, 1].

    Attributes:
        image_shape: (C, H, W), None where the images may differ.
        names: What each image is called, for reports.
        skipped: The unreadable ones that `skip_bad` left out, each with the reason.
    """

    image_shape: Shape
    names: Sequence[str]
    skipped: Sequence[str] = ()

    @abstractmethod
    def raw(self, index: int) -> np.ndarray:
        """Return image `index` as it is kept: (C, H, W) uint8, uint16 or float32."""

    @abstractmethod
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor:
        return to_float(self.raw(index))

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def batch(self, index: Tensor | Sequence[int]) -> Tensor:
        """Return the images `index`, (B, C, H, W) float32 in [0, 1]."""
        rows = [self[int(i)] for i in index]
        shapes = sorted({tuple(row.shape) for row in rows})
        if len(shapes) > 1:
            raise ValueError(f"images {shapes[:3]} make no batch: pass size and channels")
        return torch.stack(rows)


class ArrayImages(Images):
    """Images of one shape in one array."""

    def __init__(self, array: np.ndarray, *, names: Sequence[str] | None = None) -> None:
        """Keep `array` (N, C, H, W), uint8, uint16 or float32; it may be memory-mapped."""
        self.array = array
        channels, height, width = array.shape[1:]
        self.image_shape: Shape = (channels, height, width)
        self.names: Sequence[str] = names or [f"{i:05d}" for i in range(len(array))]

    def raw(self, index: int) -> np.ndarray:
        return self.array[index]

    def __len__(self) -> int:
        return len(self.array)

    def batch(self, index: Tensor | Sequence[int]) -> Tensor:
        return to_float(self.array[np.asarray(index)])


class FileImages(Images):
    """Images decoded when asked for, and kept while they fit in `MEMORY`."""

    def __init__(
        self,
        files: Sequence[File],
        read: Callable[[File], np.ndarray],
        *,
        shape: Shape = (None, None, None),
    ) -> None:
        """Keep `files`; `read` makes (C, H, W) uint8, uint16 or float32 of one."""
        self.image_shape = shape
        self.names: Sequence[str] = [file.name for file in files]
        self._files, self._read = files, read
        self._kept: dict[int, np.ndarray] = {}
        self._room = MEMORY

    def raw(self, index: int) -> np.ndarray:
        index = range(len(self))[index]
        image = self._kept.get(index)
        if image is None:
            image = self._read(self._files[index])
            if image.nbytes <= self._room:
                self._kept[index] = image
                self._room -= image.nbytes
        return image

    def __len__(self) -> int:
        return len(self._files)


def images(
    source: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    upscale: bool = False,
    skip_bad: bool = False,
    split: str = "train",
    value_range: Range = None,
) -> Images:
    """Open a data set. With a `size` it is decoded at once where it fits in memory.

    Args:
        source: A folder of images (sub-folders too), a tar of images, an .npz or .npy array
            (N, H, W), (N, H, W, C) or (N, C, H, W), an idx file (.gz or not), a folder that holds
            one of these, or the name of a torchvision data set, which is downloaded to
            $GENPRIOR_DATA, else ~/.cache/genprior. With the extra [formats] also HEIC, DICOM,
            HDF5 (one array as in .npz) and NIfTI (the slices across its last axis).
        size: Height and width, or one number for both; images are cropped in the middle to this
            aspect ratio and resized with antialiasing. None keeps every image as it is.
        channels: 1 or 3: colour becomes luma, grey is repeated. None keeps what the images have.
        upscale: Enlarge images smaller than `size` instead of refusing them.
        skip_bad: Leave unreadable and too small images out and warn of them at the end.
        split: "train" or "test": which to take where the source has both, by name.
        value_range: The values that become 0 and 1, as in `read_image`; "auto" is the least and
            the largest value of each image, or of a whole array.
    Raises:
        ValueError: There are no images; one is unreadable or too small (it is named); some are
            grey and some in colour, and `channels` does not say what to make of them.
    """
    fit = _Fit((size, size) if isinstance(size, int) else size, channels, upscale, value_range)
    found = open_source(source, split)
    if isinstance(found, np.ndarray):
        as_is = value_range is None and found.dtype in (np.uint8, np.uint16, np.float32)
        if not as_is and 4 * found.size > ARRAY:
            raise ValueError(
                f"{source} holds {found.dtype}, which takes {4 * found.size / 1e9:.1f} GB as "
                "float32: save it as uint8, uint16 or float32 .npy, which is read bit by bit"
            )
        array, notes = in_unit(found, str(source), value_range)
        fit.remarks.add(str(source), notes)
        fit.remarks.say()
        return ArrayImages(_fit_array(array, fit, str(source)))
    if not skip_bad and (refused := [file.refused for file in found if file.refused]):
        raise ValueError(
            f"{len(refused)} files that look like images are not read, the first: {refused[0]}; "
            "skip_bad=True (--skip-bad) leaves them out and names them"
        )
    files = found
    at_once = fit.size is not None and len(files) * 3 * math.prod(fit.size) <= MEMORY
    skipped: list[str] = []
    if at_once or skip_bad:
        files, arrays, skipped = _read_all(files, fit, skip_bad=skip_bad, keep=at_once)
    if at_once:
        data = ArrayImages(_stacked(arrays), names=[file.name for file in files])
    else:
        height, width = fit.size or (None, None)
        data = FileImages(files, fit.read, shape=(channels, height, width))
    if not len(data):
        raise ValueError(f"{source} has no image that can be read; the first: {skipped[0]}")
    if skipped:
        listed = "\n  ".join(skipped)
        warnings.warn(f"{len(skipped)} images left out:\n  {listed}", stacklevel=2)
    fit.remarks.say()
    data.skipped = skipped
    return data


def from_array(array: np.ndarray, *, size: int | tuple[int, int] | None = None) -> Tensor:
    """Make a batch of one of a single image, as other libraries keep them.

    Args:
        array: (H, W), (H, W, C) or (C, H, W), uint8, uint16 or floats in [0, 1].
        size: Crop the middle to this height and width's aspect ratio, then resize to it.
    Returns:
        (1, C, H, W) float32 in [0, 1].
    Raises:
        ValueError: Another shape or type, or floats outside [0, 1].
    """
    image, notes = in_unit(channels_first(np.asarray(array)), "the image")
    for note in notes:
        warnings.warn(f"the image {note}", stacklevel=2)
    if size is not None:
        image = resized(image, (size, size) if isinstance(size, int) else size)
    return to_float(image)[None]


class _Remarks:
    """What was left out or changed in reading a data set: each kind is said once."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, set[str]]] = {}
        self._said = False

    def add(self, name: str, notes: Sequence[str]) -> None:
        for note in notes:
            kind = re.sub(r"[\d.]+", "N", note)
            if kind not in self._found and self._said:  # an image that is decoded later
                warnings.warn(f"{name}: {note}", stacklevel=6)
            self._found.setdefault(kind, (f"{name}: {note}", set()))[1].add(name)

    def say(self) -> None:
        for first, names in self._found.values():
            more = f" (and {len(names) - 1} more images like it)" if len(names) > 1 else ""
            warnings.warn(first + more, stacklevel=3)
        self._said = True


@dataclass(frozen=True)
class _Fit:
    """How every image of a data set is read and brought to one shape."""

    size: tuple[int, int] | None
    channels: int | None
    upscale: bool
    value_range: Range
    remarks: _Remarks = field(default_factory=_Remarks)

    def __post_init__(self) -> None:
        refuse_outside({"size": self.size, "channels": self.channels})

    def __call__(self, array: np.ndarray, name: str) -> np.ndarray:
        """Fit (..., C, H, W)."""
        if self.channels is not None:
            array = with_channels(array, self.channels, name)
        if self.size is None or array.shape[-2:] == self.size:
            return array
        height, width = array.shape[-2:]
        if (height < self.size[0] or width < self.size[1]) and not self.upscale:
            raise ValueError(
                f"{name} has {height}x{width} pixels (height x width), fewer than the asked "
                f"{self.size[0]}x{self.size[1]}; upscale=True (--upscale) enlarges it"
            )
        return resized(array, self.size)

    def read(self, file: File) -> np.ndarray:
        """Decode a file, bring it to [0, 1] and fit it."""
        picture = file.read()
        values, notes = in_unit(picture.values, file.name, self.value_range)
        self.remarks.add(file.name, picture.notes + notes)
        return self(values, file.name)


def resized(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Crop the middle of (..., H, W) to the aspect ratio of `size`, then resize, antialiased."""
    height, width = array.shape[-2:]
    scale = min(height / size[0], width / size[1])
    crop = max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    array = array[..., top : top + crop[0], left : left + crop[1]]
    pixels = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    pixels = torch.nn.functional.interpolate(
        pixels.reshape(-1, 1, *crop), size, mode="bicubic", antialias=True
    )
    values = pixels.reshape(*array.shape[:-2], *size).numpy()
    if array.dtype == np.float32:
        return values.clip(0, 1)  # bicubic overshoots at edges
    return np.rint(values).clip(0, np.iinfo(array.dtype).max).astype(array.dtype)


def _fit_array(array: np.ndarray, fit: _Fit, name: str) -> np.ndarray:
    if fit(array[:1], name).shape == array[:1].shape:
        return array  # which may be memory-mapped: nothing is copied
    parts = [fit(array[i : i + 1000], name) for i in range(0, len(array), 1000)]
    return np.concatenate(parts)


def _read_all(
    files: list[File], fit: _Fit, *, skip_bad: bool, keep: bool
) -> tuple[list[File], list[np.ndarray], list[str]]:
    """Decode everything once: the good files, their images if they are to be kept, the bad."""
    good, arrays, skipped = [], [], []
    for file in files:
        try:
            array = fit.read(file)
        except (ValueError, OSError) as error:
            if not skip_bad:
                raise
            skipped.append(str(error))
        else:
            good.append(file)
            arrays += [array] if keep else []
    return good, arrays, skipped


def _stacked(arrays: list[np.ndarray]) -> np.ndarray:
    if len(counts := {len(array) for array in arrays}) > 1:
        grey = sum(len(array) == 1 for array in arrays)
        raise ValueError(
            f"{grey} images are grey and {len(arrays) - grey} in colour (channels {counts}): "
            "say channels=1 or channels=3 (--channels)"
        )
    return np.stack(arrays) if arrays else np.empty((0, 0, 0, 0))
