"""Compressed sensing of digits: the figure's table, and what an iteration costs.

python benchmarks/details/csgm.py --data FOLDER_OF_MNIST --out csgm/
python benchmarks/details/csgm.py --data FOLDER_OF_MNIST --gan mnist-gan --out csgm/

The protocol is that of `genprior.figure_csgm`. Writes csgm.csv and csgm.png, with `--gan`
csgm-gan.csv and csgm-gan.png. Lasso needs scikit-learn (the dev extra).
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

import genprior
from genprior.data import images
from genprior.figures.inverse import SOLVERS, compare, draw, pose
from genprior.operators import CompressedSensing, Problem
from genprior.priors import GAN, VAE, LatentPrior
from genprior.solvers import LatentMAP
from genprior.solvers.base import Counted
from genprior.solvers.latent.adaptation import adapt
from genprior.solvers.latent.latent_posterior import latent_posterior

PUBLISHED = {
    10: 0.0864, 25: 0.0813, 50: 0.0327, 75: 0.0167, 100: 0.0142,
    200: 0.0125, 300: 0.0125, 400: 0.0120, 500: 0.0117, 750: 0.0116,
}  # fmt: skip
"""Errors of CSGM's DCGAN of 20 numbers, in a public reproduction of 2026."""

INVERSION = LatentMAP("lbfgs", restarts=10, steps=100)
ADAPT = 300
"""Most steps of training the generator on each digit."""


def overhead(prior: VAE, x: Tensor, optimizer: Literal["lbfgs", "adam"]) -> dict[str, float]:
    """Processor time of LatentMAP, 10 images by 10 restarts at m = 100, over bare loops.

    The loops run over the same numbers of rows as the solver did: rows that converged have left.

    Returns:
        Over the decoder's forward and backward alone; over those with |y - A x|^2 + |z|^2, by
        hand; and over that with a step of torch's own Adam. Medians of 9 runs side by side.
    """
    problem = pose(x, 100)
    operator = problem.operator
    assert isinstance(operator, CompressedSensing)
    solver = LatentMAP(optimizer, restarts=10, steps=250, tolerance=0.0)
    sizes: list[int] = []
    hook = prior.decoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    solver(problem, prior, generator=torch.Generator().manual_seed(0))
    hook.remove()
    a, y = operator.dense_matrix(problem.y), problem.y.repeat_interleave(10, 0)
    z0 = torch.randn(len(y), *prior.latent_shape, generator=torch.Generator().manual_seed(0))

    def decoder() -> None:
        for n in sizes:
            z = z0[:n].detach().requires_grad_()
            image = prior.decode(z)
            torch.autograd.grad(image, z, torch.ones_like(image))

    def gradient(z: Tensor) -> Tensor:
        residual = y[: len(z)] - prior.decode(z).flatten(1) @ a.T
        return torch.autograd.grad(residual.square().sum() + 0.1 * z.square().sum(), z)[0]

    def likelihood() -> None:
        for n in sizes:
            gradient(z0[:n].detach().requires_grad_())

    def adam() -> None:
        z = z0.clone().requires_grad_()
        descent = torch.optim.Adam([z], lr=0.01)
        for _ in sizes:
            z.grad = gradient(z)
            descent.step()

    def solve() -> None:
        solver(problem, prior, generator=torch.Generator().manual_seed(0))

    loops = {"decoder": decoder, "decoder and likelihood": likelihood}
    if optimizer == "adam":
        loops["decoder, likelihood and torch's Adam"] = adam
    ratios: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(9):
        solved = _seconds(solve)
        for name, loop in loops.items():
            ratios[name].append(solved / _seconds(loop))
    return {name: statistics.median(values) for name, values in ratios.items()}


def pairs(prior: VAE, x: Tensor, m: int) -> None:
    """Compare L-BFGS with Adam digit by digit: errors, lowest energies, gradients for a digit."""
    problem = pose(x, m)
    results = {
        name: solver(problem, prior, generator=torch.Generator().manual_seed(0), batch_size=10**4)
        for name, solver in {
            "adam": SOLVERS["adam"],
            "lbfgs": SOLVERS["lbfgs"],
            "lbfgs, 40 restarts": replace(SOLVERS["lbfgs"], restarts=40),
        }.items()
    }
    errors = {k: (r.mean - x).square().flatten(1).mean(1) for k, r in results.items()}
    adam = results.pop("adam")
    error = errors["adam"].mean()
    print(f"m {m}, {len(x)} digits, adam: error {error:.4f}; {adam.vjps:.0f} gradients a digit")
    for name, result in results.items():
        gap = errors[name] - errors["adam"]
        lower = adam.trace["energy"][-1] - result.trace["energy"][-1]
        print(
            f"{name}: error {errors[name].mean():.4f}, minus Adam's {gap.mean():+.4f} +- "
            f"{gap.std() / len(x) ** 0.5:.4f}; energy {lower.mean():.2f} nats below Adam's on "
            f"average, lower by 0.05 on {int((lower > 0.05).sum())}, higher on "
            f"{int((lower < -0.05).sum())}; {result.vjps:.0f} gradients a digit"
        )


