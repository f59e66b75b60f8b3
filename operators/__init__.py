"""What degrades an image: operators, masks, kernels, noise, and the problem that they pose."""

from genprior.operators import kernels, masks
from genprior.operators.base import SVD, LinearOperator, Operator, Spectrum
from genprior.operators.compose import Compose
from genprior.operators.compressed_sensing import CompressedSensing
from genprior.operators.conjugate_gradient import conjugate_gradient
from genprior.operators.convolution import Blur, Downsampling
from genprior.operators.deepinv import from_deepinv, to_deepinv
from genprior.operators.matrix import Matrix
from genprior.operators.noise import GaussianNoise, Noise, PoissonNoise
from genprior.operators.pixelwise import Identity, Inpainting
from genprior.operators.problem import Problem

__all__ = [
    "SVD",
    "Blur",
    "Compose",
    "CompressedSensing",
    "Downsampling",
    "GaussianNoise",
    "Identity",
    "Inpainting",
    "LinearOperator",
    "Matrix",
    "Noise",
    "Operator",
    "PoissonNoise",
    "Problem",
    "Spectrum",
    "conjugate_gradient",
    "from_deepinv",
    "kernels",
    "masks",
    "to_deepinv",
]
