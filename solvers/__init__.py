"""Solvers: what inverts the degradation. `available(prior)` lists those that serve a prior."""

from genprior.solvers.base import Chunk, Counted, Solution, Solver, available
from genprior.solvers.exact import ExactPosterior
from genprior.solvers.latent_map import LatentMAP
from genprior.solvers.latent_sampler import LatentSampler
from genprior.solvers.result import Result

__all__ = [
    "Chunk",
    "Counted",
    "ExactPosterior",
    "LatentMAP",
    "LatentSampler",
    "Result",
    "Solution",
    "Solver",
    "available",
]
