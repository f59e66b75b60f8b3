"""`genprior demo`: a cat and a digit with a hole, restored by every prior for them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from genprior import plots
from genprior.commands.outputs import refuse_existing
from genprior.data import from_array, read_image
from genprior.operators import GaussianNoise, Inpainting, Problem, masks
from genprior.pretrained import available, load
from genprior.priors import DenoisingPrior, ExactPrior, Flow, Prior
from genprior.restoration.scores import score
from genprior.solve import default_solver, solve
from genprior.solvers import FlowMAP, LatentSampler, Result, Solver

SIGMA = 0.05
TABLE = "demo.csv"
MODE = 40
"""Steps to a flow's mode: its posterior takes minutes to draw from, a gradient a step through
hundreds of layers."""

SAMPLES, WALKED = 64, 8
"""Drawn for the scores, and by solvers that pay for each sample; the picture shows four."""


def cat(size: int = 64) -> Tensor:
    """Return the face of scikit-image's cat Chelsea, (1, 3, size, size), as priors know faces."""
    import skimage.data

    # Upright and full-face like the training images, whose eyes are at rows 26, columns 18 and 46
    # of 64.
    return from_array(skimage.data.chelsea()[:, 95:395], size=size)


def digit(size: int = 28) -> Tensor:
    """Return a test digit of MNIST, a 3, (1, 1, 28, 28)."""
    return read_image(Path(__file__).parent / "digit.png")[None]


@dataclass(frozen=True)
class Subject:
    """What is restored, by which priors.

    Attributes:
        data: The priors of data whose names begin so know the subject.
        picture: File name.
        truth: The subject at a size.
        hole: Top, left and side of the missing box, as shares of the image's side.
    """

    data: str
    picture: str
    truth: Callable[[int], Tensor]
    hole: tuple[float, float, float]

    def priors(self) -> list[str]:
        """Name the installed priors DATA-FAMILY of the subject, large images first."""
        names = [name for name in available() if name.count("-") == 1]
        return sorted((name for name in names if name.startswith(self.data)), key=self._order)

    def _order(self, name: str) -> tuple[int, int, str]:
        data, family = name.split("-")
        size = data.removeprefix(self.data)
        order = ("gaussian", "mixture", "vae", "vae2", "hvae", "gan", "wgan", "realnvp", "glow")
        order += ("diffusion",)
        return -int(size or 0), order.index(family) if family in order else len(order), family

    def problem(self, x: Tensor, *, seed: int = 0) -> Problem:
        """Hide a box and add noise."""
        side = x.shape[-1]
        top, left, size = (round(share * side) for share in self.hole)
        mask = masks.box((side, side), size=size, position=(top, left))
        generator = torch.Generator().manual_seed(seed)
        return Problem.simulate(x, Inpainting(mask), GaussianNoise(SIGMA), generator=generator)


SUBJECTS = (
    Subject("cats", "demo.png", cat, (17 / 64, 38 / 64, 22 / 64)),  # one eye
    Subject("mnist", "digit.png", digit, (7 / 28, 5 / 28, 12 / 28)),  # a 3 or an 8?
)


def solver_for(problem: Problem, prior: Prior) -> tuple[Solver, int]:
    """Choose the default solver and a number of samples, both cut to what a demo may take.

    Flows give a point estimate.
    """
    if isinstance(prior, Flow):
        return FlowMAP(steps=MODE), 1
    solver = default_solver(problem, prior)
    if isinstance(solver, LatentSampler):
        solver = LatentSampler(steps=80, warm_up=120, leapfrog=5)
    if isinstance(prior, DenoisingPrior) and not isinstance(prior, ExactPrior):
        return replace(solver, antithetic=True), WALKED
    return solver, SAMPLES


def restore(subject: Subject, name: str, seed: int) -> tuple[Result, Problem, Tensor]:
    """Restore the subject by one prior, at its size."""
    prior = load(name)
    x = subject.truth(prior.image_shape[-1] or 64)
    posed = subject.problem(x, seed=seed)
    solver, samples = solver_for(posed, prior)
    generator = torch.Generator().manual_seed(seed + 1)
    return solve(posed, prior, solver=solver, num_samples=samples, generator=generator), posed, x


def demo(*, out: str = "demo", seed: int = 0, force: bool = False) -> None:
    """Restore a cat and a digit with every prior for them, a picture each.

    Args:
        out: Folder for demo.png (the cat), digit.png and demo.csv (the figures).
        seed: Of noise and samples.
        force: Replace the pictures if they exist.
    """
    subjects = [(subject, subject.priors()) for subject in SUBJECTS]
    subjects = [(subject, names) for subject, names in subjects if names]
    if not subjects:
        raise ValueError(f"no prior for cats or digits is installed: {', '.join(available())}")
    folder = Path(out)
    names = [subject.picture for subject, _ in subjects]
    refuse_existing([folder / name for name in (*names, TABLE)], force)
    folder.mkdir(parents=True, exist_ok=True)
    print("prior              PSNR of the mean   90 % coverage   residual (sigma)   seconds")
    table = []
    for subject, priors in subjects:
        lines = []
        for name in priors:
            result, posed, x = restore(subject, name, seed)
            scores = {key: value.item() for key, value in score(result, posed, x).items()}
            held = f"{scores['coverage_90']:.1%}" if "coverage_90" in scores else "-"
            print(
                f"{name:18} {scores['psnr_mean']:13.2f} dB {held:>14}"
                f" {scores['residual_in_sigma']:17.3f} {result.seconds:9.1f}"
                + ("" if bool(result.converged.all()) else "  not converged")
            )
            chains = result.trace.get("r_hat")
            table.append(
                {"prior": name, **scores, "converged": bool(result.converged.all())}
                | {"r_hat": "" if chains is None else float(chains[-1, 0])}
            )
            lines += plots.rows(result, posed, x, label=name)
        plots.draw(lines, path=folder / subject.picture)
    with (folder / TABLE).open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(key for row in table for key in row))
        writer.writeheader()
        writer.writerows(table)
    print(f"wrote {', '.join(str(folder / name) for name in (*names, TABLE))}")
