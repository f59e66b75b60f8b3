"""How long a restoration will take, and how far it is."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from typing_extensions import Self

from genprior.operators import LinearOperator, Problem
from genprior.priors import DenoisingPrior, ExactPrior, Prior
from genprior.solvers import Solver
from genprior.solvers.exact import ExactPosterior

T = TypeVar("T")

DENSE = 4096
"""Entries of a measurement up to which an exact solve without a spectrum is quick."""

EVERY = 30.0
"""Seconds between two lines where there is no terminal to draw a bar on."""

PIECE = 256
"""Side of the largest image that a network is tried on; time grows with the pixels from there."""

VJPS = {"MMPS": 4, "DPS": 1, "PiGDM": 1, "SMC": 1}
"""Vector-Jacobian products of the network for each step, about; 0 for other walks."""


def seconds_needed(
    solver: Solver, prior: Prior, sizes: list[tuple[int, int]], samples: int
) -> float | None:
    """Measure one evaluation of a network and tell the time that all will take; None if unknown.

    Args:
        solver: What will walk.
        prior: Its network is evaluated once, at the largest size or on a piece of it.
        sizes: (H, W) of every image to be solved.
        samples: Of each.
    """
    steps = getattr(solver, "steps", None)
    if steps is None or not isinstance(prior, DenoisingPrior) or isinstance(prior, ExactPrior):
        return None
    height, width = (min(PIECE, max(side)) for side in zip(*sizes, strict=True))
    device = next((t.device for t in prior.state_dict().values()), torch.device("cpu"))
    x = torch.zeros(1, prior.image_shape[0] or 3, height, width, device=device).requires_grad_()
    vjps = VJPS.get(type(solver).__name__, 0)

    def evaluate() -> float:
        start = time.perf_counter()
        with torch.set_grad_enabled(vjps > 0):
            denoised = prior.denoise(x, 0.1).sum()
            denoised.item()  # waits for a GPU
        forward = time.perf_counter() - start
        if vjps:
            torch.autograd.grad(denoised, x)[0].sum().item()
        return forward + vjps * (time.perf_counter() - start - forward)

    evaluate()  # the first time is slower
    pixels = sum(h * w for h, w in sizes)
    return samples * steps * evaluate() * pixels / (height * width)


class Progress:
    """Follows a solver: a bar on a terminal, else a line every half minute, from a thread.

    Args:
        parts: How many times a solver will walk: the chunks that it takes samples and windows in.
    """

    def __init__(self, parts: int) -> None:
        self._parts = parts
        self._begun = 0
        self._done = 0.0
        self._start = time.perf_counter()
        self._ended = threading.Event()

    def __call__(self, steps: Iterable[T], label: str) -> Iterator[T]:
        from tqdm import tqdm

        self._begun += 1
        items = list(steps)
        bar = tqdm(items, desc=label, leave=False, disable=not sys.stderr.isatty())
        for i, step in enumerate(bar):
            self._done = min(1.0, (self._begun - 1 + i / len(items)) / self._parts)
            yield step

    def __enter__(self) -> Self:
        if not sys.stderr.isatty():
            threading.Thread(target=self._log, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def line(self) -> str:
        """Say how far it is."""
        gone = time.perf_counter() - self._start
        if self._done == 0:
            return f"at work for {duration(gone)}"
        left = gone * (1 - self._done) / self._done
        return f"{self._done:.0%} done in {duration(gone)}, about {duration(left)} left"

    def _log(self) -> None:
        while not self._ended.wait(EVERY):
            print(f"genprior: {self.line()}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """'12 s', '3 min', '2.5 h'."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def too_costly(solver: Solver, prior: Prior, problem: Problem) -> bool:
    """Say whether an exact solve would take an iterative one for each of very many pixels."""
    if not (isinstance(solver, ExactPosterior) and isinstance(prior, DenoisingPrior)):
        return False
    operator = problem.operator
    large = problem.y[0].numel() > DENSE
    return large and isinstance(operator, LinearOperator) and operator.spectrum(problem.y) is None
