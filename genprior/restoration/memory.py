"""How much memory a restoration takes, said before work starts rather than by a killed process."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from genprior.priors import Prior
from genprior.priors.base import DenoisingPrior
from genprior.priors.diffusion.tiles import PIXELS_WITH_GRADIENT

DECODING = 30
"""Bytes for each pixel of a colour photo while it is decoded and turned into floats."""

ROW_TENSORS = 72
"""Images that a solver holds for each row in flight: MMPS's directions, transforms, the walk."""

WHOLE_TENSORS = 40
"""Images held whatever the samples: measurement, moments, and the panels of the picture."""

Shape = tuple[int, int, int]


def needed(shape: Shape, *, kept: float, tiled: bool, rows: int, samples: int) -> int:
    """Estimate the bytes that drawing samples of one image takes.

    Args:
        shape: (C, H, W) of the restored image.
        kept: Bytes for each pixel that the prior's network keeps for a gradient.
        tiled: Whether the network works on large images in tiles.
        rows: Samples in flight at once.
        samples: Samples asked for.
    """
    pixels = shape[1] * shape[2]
    image = 4 * shape[0] * pixels
    # A tile is evaluated with its surroundings.
    piece = min(pixels, 5 * PIXELS_WITH_GRADIENT // 4) if tiled else pixels
    return image * (ROW_TENSORS * rows + 3 * samples + WHOLE_TENSORS) + round(kept * piece * rows)


def held(shape: Shape, samples: int) -> int:
    """Estimate the bytes that a photo and its restorations take beside the work in windows."""
    return 4 * math.prod(shape) * (3 * samples + 8)


def kept_for_gradient(prior: Prior, side: int = 64) -> float:
    """Measure the bytes for each pixel that a denoiser keeps for its gradient; 0 for others."""
    channels, height, width = prior.image_shape
    if not isinstance(prior, DenoisingPrior):
        return 0.0
    size = height or side, width or side
    state = [*prior.parameters(), *prior.buffers()]
    own = {tensor.untyped_storage().data_ptr() for tensor in state}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    device = state[0].device if state else None
    x = torch.zeros(1, channels or 3, *size, device=device).requires_grad_()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        output = prior.denoise(x, prior.sigma_range[1])
    assert output.shape == x.shape  # and alive: what it keeps must not be counted twice
    return sum(kept.values()) / math.prod(size)


_most: int | None = None


def keep_within(most: int | None) -> None:
    """Count at most so many bytes as free from now on in this process, as others work beside."""
    global _most
    _most = most


def available(device: torch.device) -> int | None:
    """Return the bytes that are free on a device; None where nobody knows."""
    if device.type == "cuda":
        found = [torch.cuda.mem_get_info(device)[0], _most]
    else:
        found = [_free_of_machine(), _free_of_group(), _most]
    return min((n for n in found if n is not None), default=None)


def _free_of_machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    try:  # no Linux: all of the memory, for want of better
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _free_of_group(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container's limit leaves; the file cache counts as free."""
    try:
        limit = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
        parts = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # "max": no limit
        return None
    cache = next((int(p.split()[1]) for p in parts if p.startswith("inactive_file ")), 0)
    return limit - used + cache


def refuse_too_large(
    prior: Prior,
    shape: Shape,
    *,
    rows: int,
    samples: int,
    device: torch.device,
    enlarged: int = 1,
    besides: int = 0,
) -> None:
    """Raise a MemoryError before any work, saying what would fit.

    Args:
        prior: Its network is tried on a small image to see how much a gradient keeps.
        shape: (C, H, W) of the restored image.
        rows: Samples in flight at once.
        samples: Samples asked for.
        device: Where the work would be done.
        enlarged: How many times larger the restored image is than the photo.
        besides: Bytes taken by what is not worked on.
    Raises:
        MemoryError: The restoration would take more than is free.
    """
    free = available(device)
    if free is None:
        return
    tiled = getattr(getattr(prior, "network", None), "reach", None) is not None
    kept = kept_for_gradient(prior)

    def takes(shape: Shape, rows: int, samples: int) -> int:
        return besides + needed(shape, kept=kept, tiled=tiled, rows=rows, samples=samples)

    if takes(shape, rows, samples) <= free:
        return
    said = (
        f"restoring {shape[1]}x{shape[2]} pixels (height x width) with {samples} sample(s) takes "
        f"about {_gigabytes(takes(shape, rows, samples))}, and {_gigabytes(free)} are free: "
    )
    if rows > 1 and takes(shape, 1, samples) <= free:
        raise MemoryError(said + "--batch-size 1, one sample at a time, would fit")
    if samples > 1 and takes(shape, 1, 1) <= free:
        raise MemoryError(said + "--samples 1 --batch-size 1 would fit")
    side = 1.0
    height, width = shape[1:]
    while max(height, width) > 8 and takes((shape[0], height, width), 1, 1) > free:
        side *= 0.9
        height, width = (max(8, int(side * n) // 8 * 8) for n in shape[1:])
    smaller = f"--size [{max(1, height // enlarged)},{max(1, width // enlarged)}]"
    raise MemoryError(
        f"{said}with --samples 1, --fit crop {smaller} cuts a part out that would fit, and "
        f"--fit resize {smaller} makes the photo smaller"
    )


def refuse_to_decode(path: str, size: tuple[int, int]) -> None:
    """Raise a MemoryError if even decoding a photo of (H, W) takes more than is free."""
    takes, free = DECODING * size[0] * size[1], available(torch.device("cpu"))
    if free is not None and takes > free:
        raise MemoryError(
            f"{path} has {size[0]}x{size[1]} pixels (height x width); reading it takes about "
            f"{_gigabytes(takes)}, and {_gigabytes(free)} are free: crop it or make it smaller"
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
