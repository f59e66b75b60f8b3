"""How long a restoration will take, and how far it is."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from typing_extensions import Self

from genprior.operators import Problem
from genprior.priors import DenoisingPrior, LatentPrior, Prior
from genprior.solvers import Solver
from genprior.solvers.exact import ExactPosterior

T = TypeVar("T")

EVERY = 30.0
"""Seconds between two lines where there is no terminal to draw a bar on."""

PIECE = 256
"""Side of the largest image that a network is tried on; time grows with the pixels from there."""

GRADIENTS = {"LatentMAP": 70, "JointMAP": 150}
"""Gradients that a descent in the latent takes, about."""

VJPS = {"MMPS": 4, "DPS": 1, "PiGDM": 1, "SMC": 1}
"""Vector-Jacobian products of the network for each step, about; 0 for other walks."""


def seconds_needed(
    solver: Solver,
    prior: Prior,
    sizes: list[tuple[int, int]],
    samples: int,
    *,
    problem: Problem | None = None,
) -> float | None:
    """Measure what a solver repeats once, and tell the time that all will take; None if unknown.

    Args:
        solver: What will be run.
        prior: Its network is evaluated once, at the largest size or on a piece of it.
        sizes: (H, W) of every image to be solved.
        samples: Of each.
        problem: One photo's, of which the operator is applied once; without it the operator is
            taken to cost nothing.
    """
    if isinstance(solver, ExactPosterior):
        return None if problem is None else _exact_seconds(prior, problem)
    if DenoisingPrior in solver.needs and isinstance(prior, DenoisingPrior):
        return _walk_seconds(solver, prior, sizes, samples, problem)
    if isinstance(prior, LatentPrior):
        return _latent_seconds(solver, prior, len(sizes), samples)
    return None


def _seconds(work: Callable[[], object]) -> float:
    """Time a piece of work, the second time that it is done: the first is slower."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _device(prior: Prior) -> torch.device:
    return next((t.device for t in prior.state_dict().values()), torch.device("cpu"))


def _exact_seconds(prior: Any, problem: Problem) -> float | None:
    """Time for an iterative solve a direction and a pixel; None where all is in closed form."""
    tasks = getattr(prior.posterior(problem), "tasks", list)()
    if not tasks:
        return None
    start = time.perf_counter()
    tasks[0]()
    return len(tasks) * (time.perf_counter() - start)


def _walk_seconds(
    solver: Any,
    prior: DenoisingPrior,
    sizes: list[tuple[int, int]],
    samples: int,
    problem: Problem | None,
) -> float:
    height, width = (min(PIECE, max(side)) for side in zip(*sizes, strict=True))
    shape = 1, prior.image_shape[0] or 3, height, width
    x = torch.zeros(shape, device=_device(prior)).requires_grad_()
    vjps = VJPS.get(type(solver).__name__, 0)
    forward = backward = operator = 0.0

    def evaluate() -> None:
        nonlocal forward, backward
        start = time.perf_counter()
        with torch.set_grad_enabled(vjps > 0):
            denoised = prior.denoise(x, 0.1).sum()
            denoised.item()  # waits for a GPU
        forward = time.perf_counter() - start
        if vjps:
            torch.autograd.grad(denoised, x)[0].sum().item()
        backward = time.perf_counter() - start - forward

    evaluate()
    evaluate()
    pixels = sum(h * w for h, w in sizes)
    seconds = (forward + vjps * backward) * pixels / (height * width)
    if problem is not None and problem.linear:
        a, y = problem.linear_operator, problem.y[:1]
        operator = _seconds(lambda: a(a.adjoint(y)).sum().item())
    return samples * solver.steps * (seconds + (1 + vjps) * operator)


def _latent_seconds(solver: Any, prior: LatentPrior, images: int, samples: int) -> float | None:
    """Time of the gradients that a solver takes in the latent, all its rows at once."""
    name, rows = type(solver).__name__, solver._rows_per_image(samples)
    if name == "LatentSampler":
        gradients = (solver.warm_up + solver.steps) * solver.leapfrog
    else:
        gradients = GRADIENTS.get(name, getattr(solver, "steps", 0))
    z = torch.zeros(rows, *prior.latent_shape, device=_device(prior)).requires_grad_()

    def gradient() -> None:
        with torch.enable_grad():
            torch.autograd.grad(prior.decode(z).sum(), z)[0].sum().item()

    return images * gradients * _seconds(gradient) if gradients else None


class Stopped(Exception):
    """Raised in the work that follows a `Progress`, once it is to stop."""


class Progress:
    """Follows a solver: a bar on a terminal, else a line every half minute, from a thread.

    Another thread may look at `done` and `left`, and may stop the work.

    Args:
        parts: How many times a solver will walk: the chunks that it takes samples and windows in.
        expected: Seconds that all will take, as far as is known; said while nothing is done yet.
        quiet: Show nothing.
    """

    def __init__(self, parts: int, *, expected: float | None = None, quiet: bool = False) -> None:
        self._parts, self._expected = parts, expected
        self._begun = 0
        self.done = 0.0
        self._start = time.perf_counter()
        self._ended, self._stopped = threading.Event(), threading.Event()
        self._bar = not quiet and sys.stderr.isatty()
        self._lines = not quiet and not self._bar

    def __call__(self, steps: Iterable[T], label: str) -> Iterator[T]:
        from tqdm.auto import tqdm

        self._begun += 1
        items = list(steps)
        bar = tqdm(items, desc=label, leave=False, disable=not self._bar)
        for i, step in enumerate(bar):
            if self._stopped.is_set():
                raise Stopped
            self.done = min(1.0, (self._begun - 1 + i / len(items)) / self._parts)
            yield step

    def __enter__(self) -> Self:
        if self._lines:
            threading.Thread(target=self._log, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def stop(self) -> None:
        """Make the next step of the work raise `Stopped`."""
        self._stopped.set()

    @property
    def left(self) -> float | None:
        """Seconds that are left, about; None while nobody knows."""
        gone = time.perf_counter() - self._start
        if self.done == 0:
            return None if self._expected is None else max(0.0, self._expected - gone)
        return gone * (1 - self.done) / self.done

    def line(self) -> str:
        """Say how far it is."""
        gone = time.perf_counter() - self._start
        if self.done == 0:
            of = f" of about {duration(self._expected)}" if self._expected else ""
            return f"at work for {duration(gone)}{of}"
        return f"{self.done:.0%} done in {duration(gone)}, about {duration(self.left or 0)} left"

    def _log(self) -> None:
        while not self._ended.wait(EVERY):
            print(f"genprior: {self.line()}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """'12 s', '3 min', '2.5 h'."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
