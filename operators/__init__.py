"""What degrades an image: operators, masks, kernels, noise, and the problem that they pose."""

from genprior.operators.base import SVD, LinearOperator, Operator, Spectrum
from genprior.operators.conjugate_gradient import conjugate_gradient
from genprior.operators.matrix import Matrix
from genprior.operators.noise import GaussianNoise, Noise, PoissonNoise
from genprior.operators.pixelwise import Identity, Inpainting
from genprior.operators.problem import Problem

__all__ = [
    "SVD",
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
]
