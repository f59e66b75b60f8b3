"""What only a GPU can show: tests on the device, overhead of solvers, restoration, training.

    PYTHONPATH=.:benchmarks python -m gpu.measure --seconds 180 --out OUT

Goals: a solve takes at most 1.05 times its evaluations alone with a network of 10 ms, 1.15 times
with one of 1 ms. `waits` counts how often the host waits for the device in an evaluation:
a `Diffusion` prior reads its noise levels back as Python numbers. Parts that no time is left for
are named in `skipped`. OUT gets measure.json and tests.log. `--dry-run` does all of it on the CPU,
few and small.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu import lease
from gpu.solver_overhead import overhead_rows, waits

import genprior
from genprior.operators import GaussianNoise, Inpainting, Problem, masks
from genprior.priors import DenoisingPrior
from genprior.solvers import DPS, MMPS, PiGDM, Result, Solver


def tests(given: argparse.Namespace) -> dict[str, Any]:
    """Run the tests that take a device, on the device alone."""
    mark, folder = ("cpu", "tests/operators") if given.dry_run else ("cuda", "tests")
    takes = re.compile(r"^def test_\w+\(.*\bdevice\b", re.MULTILINE)
    found = sorted((lease.ROOT / folder).rglob("test_*.py"))
    files = [str(p) for p in found if takes.search(p.read_text())]
    few = ["-k", "test_dtype_and_device"] if given.dry_run else ["-n", "12"]
    words = [sys.executable, "-m", "pytest", "-m", mark, *few, *files]
    with (given.out / "tests.log").open("w") as log:
        done = subprocess.run(words, cwd=lease.ROOT, stdout=log, stderr=subprocess.STDOUT)
    lines = (given.out / "tests.log").read_text().splitlines()
    return {"exit": done.returncode, "summary": lines[-1] if lines else ""}


def restoration(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Fill a box in cats, all at once, in bfloat16: speed and peak memory."""
    recipe, count = lease.Recipe("cats64-diffusion", given.dry_run), 2 if given.dry_run else 64
    truth = recipe.images(given.carry, "test")
    prior = genprior.load(given.weights) if given.weights else recipe.build(truth)
    assert isinstance(prior, DenoisingPrior)
    prior = prior.to(given.device).eval().requires_grad_(False)
    vars(prior)["autocast"] = torch.bfloat16
    generator = torch.Generator().manual_seed(0)
    operator = Inpainting(masks.box((64, 64), size=24))
    x = truth.batch(range(count))
    problem = Problem.simulate(x, operator, GaussianNoise(0.05), generator=generator)
    problem, rows = problem.to(given.device), []
    for solver in (MMPS(steps=20), DPS(steps=100), PiGDM(steps=20)):
        few = replace(solver, steps=2)
        solver = few if given.dry_run else solver

        def solve(s: Solver, p=problem, n=prior) -> Result:
            return s(p, n, generator=torch.Generator(given.device).manual_seed(0))

        stops = waits(lambda s=few: solve(s))  # warms up as well
        if given.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        result = solve(solver)
        lease.synchronise()
        seconds = time.perf_counter() - begin
        row: dict[str, Any] = {"solver": type(solver).__name__, "seconds": round(seconds, 2)}
        row |= {
            "forwards": result.forwards,
            "vjps": result.vjps,
            "converged": int(result.converged.sum()),
        }
        row["forwards/s"] = round(result.forwards * count / seconds)
        row["waits of two steps"] = stops
        if given.device == "cuda":
            row["peak MiB"] = round(torch.cuda.max_memory_allocated() / 2**20)
        rows.append(row)
        print(row, flush=True)
    return rows


def training(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare the training loop with a bare one at the network of the recipe."""
    recipe = lease.Recipe("cats64-diffusion", given.dry_run)
    images = recipe.images(given.carry, "test")
    widths, batch = [recipe.written["network"]["widths"]], [recipe.written["batch_size"]]
    seconds = 0.2 if given.dry_run else 12.0
    return lease.loop_rates(recipe, images, widths=widths, batches=batch, seconds=seconds)


def solver_overhead(given: argparse.Namespace) -> list[dict[str, Any]]:
    return overhead_rows(given.device, dry=given.dry_run)


PARTS = ("restoration", "training", "solver_overhead", "tests")


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Tests, overhead and speed on a lent GPU.")
    parser.add_argument("--out", type=Path, required=True, help="what comes back")
    parser.add_argument("--seconds", type=float, default=180.0, help="no part begins later")
    parser.add_argument("--carry", type=Path, default=Path(lease.CARRY))
    parser.add_argument("--weights", help="of the prior for cats; untrained ones are as fast")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args(words)
    given.device = lease.device(dry=given.dry_run)
    given.out.mkdir(parents=True, exist_ok=True)
    began, report = time.perf_counter(), {"device": given.device, "skipped": []}
    for name in given.parts:
        if time.perf_counter() - began > given.seconds:
            report["skipped"].append(name)
        else:
            lease.attempt(report, name, partial(globals()[name], given))
        lease.write_report(given.out / "measure.json", report)
    print({k: report[k] for k in ("skipped", "tests") if k in report})
    if "failed" in report:
        raise SystemExit(f"failed: {', '.join(report['failed'])}")


if __name__ == "__main__":
    main()
