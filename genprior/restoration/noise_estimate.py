"""`--sigma auto`: how much white noise a photo holds."""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

PATCHES = 40_000
"""Most patches that are looked at, evenly spaced."""


WHITE = 0.2
"""Noise counts as white where patches show at least this share of what the finest details show.
In textured photos they show .4 and more, in JPEGs of noise from 5/255 at most .12."""


LUMA = (0.299, 0.587, 0.114)


def estimated_noise(
    photo: Tensor, measured: Tensor | None = None, *, steps: Tensor | None = None
) -> float:
    """Estimate the std of white noise in a photo as `find_noise` does; doubts are warned of."""
    found, doubt = find_noise(photo, measured, steps=steps)
    if doubt:
        warnings.warn(doubt, stacklevel=2)
    return found


def find_noise(
    photo: Tensor, measured: Tensor | None = None, *, steps: Tensor | None = None
) -> tuple[float, str]:
    """Return the std of white noise in a photo, 0 where there is nothing to measure, and doubts.

    From patches of all colours, which tell texture from noise. After JPEG compression colours have
    next to no fine noise, and patches would find none: then the finest details of each channel
    decide, and the doubt says that the estimate is rough. What touches black, white or a missing
    pixel is left out: noise is cut off there, or absent.

    Args:
        photo: (C, H, W), pixels in [0, 1].
        measured: (1 or C, H, W), True where there is a pixel; None for everywhere.
        steps: (8, 8), of a JPEG that has been neither cropped nor resized (`read_photo` gives
            them): patches and details find hardly any of the noise of most JPEGs, so it is told
            from what was not rounded to zero; the doubt says that this is rough.
    """
    if len(photo) > 1 and bool((photo == photo[:1]).all()):
        photo = photo[:1]  # a grey photo in three channels has the noise of one
    pixels = photo.double().cpu()
    usable = ((pixels > 0) & (pixels < 1)).all(0)
    if measured is not None:
        usable = usable & measured.cpu().all(0)
    if steps is not None:
        found = _from_jpeg(pixels, usable, steps)
        return found, (
            "the photo is a JPEG, which rounds fine noise away: --sigma auto takes "
            f"{found:.3g} for what noise and rounding did together, a rough guess"
        )
    patches, details = _from_patches(pixels, usable), _from_details(pixels, usable)
    if patches >= WHITE * details:
        return min(patches, details) if details > 0 else patches, ""  # texture only ever adds
    if patches == 0:
        return details, ""
    return details, (
        f"the photo's noise is not white (as after JPEG compression): --sigma auto takes "
        f"{details:.3g}, a rough guess; give a larger number if grain is left"
    )


def _from_patches(pixels: Tensor, usable: Tensor) -> float:
    """Take the smallest eigenvalues of the patches' covariance as the noise's variance.

    Patches of a photo fill few directions, noise fills all. Of the sorted eigenvalues, as many of
    the largest are left out as it takes for the rest to have a mean no larger than their median.

    Source: Chen, Zhu, Heng 2015, "An efficient statistical method for image noise level
        estimation". Differs: all colours in one patch.
    """
    for side in (6, 4):
        patches = _patches(pixels, usable, side)
        if len(patches) < 3 * patches.shape[1]:
            continue
        values = torch.linalg.eigvalsh(torch.cov(patches.T))
        rests = (values[:count] for count in range(len(values), 0, -1))
        variance = next(rest.mean() for rest in rests if rest.mean() <= rest.median())
        return math.sqrt(max(variance.item(), 0.0))
    return 0.0


def _from_details(pixels: Tensor, usable: Tensor) -> float:
    """Take the median absolute value of the finest diagonal wavelet details, mean over channels.

    Source: Donoho, Johnstone 1994, with Daubechies' second wavelet, as scikit-image's
        estimate_sigma.
    """
    root = math.sqrt(3)
    detail = torch.tensor([1 - root, root - 3, 3 + root, -1 - root], dtype=torch.float64)
    detail = detail / (4 * math.sqrt(2))
    if min(usable.shape) < len(detail):
        return 0.0
    found = F.conv2d(pixels[:, None], torch.outer(detail, detail)[None, None], stride=2)[:, 0]
    whole = -F.max_pool2d(-usable.double()[None], len(detail), stride=2)[0] > 0
    if int(whole.sum()) < 16:
        return 0.0
    normal_median = 0.6744897501960817
    return found[:, whole].abs().median(1).values.mean().item() / normal_median


def _from_jpeg(pixels: Tensor, usable: Tensor, steps: Tensor) -> float:
    """Take the std of brightness that rounding would leave as it is found.

        P(|N(0, s^2)| < (k + 1/2) step) = share rounded to 0 ... k,  k about the median

    A low value over frequencies is taken, because texture only ever adds. JPEG rounds colours so
    hard that what is left of noise is that of brightness, .67 of each colour's. In 8 photos with
    noise 0 to 25 and quality 50 to 95 the JPEG's rms difference from the clean image was .5 to
    1.8 of s, .9 in the middle.
    """
    weights = torch.tensor(LUMA if len(pixels) == 3 else [1 / len(pixels)] * len(pixels))
    luma = 255 * torch.einsum("c,chw->hw", weights.double(), pixels)
    whole = usable.unfold(0, 8, 8).unfold(1, 8, 8).flatten(2).double().mean(-1) > 0.9
    blocks = luma.unfold(0, 8, 8).unfold(1, 8, 8)[whole] - 128
    if len(blocks) < 16:
        return 0.0
    place = torch.arange(8, dtype=torch.float64)
    cosines = torch.cos(torch.pi * place[:, None] * (place + 0.5) / 8) / 2
    cosines[0] = math.sqrt(1 / 8)
    rounded = (cosines @ blocks @ cosines.T / steps).round().abs()
    middle = rounded.median(0).values
    share = (rounded <= middle).double().mean(0)
    known = (1 - share) * len(blocks) >= max(20, 0.002 * len(blocks))
    known[0, 0] = False
    if not bool(known.any()):
        return steps.min().item() / 6 / 255  # more would have left its traces
    found = ((middle + 0.5) * steps / (math.sqrt(2) * torch.erfinv(share)))[known]
    return found.kthvalue(1 + len(found) // 16).values.item() / 255


def _patches(pixels: Tensor, usable: Tensor, side: int) -> Tensor:
    """Return the patches (n, C side^2) whose every pixel is usable."""
    if min(usable.shape) < side:
        return pixels.new_zeros(0, pixels.shape[0] * side**2)
    whole = -F.max_pool2d(-usable.double()[None], side, stride=1)[0]
    corners = whole.nonzero()
    corners = corners[:: max(1, math.ceil(len(corners) / PATCHES))]
    windows = pixels.unfold(1, side, 1).unfold(2, side, 1)
    return windows[:, corners[:, 0], corners[:, 1]].transpose(0, 1).flatten(1)
