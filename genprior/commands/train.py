"""`genprior train FAMILY`: from images to a trained model, of a family of ours or one's own.

A YAML recipe may hold the options; those in pretrained/recipes made the priors that are shipped.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from genprior.commands.run import Run
from genprior.commands.source import Source
from genprior.priors import (
    GAN,
    NICE,
    VAE,
    Autoencoder,
    Diffusion,
    Glow,
    HierarchicalVAE,
    Model,
    RealNVP,
    Trainable,
)
from genprior.training import TrainingOptions


def trainer(family: type[Trainable]) -> Callable[..., Model]:
    """Make the command that trains `family`.

    Its options are the keywords of the constructor and of `for_images`. One that has its default
    is left to the family.
    """

    def train(source: Source, run: Run, options: TrainingOptions, **chosen: Any) -> Model:
        given = {k: v for k, v in chosen.items() if v != offered[k].default}
        left = {k for k, p in offered.items() if p.default is None and k not in given}
        return run.train(family, source, options, given=given, left=left)

    *shared, _ = inspect.signature(train, eval_str=True).parameters.values()
    shared[-1] = shared[-1].replace(default=TrainingOptions(**family.training_defaults))
    taken = {name for p in shared for name in inspect.signature(p.annotation).parameters}
    offered = {
        p.name: p.replace(kind=p.KEYWORD_ONLY)
        for function in (family, family.for_images)  # the latter has its way with shared names
        for p in inspect.signature(function, eval_str=True).parameters.values()
        if p.default is not p.empty and p.name not in taken
    }
    parameters = [*shared, *offered.values()]
    vars(train)["__signature__"] = inspect.Signature(parameters)
    train.__annotations__ = {p.name: p.annotation for p in parameters}
    about = f"Train a model of the family {family.__name__}; the same command again resumes."
    train.__doc__ = f"{about}\n\nArgs:\n{_described(family)}{_described(family.for_images)}"
    return train


def _described(function: Callable[..., object]) -> str:
    """Cut the lines on arguments out of a docstring."""
    found = re.search(r"Args:\n((?: {4}.*\n?)+)", inspect.getdoc(function) or "")
    return found[1].rstrip("\n") + "\n" if found else ""


def import_own(module: str, what: str) -> None:
    """Import a module of the user's, from the folder that we are in or as installed.

    Raises:
        ValueError: There is none; `what` asked for it.
    """
    sys.path[:0] = [] if os.getcwd() in sys.path else [os.getcwd()]
    if not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"{what} needs the name of a Python module, not {module!r}")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"{what} {module}: there is no module {error.name!r}") from error
    if found.__file__ is None:
        raise ValueError(f"{what} {module}: that is a folder without Python code")


def find_family(word: str) -> type[Trainable]:
    """Find a family by its class name, if it is imported, or as MODULE:CLASS.

    Raises:
        ValueError: There is none of that name, or it is not trained by gradients.
    """
    module, _, name = word.rpartition(":")
    if module:
        import_own(module, "train")
    family = Model.families.get(name)
    if family is None or not issubclass(family, Trainable):
        raise ValueError(
            f"{word}: {name} is no family that is trained by gradients: name a class that "
            "inherits from genprior.priors.Trainable, as MODULE:CLASS"
        )
    return family


train_diffusion = trainer(Diffusion)
train_vae = trainer(VAE)
train_hvae = trainer(HierarchicalVAE)
train_autoencoder = trainer(Autoencoder)
train_nice = trainer(NICE)
train_realnvp = trainer(RealNVP)
train_glow = trainer(Glow)
train_gan = trainer(GAN)
