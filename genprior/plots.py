"""Pictures of what was measured and what was found, without any global plotting state."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from genprior.data.files import write_image
from genprior.metrics import psnr
from genprior.operators import Problem
from genprior.operators.files.notebook import MISSING as MISSING
from genprior.solvers import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL = (1.5, 3.0)
"""Least and greatest width of one panel in inches, of 200 pixels each."""


LARGEST = 1000
"""Pixels of an image's side from which on blocks of them are averaged to be drawn."""


@dataclass(frozen=True)
class Row:
    """One line of a picture: one image, what was measured of it, and what was found.

    Attributes:
        problem: The problem of this image alone.
        mean, std: (C, H, W); std is None where unknown.
        samples: (S, C, H, W).
        truth: (C, H, W), None where unknown.
        label: Written at its left.
    """

    problem: Problem
    mean: Tensor
    std: Tensor | None
    samples: Tensor
    truth: Tensor | None = None
    label: str = ""

    @property
    def single(self) -> bool:
        """Whether it is one image without a spread: a point estimate."""
        return len(self.samples) == 1 and self.std is None


def rows(
    result: Result, problem: Problem, truth: Tensor | None = None, *, label: str = ""
) -> list[Row]:
    """Cut a Result into the rows of a picture, one for each image.

    Args:
        result: For B images.
        problem: What it solves.
        truth: (B, C, H, W).
        label: Written at the left of each.
    """
    index = torch.arange(problem.batch, device=problem.device)
    return [
        Row(
            problem=problem.take(index[i : i + 1]),
            mean=result.mean[i],
            std=None if result.std is None else result.std[i],
            samples=result.samples[i],
            truth=None if truth is None else truth[i],
            label=label,
        )
        for i in range(problem.batch)
    ]


def show(
    result: Result,
    problem: Problem,
    truth: Tensor | None = None,
    *,
    path: str | Path | None = None,
    samples: int = 4,
) -> Figure:
    """Draw truth, measurement, mean, spread and samples, a row for each of at most 8 images.

    Args:
        result: For B images.
        problem: What it solves.
        truth: (B, C, H, W), if known; the mean's PSNR is then written under it.
        path: Also write the picture there (PNG, PDF, ...).
        samples: Most samples to show.
    """
    return draw(rows(result, problem, truth)[:8], path=path, samples=samples)


def draw(lines: Sequence[Row], *, path: str | Path | None = None, samples: int = 4) -> Figure:
    """Draw rows, which may come from several priors or solvers, with one scale of spread.

    Beside rows of samples, a point estimate stands under the mean, and its panels end there.
    """
    shown = min(samples, max(len(line.samples) for line in lines))
    spread = any(line.std is not None for line in lines)
    single = all(line.single for line in lines)
    titles = ["truth"] if lines[0].truth is not None else []
    titles += ["measurement"] + (["estimate"] if single else ["posterior mean"])
    titles += ["spread"] if spread else []
    titles += [] if single else [f"sample {i + 1}" for i in range(shown)]
    figure = _canvas(lines, len(titles), spread)
    axes = figure.subplots(len(lines), len(titles), squeeze=False)
    stds = [_spread(line.std).flatten() for line in lines if line.std is not None]
    # The very largest of many pixels would leave the rest dark.
    top = float(np.quantile(torch.cat(stds).numpy(), 0.999)) if stds else 0.0
    for line, row in zip(lines, axes, strict=True):
        _draw_row(line, list(row), titles, top)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8, pad=4)
    if (channels := len(lines[0].mean)) not in (1, 3):
        figure.suptitle(f"the mean of {channels} channels is drawn", fontsize=8)
    if spread:
        _add_colour_bar(figure, list(axes[:, titles.index("spread")]))
    if path is not None:
        figure.savefig(path, bbox_inches="tight", pad_inches=0.04)
    return figure


