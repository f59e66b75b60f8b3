"""One small instance or more of every operator and every exact prior, by name."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from tools import randn, random_covariance, seeded

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
from genprior.priors import Empirical, Gaussian, GaussianMixture, StationaryGaussian

COLOUR, GREY = (3, 8, 12), (1, 8, 12)


class Case(NamedTuple):
    """How to build an operator, and the shape of images to try it on."""

    make: Callable[[], Operator]
    image_shape: tuple[int, int, int]


def per_image_masks() -> torch.Tensor:
    """Three masks (3, 1, 8, 12), each another."""
    return masks.random((8, 12), missing=0.5, count=3, generator=seeded())


def colour_mask() -> torch.Tensor:
    """A mask (3, 8, 12) that measures other pixels in each channel."""
    return masks.random((8, 12), missing=0.3, count=3, generator=seeded())[:, 0]


def _matrix(rows: int) -> Matrix:
    return Matrix(normal((rows, 96), seeded(), dtype=torch.float64), GREY)


def _rank_deficient() -> Matrix:
    left = normal((12, 5), seeded(1), dtype=torch.float64)
    return Matrix(left @ normal((5, 96), seeded(2), dtype=torch.float64), GREY)


def _lopsided() -> torch.Tensor:
    """A kernel (4, 3) without any symmetry: flips and shifts show."""
    kernel = 0.1 + torch.rand(4, 3, generator=seeded(), dtype=torch.float64)
    kernel[1, 1] += 6
    return kernel / kernel.sum()


def _blur_fft() -> Operator:
    from deepinv.physics import BlurFFT

    kernel = _lopsided().float()[None, None]
    return from_deepinv(BlurFFT(img_size=COLOUR, filter=kernel), COLOUR)


def _mri() -> Operator:
    from deepinv.physics import MRI

    mask = masks.random((8, 12), missing=0.4, generator=seeded()).float()
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
    "sensing-gaussian": Case(lambda: CompressedSensing(GREY, 20, generator=seeded()), GREY),
    "sensing-structured": Case(
        lambda: CompressedSensing(COLOUR, 70, generator=seeded(), structured=True), COLOUR
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


SMALL_GREY, SMALL_COLOUR = (1, 3, 4), (2, 4, 6)


def gaussian(shape=SMALL_COLOUR, *, rank=5, residual=0.05):
    mean = 0.5 + 0.1 * randn(*shape, seed=1)
    return Gaussian(mean, 0.15 * randn(rank, *shape, seed=2), residual=residual)


def dense_gaussian():
    return Gaussian.from_covariance(0.5 + 0.1 * randn(*SMALL_GREY, seed=1), random_covariance(12))


def mixture(shape=SMALL_COLOUR):
    """Three components of unlike weights, far enough apart to matter, near enough to mix."""
    return GaussianMixture.low_rank(
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        0.5 + 0.25 * randn(3, *shape, seed=3),
        0.1 * randn(3, 4, *shape, seed=4),
        torch.tensor([0.05, 0.1, 0.2], dtype=torch.float64),
    )


def wide_mixture():
    """Spherical components of rank 0 far outside [0, 1]: nothing may clip."""
    means = torch.tensor([-16.0, 0.0, 8.0], dtype=torch.float64)
    means = means.reshape(3, 1, 1, 1).expand(3, *SMALL_GREY)
    weights, ones = torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    return GaussianMixture.low_rank(weights, means, means.new_zeros(3, 0, *SMALL_GREY), ones)


def dense_mixture():
    covariances = torch.stack([random_covariance(12, seed=i) for i in range(2)])
    return GaussianMixture(torch.tensor([1.0, 3.0]).double(), randn(2, *SMALL_GREY), covariances)


def texture(shape=(2, 6, 4), *, residual=0.05):
    image = torch.rand(*shape, generator=seeded(5), dtype=torch.float64)
    return StationaryGaussian.fit(image, residual=residual)


def empirical(shape=SMALL_COLOUR, *, count=7, bandwidth=0.2):
    """A few images, near enough to each other for a measurement to be of several."""
    return Empirical(0.5 + 0.2 * randn(count, *shape, seed=6), bandwidth)


EXACT_PRIORS = {
    "gaussian": gaussian,
    "gaussian from a covariance": dense_gaussian,
    "gaussian of more factors than pixels": lambda: gaussian(SMALL_GREY, rank=20),
    "isotropic gaussian": lambda: gaussian(rank=0, residual=0.2),
    "mixture": mixture,
    "mixture outside [0, 1]": wide_mixture,
    "mixture from covariances": dense_mixture,
    "colour texture": texture,
    "data set": empirical,
    "grey texture": lambda: texture((1, 5, 6)),
}
