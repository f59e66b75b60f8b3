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
from genprior.priors.diffusion.diffusion import Diffusion
from genprior.priors.diffusion.foreign import from_deepinv, to_deepinv
from genprior.priors.gaussian.empirical import Empirical
from genprior.priors.gaussian.gaussian import Gaussian
from genprior.priors.gaussian.mixture import GaussianMixture
from genprior.priors.gaussian.texture.stationary import StationaryGaussian
from genprior.priors.interpolation import interpolate
from genprior.priors.vae.autoencoder import Autoencoder
from genprior.priors.vae.hierarchical import HierarchicalVAE
from genprior.priors.vae.vae import VAE

__all__ = [
    "VAE",
    "Autoencoder",
    "DenoisingPrior",
    "DensityPrior",
    "Diffusion",
    "Empirical",
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
