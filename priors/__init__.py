"""Generative priors: one family a file, one interface over all of them."""

from genprior.priors.autoencoder import Autoencoder
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
from genprior.priors.foreign import from_deepinv, to_deepinv
from genprior.priors.gaussian import Gaussian
from genprior.priors.hierarchical_vae import HierarchicalVAE
from genprior.priors.interpolation import interpolate
from genprior.priors.mixture import GaussianMixture
from genprior.priors.stationary import StationaryGaussian
from genprior.priors.vae import VAE

__all__ = [
    "VAE",
    "Autoencoder",
    "DenoisingPrior",
    "DensityPrior",
    "Diffusion",
    "EncodingPrior",
    "ExactPrior",
    "Gaussian",
    "GaussianMixture",
    "HierarchicalVAE",
    "LatentPrior",
    "Posterior",
    "Prior",
    "StationaryGaussian",
    "capabilities",
    "from_deepinv",
    "interpolate",
    "to_deepinv",
]
