"""What the shell's options say of a degradation, made into operators."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from genprior.operators import Blur, Downsampling, Identity, Inpainting, LinearOperator
from genprior.operators import kernels as kernel_shapes
from genprior.operators import masks as mask_shapes
from genprior.operators.random import Generators
from genprior.restoration.noise_estimate import estimated_noise

Size = tuple[int, int]


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
            file (image or .npy).
        boundary: For deblur: circular (the image wraps around) or valid (the photo shows only
            what the kernel could see whole, so the restored image is larger).
        factor: For superres: how many times larger the image is than the photo.
        sigma: Noise std for pixels in [0, 1], as 0.1 or 25/255, or auto: estimated from the photo.
            0.01 by default for inpaint, required elsewhere.
    """

    task: Literal["inpaint", "denoise", "deblur", "superres"]
    mask: str | None = None
    invert_mask: bool = False
    mask_threshold: float | None = None
    kernel: str | None = None
    boundary: Literal["circular", "valid"] = "circular"
    factor: int | None = None
    sigma: str | None = None

    def __post_init__(self) -> None:
        needs = {"inpaint": "mask", "deblur": "kernel", "superres": "factor"}
        for task, option in needs.items():
            given = getattr(self, option) is not None
            if given and self.task != task:
                raise ValueError(f"--{option} is for --task {task}, not for {self.task}")
            if not given and self.task == task:
                raise ValueError(f"--task {task} needs --{option}")
        if self.mask is None and (self.invert_mask or self.mask_threshold is not None):
            raise ValueError("--invert-mask and --mask-threshold go with --mask")
        if self.mask_threshold is not None and not 0 < self.mask_threshold < 1:
            raise ValueError(f"--mask-threshold must be in (0, 1), not {self.mask_threshold}")
        if self.factor is not None and self.factor < 1:
            raise ValueError(f"--factor must be at least 1, not {self.factor}")
        if self.sigma is None and self.task != "inpaint":
            raise ValueError(
                f"--task {self.task} needs --sigma, the noise std for pixels in [0, 1]: a number "
                "as 0.05, a fraction as 25/255, or auto"
            )
        if self.sigma not in (None, "auto"):
            self._number(self.sigma or "")

    def noise_std(self, photo: Tensor | None, mask: Tensor | None = None) -> float:
        """Return sigma; `auto` estimates it from the photo, None if there is none.

        Args:
            photo: (C, H, W).
            mask: (1, 1, H, W), True where measured.
        Raises:
            ValueError: There is nothing to estimate it from.
        """
        if self.sigma is None:
            return 0.01
        if self.sigma != "auto":
            return self._number(self.sigma)
        if photo is None:
            raise ValueError(
                "--sigma auto measures the noise of a photo; with --simulate, and in evaluate, "
                "there is none yet: give a number"
            )
        found = estimated_noise(photo, None if mask is None else mask[0])
        if found > 1e-4:
            return found
        raise ValueError(
            "--sigma auto found no noise to measure: the photo is flat, too small, or too little "
            "of it is whole. Give a number"
        )

    @staticmethod
    def _number(text: str) -> float:
        top, _, bottom = text.partition("/")
        try:
            value = float(top) / (float(bottom) if bottom else 1.0)
        except (ValueError, ZeroDivisionError):
            value = math.nan
        if not 0 <= value < math.inf:
            raise ValueError(
                f"--sigma must be a number >= 0 as 0.05, a fraction as 25/255, or auto, not {text}"
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
            return image[0] - kernel.shape[0] + 1, image[1] - kernel.shape[1] + 1
        return image

    def image_size(self, measured: Size, kernel: Tensor | None) -> Size:
        """Return the (height, width) of the image of which a measurement has that size."""
        if self.factor is not None:
            return measured[0] * self.factor, measured[1] * self.factor
        if kernel is not None and self.boundary == "valid":
            return measured[0] + kernel.shape[0] - 1, measured[1] + kernel.shape[1] - 1
        return measured

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
        name, numbers = _parse("kernel", self.kernel, shapes)
        if numbers is None:
            return kernel_shapes.from_file(self.kernel)
        return _call(shapes[name], "kernel", self.kernel, numbers)

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
        name, numbers = _parse("mask", self.mask, shapes)
        if numbers is None:
            return mask_shapes.from_file(
                self.mask, invert=self.invert_mask, threshold=self.mask_threshold
            )[None]
        mask = _call(shapes[name], "mask", self.mask, numbers)
        mask = mask if mask.ndim == 4 else mask[None]
        return ~mask if self.invert_mask else mask

    def operator(
        self, image_shape: tuple[int, int, int], *, mask: Tensor | None, kernel: Tensor | None
    ) -> LinearOperator:
        """Make the operator for images (C, H, W)."""
        if mask is not None:
            return Inpainting(mask, image_shape=image_shape)
        if kernel is not None:
            return Blur(kernel, image_shape, boundary=self.boundary)
        if self.factor is not None:
            return Downsampling(self.factor, image_shape)
        return Identity(image_shape)


def _parse(
    what: str, text: str, shapes: dict[str, Callable[..., Tensor]]
) -> tuple[str, list[float | str] | None]:
    """Split NAME:A,B into its name and values; a file has none."""
    name, colon, rest = text.partition(":")
    if name in shapes and colon:
        return name, [_value(part) for part in rest.split(",")]
    if not Path(text).is_file():
        raise ValueError(
            f"--{what} {text} is neither a file nor one of "
            f"{', '.join(f'{shape}:...' for shape in shapes)}"
        )
    return text, None


def _call(shape: Callable[..., Tensor], what: str, text: str, values: list[float | str]) -> Tensor:
    try:
        return shape(*values)
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
