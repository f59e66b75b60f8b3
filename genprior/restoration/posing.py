"""From a photo to the problem that it poses, and from what was found back to a photo."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from genprior.data import resized
from genprior.data.limits import option, refuse_outside
from genprior.operators import GaussianNoise, Inpainting, PoissonNoise, Problem
from genprior.operators.noise import Noise
from genprior.priors import Prior
from genprior.restoration.degradation import Degradation, Size, fit_mask
from genprior.restoration.settings import Solving
from genprior.restoration.windows import Window, windows_round_holes
from genprior.solvers import Result
from genprior.solvers.result import paired_std

Fit = Literal["crop", "resize"]


@dataclass(frozen=True)
class Posed:
    """What a photo asks, and how the answer becomes a photo again.

    Attributes:
        problem: As it is solved, in the prior's channels.
        measured: As it was measured, in the photo's channels.
        truth: (1, C, H, W), None where unknown.
        grey: Whether a grey photo was posed to a prior of colour images.
        frame: What of the solution is the photo; the rest is border that was blurred into it.
        keep: Whether measured pixels come back as they were.
        windows: Parts to be solved; None for the whole.
        noise_from: Where the noise's strength comes from, in words.
    """

    problem: Problem
    measured: Problem
    truth: Tensor | None
    grey: bool
    frame: Window
    keep: bool
    windows: list[Window] | None
    noise_from: str

    def as_measured(self, result: Result) -> Result:
        """Bring a solution to the photo's channels: of a grey one the channels' mean."""
        if not self.grey:
            return result
        channels = self.measured.y.shape[1]
        grey = _mapped(result, lambda x: x.mean(-3, keepdim=True))
        std = None
        if grey.samples.shape[1] > 1:
            std = paired_std(grey.samples) if result.antithetic else grey.samples.std(1)
        return _mapped(replace(grey, std=std), lambda x: x.repeat_interleave(channels, -3))

    def framed(self, result: Result) -> Result:
        """Cut away the border that is no part of the photo."""
        return _mapped(result, lambda x: x[(..., *self.frame)])

    def kept(self, result: Result) -> Result:
        """Give measured pixels back as they were."""
        observed, y = self.measured.operator.observed, self.measured.y
        if observed is None:
            return result
        back = _mapped(result, lambda x: torch.where(observed, y, x))
        samples = torch.where(observed[:, None], y[:, None], result.samples)
        std = None if result.std is None else result.std.masked_fill(observed, 0.0)
        return replace(back, samples=samples, std=std)

    def inside(self) -> Problem:
        """Return the measurement within the windows alone, where it was explained."""
        operator = self.measured.operator
        if self.windows is None or not isinstance(operator, Inpainting):
            return self.measured
        inside = torch.zeros_like(operator.mask)
        for window in self.windows:
            inside[(..., *window)] = True
        solved = Inpainting(operator.mask & inside, image_shape=operator.image_shape)
        return Problem(self.measured.y, solved, self.measured.noise)


def _mapped(result: Result, change: Callable[[Tensor], Tensor]) -> Result:
    """Apply a change of images to all that a Result holds of them."""
    std = None if result.std is None else change(result.std)
    return replace(result, samples=change(result.samples), mean=change(result.mean), std=std)


def pose(
    photo: Tensor,
    degradation: Degradation,
    prior: Prior,
    *,
    solving: Solving,
    simulate: bool,
    fit: Fit | None,
    size: Size | None = None,
    keep: bool = False,
    steps: Tensor | None = None,
    mask: Tensor | None = None,
) -> Posed:
    """Make the problem that a photo (C, H, W) poses.

    A grey photo for a prior of n colours is one measurement y = g + sigma e of n equal channels.
    It is posed as n equal measurements with noise sqrt(n) sigma: of the channels' mean they say
    what y says, and they hold the channels together.

    Args:
        photo: The measurement, or with `simulate` the truth.
        degradation: Settled for the one or the other.
        prior: What solves it.
        solving: Its seed and memory.
        simulate: Degrade the photo first.
        fit: How to fit it to the prior or to `size`.
        size: (H, W) to fit it to.
        keep: Measured pixels are to come back as they were, so only holes need be solved.
        steps: Of a photo that is a JPEG (`read_photo`): its noise is told before it is fitted.
        mask: What the mask file holds, (1, 1, H, W), where it need not be read.
    Raises:
        ValueError: The prior does not serve the photo's size or channels, or the mask is of
            another size.
        MemoryError: Solving it would take more memory than is free.
    """
    channels, grey = _channels(photo, prior)
    if keep and degradation.task != "inpaint":
        raise ValueError(f"--keep is for --task inpaint, not for {degradation.task}")
    kernel = degradation.draw_kernel()
    generator = torch.Generator().manual_seed(solving.seed)
    if size is not None and fit is None:
        raise ValueError("--size says how large, not how: add --fit crop or --fit resize")
    wanted = _wanted_size(
        photo, degradation, kernel, prior.image_shape[1:], simulate=simulate, fit=fit, size=size
    )
    image = wanted if simulate else degradation.image_size(wanted, kernel)
    whole, mask = photo, _drawn_mask(photo, degradation, wanted, generator, given=mask)
    whole_mask, drawn = mask, not degradation.mask_is_file
    photo, mask = _fitted(photo, mask, wanted, fit=fit, drawn=drawn)
    windows = windows_round_holes(mask, prior) if keep and mask is not None else None
    solving.refuse_too_large(
        prior,
        (channels, *image),
        windows=windows,
        enlarged=1 if simulate else degradation.factor or 1,
    )
    if simulate or steps is None:
        noise, noise_from = degradation.noise(None if simulate else photo, mask)
    else:  # a JPEG's blocks of 8x8 pixels are lost when it is cut or resized
        shrunk = max(1.0, min(h / w for h, w in zip(whole.shape[1:], wanted, strict=True)))
        noise, noise_from = degradation.noise(
            whole,
            None if drawn and whole.shape != photo.shape else whole_mask,
            steps=steps,
            shrunk=shrunk if fit == "resize" else 1.0,
        )
    device = next((t.device for t in prior.state_dict().values()), torch.device("cpu"))

    def posed(y: Tensor, noise: Noise, channels: int) -> Problem:
        operator = degradation.operator((channels, *image), mask=mask, kernel=kernel)
        return Problem(y.expand(-1, channels, -1, -1).contiguous(), operator.to(device), noise)

    x = photo[None].to(device)
    y = x[:, :1] if grey else x
    if simulate:
        operator = degradation.operator((y.shape[1], *image), mask=mask, kernel=kernel)
        y = Problem.simulate(y, operator.to(device), noise, generator=generator).y
    measured = posed(y, noise, len(photo))
    frame: Window = slice(None), slice(None)
    if kernel is not None and not simulate:
        top, left = degradation.border(kernel)
        frame = slice(top, top + wanted[0]), slice(left, left + wanted[1])
    return Posed(
        problem=posed(y, _shared_by(noise, channels), channels) if grey else measured,
        measured=measured,
        truth=x if simulate else None,
        grey=grey,
        frame=frame,
        keep=keep,
        windows=windows,
        noise_from=noise_from,
    )


def refuse_unless_one_fits(
    photo: Tensor,
    degradation: Degradation,
    prior: Prior,
    kernels: Iterable[Tensor],
    *,
    fit: Fit | None,
    size: Size | None,
) -> None:
    """Raise what `pose` would for the first of `kernels`, where it would for every one."""
    _channels(photo, prior)
    served, first = prior.image_shape[1:], None
    for kernel in kernels:
        try:
            wanted = _wanted_size(
                photo, degradation, kernel, served, simulate=False, fit=fit, size=size
            )
            _fitted(photo, None, wanted, fit=fit, drawn=True)
        except ValueError as error:
            first = first or error
        else:
            return
    if first is not None:
        raise first


def _channels(photo: Tensor, prior: Prior) -> tuple[int, bool]:
    """Return the channels that are solved, and whether a grey photo is posed to more of them."""
    channels = prior.image_shape[0] or photo.shape[0]
    grey = channels > 1 and bool((photo == photo[:1]).all())
    if channels != photo.shape[0] and not grey:
        raise ValueError(
            f"the photo has {photo.shape[0]} channel(s), the prior is for {channels}: "
            f"--channels {channels} converts the photo"
        )
    return channels, grey


def _shared_by(noise: Noise, channels: int) -> Noise:
    """Noise of n equal channels of whose mean it says what `noise` says of one."""
    if isinstance(noise, GaussianNoise):
        return GaussianNoise(noise.sigma * channels**0.5)
    assert isinstance(noise, PoissonNoise)
    return PoissonNoise(noise.peak / channels)


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
            refuse_outside({"size": size}, said=option)
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
        if kernel is not None and wanted != (height, width):
            advice += (
                f" (what lies beyond its borders is blurred into it and is part of the prior's "
                f"{height}x{width}; --boundary circular does without)"
            )
        raise ValueError(
            f"the photo is {have[0]}x{have[1]} (height x width); for this prior and task it must "
            f"be {wanted[0]}x{wanted[1]}: {advice}"
        )
    return wanted


def _drawn_mask(
    photo: Tensor,
    degradation: Degradation,
    size: Size,
    generator: torch.Generator,
    *,
    given: Tensor | None = None,
) -> Tensor | None:
    """Read a mask file, which must be of the photo's size, or draw a mask of the size wanted."""
    have: Size = (photo.shape[1], photo.shape[2])
    mask = given
    if mask is None:
        mask = degradation.draw_mask(have if degradation.mask_is_file else size, generator)
    if degradation.mask_is_file and mask is not None and tuple(mask.shape[2:]) != have:
        raise ValueError(
            f"the mask {degradation.mask} is {mask.shape[2]}x{mask.shape[3]} (height x width), "
            f"the photo {have[0]}x{have[1]}: they must agree"
        )
    if mask is not None and bool(mask.all()):
        raise ValueError(
            f"the mask {degradation.mask} misses nothing: all of it counts as measured. For noise "
            "alone there is --task denoise; --invert-mask swaps black and white"
        )
    return mask


def _fitted(
    photo: Tensor, mask: Tensor | None, size: Size, *, fit: Fit | None, drawn: bool
) -> tuple[Tensor, Tensor | None]:
    """Bring photo and mask file to a size; a mask that is drawn has it."""
    have: Size = (photo.shape[1], photo.shape[2])
    if have == size:
        return photo, mask
    if fit == "resize":
        photo = torch.from_numpy(resized(photo.numpy(), size))
        return photo, mask if mask is None or drawn else fit_mask(mask, size)
    top, left = (have[0] - size[0]) // 2, (have[1] - size[1]) // 2
    if top < 0 or left < 0:
        raise ValueError(
            f"the photo is {have[0]}x{have[1]} (height x width), too small to cut "
            f"{size[0]}x{size[1]} out of it: --fit resize enlarges it"
        )
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    return photo[:, rows, columns], mask if mask is None or drawn else mask[..., rows, columns]
