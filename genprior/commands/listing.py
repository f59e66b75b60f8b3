"""`genprior priors | solvers | sample`: what there is, and what a prior looks like."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch

from genprior import plots
from genprior.commands.outputs import refuse_existing
from genprior.data.files import WRITTEN
from genprior.pretrained import available, card, load
from genprior.priors import GAN, Flow, capabilities
from genprior.priors.base import as_prior
from genprior.restoration.settings import Device, find_device
from genprior.solvers import Solver
from genprior.solvers import available as solvers_for
from genprior.solvers.choice import REGISTRY


def priors() -> None:
    """List the priors whose weights are installed."""
    for name in available():
        about = card(name)
        shape = about["config"].get("image_shape")
        size = " x ".join("any" if n is None else str(n) for n in shape) if shape else ""
        what = capabilities(load(name))
        licence = about["card"].get("licence", "")
        print(
            f"{name:20} {about['family']:16} {size:14} {what}" + (f"; {licence}" * bool(licence))
        )


def solvers(*, prior: str | None = None) -> None:
    """List the solvers, the recommended first.

    Args:
        prior: Only those that serve this prior (a name or a weights file).
    """
    for name in solvers_for(None if prior is None else load(prior)):
        kind = REGISTRY[name]
        needs = _words(kind)
        words = {
            "linear operators": kind.linear,
            "Gaussian noise": kind.gaussian,
            "one point estimate": kind.point_estimate,
        }
        limits = [word for word, limited in words.items() if limited]
        about = (inspect.getdoc(kind) or "").split("\n")[0]
        print(f"{name:16} {needs}" + (f"; {', '.join(limits)} only" if limits else ""))
        print(f"{'':16} {about}")


def sample(
    name: str,
    *,
    out: str,
    number: int = 16,
    size: int | tuple[int, int] | None = None,
    columns: int | None = None,
    temperature: float | None = None,
    truncation: float | None = None,
    seed: int = 0,
    device: Device = "auto",
    force: bool = False,
) -> None:
    """Draw samples of a prior and write them as one picture.

    Args:
        name: Name of a shipped prior or a weights file.
        out: The picture, .png.
        number: Of samples.
        size: Height and width, for priors that serve any.
        columns: Of the picture; about the square root of the number if not given.
        temperature: Of a flow's latent, above 0 and at most 2; 1 is the prior.
        truncation: Of a GAN's samples, above 0 and at most 1, which is the prior.
        seed: Of the draw.
        device: Where to compute.
        force: Replace the picture if it exists.
    """
    refuse_existing([Path(out)], force)
    if Path(out).suffix.lower() not in WRITTEN:
        raise ValueError(f"--out {out} must be a picture, as samples.png")
    prior = as_prior(load(name, device=find_device(device)))
    shape = (size, size) if isinstance(size, int) else size
    how: dict[str, Any] = {"size": shape, "generator": torch.Generator().manual_seed(seed)}
    for option, value, kind, whose in (
        ("temperature", temperature, Flow, "flows"),
        ("truncation", truncation, GAN, "GANs"),
    ):
        if value is not None:
            if not isinstance(prior, kind):
                raise ValueError(f"--{option} is for {whose}; {name} is a {type(prior).__name__}")
            how[option] = value
    drawn = prior.sample(number, **how)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    plots.grid(drawn, path=out, columns=columns)
    print(f"wrote {out}: {number} samples of {name}")


def _words(solver: type[Solver]) -> str:
    """What a solver asks of a prior: `(DenoisingPrior,)` to 'denoising prior'."""
    kinds = [kind.__name__.removesuffix("Prior").lower() for kind in solver.needs]
    return (
        " and ".join(kinds)
        + " prior"
        + f" with {solver.needs_besides}" * bool(solver.needs_besides)
    )
