"""Generative priors: one family a file, one interface over all of them."""

from genprior.priors.base import (
    DenoisingPrior,
    DensityPrior,
    EncodingPrior,
    ExactPrior,
    LatentPrior,
    Posterior,
    Prior,
    capabilities,
)
from genprior.priors.diffusion import Diffusion
from genprior.priors.gaussian import Gaussian

__all__ = [
    "DenoisingPrior",
    "DensityPrior",
    "Diffusion",
    "EncodingPrior",
    "ExactPrior",
    "Gaussian",
    "LatentPrior",
    "Posterior",
    "Prior",
    "capabilities",
]
