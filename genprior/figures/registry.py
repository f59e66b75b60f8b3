"""`genprior figure NAME`: figures of papers, made again."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from genprior.commands.outputs import refuse_existing
from genprior.figures import densities, flow_map, flows, inverse, vae
from genprior.figures.canvas import Measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawing(NamedTuple):
    """What a figure reproduces, and how it is drawn.

    Attributes:
        about: A line on it.
        draw: The function, of a data folder and a seed, and of `prior` where it has one.
        prior: Name of the weights that `--prior` may replace.
    """

    about: str
    draw: Callable[..., Figure | Measured]
    prior: str | None = None


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
    "densities": Drawing(
        "planar and radial flows of 2, 8 and 32 layers fitted to four densities in the plane "
        "(Rezende, Mohamed 2015, figure 3)",
        densities.densities,
    ),
    "masks": Drawing(
        "which pixels each coupling of a RealNVP moves (Dinh et al. 2017, figure 3)", flows.masks
    ),
    "temperatures": Drawing(
        "a Glow's images of the same draws at seven temperatures (Kingma, Dhariwal 2018, figure "
        "8)",
        flows.temperatures,
        "mnist-glow",
    ),
    "paths": Drawing(
        "a Glow's images between two test digits (Kingma, Dhariwal 2018, figure 5; needs --data "
        "MNIST)",
        flows.paths,
        "mnist-glow",
    ),
    "measurements": Drawing(
        "PSNR against the number of measurements, Glow, VAE and Lasso (Asim et al. 2020; needs "
        "--data MNIST and scikit-learn)",
        flow_map.measurements,
        "mnist-glow",
    ),
    "gamma": Drawing(
        "denoising with a Glow, PSNR against the weight of the prior (Asim et al. 2020; needs "
        "--data MNIST)",
        flow_map.gamma,
        "mnist-glow",
    ),
}


def figure(
    name: str | None = None,
    *,
    list: bool = False,
    data: str | None = None,
    prior: str | None = None,
    out: str = "figures",
    seed: int = 0,
    force: bool = False,
) -> None:
    """Draw a figure of a paper again.

    Args:
        name: Which; --list says what there is.
        list: Say what each figure reproduces, and stop.
        data: The data set, where the figure needs one.
        prior: Another flow than mnist-glow, by name or file, where the figure draws one.
        out: Folder for NAME.png, and for NAME.csv where numbers are drawn.
        seed: Of everything drawn.
        force: Replace the picture if it exists.
    """
    if list:
        for key, drawing in FIGURES.items():
            print(f"{key:12} {drawing.about}")
        return
    if name not in FIGURES:
        came = "no figure was named" if name is None else f"there is no figure {name!r}"
        raise ValueError(f"{came}: choose one of {', '.join(FIGURES)}")
    drawing = FIGURES[name]
    if prior is not None and drawing.prior is None:
        raise ValueError(f"the figure {name!r} draws no flow that --prior could replace")
    path = Path(out) / f"{name}.png"
    table = path.with_suffix(".csv")
    refuse_existing([path, table], force)
    chosen = {} if drawing.prior is None else {"prior": prior or drawing.prior}
    drawn = drawing.draw(data, seed, **chosen)
    picture, rows = drawn if isinstance(drawn, Measured) else (drawn, [])
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=150)
    print(f"wrote {path}")
    if rows:
        write_table(rows, table)


def write_table(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the numbers of a figure as a CSV."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {path}")
