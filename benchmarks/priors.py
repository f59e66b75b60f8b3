"""Every family of prior on the same digits: a hole, a blur, noise, few measurements.

    python benchmarks/priors.py --data MNIST --features MODELS --out priors/

Twenty test digits, four problems, each prior with the solver that `genprior.solve` takes for it.
A flow's would take hours (a gradient runs through hundreds of layers), so flows give a point
estimate by FlowMAP: no spread, no coverage. A GAN with a mapping z -> w has w as its latent,
`gan.space("w")`, where chains cross more easily.

Writes priors.csv, a line for each prior and problem, and priors.png, one digit. Lines that are in
the CSV are not measured again, so that a run that was stopped goes on; the picture is drawn from
priors.safetensors, which keeps the images. Priors of `PRIORS` that are not installed are named and
left out.

Scores are of images rounded to 8 bits, as the truth is, but for the residual. The diffusion's
network runs in bfloat16. Seconds are of the processor, which other processes do not lengthen, for
all samples of a digit; so are forwards and vector-Jacobian products.
"""

from __future__ import annotations

import argparse
import csv
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from common.features import Features, load_features
from common.image_problems import Row, scores, small_task, summary
from safetensors.torch import load_file, save_file
from torch import Tensor

import genprior
from genprior import plots
from genprior.data import images
from genprior.figures.canvas import canvas
from genprior.operators import CompressedSensing, GaussianNoise, LinearOperator, Problem
from genprior.pretrained import available
from genprior.priors import GAN, Diffusion, Flow, Prior
from genprior.solve import default_solver
from genprior.solvers import FlowMAP, Solver

PRIORS = {
    "mnist-gaussian": "Gaussian",
    "mnist-mixture": "mixture",
    "mnist-vae": "VAE",
    "mnist-hvae": "hierarchical VAE",
    "mnist-gan": "GAN",
    "mnist-glow": "flow",
    "mnist-diffusion": "diffusion",
}
"""Priors of digits, and how each family is called in the picture."""

TASKS = {
    "box": ("box", 0.05, "a hole"),
    "deblur": ("deblur, gaussian", 0.05, "blurred"),
    "denoise": ("denoise", 0.25, "noisy"),
    "sensing": ("100 measurements", 0.05, "100 sums"),
}
"""The operator of each problem, its noise, and what it is called in the picture."""

SHAPE = (1, 28, 28)
SHOWN = 2
"""Samples in the picture."""

WALKED = 9
"""Most samples of a diffusion, which pays for each; others draw as many as were asked for."""


def operator(task: str, count: int) -> LinearOperator:
    if task == "100 measurements":
        return CompressedSensing(SHAPE, 100, generator=torch.Generator().manual_seed(0))
    return small_task(task, SHAPE, count, 0)


def problem(name: str, x: Tensor) -> Problem:
    task, sigma, _ = TASKS[name]
    generator = torch.Generator().manual_seed(1)
    return Problem.simulate(x, operator(task, len(x)), GaussianNoise(sigma), generator=generator)


def solver_for(posed: Problem, prior: Prior) -> Solver:
    """The default, but for flows."""
    if isinstance(prior, Flow):
        return FlowMAP(steps=40)
    return default_solver(posed, prior)


def measure(
    name: str, task: str, x: Tensor, network: Features, samples: int
) -> tuple[Row, dict[str, Tensor]]:
    """Solve one problem by one prior; return its line, and what the picture shows."""
    prior, posed = genprior.load(name), problem(task, x)
    if isinstance(prior, GAN) and prior.network.get("mapping"):
        prior = prior.space("w")
    if isinstance(prior, Diffusion):
        prior.autocast = torch.bfloat16
    solver = solver_for(posed, prior)
    count = min(samples, WALKED) if isinstance(prior, Diffusion) else samples
    count = 1 if solver.point_estimate else count
    begin = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the line says what has not converged
        result = solver(
            posed, prior, num_samples=count, generator=torch.Generator().manual_seed(2)
        )
    seconds = (time.process_time() - begin) / len(x)
    found = scores(
        result.samples, x, posed, network, mean=result.mean, antithetic=result.antithetic
    )
    row = {"prior": name, "task": task, "solver": type(solver).__name__}
    row |= {"images": len(x), "samples": count, "converged": int(result.converged.sum())}
    row |= summary(found)
    row |= {"forwards": result.forwards * count, "vjps": result.vjps * count, "seconds": seconds}
    row = {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()}
    shown = {"mean": result.mean, "sample": result.samples[:, :SHOWN]}
    if result.std is not None:
        shown["std"] = result.std
    return row, {f"{name} {task} {key}": value.half() for key, value in shown.items()}


