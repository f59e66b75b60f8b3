"""Generative priors: one family a file, one interface over all of them."""

from genprior.priors import samplers
from genprior.priors.base import (
    ConditionalPrior,
    DenoisingPrior,
    DensityPrior,
    EncodingPrior,
    ExactPrior,
    LatentPrior,
    Model,
    Posterior,
    Prior,
    capabilities,
)
from genprior.priors.diffusion import parametrisations
from genprior.priors.diffusion.diffusion import Diffusion
from genprior.priors.diffusion.foreign import from_deepinv, to_deepinv
from genprior.priors.diffusion.unet import UNet
from genprior.priors.flows.families import NICE, Glow, PlanarFlow, RadialFlow, RealNVP
from genprior.priors.flows.flow import Flow
from genprior.priors.flows.rectangular import RectangularFlow
from genprior.priors.gan.gan import GAN
from genprior.priors.gaussian.empirical import Empirical
from genprior.priors.gaussian.gaussian import Gaussian
from genprior.priors.gaussian.mixture import GaussianMixture
from genprior.priors.gaussian.texture.stationary import StationaryGaussian
from genprior.priors.interpolation import interpolate
from genprior.priors.training import Objective, SingleLoss, Trainable, Turn
from genprior.priors.vae.autoencoder import Autoencoder
from genprior.priors.vae.hierarchical import HierarchicalVAE
from genprior.priors.vae.vae import VAE

__all__ = [
    "GAN",
    "NICE",
    "VAE",
    "Autoencoder",
    "ConditionalPrior",
    "DenoisingPrior",
    "DensityPrior",
    "Diffusion",
    "Empirical",
    "EncodingPrior",
    "ExactPrior",
    "Flow",
    "Gaussian",
    "GaussianMixture",
    "Glow",
    "HierarchicalVAE",
    "LatentPrior",
    "Model",
    "Objective",
    "PlanarFlow",
    "Posterior",
    "Prior",
    "RadialFlow",
    "RealNVP",
    "RectangularFlow",
    "SingleLoss",
    "StationaryGaussian",
    "Trainable",
    "Turn",
    "UNet",
    "capabilities",
    "from_deepinv",
    "interpolate",
    "parametrisations",
    "samplers",
    "to_deepinv",
]
