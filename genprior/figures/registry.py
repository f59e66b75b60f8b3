"""`genprior figure NAME`: figures of papers, made again."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from genprior.commands.outputs import refuse_existing
from genprior.figures import densities, flow_map, flows, inverse, shares, vae
from genprior.figures.canvas import Measured
from genprior.figures.gan import critics, plane, stacked, styles, trained, training

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawing(NamedTuple):
    """What a figure reproduces, and how it is drawn.

    Attributes:
        about: A line on it.
        draw: The function, of a data folder and a seed, of `prior` where it has one, and of
            `full` where that makes it longer.
        prior: Name of the weights that `--prior` may replace.
        long: Whether `--full` makes it longer.
    """

    about: str
    draw: Callable[..., Figure | Measured]
    prior: str | None = None
    long: bool = False


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
    "epochs": Drawing(
        "a GAN's digits after 1, 2, 3, 10 epochs (with --full 100) of Adam, SGD, and SGD of unit "
        "gradients (needs --data MNIST)",
        training.epochs,
        long=True,
    ),
    "budget": Drawing(
        "the losses of GANs at equal cost and search (Lucic et al. 2018; needs --data MNIST)",
        training.budget,
        long=True,
    ),
    "modes": Drawing(
        "samples of 25 Gaussians, and how many of them each loss finds (--full: 10,000 updates)",
        plane.modes,
        long=True,
    ),
    "stacked": Drawing(
        "how many of the 100 classes of stacked digits each loss finds (Metz et al. 2017, with "
        "two channels; needs --data MNIST with labels)",
        stacked.stacked,
        long=True,
    ),
    "styles": Drawing(
        "mixed and truncated styles of digits (Karras et al. 2019, figures 3 and 8; needs --data "
        "MNIST)",
        styles.styles,
        long=True,
    ),
    "critics": Drawing(
        "values of critics with clipped weights and with the gradient penalty (Gulrajani et al. "
        "2017, figure 1)",
        critics.critics,
        long=True,
    ),
    "clipping": Drawing(
        "weights, gradients and gains of a deep critic, clipped and penalised (Gulrajani et al. "
        "2017, figure 1)",
        critics.clipping,
        long=True,
    ),
    "neighbours": Drawing(
        "a GAN's digits beside the nearest training digits (needs --data MNIST)",
        trained.neighbours,
        "mnist-gan",
    ),
    "between": Drawing(
        "a GAN's images between two draws of z (Radford et al. 2016, figure 4)",
        trained.between,
        "mnist-gan",
    ),
    "arithmetic": Drawing(
        "sums of latents that make thin digits bold (Radford et al. 2016, figure 7; needs --data "
        "MNIST with labels)",
        trained.arithmetic,
        "mnist-gan",
    ),
    "truncation": Drawing(
        "a GAN's digits from shortened z (Brock et al. 2019; needs --data MNIST)",
        trained.truncation,
        "mnist-gan",
    ),
    "shares": Drawing(
        "how often the rare kind of digit is shown by samples and by the mode (Jalal et al. 2021; "
        "needs --data MNIST with labels)",
        shares.shares,
    ),
}


def figure(
    name: str | None = None,
    *,
    list: bool = False,
    data: str | None = None,
    prior: str | None = None,
    full: bool = False,
    out: str = "figures",
    seed: int = 0,
    force: bool = False,
) -> None:
    """Draw a figure of a paper again.

    Args:
        name: Which; --list says what there is.
        list: Say what each figure reproduces, and stop.
        data: The data set, where the figure needs one.
        prior: Another flow than mnist-glow or GAN than mnist-gan, by name or file, where the
            figure draws one.
        full: Train as long as the source, where the figure trains: minutes become hours.
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
        raise ValueError(f"the figure {name!r} draws no shipped prior that --prior could replace")
    if full and not drawing.long:
        raise ValueError(f"the figure {name!r} is whole as it is: leave out --full")
    path = Path(out) / f"{name}.png"
    table = path.with_suffix(".csv")
    refuse_existing([path, table], force)
    chosen: dict[str, Any] = {"full": full} if drawing.long else {}
    if drawing.prior is not None:
        chosen["prior"] = prior or drawing.prior
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