def draw(
    kept: dict[str, Tensor], x: Tensor, names: Sequence[str], *, digit: int, path: Path
) -> None:
    """Priors down, problems across: of one digit the mean, its spread, two samples of each."""
    block = 2 + SHOWN
    widths = [*([1.0] * block + [0.2]) * len(TASKS)][:-1]
    figure = canvas(0.62 * sum(widths) + 0.8, 0.64 * (len(names) + 1) + 0.5)
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    ratios = {"width_ratios": widths}
    axes = figure.subplots(len(names) + 1, len(widths), gridspec_kw=ratios, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    shown = {key: images[digit].float() for key, images in kept.items()}
    top = max(float(image.max()) for key, image in shown.items() if key.endswith(" std"))
    for place, (task, (_, _, called)) in enumerate(TASKS.items()):
        first = place * (block + 1)
        seen, _ = plots.measurement(problem(task, x).take(torch.tensor([digit])))
        assert seen is not None
        _show(axes[0, first], x[digit], "truth")
        _show(axes[0, first + 1], seen, called)
        for line, name in enumerate(names, 1):
            found = {k: shown.get(f"{name} {task} {k}") for k in ("mean", "std", "sample")}
            _row(axes[line, first : first + block], found, top, titled=line == 1)
    for line, name in enumerate(names, 1):
        label = {"fontsize": 7, "rotation": 0, "ha": "right", "va": "center"}
        axes[line, 0].set_ylabel(PRIORS[name], labelpad=4, **label)
    figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.04)


def _row(axes: Any, found: dict[str, Tensor | None], top: float, *, titled: bool) -> None:
    """Draw what a prior made of one problem; nothing where it has no line yet."""
    mean, std, samples = found.values()
    titles = ("mean", "spread", *["sample"] * SHOWN) if titled else [""] * len(axes)
    if mean is not None:
        _show(axes[0], mean, titles[0])
    if std is not None and samples is not None:
        for axis, image, title in zip(axes[1:], (std, *samples), titles[1:], strict=True):
            _show(axis, image, title, top if image is std else None)


def _show(axis: Any, x: Tensor, title: str, spread: float | None = None) -> None:
    """Draw an image, or with `spread`, the brightest of them, a standard deviation."""
    panel = x.detach().float()
    look: dict[str, Any] = {"interpolation": "nearest", "vmin": 0}
    if spread is None:
        panel = panel.clamp(0, 1)
        look |= {"cmap": "gray", "vmax": 1}
    else:
        look |= {"cmap": "magma", "vmax": spread}
    axis.imshow(panel.permute(1, 2, 0).squeeze(-1), **look)
    axis.set_title(title, fontsize=6, pad=2)


def place(row: Row) -> tuple[int, int]:
    """Where a line stands in the table."""
    return list(PRIORS).index(str(row["prior"])), list(TASKS).index(str(row["task"]))


def write(path: Path, rows: list[Row]) -> None:
    """Write all lines anew, so that a run which is killed leaves the old file or the new."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with (part := path.with_suffix(".part")).open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


def read(path: Path, count: int) -> list[Row]:
    """Read the lines of a run that was stopped.

    Raises:
        SystemExit: They are of another number of digits.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if any(int(row["images"]) != count for row in rows):
        raise SystemExit(
            f"{path} is of {rows[0]['images']} digits, not {count}: take another --out"
        )
    return rows


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with MNIST's files")
    parser.add_argument("--features", required=True, help="folder with the feature networks")
    parser.add_argument("--out", type=Path, default=Path("priors"))
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--digit", type=int, default=0, help="which of them the picture shows")
    parser.add_argument("--samples", type=int, default=19, help="90 %% is a whole number of ranks")
    parser.add_argument("--priors", nargs="+", choices=PRIORS, default=list(PRIORS))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    given = parser.parse_args()
    if given.workers < 1:
        parser.error("--workers from 1")
    if given.images < 2 or not 0 <= given.digit < given.images or given.samples < SHOWN:
        parser.error(f"--images from 2, --digit one of them, --samples from {SHOWN}")
    return given


def main() -> None:
    given = options()
    names = [name for name in given.priors if name in available()]
    for name in given.priors:
        if name not in names:
            print(f"{name} is not installed: left out", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    table, pictures = given.out / "priors.csv", given.out / "priors.safetensors"
    rows = read(table, given.images)
    kept = load_file(pictures) if pictures.exists() else {}
    test = images(given.data, split="test")
    x = test.batch([i * len(test) // given.images for i in range(given.images)])
    network = load_features("lenet", given.features)
    done = {(row["prior"], row["task"]) for row in rows}
    left = [(n, t) for n in names for t in TASKS if (n, t) not in done]
    context = get_context("spawn")
    with ProcessPoolExecutor(given.workers, context, torch.set_num_threads, (1,)) as pool:
        work = [pool.submit(measure, *each, x, network, given.samples) for each in left]
        for found in as_completed(work):
            row, shown = found.result()
            print({k: v for k, v in row.items() if not k.endswith(", se")}, flush=True)
            rows.append(row)
            kept |= shown
            save_file(kept, pictures)
            write(table, sorted(rows, key=place))
    drawn = [name for name in PRIORS if any(row["prior"] == name for row in rows)]
    if drawn:
        draw(kept, x, drawn, digit=given.digit, path=given.out / "priors.png")


if __name__ == "__main__":
    main()
