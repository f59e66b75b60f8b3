"""`genprior figure NAME`: figures of papers, made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from genprior.commands.outputs import refuse_existing
from genprior.figures import inverse, vae

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawing(NamedTuple):
    """What a figure reproduces, and the function that draws it from a data folder and a seed."""

    about: str
    draw: Callable[[str | None, int], Figure]


FIGURES = {
    "codes": Drawing(
        "1,000 digits in two dimensions: an autoencoder's codes have holes, a VAE's have none "
        "(needs --data MNIST)",
        vae.codes,
    ),
    "manifold": Drawing(
        "digits along the quantiles of a 2-D latent (Kingma, Welling 2014, figure 4)",
        vae.manifold,
    ),
    "collapse": Drawing(
        "active latent units without remedy, with a KL warm-up, with free bits (Bowman et al. "
        "2016, Kingma et al. 2016; needs --data MNIST)",
        vae.collapse,
    ),
    "hierarchy": Drawing(
        "samples with the first, then the first two groups of a hierarchical VAE fixed (Vahdat, "
        "Kautz 2020)",
        vae.hierarchy,
    ),
    "csgm": Drawing(
        "error against the number of measurements, VAE and Lasso (Bora et al. 2017, figure 1a; "
        "needs --data MNIST and scikit-learn)",
        inverse.csgm,
    ),
}


def figure(
    name: str | None = None,
    *,
    list: bool = False,
    data: str | None = None,
    out: str = "figures",
    seed: int = 0,
    force: bool = False,
) -> None:
    """Draw a figure of a paper again.

    Args:
        name: Which; --list says what there is.
        list: Say what each figure reproduces, and stop.
        data: The data set, where the figure needs one.
        out: Folder for NAME.png.
        seed: Of everything drawn.
        force: Replace the picture if it exists.
    """
    if list:
        for key, drawing in FIGURES.items():
            print(f"{key:10} {drawing.about}")
        return
    if name not in FIGURES:
        came = "no figure was named" if name is None else f"there is no figure {name!r}"
        raise ValueError(f"{came}: choose one of {', '.join(FIGURES)}")
    path = Path(out) / f"{name}.png"
    refuse_existing([path], force)
    picture = FIGURES[name].draw(data, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=150)
    print(f"wrote {path}")
