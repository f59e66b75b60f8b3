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

from genprior.data import read_image, resized, write_image
from genprior.image_files import image_size
from genprior.operators import GaussianNoise, Problem
from genprior.priors import Prior
from genprior.shell import memory
from genprior.shell.degradation import Degradation, Size, fit_mask
from genprior.shell.scores import score
from genprior.shell.solving import Solving
from genprior.solvers import Result
from genprior.solvers.latent_sampler import R_HAT

Fit = Literal["crop", "resize"]


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


def pose(
    photo: Tensor,
    degradation: Degradation,
    prior: Prior,
    *,
    solving: Solving,
    simulate: bool,
    fit: Fit | None,
    size: Size | None = None,
) -> tuple[Problem, Tensor | None]:
    """Make the problem that a photo (C, H, W) poses, and the truth (1, C, H, W) if known.

    Raises:
        ValueError: The prior does not serve the photo's size or channels, or the mask is of
            another size.
        MemoryError: Solving it would take more memory than is free.
    """
    channels = prior.image_shape[0]
    if channels != photo.shape[0]:
        raise ValueError(
            f"the photo has {photo.shape[0]} channel(s), the prior is for {channels}: "
            f"--channels {channels} converts the photo"
        )
    kernel = degradation.draw_kernel()
    generator = torch.Generator().manual_seed(solving.seed)
    if size is not None and fit is None:
        raise ValueError("--size says how large, not how: add --fit crop or --fit resize")
    wanted = _wanted_size(
        photo, degradation, kernel, prior.image_shape[1:], simulate=simulate, fit=fit, size=size
    )
    image = wanted if simulate else degradation.image_size(wanted, kernel)
    solving.refuse_too_large(
        prior, (photo.shape[0], *image), enlarged=1 if simulate else degradation.factor or 1
    )
    have: Size = (photo.shape[1], photo.shape[2])
    mask = degradation.draw_mask(have, generator)
    if mask is not None and tuple(mask.shape[2:]) != have:
        raise ValueError(
            f"the mask {degradation.mask} is {mask.shape[2]}x{mask.shape[3]} (height x width), "
            f"the photo {have[0]}x{have[1]}: they must agree"
        )
    if mask is not None and bool(mask.all()):
        raise ValueError(
            f"the mask {degradation.mask} misses nothing: all of it counts as measured. For noise "
            "alone there is --task denoise; --invert-mask swaps black and white"
        )
    if have != wanted:
        photo, mask = _fitted(photo, mask, wanted, fit)
    sigma = degradation.noise_std(None if simulate else photo, mask)
    device = next((t.device for t in prior.state_dict().values()), torch.device("cpu"))
    operator = degradation.operator((photo.shape[0], *image), mask=mask, kernel=kernel).to(device)
    x = photo[None].to(device)
    if simulate:
        noise = GaussianNoise(sigma)
        return Problem.simulate(x, operator, noise, generator=generator), x
    return Problem(x, operator, GaussianNoise(sigma)), None


def _wanted_size(
    photo: Tensor,
    degradation: Degradation,
    kernel: Tensor | None,
    served: tuple[int | None, ...],
    *,
    simulate: bool,
    fit: Fit | None,
    size: Size | None,
) -> Size:
    """Return the size that the photo must have, its own or `size` where the prior serves any."""
    have: Size = (photo.shape[1], photo.shape[2])
    height, width = served
    if height is None or width is None:
        if size is not None:
            if min(size) < 1:
                raise ValueError(f"--size must be positive, not {size[0]},{size[1]}")
            have = size
        if simulate:
            factor = degradation.factor or 1
            if size is None and fit is not None and min(have) >= factor:
                have = have[0] // factor * factor, have[1] // factor * factor
            degradation.measured_size(have, kernel)
        return have
    if size is not None:
        raise ValueError(
            f"--size is for priors of any size; this one is for {height}x{width}: --fit alone "
            "does it"
        )
    measured = degradation.measured_size((height, width), kernel)
    wanted = (height, width) if simulate else measured
    if have != wanted and fit is None:
        smaller = have[0] < wanted[0] or have[1] < wanted[1]
        advice = "--fit resize enlarges it" if smaller else "--fit crop or --fit resize adapts it"
        raise ValueError(
            f"the photo is {have[0]}x{have[1]} (height x width); for this prior and task it must "
            f"be {wanted[0]}x{wanted[1]}: {advice}"
        )
    return wanted


def _fitted(
    photo: Tensor, mask: Tensor | None, size: Size, fit: Fit | None
) -> tuple[Tensor, Tensor | None]:
    if fit == "resize":
        photo = torch.from_numpy(resized(photo.numpy(), size))
        return photo, None if mask is None else fit_mask(mask, size)
    top, left = (photo.shape[1] - size[0]) // 2, (photo.shape[2] - size[1]) // 2
    if top < 0 or left < 0:
        raise ValueError(
            f"the photo is {photo.shape[1]}x{photo.shape[2]} (height x width), too small to cut "
            f"{size[0]}x{size[1]} out of it: --fit resize enlarges it"
        )
    rows, columns = slice(top, top + size[0]), slice(left, left + size[1])
    cut = None if mask is None else mask[..., rows, columns]
    return photo[:, rows, columns], cut


def refuse_existing(paths: list[Path], force: bool) -> None:
    """Raise a FileExistsError before any work if a result would be overwritten."""
    found = [path for path in paths if path.exists()]
    if found and not force:
        raise FileExistsError(
            f"{found[0]} exists (and {len(found) - 1} more): --force replaces them, --out writes "
            "elsewhere"
        )


def refuse_unwritable(folder: Path) -> None:
    """Raise an OSError before any work if nothing can be written into a folder, made or not."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f"--out {folder}: {there} is a file, not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"--out {folder}: {there} cannot be written to")


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
