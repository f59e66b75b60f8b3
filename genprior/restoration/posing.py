"""From a photo to the problem that it poses."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from genprior.data import resized
from genprior.operators import GaussianNoise, Problem
from genprior.priors import Prior
from genprior.restoration.degradation import Degradation, Size, fit_mask
from genprior.restoration.settings import Solving

Fit = Literal["crop", "resize"]


def pose(
    photo: Tensor,
    degradation: Degradation,
    prior: Prior,
    *,
    solving: Solving,
    simulate: bool,
    fit: Fit | None,
    size: Size | None = None,
) -> tuple[Problem, Tensor | None]:
    """Make the problem that a photo (C, H, W) poses, and the truth (1, C, H, W) if known.

    Raises:
        ValueError: The prior does not serve the photo's size or channels, or the mask is of
            another size.
        MemoryError: Solving it would take more memory than is free.
    """
    channels = prior.image_shape[0]
    if channels != photo.shape[0]:
        raise ValueError(
            f"the photo has {photo.shape[0]} channel(s), the prior is for {channels}: "
            f"--channels {channels} converts the photo"
        )
    kernel = degradation.draw_kernel()
    generator = torch.Generator().manual_seed(solving.seed)
    if size is not None and fit is None:
        raise ValueError("--size says how large, not how: add --fit crop or --fit resize")
    wanted = _wanted_size(
        photo, degradation, kernel, prior.image_shape[1:], simulate=simulate, fit=fit, size=size
    )
    image = wanted if simulate else degradation.image_size(wanted, kernel)
    solving.refuse_too_large(
        prior, (photo.shape[0], *image), enlarged=1 if simulate else degradation.factor or 1
    )
    have: Size = (photo.shape[1], photo.shape[2])
    mask = degradation.draw_mask(have, generator)
    if mask is not None and tuple(mask.shape[2:]) != have:
        raise ValueError(
            f"the mask {degradation.mask} is {mask.shape[2]}x{mask.shape[3]} (height x width), "
            f"the photo {have[0]}x{have[1]}: they must agree"
        )
    if mask is not None and bool(mask.all()):
        raise ValueError(
            f"the mask {degradation.mask} misses nothing: all of it counts as measured. For noise "
            "alone there is --task denoise; --invert-mask swaps black and white"
        )
    if have != wanted:
        photo, mask = _fitted(photo, mask, wanted, fit)
    sigma = degradation.noise_std(None if simulate else photo, mask)
    device = next((t.device for t in prior.state_dict().values()), torch.device("cpu"))
    operator = degradation.operator((photo.shape[0], *image), mask=mask, kernel=kernel).to(device)
    x = photo[None].to(device)
    if simulate:
        noise = GaussianNoise(sigma)
        return Problem.simulate(x, operator, noise, generator=generator), x
    return Problem(x, operator, GaussianNoise(sigma)), None


def _wanted_size(
    photo: Tensor,
    degradation: Degradation,
    kernel: Tensor | None,
    served: tuple[int | None, ...],
    *,
    simulate: bool,
    fit: Fit | None,
    size: Size | None,
) -> Size:
    """Return the size that the photo must have, its own or `size` where the prior serves any."""
    have: Size = (photo.shape[1], photo.shape[2])
    height, width = served
    if height is None or width is None:
        if size is not None:
            if min(size) < 1:
                raise ValueError(f"--size must be positive, not {size[0]},{size[1]}")
            have = size
        if simulate:
            factor = degradation.factor or 1
            if size is None and fit is not None and min(have) >= factor:
                have = have[0] // factor * factor, have[1] // factor * factor
            degradation.measured_size(have, kernel)
        return have
    if size is not None:
        raise ValueError(
            f"--size is for priors of any size; this one is for {height}x{width}: --fit alone "
            "does it"
        )
    measured = degradation.measured_size((height, width), kernel)
    wanted = (height, width) if simulate else measured
    if have != wanted and fit is None:
        smaller = have[0] < wanted[0] or have[1] < wanted[1]
        advice = "--fit resize enlarges it" if smaller else "--fit crop or --fit resize adapts it"
        raise ValueError(
            f"the photo is {have[0]}x{have[1]} (height x width); for this prior and task it must "
            f"be {wanted[0]}x{wanted[1]}: {advice}"
        )
    return wanted


def _fitted(
    photo: Tensor, mask: Tensor | None, size: Size, fit: Fit | None
) -> tuple[Tensor, Tensor | None]:
    if fit == "resize":
        photo = torch.from_numpy(resized(photo.numpy(), size))
        return photo, None if mask is None else fit_mask(mask, size)
    top, left = (photo.shape[1] - size[0]) // 2, (photo.shape[2] - size[1]) // 2
    if top < 0 or left < 0:
        raise ValueError(
            f"the photo is {photo.shape[1]}x{photo.shape[2]} (height x width), too small to cut "
            f"{size[0]}x{size[1]} out of it: --fit resize enlarges it"
        )
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    cut = None if mask is None else mask[..., rows, columns]
    return photo[:, rows, columns], cut
