"""One small instance or more of every operator class, for whatever is tested on all of them."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from genprior.operators import (
    Blur,
    Compose,
    CompressedSensing,
    Downsampling,
    Identity,
    Inpainting,
    Matrix,
    Operator,
    from_deepinv,
    kernels,
    masks,
)
from genprior.operators.random import normal

COLOUR, GREY = (3, 8, 12), (1, 8, 12)


class Case(NamedTuple):
    """How to build an operator, and the shape of images to try it on."""

    make: Callable[[], Operator]
    image_shape: tuple[int, int, int]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def per_image_masks() -> torch.Tensor:
    """Three masks (3, 1, 8, 12), each another."""
    return masks.random((8, 12), missing=0.5, count=3, generator=generator())


def colour_mask() -> torch.Tensor:
    """A mask (3, 8, 12) that measures other pixels in each channel."""
    return masks.random((8, 12), missing=0.3, count=3, generator=generator())[:, 0]


def _matrix(rows: int) -> Matrix:
    return Matrix(normal((rows, 96), generator(), dtype=torch.float64), GREY)


def _rank_deficient() -> Matrix:
    left = normal((12, 5), generator(1), dtype=torch.float64)
    return Matrix(left @ normal((5, 96), generator(2), dtype=torch.float64), GREY)


def _lopsided() -> torch.Tensor:
    """A kernel (4, 3) without any symmetry: flips and shifts show."""
    kernel = 0.1 + torch.rand(4, 3, generator=generator(), dtype=torch.float64)
    kernel[1, 1] += 6
    return kernel / kernel.sum()


def _blur_fft() -> Operator:
    from deepinv.physics import BlurFFT

    kernel = _lopsided().float()[None, None]
    return from_deepinv(BlurFFT(img_size=COLOUR, filter=kernel), COLOUR)


def _mri() -> Operator:
    from deepinv.physics import MRI

    mask = masks.random((8, 12), missing=0.4, generator=generator()).float()
    return from_deepinv(MRI(mask=mask[0], img_size=(8, 12)), (2, 8, 12))


def _tomography() -> Operator:
    from deepinv.physics import Tomography

    physics = Tomography(angles=3, img_width=8, normalize=False, dtype=torch.float64)
    return from_deepinv(physics, (1, 8, 8))


LINEAR_OPERATORS: dict[str, Case] = {
    "identity": Case(lambda: Identity(COLOUR), COLOUR),
    "identity-any-size": Case(lambda: Identity((None, None, None)), GREY),
    "inpainting": Case(lambda: Inpainting(masks.box((8, 12), size=4)), COLOUR),
    "inpainting-per-image": Case(lambda: Inpainting(per_image_masks()), COLOUR),
    "inpainting-per-channel": Case(lambda: Inpainting(colour_mask()), COLOUR),
    "blur": Case(lambda: Blur(_lopsided(), COLOUR), COLOUR),
    "blur-gaussian": Case(lambda: Blur(kernels.gaussian(0.7), (1, None, None)), GREY),
    "blur-odd-size": Case(lambda: Blur(_lopsided(), (1, 7, 9)), (1, 7, 9)),
    "blur-valid": Case(lambda: Blur(_lopsided(), COLOUR, boundary="valid"), COLOUR),
    "downsampling": Case(lambda: Downsampling(2, COLOUR), COLOUR),
    "downsampling-kernel": Case(
        lambda: Downsampling(4, (None, None, None), kernel=_lopsided()), GREY
    ),
    "sensing-gaussian": Case(lambda: CompressedSensing(GREY, 20, generator=generator()), GREY),
    "sensing-structured": Case(
        lambda: CompressedSensing(COLOUR, 70, generator=generator(), structured=True), COLOUR
    ),
    "matrix": Case(lambda: _matrix(20), GREY),
    "matrix-tall": Case(lambda: _matrix(120), GREY),
    "matrix-rank-deficient": Case(_rank_deficient, GREY),
    "compose": Case(lambda: Compose(Downsampling(2, COLOUR), Blur(_lopsided(), COLOUR)), COLOUR),
    "compose-masked": Case(
        lambda: Compose(Inpainting(per_image_masks()), Blur(_lopsided(), COLOUR)), COLOUR
    ),
    "deepinv-blur-fft": Case(_blur_fft, COLOUR),
    "deepinv-mri": Case(_mri, (2, 8, 12)),
    "deepinv-tomography": Case(_tomography, (1, 8, 8)),
}


class Saturation(Operator):
    """y = x^2, behind a mask: a nonlinear operator with state for each image."""

    def __init__(self) -> None:
        super().__init__(COLOUR, COLOUR)
        self.mask = Inpainting(per_image_masks(), image_shape=COLOUR)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mask(x**2)

    @property
    def observed(self) -> torch.Tensor:
        return self.mask.observed

    @property
    def rows(self) -> int | None:
        return self.mask.rows

    def take(self, index: torch.Tensor) -> "Saturation":
        return self._copy_with(mask=self.mask.take(index))


def _nonlinear_physics() -> Operator:
    from deepinv.physics import Physics

    return from_deepinv(Physics(A=torch.sin), COLOUR)


NONLINEAR_OPERATORS: dict[str, Case] = {
    "nonlinear": Case(Saturation, COLOUR),
    "compose-nonlinear": Case(lambda: Compose(Saturation(), Blur(_lopsided(), COLOUR)), COLOUR),
    "deepinv-nonlinear": Case(_nonlinear_physics, COLOUR),
}

OPERATORS: dict[str, Case] = {**LINEAR_OPERATORS, **NONLINEAR_OPERATORS}
