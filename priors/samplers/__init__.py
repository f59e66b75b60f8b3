"""Unconditional samplers: how a walk goes down the noise levels, one method a file."""

from genprior.priors.samplers.base import Callback, Denoiser, Observed, Sampler, per_step
from genprior.priors.samplers.ddim import DDIM, DDPM, Euler
from genprior.priors.samplers.dpm_solver import DPMSolver
from genprior.priors.samplers.grids import log_uniform, rho_grid
from genprior.priors.samplers.heun import Heun
from genprior.priors.samplers.sa_solver import SASolver, UniPC
from genprior.priors.samplers.unconditional import sample, start, walk_range

__all__ = [
    "DDIM",
    "DDPM",
    "Callback",
    "DPMSolver",
    "Denoiser",
    "Euler",
    "Heun",
    "Observed",
    "SASolver",
    "Sampler",
    "UniPC",
    "log_uniform",
    "per_step",
    "rho_grid",
    "sample",
    "start",
    "walk_range",
]
