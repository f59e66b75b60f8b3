"""What the shell's options say of a degradation, made into operators."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from genprior.data.limits import option, refuse_outside
from genprior.operators import (
    Blur,
    Downsampling,
    GaussianNoise,
    Identity,
    Inpainting,
    LinearOperator,
    PoissonNoise,
)
from genprior.operators import kernels as kernel_shapes
from genprior.operators import masks as mask_shapes
from genprior.operators.noise import Noise
from genprior.operators.random import Generators
from genprior.restoration.noise_estimate import find_noise

Size = tuple[int, int]

USUAL = 0.01
"""Noise std of an inpainting that says nothing of it, where the photo does not show it."""

DRAWN = ("box", "random", "half", "stripes", "strokes")
"""Kinds of masks that are drawn at the size of the photo."""

REACH = 4
"""Pixels: what lies farther from all that is measured is the inside of a compact hole."""


@dataclass(frozen=True)
class Degradation:
    """How an image was, or is to be, degraded.

    Attributes:
        task: What to undo.
        mask: For inpaint: an image file, white where measured; or drawn: box:SIDE, random:SHARE
            missing, half:left|right|top|bottom, stripes:MEASURED,MISSING, strokes:NUMBER or
            strokes:NUMBER,WIDTH in pixels (a tenth of the shorter side).
        invert_mask: White is missing instead.
        mask_threshold: In (0, 1): grey levels of a mask file from here on count as white. Without
            it a mask must be black and white.
        kernel: For deblur: gaussian:STD, motion:LENGTH,ANGLE, disk:RADIUS, uniform:SIZE, or a
            file (image or .npy) that shows what the blur makes of one bright pixel; or auto: the
            Gaussian, disk or straight motion that the photo speaks for most, an estimate.
        boundary: For deblur: valid (as in a camera: what lies beyond the photo's borders is
            blurred into it, is solved for, and cut away) or circular (the image wraps around).
            valid by default, circular where the blur is simulated.
        factor: For superres: how many times larger the image is than the photo.
        sigma: Noise std for pixels in [0, 1], as 0.1 or 25/255, or auto: estimated from the photo.
            auto by default; where the noise is simulated, 0.01 for inpaint, required elsewhere.
        peak: For photon (Poisson) noise instead of sigma: the mean count of a white pixel.
    """

    task: Literal["inpaint", "denoise", "deblur", "superres"]
    mask: str | None = None
    invert_mask: bool = False
    mask_threshold: float | None = None
    kernel: str | None = None
    boundary: Literal["circular", "valid"] | None = None
    factor: int | None = None
    sigma: str | None = None
    peak: float | None = None

    def __post_init__(self) -> None:
        refuse_outside(vars(self), said=option)
        needs = {"inpaint": "mask", "deblur": "kernel", "superres": "factor"}
        for task, need in needs.items():
            given = getattr(self, need) is not None
            if given and self.task != task:
                raise ValueError(f"--{need} is for --task {task}, not for {self.task}")
            if not given and self.task == task:
                found = "; auto finds one for a photo" if need == "kernel" else ""
                raise ValueError(f"--task {task} needs --{need}{found}")
        if self.mask is None and (self.invert_mask or self.mask_threshold is not None):
            raise ValueError("--invert-mask and --mask-threshold go with --mask")
        if self.mask_threshold is not None and not 0 < self.mask_threshold < 1:
            raise ValueError(f"--mask-threshold must be in (0, 1), not {self.mask_threshold}")
        if self.boundary is not None and self.task != "deblur":
            raise ValueError(f"--boundary is for --task deblur, not for {self.task}")
        if self.peak is not None and self.sigma is not None:
            raise ValueError("--peak is for photon noise, --sigma for Gaussian: give one of them")
        if self.peak is not None and self.kernel == "auto":
            raise ValueError("--kernel auto is for Gaussian noise: give --sigma, not --peak")
        if self.sigma not in (None, "auto"):
            self._number(self.sigma or "")

    def settled(self, *, simulate: bool) -> Degradation:
        """Fill in what was left open, as a simulation or a camera has it.

        Raises:
            ValueError: Noise is to be simulated, and nothing says how much.
        """
        if simulate and self.kernel == "auto":
            raise ValueError(
                "--kernel auto finds the blur of a photo that has one; with --simulate, and in "
                "evaluate, say which it is to have"
            )
        if simulate and self.sigma is self.peak is None and self.task != "inpaint":
            raise ValueError(
                f"--task {self.task} with simulated noise needs --sigma, the noise std for pixels "
                "in [0, 1]: a number as 0.05, or a fraction as 25/255"
            )
        if self.task != "deblur" or self.boundary is not None:
            return self
        return replace(self, boundary="circular" if simulate else "valid")

    def noise(
        self,
        photo: Tensor | None,
        mask: Tensor | None = None,
        *,
        steps: Tensor | None = None,
        shrunk: float = 1.0,
    ) -> tuple[Noise, str]:
        """Return the noise, and in words where its strength comes from.

        Args:
            photo: (C, H, W), to estimate it from; None if it is to be simulated.
            mask: (1, 1, H, W), True where measured.
            steps: Of a photo that is a JPEG as it was read, (8, 8).
            shrunk: By what its sides will be divided yet, which takes noise out as much.
        Raises:
            ValueError: There is nothing to estimate it from.
        """
        if self.peak is not None:
            return PoissonNoise(self.peak), "given"
        if self.sigma not in (None, "auto"):
            return GaussianNoise(self._number(self.sigma or "")), "given"
        if photo is None and self.sigma is None:
            return GaussianNoise(USUAL), "the default"
        if photo is None:
            raise ValueError(
                "--sigma auto measures the noise of a photo; with --simulate, and in evaluate, "
                "there is none yet: give a number"
            )
        found, doubt = find_noise(photo, None if mask is None else mask[0], steps=steps)
        found /= shrunk
        if self.task == "inpaint" and self.sigma is None and (doubt or found <= 1e-4):
            return GaussianNoise(USUAL), "the default: the photo does not show its noise clearly"
        if doubt:
            warnings.warn(doubt, stacklevel=2)
        if found > 1e-4:
            return GaussianNoise(found), "estimated from the photo"
        raise ValueError(
            "--sigma auto, the default for a photo, found no noise to measure: the photo is flat, "
            "too small, or too little of it is whole. Give a number"
        )

    @staticmethod
    def _number(text: str) -> float:
        top, slash, bottom = text.partition("/")
        try:
            value = float(top) / (float(bottom) if slash else 1.0)
        except (ValueError, ZeroDivisionError):
            value = float("nan")
        if not 0 <= value < float("inf"):
            raise ValueError(
                f"--sigma must be a number in [0, 1] as 0.05, a fraction as 25/255, or auto, not "
                f"{text}"
            )
        if value > 1:
            raise ValueError(
                f"--sigma {text} is above 1, the range from black to white: 25 grey levels of 8 "
                "bits are written as 25/255"
            )
        return value

    def measured_size(self, image: Size, kernel: Tensor | None) -> Size:
        """Return the (height, width) of a measurement of an image of that size."""
        if self.factor is not None:
            if image[0] % self.factor or image[1] % self.factor:
                raise ValueError(
                    f"--factor {self.factor} does not divide {image[0]}x{image[1]} (height x "
                    "width): --fit crop cuts the photo to a multiple"
                )
            return image[0] // self.factor, image[1] // self.factor
        if kernel is not None and self.boundary == "valid":
            seen = image[0] - kernel.shape[0] + 1, image[1] - kernel.shape[1] + 1
            if min(seen) < 1:
                raise ValueError(
                    f"the kernel {tuple(kernel.shape)} exceeds the image {image}: make it smaller"
                )
            return seen
        return image

    def image_size(self, measured: Size, kernel: Tensor | None) -> Size:
        """Return the (height, width) of the image of which a measurement has that size."""
        if self.factor is not None:
            return measured[0] * self.factor, measured[1] * self.factor
        if kernel is not None and self.boundary == "valid":
            return measured[0] + kernel.shape[0] - 1, measured[1] + kernel.shape[1] - 1
        return measured

    def border(self, kernel: Tensor) -> Size:
        """Return how far (down, right) in the image the measurement's first pixel lies."""
        if self.boundary != "valid":
            return 0, 0
        height, width = kernel.shape
        return height - 1 - height // 2, width - 1 - width // 2

    def draw_kernel(self) -> Tensor | None:
        """Make the kernel (h, w), or None where the task has none."""
        if self.kernel is None:
            return None
        shapes: dict[str, Callable[..., Tensor]] = {
            "gaussian": kernel_shapes.gaussian,
            "motion": lambda length, angle: kernel_shapes.motion(length, angle),
            "disk": kernel_shapes.disk,
            "uniform": lambda size: kernel_shapes.uniform(_whole(size)),
        }
        drawn = _drawn("kernel", self.kernel, shapes)
        return kernel_shapes.from_file(self.kernel) if drawn is None else drawn

    @property
    def mask_is_file(self) -> bool:
        """Whether the mask is a file, of a size of its own, and not drawn."""
        return self.mask is not None and self.mask.partition(":")[0] not in DRAWN

    def draw_mask(self, size: Size, generators: Generators, *, count: int = 1) -> Tensor | None:
        """Make masks (count or 1, 1, H, W), True where measured; None if the task has none."""
        if self.mask is None:
            return None
        many = {"count": count, "generator": generators}
        shapes: dict[str, Callable[..., Tensor]] = {
            "box": lambda side: mask_shapes.box(size, size=_whole(side)),
            "random": lambda missing: mask_shapes.random(size, missing=missing, **many),
            "half": lambda side: mask_shapes.half(size, missing=side),
            "stripes": lambda measured, missing: mask_shapes.stripes(
                size, measured=_whole(measured), missing=_whole(missing)
            ),
            "strokes": lambda number, width=None: mask_shapes.strokes(
                size, number=_whole(number), width=width, **many
            ),
        }
        drawn = _drawn("mask", self.mask, shapes)
        if drawn is None:
            mask = mask_shapes.from_file(
                self.mask, invert=self.invert_mask, threshold=self.mask_threshold
            )[None]
            _warn_if_inverted(mask, self.mask)
            return mask
        mask = drawn if drawn.ndim == 4 else drawn[None]
        return ~mask if self.invert_mask else mask

    def operator(
        self, image_shape: tuple[int, int, int], *, mask: Tensor | None, kernel: Tensor | None
    ) -> LinearOperator:
        """Make the operator for images (C, H, W)."""
        if mask is not None:
            return Inpainting(mask, image_shape=image_shape)
        if kernel is not None:
            return Blur(kernel, image_shape, boundary=self.boundary or "circular")
        if self.factor is not None:
            return Downsampling(self.factor, image_shape)
        return Identity(image_shape)


