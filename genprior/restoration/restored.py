"""A photo restored: posed, solved, brought back, reported. What the shell and the page share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from genprior.data import Photo
from genprior.operators import GaussianNoise, Problem
from genprior.priors import Prior
from genprior.restoration.degradation import Degradation, Size
from genprior.restoration.kernel_estimate import candidates, find_kernel
from genprior.restoration.posing import Fit, Posed, pose, refuse_unless_one_fits
from genprior.restoration.progress import Progress, duration, seconds_needed
from genprior.restoration.scores import residual, score
from genprior.restoration.settings import Solving
from genprior.restoration.windows import solve_windows
from genprior.solvers import Result
from genprior.solvers.base import image_shape, rows_in_flight


@dataclass(frozen=True)
class Restored:
    """What was found of a photo.

    Attributes:
        result: In the photo's size and channels, its measured pixels as they were where asked.
        posed: The problem that was solved.
        report: What was done, at what cost, and the scores: plain data.
    """

    result: Result
    posed: Posed
    report: dict[str, Any]


def restore_photo(
    photo: Photo,
    degradation: Degradation,
    solving: Solving,
    *,
    prior: Prior,
    simulate: bool = False,
    fit: Fit | None = None,
    size: Size | None = None,
    keep: bool | None = None,
    mask: Tensor | None = None,
    say: Callable[[str], object] = lambda line: None,
    follow: Callable[..., Progress] = Progress,
) -> Restored:
    """Restore a photo.

    Args:
        photo: The measurement, or with `simulate` the truth.
        degradation: What to undo, settled for the one or the other.
        solving: With what.
        prior: As `solving` loads it.
        simulate: Degrade the photo first, and score the result against it.
        fit: How to fit it to the prior or to `size`.
        size: (H, W) to fit it to, for priors that serve any.
        keep: Give measured pixels back as they were; for an inpainting that is not simulated if
            None.
        mask: What the mask file holds, (1, 1, H, W), where it need not be read.
        say: Is told what is known before the work, a line at a time.
        follow: Makes what follows the work, of its parts and the seconds expected, as `Progress`.
    Raises:
        ValueError: Photo, prior and degradation do not go together.
        MemoryError: It would take more memory than is free.
    """
    degradation, evidence = _with_kernel(photo, degradation, prior, fit, size, say=say)
    posed = pose(
        photo.pixels,
        degradation,
        prior,
        solving=solving,
        simulate=simulate,
        fit=fit,
        size=size,
        keep=(not simulate and degradation.task == "inpaint") if keep is None else keep,
        steps=photo.steps,
        mask=mask,
    )
    result = posed.as_measured(_solved(posed, prior, solving, say=say, follow=follow))
    left = residual(result, posed.inside()).item()
    result = posed.framed(posed.kept(result) if posed.keep else result)
    report = {
        **_report(result, posed, degradation, solving, left),
        "precision": "bf16" if getattr(prior, "autocast", None) else "fp32",
        "kernel_evidence": evidence,
    }
    return Restored(result, posed, report)


def _with_kernel(
    photo: Photo,
    degradation: Degradation,
    prior: Prior,
    fit: Fit | None,
    size: Size | None,
    *,
    say: Callable[[str], object],
) -> tuple[Degradation, dict[str, float] | None]:
    """Find the kernel of `--kernel auto`; say the evidence of the best of them."""
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
    say(f"kernel    {name}, {'by the exact evidence' if exact else 'an estimate'}:")
    for other in sorted(evidence, key=lambda key: evidence[key], reverse=True)[:8]:
        say(f"          {other:15} {evidence[other] - evidence[name]:10.1f} nats")
    return replace(degradation, kernel=name), evidence


def _solved(
    posed: Posed,
    prior: Prior,
    solving: Solving,
    *,
    say: Callable[[str], object],
    follow: Callable[..., Progress],
) -> Result:
    """Solve what was posed, having said about how long it takes."""
    problem, windows = posed.problem, posed.windows
    channels, height, width = image_shape(problem, prior)
    sizes = [(r.stop - r.start, c.stop - c.start) for r, c in windows or []] or [(height, width)]
    solver = solving.find_solver(problem, prior)
    solving.set_precision(prior, max(sizes, key=math.prod), problem.device)
    expected = seconds_needed(solver, prior, sizes, solving.samples, problem=problem)
    if expected is not None:
        work = f"{len(sizes)} window(s) round the holes" if windows else "the whole photo"
        say(f"expected  {duration(expected)} for {work}")
    generator = torch.Generator().manual_seed(solving.seed + 1)
    rows = (
        rows_in_flight(solver, solving.samples, (channels, *s), solving.batch_size) for s in sizes
    )
    parts = sum(math.ceil(solving.samples / n) for n in rows)
    with follow(parts, expected=expected) as progress:

        def solve(part: Problem) -> Result:
            return solving.run(part, prior, generator=generator, progress=progress)

        return solve(problem) if windows is None else solve_windows(problem, windows, solve)


def _report(
    result: Result, posed: Posed, degradation: Degradation, solving: Solving, residual: float
) -> dict[str, Any]:
    """What was done; a score that is not finite is null."""
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
