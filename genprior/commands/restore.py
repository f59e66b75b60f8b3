"""`genprior restore`: from a photo to posterior samples, their mean, their spread, a picture."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from genprior.commands.outputs import command_line, refuse_existing, sha256
from genprior.commands.source import parsed_range
from genprior.data import Photo, read_photo, write_image
from genprior.data.files import image_size
from genprior.operators import GaussianNoise, Problem
from genprior.pretrained.loader import card
from genprior.priors import Prior
from genprior.restoration import memory
from genprior.restoration.degradation import Degradation, Size
from genprior.restoration.kernel_estimate import candidates, find_kernel
from genprior.restoration.posing import Fit, Posed, pose, refuse_unless_one_fits
from genprior.restoration.progress import Progress, duration, seconds_needed
from genprior.restoration.scores import residual, score
from genprior.restoration.settings import Solving
from genprior.restoration.windows import solve_windows
from genprior.solvers import Result
from genprior.solvers.base import image_shape, rows_in_flight
from genprior.solvers.latent.latent_sampler import R_HAT

ALONE = ("comparison.png", "result.json")
PICTURES = r"(mean|std|measurement|sample_\d+)\.(png|tif)|measurement\.npy"
"""What else is written; a later run removes what it does not replace."""


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
    value_range: str | None = None,
    bits: Literal[8, 16] | None = None,
    keep: bool | None = None,
    force: bool = False,
) -> None:
    """Restore a photo. Writes sample_N.png, mean.png, std.png, comparison.png, result.json.

    In std.png white is a standard deviation of 0.5, the largest that pixels in [0, 1] can have.
    A simulation also writes measurement.png, and measurement.npy where the noise leaves [0, 1].
    Photos of other than 1 or 3 channels are written as .tif; comparison.png shows their mean.

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
        channels: Turn the photo grey (1). A grey photo and a prior of colour images go together
            as they are.
        value_range: The photo's values that are black and white, as 0,4095 for 12 bits in 16;
            auto: its least and its largest.
        bits: Depth of the images written; by default 16 for a photo of more than 8, else 8.
        keep: For inpaint: give measured pixels back as they were, and work round the holes only.
            The default unless the degradation is simulated; `--keep false` takes their noise out
            too, and works on the whole photo.
        force: Replace results that are there; samples of an earlier run are removed.
    """
    options = {k: v for k, v in locals().items() if k not in ("degradation", "solving")}
    folder = Path(out)
    refuse_existing([folder / name for name in (*ALONE, *_pictures_in(folder))], force)
    limits = parsed_range(value_range)
    settled = degradation.settled(simulate=simulate)
    prior = solving.load_prior()
    if not photo.lower().endswith(".npy"):
        memory.refuse_to_decode(photo, image_size(photo))
    given = read_photo(photo, channels=1 if channels == 1 else None, value_range=limits)
    if channels == 1:
        given = replace(given, profile=None)  # of the colours that it had
    size = (size, size) if isinstance(size, int) else size
    settled, evidence = _with_kernel(given, settled, prior, fit, size)
    posed = pose(
        given.pixels,
        settled,
        prior,
        solving=solving,
        simulate=simulate,
        fit=fit,
        size=size,
        keep=(not simulate and settled.task == "inpaint") if keep is None else keep,
        steps=given.steps,
    )
    named = replace(solving, prior=solving.prior_name)
    sources = _sources(photo, settled, solving)
    result = posed.as_measured(_solved(posed, prior, solving))
    left = residual(result, posed.inside()).item()
    result = posed.framed(posed.kept(result) if posed.keep else result)
    report = {
        **_report(result, posed, settled, solving, left),
        "precision": "bf16" if getattr(prior, "autocast", None) else "fp32",
        **sources,
        "kernel_evidence": evidence,
        "command": command_line(restore, options, degradation, named),
    }
    _write(folder, result, posed, report, given, bits or (16 if given.depth > 8 else 8))
    _print(report, posed.measured, folder, " (the default)" * (solving.prior is None))


def _with_kernel(
    photo: Photo, degradation: Degradation, prior: Prior, fit: Fit | None, size: Size | None
) -> tuple[Degradation, dict[str, float] | None]:
    """Find the kernel of `--kernel auto`; print the evidence of the best of each kind."""
    if degradation.kernel != "auto":
        return degradation, None
    if fit == "resize":
        raise ValueError("--kernel auto measures the photo's own pixels: --fit resize alters them")
    kernels = candidates().values()
    refuse_unless_one_fits(photo.pixels, degradation, prior, kernels, fit=fit, size=size)
    noise = degradation.noise(photo.pixels, steps=photo.steps)[0]
    assert isinstance(noise, GaussianNoise)
    circular = degradation.boundary == "circular"
    name, evidence, exact = find_kernel(photo.pixels, prior, float(noise.sigma), circular=circular)
    print(f"kernel    {name}, {'by the exact evidence' if exact else 'an estimate'}:", flush=True)
    for other in sorted(evidence, key=lambda key: evidence[key], reverse=True)[:8]:
        print(f"          {other:15} {evidence[other] - evidence[name]:10.1f} nats")
    return replace(degradation, kernel=name), evidence


def _solved(posed: Posed, prior: Prior, solving: Solving) -> Result:
    """Solve what was posed, having said about how long it takes."""
    problem, windows = posed.problem, posed.windows
    channels, height, width = image_shape(problem, prior)
    sizes = [(r.stop - r.start, c.stop - c.start) for r, c in windows or []] or [(height, width)]
    solver = solving.find_solver(problem, prior)
    solving.set_precision(prior, max(sizes, key=math.prod), problem.device)
    expected = seconds_needed(solver, prior, sizes, solving.samples, problem=problem)
    if expected is not None:
        work = f"{len(sizes)} window(s) round the holes" if windows else "the whole photo"
        print(f"expected  {duration(expected)} for {work}", flush=True)
    generator = torch.Generator().manual_seed(solving.seed + 1)
    rows = (
        rows_in_flight(solver, solving.samples, (channels, *s), solving.batch_size) for s in sizes
    )
    parts = sum(math.ceil(solving.samples / n) for n in rows)
    with Progress(parts, expected=expected) as progress:

        def solve(part: Problem) -> Result:
            return solving.run(part, prior, generator=generator, progress=progress)

        return solve(problem) if windows is None else solve_windows(problem, windows, solve)


def _pictures_in(folder: Path) -> list[str]:
    """Name the pictures that a run has left in a folder."""
    names = (path.name for path in folder.glob("*"))
    return [name for name in names if re.fullmatch(PICTURES, name)]


def _write(
    folder: Path, result: Result, posed: Posed, report: dict[str, Any], photo: Photo, bits: int
) -> None:
    """Write every file or none: into a folder beside the results, then move them.

    What an earlier run left and this one does not replace, such as more samples, is removed: the
    folder would show two restorations as one.
    """
    import numpy as np

    from genprior.plots import show

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial") as temporary:
        partial = Path(temporary)

        def write(name: str, x: Tensor) -> None:
            suffix = "png" if len(x) in (1, 3) else "tif"
            path = partial / f"{name}.{suffix}"
            write_image(path, x, bits=bits, dpi=photo.dpi, profile=photo.profile)

        for i, sample in enumerate(result.samples[0]):
            write(f"sample_{i + 1}", sample)
        write("mean", result.mean[0])
        if result.std is not None:
            write("std", result.std[0] * 2)
        show(result, posed.measured, posed.truth, path=partial / "comparison.png")
        y = posed.measured.y[0]
        if posed.truth is not None:
            write("measurement", y)
            if bool(((y < 0) | (y > 1)).any()):
                np.save(partial / "measurement.npy", y.cpu().numpy())
        (partial / "result.json").write_text(json.dumps(report, indent=2) + "\n")
        written = {path.name for path in partial.iterdir()}
        for stale in {*_pictures_in(folder)} - written:
            (folder / stale).unlink()
        for name in written:
            os.replace(partial / name, folder / name)


def _report(
    result: Result, posed: Posed, degradation: Degradation, solving: Solving, residual: float
) -> dict[str, Any]:
    """What result.json holds; a score that is not finite is null."""
    found = score(result, posed.measured, posed.truth) if posed.truth is not None else {}
    scores = {name: values.item() for name, values in found.items()}
    scores["residual_in_sigma"] = residual
    if "r_hat" in result.trace:
        scores["r_hat"] = result.trace["r_hat"][-1].item()
    noise = posed.measured.noise
    # free of the noise's own float32 rounding
    sigma = noise.sigma if isinstance(noise, GaussianNoise) else math.nan
    return {
        "prior": solving.prior_name,
        "solver": result.solver,
        "task": degradation.task,
        "sigma": float(f"{float(sigma):.6g}") if isinstance(noise, GaussianNoise) else None,
        "noise_from": posed.noise_from,
        **{name: getattr(degradation, name) for name in ("peak", "mask", "kernel", "factor")},
        "boundary": degradation.boundary if degradation.kernel else None,
        "size": list(result.mean.shape[2:]),
        "kept": posed.keep,
        "windows": posed.windows
        and [[r.start, r.stop, c.start, c.stop] for r, c in posed.windows],
        "grey": posed.grey,
        "samples": result.samples.shape[1],
        "antithetic": result.antithetic,
        "seed": solving.seed,
        **{name: getattr(result, name) for name in ("forwards", "vjps", "seconds")},
        "converged": bool(result.converged.all()),
        **{name: value if math.isfinite(value) else None for name, value in scores.items()},
    }


def _sources(photo: str, degradation: Degradation, solving: Solving) -> dict[str, Any]:
    """Versions and hashes of what went in."""
    from genprior import __version__

    return {
        "version": __version__,
        "weights_sha256": card(solving.prior_name)["sha256"],
        "photo_sha256": sha256(photo),
        "mask_sha256": sha256(degradation.mask),
        "kernel_sha256": sha256(degradation.kernel),
    }


def _print(report: dict[str, Any], problem: Problem, folder: Path, default: str) -> None:
    observed = problem.operator.observed
    if observed is not None:
        print(f"measured  {observed.float().mean():.1%} of the pixels")
    print(f"prior     {report['prior']}{default}")
    pairs = " in antithetic pairs" if report["antithetic"] else ""
    print(f"solver    {report['solver'].partition('(')[0]}, {report['samples']} samples{pairs}")
    print(
        f"cost      {report['forwards']:g} forwards and {report['vjps']:g} VJPs per sample, "
        f"{report['seconds']:.1f} s"
    )
    if report["residual_in_sigma"] is not None:
        print(
            f"residual  {report['residual_in_sigma']:.3f} sigma (sigma {report['sigma']:.4g}, "
            f"{report['noise_from']})"
        )
    if "psnr_mean" in report and report["psnr_mean"] is not None:
        print(f"PSNR      {report['psnr_mean']:.2f} dB of the mean")
    if "coverage_90" in report:
        print(f"coverage  {report['coverage_90']:.1%} of the pixels in their 90 % interval")
    if report.get("r_hat") is not None:
        print(f"R-hat     {report['r_hat']:.2f} (chains that agree are below {R_HAT})")
    if not report["converged"]:
        print("NOT CONVERGED: do not trust this result")
    if report["kept"]:
        print("kept      measured pixels as they were; --keep false takes noise out of them too")
    print(f"wrote     {folder}")
