"""Solvers: what inverts the degradation. `available(prior)` lists those that serve a prior."""

# Their order is that of `available`: the recommended first.
# isort: off
from genprior.solvers.base import Counted, Solver, available
from genprior.solvers.chunks import Chunk, Solution
from genprior.solvers.exact import ExactPosterior
from genprior.solvers.mmps import MMPS
from genprior.solvers.daps import DAPS
from genprior.solvers.smc import SMC
from genprior.solvers.pigdm import PiGDM
from genprior.solvers.dps import DPS
from genprior.solvers.diffpir import DiffPIR
from genprior.solvers.ddrm import DDRM
from genprior.solvers.ddnm import DDNM
from genprior.solvers.repaint import RePaint
from genprior.solvers.denoising import DenoisingPosterior
from genprior.solvers.reddiff import REDDiff
from genprior.solvers.latent_sampler import LatentSampler
from genprior.solvers.latent_map import LatentMAP
from genprior.solvers.joint_map import JointMAP
from genprior.solvers.result import Result

# isort: on

__all__ = [
    "DAPS",
    "DDNM",
    "DDRM",
    "DPS",
    "MMPS",
    "SMC",
    "Chunk",
    "Counted",
    "DenoisingPosterior",
    "DiffPIR",
    "ExactPosterior",
    "JointMAP",
    "LatentMAP",
    "LatentSampler",
    "PiGDM",
    "REDDiff",
    "RePaint",
    "Result",
    "Solution",
    "Solver",
    "available",
]
