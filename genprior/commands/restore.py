"""`genprior restore`: from a photo to posterior samples, their mean, their spread, a picture."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from genprior.commands.outputs import command_line, refuse_existing, refuse_unwritable
from genprior.commands.source import parsed_range
from genprior.data import Photo, read_photo, write_image
from genprior.data.files import image_size
from genprior.operators import Problem
from genprior.operators.files import sha256
from genprior.pretrained.loader import card
from genprior.priors import Prior
from genprior.restoration import memory
from genprior.restoration.degradation import Degradation
from genprior.restoration.many.folder import Where, restore_folder
from genprior.restoration.many.work import Work
from genprior.restoration.posing import Fit
from genprior.restoration.progress import Progress
from genprior.restoration.restored import Restored, restore_photo
from genprior.restoration.settings import Solving
from genprior.solvers.choice import named
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
    workers: int | None = None,
    cluster: str | None = None,
) -> int:
    """Restore a photo, or every photo of a folder.

    Writes sample_N.png, mean.png, std.png, comparison.png, result.json.
    In std.png white is a standard deviation of 0.5, the largest that pixels in [0, 1] can have.
    A simulation also writes measurement.png, and measurement.npy where the noise leaves [0, 1].
    Photos of other than 1 or 3 channels are written as .tif; comparison.png shows their mean.

    Of a folder each photo, sub-folders' too, gets a folder of its name in `out`, and summary.csv
    a line. What stopped is resumed by the same command; the status is 1 where photos failed.

    Args:
        photo: The measurement, or with `simulate` the truth: an image file, or a folder of them.
            `--mask` may then be a folder of masks of the photos' names.
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
        workers: For a folder: how many processes work on it, each with a prior of its own.
        cluster: For a folder: address of a Ray cluster whose machines work on it, `auto` for the
            one of this machine, or `local` to start one here.
    """
    options = {k: v for k, v in locals().items() if k not in ("degradation", "solving")}
    folder = Path(out)
    settled = degradation.settled(simulate=simulate)
    parsed_range(value_range)
    if Path(photo).is_dir():
        return _restore_folder(options, settled, solving, say=partial(print, flush=True))
    for option, value in (("workers", workers), ("cluster", cluster)):
        if value is not None:
            raise ValueError(f"--{option} is for a folder of photos, and {photo} is none")
    refuse_existing([folder / name for name in (*ALONE, *_pictures_in(folder))], force)
    prior = solving.load_prior()
    say = partial(print, flush=True)
    restored, report = _restore_file(
        photo, settled, solving, options, prior=prior, folder=folder, out=folder, say=say
    )
    _print(report, restored.posed.measured, folder, " (the default)" * (solving.prior is None))
    return 0


def _restore_file(
    photo: str,
    degradation: Degradation,
    solving: Solving,
    options: dict[str, Any],
    *,
    prior: Prior,
    folder: Path,
    out: Path,
    say: Callable[[str], object] = lambda line: None,
    follow: Callable[..., Progress] = Progress,
) -> tuple[Restored, dict[str, Any]]:
    """Restore one file into `folder`, which is, or will be, `out`.

    Args:
        photo: The file.
        degradation: Settled.
        solving: With what.
        options: Those of `restore`.
        prior: As `solving` loads it.
        folder: Where results are written.
        out: What their command line says.
        say: Is told what is known before the work.
        follow: Makes what follows the work.
    """
    channels, size, bits = options["channels"], options["size"], options["bits"]
    if not photo.lower().endswith(".npy"):
        memory.refuse_to_decode(photo, image_size(photo))
    limits = parsed_range(options["value_range"])
    given = read_photo(photo, channels=1 if channels == 1 else None, value_range=limits)
    if channels == 1:
        given = replace(given, profile=None)  # of the colours that it had
    restored = restore_photo(
        given,
        degradation,
        solving,
        prior=prior,
        size=(size, size) if isinstance(size, int) else size,
        **{name: options[name] for name in ("simulate", "fit", "keep")},
        say=say,
        follow=follow,
    )
    alone = {**options, "photo": photo, "out": str(out), "workers": None, "cluster": None}
    report = {
        **restored.report,
        **_sources(photo, degradation, solving),
        "command": command_line(
            restore, alone, degradation, replace(solving, prior=solving.prior_name)
        ),
    }
    _write(folder, restored, report, given, bits or (16 if given.depth > 8 else 8))
    return restored, report


FREE = ("device", "batch_size")
"""What may change when a folder is resumed: it decides no result, but for rounding."""


def _restore_folder(
    options: dict[str, Any],
    degradation: Degradation,
    solving: Solving,
    *,
    say: Callable[[str], object],
) -> int:
    """Restore the photos of a folder; return the exit status."""
    from genprior import __version__

    folder, out = Path(options["photo"]), Path(options["out"]).absolute()
    if options["force"]:
        raise ValueError("--force is for one photo: a folder is resumed, or --out names another")
    if options["workers"] is not None and options["workers"] < 1:
        raise ValueError(f"--workers must be at least 1, not {options['workers']}")
    refuse_unwritable(out)
    if solving.solver is not None:
        named(solving.solver)
    if degradation.kernel != "auto":
        degradation.draw_kernel()
    own = ("photo", "out", "force", "workers", "cluster")
    run = {
        "version": __version__,
        "photos": str(folder.resolve()),
        **{name: value for name, value in options.items() if name not in own},
        **vars(degradation),
        **{name: value for name, value in vars(solving).items() if name not in FREE},
        "weights_sha256": card(solving.prior_name)["sha256"],
        "kernel_sha256": sha256(degradation.kernel),
    }
    where = Where(options["workers"], options["cluster"])
    work = Work(
        partial(
            _restore_file,
            solving=solving,
            options=options,
            follow=partial(Progress, quiet=where != Where()),
        ),
        degradation,
        solving,
        out,
        Path.cwd(),
    )
    return int(restore_folder(folder, work, run, where=where, say=say) > 0)


def _pictures_in(folder: Path) -> list[str]:
    """Name the pictures that a run has left in a folder."""
    names = (path.name for path in folder.glob("*"))
    return [name for name in names if re.fullmatch(PICTURES, name)]


def _write(
    folder: Path, restored: Restored, report: dict[str, Any], photo: Photo, bits: int
) -> None:
    """Write every file or none: into a folder beside the results, then move them.

    What an earlier run left and this one does not replace, such as more samples, is removed: the
    folder would show two restorations as one.
    """
    import numpy as np

    from genprior.plots import show

    result, posed = restored.result, restored.posed
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
