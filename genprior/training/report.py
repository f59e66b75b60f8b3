"""What a training run says of itself: progress bar, loss curve, sample grids, event files."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genprior.priors.base import Model, Prior
from genprior.training.options import Length
from genprior.training.state import State

EVERY = 50
"""Steps averaged into one point of the loss curve."""

Callback = Callable[[int, dict[str, float]], None]
"""callback(step, means of losses and logs over the last steps)."""


class Report:
    """Collects losses on the device and speaks now and then, so that training never waits."""

    out: Path | None
    length: Length
    state: State
    callback: Callback | None
    fabric: Any
    shown: bool
    first: int

    def __init__(
        self,
        out: Path | None,
        length: Length,
        state: State,
        *,
        callback: Callback | None = None,
    ) -> None:
        self.out, self.length, self.state, self.callback = out, length, state, callback
        self.fabric = state.fabric
        self.shown = state.options.progress and self.fabric.is_global_zero
        self.history: dict[str, list[list[float]]] = {}
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._bar: Any = None
        self._earlier = self._before = 0.0
        self.first = 0

    def __enter__(self) -> Report:
        from tqdm.auto import tqdm

        self._began = time.perf_counter()
        self._before = self.length.done(self.first, self._earlier)
        self._bar = tqdm(
            total=round(self.length.total),
            initial=round(self._before),
            unit=self.length.unit.removesuffix("s"),
            file=sys.stderr,
            disable=None if self.shown else True,  # None: shown on a terminal only
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue the curves and the clock of the run that is resumed."""
        self.history = saved["history"]
        self._earlier, self.first = saved["seconds"], saved["step"]

    def saved(self) -> dict[str, Any]:
        """Return all from which `restore` continues, but the step."""
        return {"history": self.history, "seconds": self.seconds}

    @property
    def seconds(self) -> float:
        """Seconds trained, over all parts of a resumed run."""
        return self._earlier + time.perf_counter() - self._began

    def add(self, group: str, loss: Tensor, logs: Mapping[str, float | Tensor]) -> None:
        """Count one batch in."""
        figures = {group: loss, **{f"{group}/{k}": torch.as_tensor(v) for k, v in logs.items()}}
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0) + value.float()
            self._counts[name] = self._counts.get(name, 0) + 1

    def progress(self, step: int) -> None:
        """Say what the last step came to; a point of the curve every `EVERY` steps."""
        done = min(int(self.length.done(step, self.seconds)), self._bar.total)
        self._bar.update(done - self._bar.n)
        if step % EVERY == 0:
            self._point(step)

    def _point(self, step: int) -> None:
        means = {name: (self._sums[name] / self._counts[name]).item() for name in self._sums}
        self._sums.clear()
        self._counts.clear()
        if not means:
            return
        for name, value in means.items():
            self.history.setdefault(name, []).append([step, value])
        if self.callback is not None:
            self.callback(step, means)
        images = (step - self.first) * self.state.images_per_step
        rate = images / (time.perf_counter() - self._began)
        losses = {k: f"{v:.4g}" for k, v in means.items() if "/" not in k}
        self._bar.set_postfix({**losses, "images/s": f"{rate:.0f}"}, refresh=False)
        self.fabric.log_dict({**means, "images_per_second": rate}, step=step)

    def check_finite(self, step: int) -> None:
        """Raise where a loss since the last point, or a weight, is not finite."""
        self._point(step)
        latest = [points[-1][1] for name, points in self.history.items() if "/" not in name]
        good = bool(torch.tensor(latest).isfinite().all()) and self.state.finite
        broken = torch.tensor(float(not good))
        # On every device, so that none waits for one that stopped.
        if float(self.fabric.all_reduce(broken, reduce_op="sum")) > 0:
            kept = (
                f"the last good checkpoint is kept in {self.out / 'checkpoints'}"
                if self.out is not None
                else "nothing is kept"
            )
            raise ArithmeticError(
                f"the loss or a weight became NaN or infinite before step {step}; {kept}. Try "
                "half the learning rate, a smaller clip, or precision fp32, in another folder"
            )

    def line(self, step: int) -> None:
        """Say one line for each checkpoint where there is no terminal to draw a bar on."""
        if self.shown and self._bar.disable:
            losses = {k: v[-1][1] for k, v in self.history.items() if "/" not in k}
            figures = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
            done, total = self.length.done(step, self.seconds), self.length.total
            pace = (time.perf_counter() - self._began) / (done - self._before)
            minutes = max(0, pace * (total - done) / 60)
            print(f"step {step}, {done:.0f}/{total:.0f} {self.length.unit}: loss {figures}, "
                  f"{minutes:.0f} min left", file=sys.stderr, flush=True)  # fmt: skip

    def stopped(self, step: int) -> None:
        """Say that a signal ended the run, and what goes on with it."""
        kept = f"checkpoint in {self.out}" if self.out is not None else "nothing kept"
        again = "; the same command again resumes" if self.out is not None else ""
        if self.fabric.is_global_zero:
            self._bar.clear()
            print(f"stopped after step {step}, {kept}{again}", file=sys.stderr, flush=True)

    def pictures(self, model: Model, folder: Path, step: int) -> None:
        """Write the loss curve and a grid of samples, the same noise each time."""
        _write_curve(folder / "loss.png", self.history)
        count = self.state.options.grid
        if count == 0 or not isinstance(model, Prior):
            return
        from genprior.plots import grid

        height, width = model.image_shape[1:]
        size = None if height and width else (64, 64)
        generator = torch.Generator().manual_seed(0)
        samples = model.sample(count, size=size, generator=generator)
        grid(samples.cpu(), path=folder / f"samples-{step:09d}.png")


def _write_curve(path: Path, history: dict[str, list[list[float]]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
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
