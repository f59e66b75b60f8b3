"""Time of solves over that of their evaluations alone, by a GPU's own clock."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import overhead
import torch
from gpu import lease

from genprior.solvers import DDNM, DPS, MMPS, DiffPIR, PiGDM, Solver

SAMPLES = 16
"""Rows in flight: enough for the device, not the host, to be busy."""


def elapsed(call: Callable[[], object]) -> float:
    """Seconds that a call keeps the device busy, by its own clock; the host's on a CPU."""
    if not torch.cuda.is_available():
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def network(milliseconds: float, device: str, *, samples: int) -> overhead.Network:
    """Stack as many convolutions as take so long for a forward of so many images."""
    width = 128 if device == "cuda" else 4
    x = torch.full((samples, *overhead.SHAPE), 0.5, device=device)
    sigma = torch.ones(samples, device=device)

    spent = 0.3 if device == "cuda" else 0.01

    def make(depth: int) -> overhead.Network:
        with torch.random.fork_rng(devices=[]):  # building draws weights
            return overhead.Network(width, depth).to(device)

    def took(depth: int) -> float:
        built = make(depth)
        return 1000 / lease.calls_per_second(lambda: built.denoise(x, sigma), spent)

    with torch.no_grad():
        low, high = took(1), took(9)
    each = max((high - low) / 8, 1e-6)
    depth = max(1, round(1 + (milliseconds - low) / each)) if device == "cuda" else 1
    return make(depth)


def waits(call: Callable[[], object]) -> int | None:
    """Count how often the host waits for the device."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(w.message) for w in caught)


def overhead_rows(device: str, *, dry: bool) -> list[dict[str, Any]]:
    """Time solves of ten steps over their evaluations alone, the two taking turns."""
    rows, samples = [], 1 if dry else SAMPLES
    for milliseconds in (10.0, 1.0):
        model = network(milliseconds, device, samples=samples)
        for task in ("mask",) if dry else ("mask", "blur"):
            problem = overhead.problems()[task].to(device)
            for method in (MMPS, PiGDM, DPS, DiffPIR, DDNM):
                solver = method(steps=2 if dry else overhead.STEPS)
                generator = torch.Generator(device).manual_seed(0)

                def solve(s: Solver = solver, p=problem, n=model, g=generator) -> object:
                    return s(p, n, num_samples=samples, generator=g)

                asked = overhead.evaluations_of(solve, model)

                def alone(asked=asked, n=model) -> None:
                    overhead.alone(asked, n)

                elapsed(alone)  # warms up
                pairs = [(elapsed(solve), elapsed(alone)) for _ in range(1 if dry else 5)]
                stops = waits(solve)
                rows.append(
                    {
                        "goal ms": milliseconds,
                        "task": task,
                        "solver": method.__name__,
                        "evaluation ms": round(1000 * pairs[-1][1] / len(asked), 3),
                        "ratio": round(statistics.median(a / b for a, b in pairs), 3),
                        "waits": stops and round(stops / len(asked), 2),
                    }
                )
                print(rows[-1], flush=True)
    return rows
