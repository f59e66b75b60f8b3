"""What a training run says of itself: progress bar, loss curve, sample grids, event files."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from genprior.priors.base import Prior
    from genprior.training import TrainingOptions

EVERY = 50
"""Steps averaged into one point of the loss curve."""


class Report:
    """Collects losses on the device and speaks now and then, so that training never waits."""

    def __init__(
        self, out: Path, steps: int, images: int, options: TrainingOptions, fabric: Any
    ) -> None:
        self.out, self.steps, self.images, self.fabric = out, steps, images, fabric
        self.grid = options.grid
        self.shown = options.progress and fabric.is_global_zero
        self.history: dict[str, list[list[float]]] = {}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._bar: Any = None
        self._earlier = 0.0

    def __enter__(self) -> Report:
        from tqdm import tqdm

        done = int(max((points[-1][0] for points in self.history.values()), default=0))
        self._began, self._before = time.perf_counter(), done
        self._bar = tqdm(
            total=self.steps,
            initial=done,
            unit="step",
            file=sys.stderr,
            disable=None if self.shown else True,  # None: shown on a terminal only
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def restore(self, history: dict[str, list[list[float]]], seconds: float) -> None:
        """Continue the curves and the clock of the run that is resumed."""
        self.history, self._earlier = history, seconds

    @property
    def seconds(self) -> float:
        """Seconds trained, over all parts of a resumed run."""
        return self._earlier + time.perf_counter() - self._began

    def add(self, group: str, loss: Tensor, logs: dict[str, float]) -> None:
        """Count one batch in."""
        figures = {group: loss, **{f"{group}/{k}": torch.as_tensor(v) for k, v in logs.items()}}
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0) + value.float()
            self._counts[name] = self._counts.get(name, 0) + 1

    def progress(self, step: int) -> None:
        """Say what the last step came to; a point of the curve every `EVERY` steps."""
        self._bar.update(1)
        if step % EVERY and step != self.steps:
            return
        self._point(step)

    def _point(self, step: int) -> None:
        means = {name: (self._sums[name] / self._counts[name]).item() for name in self._sums}
        self._sums.clear()
        self._counts.clear()
        if not means:
            return
        for name, value in means.items():
            self.history.setdefault(name, []).append([step, value])
        rate = (step - self._before) * self.images / (time.perf_counter() - self._began)
        losses = {k: f"{v:.4g}" for k, v in means.items() if "/" not in k}
        self._bar.set_postfix({**losses, "images/s": f"{rate:.0f}"}, refresh=False)
        self.fabric.log_dict({**means, "images_per_second": rate}, step=step)

    def check_finite(self, step: int, out: Path) -> None:
        """Raise where a loss since the last point is not finite."""
        self._point(step)
        latest = [points[-1][1] for name, points in self.history.items() if "/" not in name]
        broken = (~torch.tensor(latest).isfinite()).any().float()
        # On every device, so that none waits for one that stopped.
        if float(self.fabric.all_reduce(broken, reduce_op="sum")) > 0:
            raise ArithmeticError(
                f"the loss became NaN or infinite before step {step}; the last good checkpoint "
                f"is kept in {out / 'checkpoints'}. Try half the learning rate, a smaller clip, "
                "or precision fp32, in another folder"
            )

    def line(self, step: int) -> None:
        """Say one line for each checkpoint where there is no terminal to draw a bar on."""
        if self.shown and self._bar.disable:
            losses = {k: v[-1][1] for k, v in self.history.items() if "/" not in k}
            figures = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
            left = (time.perf_counter() - self._began) / (step - self._before)
            minutes = left * (self.steps - step) / 60
            print(f"step {step}/{self.steps}: loss {figures}, {minutes:.0f} min left",
                  file=sys.stderr, flush=True)  # fmt: skip

    def pictures(self, prior: Prior, step: int) -> None:
        """Write the loss curve and a grid of samples, the same noise each time."""
        _write_curve(self.out / "loss.png", self.history)
        if self.grid == 0:
            return
        from genprior.plots import grid

        height, width = prior.image_shape[1:]
        size = None if height and width else (64, 64)
        generator = torch.Generator().manual_seed(0)
        samples = prior.sample(self.grid, size=size, generator=generator)
        grid(samples.cpu(), path=self.out / f"samples-{step:09d}.png")


def _write_curve(path: Path, history: dict[str, list[list[float]]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, points in history.items():
        if "/" not in name:
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1)
    axes.set(xlabel="step", ylabel="loss")
    if len(history) > 1:
        axes.legend()
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial, dpi=120)
    os.replace(partial, path)
