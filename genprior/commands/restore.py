"""`genprior restore`: from a photo to posterior samples, their mean, their spread, a picture."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from genprior.commands.outputs import refuse_existing, refuse_unwritable
from genprior.data import read_image, write_image
from genprior.data.files import image_size
from genprior.operators import GaussianNoise, Problem
from genprior.restoration import memory
from genprior.restoration.degradation import Degradation
from genprior.restoration.posing import Fit, pose
from genprior.restoration.scores import score
from genprior.restoration.settings import Solving
from genprior.solvers import Result
from genprior.solvers.latent.latent_sampler import R_HAT


def restore(
    photo: str,
    degradation: Degradation,
    solving: Solving,
    *,
    out: str = "results",
    simulate: bool = False,
    fit: Fit | None = None,
    size: int | tuple[int, int] | None = None,
    channels: Literal[1, 3] | None = None,
    bits: Literal[8, 16] = 8,
    force: bool = False,
) -> None:
    """Restore a photo. Writes sample_N.png, mean.png, std.png, comparison.png, result.json.

    In std.png white is a standard deviation of 0.5, the largest that pixels in [0, 1] can have.

    Args:
        photo: The measurement, or with `simulate` the truth: an image file.
        degradation: What to undo.
        solving: With what.
        out: Folder for the results.
        simulate: Degrade the photo first, and score the result against it.
        fit: Cut the middle out of a photo that is too large for the prior, or resize it; a mask
            file is treated alike.
        size: Height and width to fit the photo to, or one number for both, for priors that serve
            any size.
        channels: Turn the photo grey (1) or into colour (3) first.
        bits: Depth of the images written.
        force: Replace results that are there; samples of an earlier run are removed.
    """
    folder = Path(out)
    refuse_unwritable(folder)
    names = [f"sample_{i + 1}.png" for i in range(solving.samples)]
    names += ["mean.png", "std.png", "comparison.png", "result.json"]
    refuse_existing([*(folder / name for name in names), *_samples_in(folder)], force)
    prior = solving.load_prior()
    if not photo.lower().endswith(".npy"):
        memory.refuse_to_decode(photo, image_size(photo))
    given = read_image(photo, channels=channels)
    wanted = (size, size) if isinstance(size, int) else size
    problem, truth = pose(
        given, degradation, prior, solving=solving, simulate=simulate, fit=fit, size=wanted
    )
    result = solving.run(problem, prior)
    report = _report(result, problem, truth, degradation, solving)
    report["precision"] = "bf16" if getattr(prior, "autocast", None) else "fp32"
    _write(folder, result, problem, truth, report, bits)
    _print(report, problem, folder)


def _samples_in(folder: Path) -> list[Path]:
    """List the samples that a run has left in a folder."""
    return [p for p in folder.glob("sample_*.png") if p.stem.removeprefix("sample_").isdigit()]


def _write(
    folder: Path,
    result: Result,
    problem: Problem,
    truth: Tensor | None,
    report: dict[str, Any],
    bits: int,
) -> None:
    """Write every file or none: into a folder beside the results, then move them.

    What an earlier run left and this one does not replace, such as more samples, is removed: the
    folder would show two restorations as one.
    """
    from genprior.plots import show

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial") as temporary:
        partial = Path(temporary)
        for i, sample in enumerate(result.samples[0]):
            write_image(partial / f"sample_{i + 1}.png", sample, bits=bits)
        write_image(partial / "mean.png", result.mean[0], bits=bits)
        if result.std is not None:
            write_image(partial / "std.png", result.std[0] * 2, bits=bits)
        show(result, problem, truth, path=partial / "comparison.png")
        (partial / "result.json").write_text(json.dumps(report, indent=2) + "\n")
        written = {path.name for path in partial.iterdir()}
        for stale in (*_samples_in(folder), folder / "std.png"):
            if stale.name not in written:
                stale.unlink(missing_ok=True)
        for name in written:
            os.replace(partial / name, folder / name)


def _report(
    result: Result,
    problem: Problem,
    truth: Tensor | None,
    degradation: Degradation,
    solving: Solving,
) -> dict[str, Any]:
    """What result.json holds; a score that is not finite is null."""
    scores = {name: values.item() for name, values in score(result, problem, truth).items()}
    if "r_hat" in result.trace:
        scores["r_hat"] = result.trace["r_hat"][-1].item()
    return {
        "prior": solving.prior,
        "solver": result.solver,
        "task": degradation.task,
        "sigma": _sigma(problem),
        "samples": result.samples.shape[1],
        "antithetic": result.antithetic,
        "seed": solving.seed,
        "forwards": result.forwards,
        "vjps": result.vjps,
        "seconds": result.seconds,
        "converged": bool(result.converged.all()),
        **{name: value if math.isfinite(value) else None for name, value in scores.items()},
    }


def _sigma(problem: Problem) -> float:
    """The noise std, free of the noise's own float32 rounding."""
    assert isinstance(problem.noise, GaussianNoise)
    return float(f"{float(torch.as_tensor(problem.noise.sigma)):.6g}")


def _print(report: dict[str, Any], problem: Problem, folder: Path) -> None:
    observed = problem.operator.observed
    if observed is not None:
        print(f"measured  {observed.float().mean():.1%} of the pixels")
    print(f"prior     {report['prior']}")
    pairs = " in antithetic pairs" if report["antithetic"] else ""
    print(f"solver    {report['solver'].partition('(')[0]}, {report['samples']} samples{pairs}")
    print(
        f"cost      {report['forwards']:g} forwards and {report['vjps']:g} VJPs per sample, "
        f"{report['seconds']:.1f} s"
    )
    if report["residual_in_sigma"] is not None:
        print(f"residual  {report['residual_in_sigma']:.3f} sigma (sigma {report['sigma']:.4g})")
    if "psnr_mean" in report and report["psnr_mean"] is not None:
        print(f"PSNR      {report['psnr_mean']:.2f} dB of the mean")
    if "coverage_90" in report:
        print(f"coverage  {report['coverage_90']:.1%} of the pixels in their 90 % interval")
    if report.get("r_hat") is not None:
        print(f"R-hat     {report['r_hat']:.2f} (chains that agree are below {R_HAT})")
    if not report["converged"]:
        print("NOT CONVERGED: do not trust this result")
    print(f"wrote     {folder}")