def grid(
    images: Tensor,
    *,
    path: str | Path | None = None,
    columns: int | None = None,
    force: bool = True,
) -> Tensor:
    """Tile images (N, C, H, W) in [0, 1] with white gaps, (C, H', W'); small ones are enlarged.

    Args:
        images: Grey or colour; pixels outside [0, 1] are clipped. Of other numbers of channels
            the mean is drawn.
        path: Also write the picture there.
        columns: About the square root of N if None.
        force: Replace an existing file.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images (N, C, H, W) were expected, {tuple(images.shape)} came")
    images = images if images.shape[1] in (1, 3) else images.mean(1, keepdim=True)
    count, channels, height, width = images.shape
    columns = min(columns or math.ceil(math.sqrt(count)), count)
    blank = images.new_ones((-count % columns, channels, height, width))
    scale = max(1, round(96 / max(height, width)))
    tiles = torch.cat([images.detach(), blank]).float().cpu().clamp(0, 1)
    tiles = tiles.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    gap = 2
    tiles = torch.nn.functional.pad(tiles, (0, gap, 0, gap), value=1.0)
    lines = [torch.cat(list(line), -1) for line in tiles.split(columns)]
    picture = torch.cat(lines, 1)[:, :-gap, :-gap]
    if path is not None:
        write_image(path, picture, force=force)
    return picture


def measurement(problem: Problem) -> tuple[Tensor | None, str]:
    """Make a picture (3 or 1, h, w) of the first measurement, and say which.

    Missing pixels are coloured; what is no image (compressed sensing) is shown through the
    pseudo-inverse, and what has none, not at all.
    """
    drawn, note = problem.pictures()
    return None if drawn is None else drawn[0], note


def _canvas(lines: Sequence[Row], columns: int, spread: bool) -> Figure:
    """An empty figure that fits the panels, their titles and labels, and a colour bar."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    class Shown(Figure):
        """Seen in a notebook as it is, without a magic word and without pyplot's state."""

        def _repr_png_(self) -> bytes:
            content = io.BytesIO()
            self.savefig(content, format="png", bbox_inches="tight", pad_inches=0.04)
            return content.getvalue()

    height, width = lines[0].mean.shape[-2:]
    panel = min(max(width / 200, PANEL[0]), PANEL[1])
    labelled = 0.3 if any(line.label for line in lines) else 0.0
    across = columns * panel + labelled + 0.2
    down = len(lines) * (panel * height / width + 0.2) + 0.3 + (0.35 if spread else 0.0)
    layout = ConstrainedLayoutEngine(
        compress=True, w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02
    )
    figure = Shown(figsize=(across, down), layout=layout, dpi=200)
    FigureCanvasAgg(figure)
    return figure


def _draw_row(line: Row, axes: Sequence[Any], titles: Sequence[str], top: float) -> None:
    picture, note = measurement(line.problem)
    truth = line.truth
    value = "" if truth is None else f"{psnr(line.mean[None], truth[None]).item():.1f} dB"
    mode = f"{value}, estimate".removeprefix(", ") if line.single else value
    notes = {"measurement": note, "posterior mean": mode, "estimate": value}
    panels = {"truth": truth, "measurement": picture}
    panels |= dict.fromkeys(("posterior mean", "estimate"), line.mean)
    if not line.single:
        panels |= {f"sample {i + 1}": sample for i, sample in enumerate(line.samples)}
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        axis.set_xlabel(notes.get(title, ""), fontsize=7, labelpad=2)
        if title == "spread" and line.std is not None:
            axis.imshow(_spread(line.std), cmap="magma", vmin=0, vmax=top, **_look(line.std))
        elif (panel := panels.get(title)) is not None:
            _image(axis, panel)
    if line.label:
        axes[0].set_ylabel(line.label, fontsize=8, labelpad=4)


def _image(axis: Any, x: Tensor) -> None:
    x = _reduced(x.detach().float().cpu().clamp(0, 1))
    if x.shape[0] == 3:
        axis.imshow(x.permute(1, 2, 0), **_look(x))
    else:
        axis.imshow(x.mean(0), cmap="gray", vmin=0, vmax=1, **_look(x))


def _look(x: Tensor) -> dict[str, str]:
    """Small images keep their pixels; large ones are smoothed rather than aliased."""
    return {"interpolation": "nearest" if max(x.shape[-2:]) <= 200 else "antialiased"}


def _spread(std: Tensor) -> Tensor:
    """Root mean square over channels, (H, W)."""
    return _reduced(std.detach().float().cpu().square().mean(0, keepdim=True)).sqrt()[0]


def _reduced(x: Tensor) -> Tensor:
    """Average blocks of an image (C, H, W) that has more pixels than a panel can show."""
    block = max(x.shape[-2:]) // LARGEST
    return torch.nn.functional.avg_pool2d(x, block) if block > 1 else x


def _add_colour_bar(figure: Any, axes: Sequence[Any]) -> None:
    drawn = next(axis.images[0] for axis in axes if axis.images)
    bar = figure.colorbar(
        drawn, ax=axes, orientation="horizontal", pad=0.02, aspect=14, shrink=0.9
    )
    bar.ax.tick_params(labelsize=6, length=2, width=0.5, pad=1.5)
    bar.ax.locator_params(nbins=3)
    bar.formatter = "{x:g}"
    bar.set_label("standard deviation", fontsize=6, labelpad=2)
    bar.outline.set_visible(False)
