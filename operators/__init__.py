"""What degrades an image: operators, masks, kernels, noise, and the problem that they pose."""

from genprior.operators import kernels, masks
from genprior.operators.base import Operator, fits
from genprior.operators.deepinv import from_deepinv, to_deepinv
from genprior.operators.linear.base import LinearOperator
from genprior.operators.linear.compose import Compose
from genprior.operators.linear.compressed_sensing import CompressedSensing
from genprior.operators.linear.conjugate_gradient import conjugate_gradient
from genprior.operators.linear.convolution import Blur, Downsampling
from genprior.operators.linear.matrix import Matrix
from genprior.operators.linear.pixelwise import Identity, Inpainting
from genprior.operators.linear.spectrum import SVD, Spectrum
from genprior.operators.noise import GaussianNoise, Noise, PoissonNoise
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
    "fits",
    "from_deepinv",
    "kernels",
    "masks",
    "to_deepinv",
]