def invert(prior: LatentPrior, x: Tensor) -> list[dict[str, float]]:
    """Return a generator's errors by number of measurements, all from the same latents.

    The generator's image, that image moved towards y as far as `decoder_std` lets it, which is
    what LatentMAP returns, and the image of the generator trained on y; then what LatentMAP
    returns where it searches w and not z, if the generator has a mapping. Residuals are root mean
    squares of y - A x in standard deviations of the noise.
    """
    if prior.decoder_std is None:
        raise ValueError("this generator has no decoder_std: call its measure_decoder_std")
    rows = []
    for m, published in PUBLISHED.items():
        problem = pose(x, m)
        found = INVERSION(problem, prior, generator=torch.Generator().manual_seed(0))
        latents, begin = found.latents, time.perf_counter()
        assert latents is not None
        z = latents[:, 0]
        posterior = latent_posterior(Counted(prior), problem, None)
        adapted, _, residual, met = adapt(posterior, z, steps=ADAPT)
        rows.append(
            {
                "m": m,
                "published DCGAN": published,
                "generator": _error(prior.decode(z), x),
                "LatentMAP": _error(found.mean, x),
                "adapted": _error(adapted, x),
                **searched_in_w(prior, problem, x),
                "residual": float(residual[0].mean()),
                "residual adapted": float(residual[1].mean()),
                "at the noise": float(met.sum()),
                "seconds": found.seconds,
                "seconds adapted": time.perf_counter() - begin,
                "gradients per restart": found.vjps / INVERSION.restarts,
            }
        )
        print("  ".join(f"{k} {v:.4g}" for k, v in rows[-1].items()), flush=True)
    return rows


def searched_in_w(prior: LatentPrior, problem: Problem, x: Tensor) -> dict[str, float]:
    """Return the error of LatentMAP in w and how many digits it converged on, or nothing."""
    if not (isinstance(prior, GAN) and prior.network.get("mapping")):
        return {}
    found = INVERSION(problem, prior.space("w"), generator=torch.Generator().manual_seed(0))
    return {"in w": _error(found.mean, x), "converged in w": float(found.converged.sum())}


def draw_inversion(rows: list[dict[str, float]]) -> Figure:
    """Plot a generator's errors against the number of measurements."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    styles = {
        "generator": ("DCGAN", "C0o-"),
        "LatentMAP": ("DCGAN and its spread", "C2^-"),
        "in w": ("DCGAN and its spread, searched in w", "C4v-"),
        "adapted": ("DCGAN trained on y", "C3D-"),
        "published DCGAN": ("DCGAN, public reproduction", "C7s--"),
    }
    for key, (label, style) in styles.items():
        if key not in rows[0]:
            continue
        axes.plot([r["m"] for r in rows], [r[key] for r in rows], style, label=label)
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="measurements of 784 pixels", ylabel="squared error per pixel")
    axes.legend(fontsize=8)
    return figure


def _error(found: Tensor, x: Tensor) -> float:
    return float((found - x).square().mean())


def _write(rows: list[dict[str, float]], figure: Figure, path: Path) -> None:
    """Write `path`.csv, a line for each number, and `path`.png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["measurements", "what", "value"])
        writer.writerows((row["m"], key, row[key]) for row in rows for key in row if key != "m")
    figure.savefig(path.with_suffix(".png"), dpi=150)


def _seconds(function: Callable[[], None]) -> float:
    """Processor time, which other processes do not lengthen much."""
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with MNIST's idx files")
    parser.add_argument("--prior", default="mnist-vae", help="name or weights file")
    parser.add_argument("--gan", help="name or weights file of a generator: its errors alone")
    parser.add_argument("--overhead", action="store_true", help="measure the cost alone")
    parser.add_argument(
        "--pairs", type=int, nargs=3, metavar=("FIRST", "COUNT", "M"),
        help="compare L-BFGS with Adam on these test digits alone, M measurements of each",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("csgm"))
    options = parser.parse_args()
    data = images(options.data, split="test")
    if options.gan:
        gan = genprior.load(options.gan)
        assert isinstance(gan, LatentPrior)
        rows = invert(gan, data.batch(range(10)))
        _write(rows, draw_inversion(rows), options.out / "csgm-gan")
        return
    prior = genprior.load(options.prior)
    assert isinstance(prior, VAE)
    if options.pairs:
        first, count, m = options.pairs
        pairs(prior, data.batch(range(first, first + count)), m)
        return
    x = data.batch(range(10))
    for optimizer in ("adam", "lbfgs"):
        for loop, ratio in overhead(prior, x, optimizer).items():
            print(f"{optimizer}: {ratio:.3f} times a bare loop of {loop}", flush=True)
    if options.overhead:
        return
    rows = compare(prior, x)
    _write(rows, draw(rows), options.out / "csgm")


if __name__ == "__main__":
    main()
