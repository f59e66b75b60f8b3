"""Solvers: what inverts the degradation. `available(prior)` lists those that serve a prior."""

from genprior.solvers.base import Counted, Solver
from genprior.solvers.choice import available
from genprior.solvers.chunks import Chunk, Solution
from genprior.solvers.diffusion.daps import DAPS
from genprior.solvers.diffusion.ddnm import DDNM
from genprior.solvers.diffusion.ddrm import DDRM
from genprior.solvers.diffusion.denoising import DenoisingPosterior
from genprior.solvers.diffusion.diffpir import DiffPIR
from genprior.solvers.diffusion.dps import DPS
from genprior.solvers.diffusion.mmps import MMPS
from genprior.solvers.diffusion.pigdm import PiGDM
from genprior.solvers.diffusion.reddiff import REDDiff
from genprior.solvers.diffusion.repaint import RePaint
from genprior.solvers.diffusion.smc import SMC
from genprior.solvers.exact import ExactPosterior
from genprior.solvers.latent.annealed import AnnealedImportance
from genprior.solvers.latent.flow_map import FlowMAP
from genprior.solvers.latent.joint_map import JointMAP
from genprior.solvers.latent.latent_map import LatentMAP
from genprior.solvers.latent.latent_sampler import LatentSampler
from genprior.solvers.result import Result
from genprior.solvers.walk.guided import GuidedSolver
from genprior.solvers.walk.solver import DiffusionSolver
from genprior.solvers.walk.state import Walk

__all__ = [
    "DAPS",
    "DDNM",
    "DDRM",
    "DPS",
    "MMPS",
    "SMC",
    "AnnealedImportance",
    "Chunk",
    "Counted",
    "DenoisingPosterior",
    "DiffPIR",
    "DiffusionSolver",
    "ExactPosterior",
    "FlowMAP",
    "GuidedSolver",
    "JointMAP",
    "LatentMAP",
    "LatentSampler",
    "PiGDM",
    "REDDiff",
    "RePaint",
    "Result",
    "Solution",
    "Solver",
    "Walk",
    "available",
]
