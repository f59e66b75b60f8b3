"""What a flow restores: digits from few measurements, and noisy ones at several weights.

The protocols of Asim et al. 2020 (GlowIP, arXiv:1905.11672) on test digits, for the mode in z.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genprior.figures.canvas import Measured, canvas, digits, load_family
from genprior.figures.inverse import cosine_basis, lasso, pose
from genprior.metrics import psnr
from genprior.operators import GaussianNoise, Identity, Problem
from genprior.pretrained import load
from genprior.priors import Flow, LatentPrior, Prior
from genprior.solvers import FlowMAP, LatentMAP

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIGITS = 8
"""Test digits of each figure; as many training digits choose Lasso's weight."""

MEASUREMENTS = (25, 50, 100, 200, 400, 750)

GAMMAS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)

SIGMA = 0.1
"""Std of the noise that `gamma` removes."""

FLOW_MAP = FlowMAP(steps=100)
LATENT_MAP = LatentMAP(restarts=10, steps=250)

WEIGHTS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Of Lasso's penalty: the best of them on other digits is taken, for each m and basis."""


Row = dict[str, Any]


def sensing(
    flow: Flow,
    vae: Prior,
    x: Tensor,
    others: Tensor,
    *,
    measurements: Sequence[int] = MEASUREMENTS,
    seed: int = 0,
) -> list[Row]:
    """Return the PSNR of what each method makes of m random measurements, noise of norm .1.

    Args:
        flow, vae: Of images (1, 28, 28).
        x: Digits to measure, (B, 1, 28, 28).
        others: Digits on which Lasso's weight is chosen.
        measurements: Each m; it seeds its matrix.
        seed: Of the starts in the VAE's latent.
    """
    bases = {"pixels": torch.eye(784, dtype=torch.float64), "cosines": cosine_basis()}
    rows: list[Row] = []
    for m in measurements:
        problem = pose(x, m)
        mode = FLOW_MAP(problem, flow)
        code = LATENT_MAP(problem, vae, generator=torch.Generator().manual_seed(seed))
        assert code.latents is not None
        assert isinstance(vae, LatentPrior)
        with torch.no_grad():
            decoded = vae.decode(code.latents[:, 0])
        found = {"flow": mode.mean, "vae": code.mean, "vae decoder": decoded}
        for name, basis in bases.items():
            weight = best_weight(pose(others, m), others, basis)
            found[f"lasso {name}"] = lasso(problem, basis, weight=weight).view_as(x)
        for what, image in found.items():
            rows.append({"measurements": m, "what": what, **_scored(image, x)})
            _say(rows[-1])
    return rows


def best_weight(problem: Problem, x: Tensor, basis: Tensor) -> float:
    """Return the weight of Lasso's penalty with the least squared error on x."""

    def error(weight: float) -> float:
        return float((lasso(problem, basis, weight=weight) - x.flatten(1)).square().mean())

    return min(WEIGHTS, key=error)


def denoising(
    flow: Flow, x: Tensor, *, gammas: Sequence[float] = GAMMAS, seed: int = 0
) -> list[Row]:
    """Return the PSNR of noisy digits and of the mode in z at each weight of the prior."""
    noise = GaussianNoise(SIGMA)
    generator = torch.Generator().manual_seed(seed)
    problem = Problem.simulate(x, Identity(flow.image_shape), noise, generator=generator)
    rows: list[Row] = [{"gamma": "noisy", **_scored(problem.y, x)}]
    _say(rows[-1])
    for gamma in gammas:
        mode = replace(FLOW_MAP, gamma=gamma)(problem, flow)
        rows.append({"gamma": gamma, **_scored(mode.mean, x)})
        _say(rows[-1])
    return rows


def _scored(image: Tensor, x: Tensor) -> Row:
    """Return the mean PSNR over digits, and its standard error, of pixels clipped to [0, 1]."""
    each = psnr(image.clamp(0, 1), x)
    return {"psnr": float(each.mean()), "error": float(each.std()) / len(each) ** 0.5}


def _say(row: Row) -> None:
    words = (f"{k} {v if isinstance(v, str) else format(v, '.4g')}" for k, v in row.items())
    print(*words, sep="  ", flush=True)


def measurements(data: str | None, seed: int, prior: str) -> Measured:
    """Measure test digits, and plot PSNR against the number of measurements."""
    x, others = digits(data, "test", DIGITS), digits(data, "train", DIGITS)
    if find_spec("sklearn") is None:
        raise ValueError("this figure needs scikit-learn: pip install genprior[figures]")
    rows = sensing(load_family(prior, Flow), load("mnist-vae"), x, others, seed=seed)
    return Measured(draw_sensing(rows), rows)


def draw_sensing(rows: list[Row]) -> Figure:
    """Plot a curve with standard errors for each method."""
    styles = {
        "flow": ("Glow, FlowMAP", "C0o-"),
        "vae": ("VAE, LatentMAP", "C3s-"),
        "vae decoder": ("VAE, its decoder's image alone", "C3x:"),
        "lasso pixels": ("Lasso, pixels", "C1^-"),
        "lasso cosines": ("Lasso, cosines", "C2v-"),
    }
    figure = canvas(6, 4)
    axis = figure.subplots()
    for what, (label, style) in styles.items():
        mine = [row for row in rows if row["what"] == what]
        m, db, error = ([row[key] for row in mine] for key in ("measurements", "psnr", "error"))
        axis.errorbar(m, db, error, fmt=style, capsize=2, label=label)
    axis.set(xscale="log", xlabel="measurements of 784 pixels", ylabel="PSNR, dB")
    shown = list(dict.fromkeys(row["measurements"] for row in rows))
    axis.set_xticks(shown, [f"{m:g}" for m in shown])
    axis.minorticks_off()
    axis.legend(fontsize=8)
    return figure


def gamma(data: str | None, seed: int, prior: str) -> Measured:
    """Denoise test digits, and plot PSNR against the weight of the prior."""
    x = digits(data, "test", DIGITS)
    rows = denoising(load_family(prior, Flow), x, seed=seed)
    return Measured(draw_denoising(rows), rows)


def draw_denoising(rows: list[Row]) -> Figure:
    """Plot the modes at each weight, evenly spaced, above the noisy image."""
    noisy, *modes = rows
    figure = canvas(6, 4)
    axis = figure.subplots()
    db, error = ([row[key] for row in modes] for key in ("psnr", "error"))
    axis.errorbar(range(len(modes)), db, error, fmt="C0o-", capsize=2, label="Glow, FlowMAP")
    axis.axhline(noisy["psnr"], color="0.5", ls=":", label=f"noisy, sigma {SIGMA:g}")
    axis.set_xticks(range(len(modes)), [f"{row['gamma']:g}" for row in modes])
    axis.set(xlabel="gamma, the weight of the prior (1 is the posterior)", ylabel="PSNR, dB")
    axis.legend(fontsize=8)
    return figure
