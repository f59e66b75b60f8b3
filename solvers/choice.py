"""Which solvers serve a prior, and what one that does not is missing."""

from __future__ import annotations

import difflib
import inspect
from functools import cache
from typing import TYPE_CHECKING

from torch import Tensor

from genprior.priors.base import DenoisingPrior, ExactPrior, LatentPrior, Model, Prior

if TYPE_CHECKING:
    from genprior.solvers.base import Solver

REGISTRY: dict[str, type[Solver]] = {}
"""Every solver that can be made, by the name of its class."""

RANKING = (
    "ExactPosterior",
    "MMPS",
    "DAPS",
    "SMC",
    "PiGDM",
    "DPS",
    "DiffPIR",
    "DDRM",
    "DDNM",
    "RePaint",
    "DenoisingPosterior",
    "REDDiff",
    "LatentSampler",
    "AnnealedImportance",
    "FlowMAP",
    "LatentMAP",
    "JointMAP",
)
"""The order in which solvers are recommended; those of others come after them."""


def check_capability(solver: type[Solver], prior: Prior) -> None:
    """Raise a TypeError that names the solvers that do serve `prior`, unless this one does.

    A prior that has the capabilities by its class must have their attributes too.
    """
    if not isinstance(prior, Prior):
        raise TypeError(f"{solver.__name__} takes a Prior second, not {type(prior).__name__}")
    name = type(prior).__name__
    if solver.serves(prior):
        lacks = _lacking(solver.needs, prior)
        if lacks:
            raise TypeError(
                f"{name} does not keep what its base classes promise: it lacks "
                f"{', '.join(lacks)}. Set them in __init__; "
                f"{' and '.join(kind.__name__ for kind in solver.needs)} say what they are"
            )
        return
    kinds = {LatentPrior: "latent", DenoisingPrior: "denoising", ExactPrior: "exact"}
    has = [word for kind, word in kinds.items() if isinstance(prior, kind)]
    what = f"{has[0]}-only" if len(has) == 1 else " and ".join(has) or "for sampling only"
    others = available(prior)
    advice = f"Try {others[0]}." if others else "No solver serves it."
    wanted = [_article(kind) for kind in solver.needs]
    wanted += [solver.needs_besides] if solver.needs_besides else []
    listing = ", ".join(wanted[:-1]) + " and " * (len(wanted) > 1) + wanted[-1]
    raise TypeError(f"{solver.__name__} needs {listing}; {name} is {what}. {advice}")


def _lacking(needs: tuple[type[Prior], ...], prior: Prior) -> list[str]:
    """Attributes that the capabilities declare and `prior` has not, in words."""
    own = [name for name in _promised(needs) if not hasattr(type(prior), name)]
    lacks = [name for name in own if not hasattr(prior, name)]
    tensors = [name for name in own if name in ("data_mean", "data_std") and name not in lacks]
    wrong = [name for name in tensors if not isinstance(getattr(prior, name), Tensor)]
    return lacks + [f"{name} as a tensor" for name in wrong]


@cache
def _promised(needs: tuple[type[Prior], ...]) -> list[str]:
    """Names of the attributes that capabilities declare."""
    bases = [base for kind in needs for base in kind.__mro__ if issubclass(base, Model)]
    names = [name for base in bases for name in inspect.get_annotations(base)]
    return [name for name in dict.fromkeys(names) if not name.startswith("_")]


def available(prior: Prior | None = None) -> list[str]:
    """Name the solvers that serve `prior`, or all of them, the recommended first."""
    ranks = {name: rank for rank, name in enumerate(RANKING)}
    names = sorted(REGISTRY, key=lambda name: ranks.get(name, len(ranks)))
    return [name for name in names if prior is None or REGISTRY[name].serves(prior)]


def named(name: str) -> Solver:
    """Make the solver of a name, in any case, with its defaults.

    Raises:
        ValueError: There is none; the nearest are offered.
    """
    names = {known.lower(): known for known in available()}
    if name.lower() not in names:
        near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.4)
        offered = [names[n] for n in near] or list(names.values())
        raise ValueError(f"unknown solver {name!r}. There is {', '.join(offered)}")
    return REGISTRY[names[name.lower()]]()


def _article(kind: type[Prior]) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


def without(flag: str, prior: Prior) -> str:
    """Name the solvers for `prior` in which `flag` is False."""
    names = [n for n in available(prior) if not getattr(REGISTRY[n], flag)]
    return ", ".join(names) or "none for this prior"
