"""The photos of a folder, and the masks that belong to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from genprior.data.readers import is_image, walk


@dataclass(frozen=True)
class Entry:
    """One photo of a folder.

    Attributes:
        name: Its path within the folder, suffix included: what is written of it lies in a folder
            of that name, so that a.png and a.jpg do not meet.
        path: Where it is, absolute.
        mask: Its mask file, where each photo has one of its own.
    """

    name: str
    path: Path
    mask: Path | None = None


def find_photos(folder: Path, *, out: Path) -> tuple[list[Entry], list[str]]:
    """Find the photos in a folder and below, sorted, and name the files that are none.

    Args:
        folder: Where photos are.
        out: Where results go; if it lies in `folder`, it is passed over.
    Raises:
        ValueError: There are no photos, or `out` holds them.
    """
    folder, out = folder.resolve(), out.resolve()
    if folder.is_relative_to(out):
        raise ValueError(f"--out {out} holds the photos themselves: name another folder")
    found = sorted(path for path in walk(folder) if not path.resolve().is_relative_to(out))
    photos = [p for p in found if _is_photo(p)]
    others = [p.relative_to(folder).as_posix() for p in found if not _is_photo(p)]
    if not photos:
        raise ValueError(f"{folder} holds no photos, neither in it nor in folders below")
    return [Entry(p.relative_to(folder).as_posix(), p) for p in photos], others


def pair_masks(entries: list[Entry], folder: Path) -> tuple[list[Entry], list[str]]:
    """Give each photo the mask of its name, and name the masks that belong to none.

    A mask has the photo's name within its folder; its suffix may be another where no second photo
    or mask has that name but for the suffix.

    Raises:
        ValueError: A photo has no mask, or more than one might be its.
    """
    masks = {p.relative_to(folder).as_posix(): p for p in walk(folder) if is_image(p.name)}
    photos_of, masks_of = _stems(e.name for e in entries), _stems(masks)
    by_stem = {_stem(name): path for name, path in masks.items()}
    paired, missing = [], []
    for entry in entries:
        stem = _stem(entry.name)
        alone = photos_of[stem] == masks_of[stem] == 1
        mask = masks.get(entry.name) or (by_stem[stem] if alone else None)
        if mask is None:
            missing.append(entry.name)
        paired.append(Entry(entry.name, entry.path, mask))
    if missing:
        shown = ", ".join(missing[:10]) + f" and {len(missing) - 10} more" * (len(missing) > 10)
        raise ValueError(
            f"--mask {folder}: no mask for {len(missing)} of {len(entries)} photos: {shown}. A "
            "mask has its photo's name, with the same suffix where two would fit"
        )
    used = {entry.mask for entry in paired}
    return paired, [name for name, path in masks.items() if path not in used]


def _is_photo(path: Path) -> bool:
    return is_image(path.name) or path.suffix.lower() == ".npy"


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _stems(names: Iterable[str]) -> Counter[str]:
    return Counter(_stem(name) for name in names)
