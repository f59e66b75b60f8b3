"""Solvers: what inverts the degradation. `available(prior)` lists those that serve a prior."""

# isort: off  (their order is that of `available`: the recommended first)
from genprior.solvers.base import Chunk, Counted, Solution, Solver, available
from genprior.solvers.daps import DAPS
from genprior.solvers.ddnm import DDNM
from genprior.solvers.ddrm import DDRM
from genprior.solvers.diffpir import DiffPIR
from genprior.solvers.dps import DPS
from genprior.solvers.exact import ExactPosterior
from genprior.solvers.joint_map import JointMAP
from genprior.solvers.latent_map import LatentMAP
from genprior.solvers.latent_sampler import LatentSampler
from genprior.solvers.mmps import MMPS
from genprior.solvers.pigdm import PiGDM
from genprior.solvers.reddiff import REDDiff
from genprior.solvers.repaint import RePaint
from genprior.solvers.result import Result
from genprior.solvers.smc import SMC

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