def _warn_if_inverted(mask: Tensor, name: str) -> None:
    """Warn where most is missing, and either part is compact: neither scattered nor thin."""
    missing = 1 - mask.double().mean().item()
    grown = torch.nn.functional.max_pool2d(mask.float(), 2 * REACH + 1, 1, REACH)
    large = 1 - grown.mean().item() > missing / 2
    shrunk = 1 - torch.nn.functional.max_pool2d(1 - mask.float(), 3, 1, 1)
    compact = shrunk.mean().item() > (1 - missing) / 3  # thin lines keep less than a third
    if missing > 0.5 and (large or compact):
        warnings.warn(
            f"{name}: black is missing, here {missing:.1%} of the pixels in large holes. If white "
            "is the hole, --invert-mask swaps them",
            stacklevel=2,
        )


def _drawn(what: str, text: str, shapes: dict[str, Callable[..., Tensor]]) -> Tensor | None:
    """Draw what NAME:A,B says, by the shape of that name; None where it is a file."""
    name, colon, rest = text.partition(":")
    if name not in shapes or not colon:
        if Path(text).is_file():
            return None
        raise ValueError(
            f"--{what} {text} is neither a file nor one of "
            f"{', '.join(f'{shape}:...' for shape in shapes)}"
        )
    try:
        return shapes[name](*(_value(part) for part in rest.split(",")))
    except TypeError as error:
        raise ValueError(f"--{what} {text} is not understood: see --help") from error
    except ValueError as error:
        raise ValueError(f"--{what} {text}: {error}") from error


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _whole(value: float) -> int:
    if value != int(value):
        raise ValueError(f"a whole number was expected, not {value}")
    return int(value)


def fit_mask(mask: Tensor, size: Size) -> Tensor:
    """Crop and resize a mask (1, 1, H, W) as `genprior.data.resized` does an image.

    A pixel counts as measured where all that is blended into it was measured.
    """
    from genprior.data import resized

    share = torch.from_numpy(resized((~mask).float().numpy(), size))
    return share < 1e-3
