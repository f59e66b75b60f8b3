"""`genprior demo`: one cat with a hole, restored by every prior for cats that is installed."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from genprior import plots
from genprior.data import from_array
from genprior.operators import GaussianNoise, Inpainting, Problem, masks
from genprior.pretrained import available, load
from genprior.shell.restore import refuse_existing
from genprior.shell.scores import score
from genprior.solve import solve

PRIORS = ("cats64-gaussian", "cats64-mixture", "cats64-vae", "cats64-diffusion")
"""The rows of the picture, those whose weights are there."""

SIGMA = 0.05
SAMPLES = 64
"""Drawn for the scores; the picture shows four."""


def cat() -> Tensor:
    """Return the face of scikit-image's cat Chelsea, (1, 3, 64, 64), as the priors know faces."""
    import skimage.data

    # Upright and full-face like the training images, whose eyes are at rows 26, columns 18 and 46.
    return from_array(skimage.data.chelsea()[:, 95:395], size=64)


def problem(x: Tensor, *, seed: int = 0) -> Problem:
    """Hide one eye behind a box and add noise."""
    mask = masks.box((64, 64), size=22, position=(17, 38))
    generator = torch.Generator().manual_seed(seed)
    return Problem.simulate(x, Inpainting(mask), GaussianNoise(SIGMA), generator=generator)


def demo(*, out: str = "demo", seed: int = 0, force: bool = False) -> None:
    """Restore a cat with every prior for cats, and draw the results in one picture.

    Args:
        out: Folder for demo.png.
        seed: Of noise and samples.
        force: Replace the picture if it exists.
    """
    path = Path(out) / "demo.png"
    refuse_existing([path], force)
    names = [name for name in PRIORS if name in available()]
    if not names:
        raise ValueError(f"no prior for 64x64 cats is installed: {', '.join(available())}")
    x = cat()
    posed = problem(x, seed=seed)
    lines = []
    print("prior              PSNR of the mean   90 % coverage   residual (sigma)   seconds")
    for name in names:
        generator = torch.Generator().manual_seed(seed + 1)
        result = solve(posed, load(name), num_samples=SAMPLES, generator=generator)
        scores = {key: value.item() for key, value in score(result, posed, x).items()}
        print(
            f"{name:18} {scores['psnr_mean']:13.2f} dB {scores['coverage_90']:14.1%}"
            f" {scores['residual_in_sigma']:17.3f} {result.seconds:9.1f}"
        )
        lines += plots.rows(result, posed, x, label=name.removeprefix("cats64-"))
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.draw(lines, path=path)
    print(f"wrote {path}")
