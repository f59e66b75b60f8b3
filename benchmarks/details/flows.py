"""What the shipped flows reach: bits, speed, modes by L-BFGS and by Adam, posterior samples.

    PYTHONPATH=benchmarks python benchmarks/details/flows.py --out flows/
        --mnist F --fashion F --cats F [--parts bits speed map posterior]

`bits`: bits per dimension of all test images, uniformly dequantised (cats are shrunk to 32x32).
`speed`: seconds of sampling and of log_prob, training beside a bare loop. `map`: `FlowMAP` on
test cats, by L-BFGS and Adam from z = 0 with as many gradients, and a VAE's `LatentMAP`, against
the number of measurements. `posterior`: `AnnealedImportance` beside Langevin chains with an
annealed start (`LatentSampler` of one leapfrog step) on test digits. Each part writes a CSV.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from common.loops import bare, ours
from torch import Tensor

import genprior
from genprior import metrics
from genprior.data import Images, images
from genprior.operators import CompressedSensing, GaussianNoise, Inpainting, Problem, masks
from genprior.priors import Flow, Trainable
from genprior.solvers import AnnealedImportance, FlowMAP, LatentMAP, LatentSampler, Solver
from genprior.training import TrainingOptions

FLOWS = {
    "mnist-glow": ("mnist", None),
    "mnist-realnvp": ("mnist", None),
    "fashion-glow": ("fashion", None),
    "cats32-glow": ("cats", 32),
}
"""Which images each is of, and the size that they are shrunk to."""

Rows = Iterator[dict[str, Any]]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tested(given: argparse.Namespace, name: str) -> Images:
    kind, size = FLOWS[name]
    if (folder := getattr(given, kind)) is None:
        raise SystemExit(f"{name} needs --{kind} FOLDER")
    return images(folder, size=size, split="test")


def flow(name: str) -> Flow:
    prior = genprior.load(name)
    assert isinstance(prior, Flow)
    return prior


def apart(found: Images, count: int) -> Tensor:
    """As many images, evenly over the data."""
    return found.batch([i * len(found) // count for i in range(count)])


def bits(given: argparse.Namespace) -> Rows:
    for name in given.flows:
        prior, found, generator = flow(name), tested(given, name), seeded(0)
        count = min(given.limit or len(found), len(found))
        each = []
        with torch.no_grad():
            for first in range(0, count, 50):
                x = (255 * found.batch(range(first, min(first + 50, count)))).round() / 255
                each.append(prior.bits_per_dimension(x, draws=given.draws, generator=generator))
        values = torch.cat(each).double()
        yield {
            "flow": name,
            "weights": sum(p.numel() for p in prior.parameters()),
            "images": count,
            "draws": given.draws,
            "bits": f"{values.mean():.4f}",
            "standard error": f"{values.std() / count**0.5:.4f}",
        }


def speed(given: argparse.Namespace) -> Rows:
    for name in given.flows:
        prior = flow(name).requires_grad_(False)
        x = prior.sample(64, generator=seeded(0)).clamp(0, 1)

        def sample(prior: Flow = prior) -> Tensor:
            return prior.sample(64, generator=seeded(0))

        def density(prior: Flow = prior, x: Tensor = x) -> Tensor:
            return prior.log_prob(x)

        options = TrainingOptions(progress=False, grid=0, accelerator="cpu", precision="bf16")
        assert isinstance(prior, Trainable)
        x = (255 * x).round() / 255  # as training images are
        sides = bare(prior, x, batch_size=64), ours(prior, x, batch_size=64, options=options)
        for side in sides:
            side()
        pairs = [(clock(sides[0]), clock(sides[1])) for _ in range(5)]
        ratios = sorted(a / b for a, b in pairs)
        yield {
            "flow": name,
            "seconds for 64 samples": f"{min(clock(sample) for _ in range(3)):.2f}",
            "seconds for 64 densities": f"{min(clock(density) for _ in range(3)):.2f}",
            "training beside a bare loop": f"{ratios[2]:.3f}",
        }


def clock(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def modes(given: argparse.Namespace) -> Rows:
    """Compressed sensing of cats, noise .01: PSNR after as many gradients."""
    found, prior = tested(given, "cats32-glow"), flow("cats32-glow")
    vae = genprior.load("cats32-vae")
    x = apart(found, given.images or 8)
    steps = given.steps
    solvers: dict[str, tuple[Any, Solver]] = {
        "cats32-glow, L-BFGS": (prior, FlowMAP(steps=steps, tolerance=0.0)),
        "cats32-glow, Adam": (prior, FlowMAP(optimizer="adam", steps=steps, tolerance=0.0)),
        "cats32-glow, Adam, rate .1": (
            prior,
            FlowMAP(optimizer="adam", learning_rate=0.1, steps=steps, tolerance=0.0),
        ),
        "cats32-vae, L-BFGS": (vae, LatentMAP(steps=steps)),
    }
    for m in given.measurements:
        operator = CompressedSensing((3, 32, 32), m, generator=seeded(1))
        problem = Problem.simulate(x, operator, GaussianNoise(0.01), generator=seeded(2))
        for name, (used, solver) in solvers.items():
            begin = time.perf_counter()
            result = solver(problem, used, generator=seeded(3))
            psnr = metrics.psnr(result.samples[:, 0].clamp(0, 1), x)
            yield {
                "m": m,
                "solver": name,
                "PSNR": f"{psnr.mean():.2f}",
                "standard error": f"{psnr.std() / len(x) ** 0.5:.2f}",
                "gradients": f"{result.vjps:.0f}",
                "residual": f"{result.trace['residual'][-1].mean():.2f}",
                "seconds": f"{time.perf_counter() - begin:.0f}",
            }


def posterior(given: argparse.Namespace) -> Rows:
    """Digits from a tenth of their pixels, noise .2, by particles and by chains."""
    prior, x = flow("mnist-glow"), apart(tested(given, "mnist-glow"), given.images or 20)
    x = (255 * x + torch.rand(x.shape, generator=seeded(0))) / 256  # as the flow knows them
    mask = masks.random((28, 28), missing=0.9, generator=seeded(1))
    problem = Problem.simulate(x, Inpainting(mask), GaussianNoise(0.2), generator=seeded(2))
    solvers: dict[str, Solver] = {
        "AnnealedImportance": AnnealedImportance(particles=given.particles, steps=2000),
        "LatentSampler, Langevin": LatentSampler(
            leapfrog=1, acceptance=0.574, warm_up=given.langevin // 2, steps=given.langevin // 2
        ),
    }
    unseen = (mask == 0).expand_as(x)
    for name, solver in solvers.items():
        if not any(word in name for word in given.solvers):
            continue
        begin = time.perf_counter()
        result = solver(problem, prior, num_samples=19, generator=seeded(3))
        trace = result.trace
        inside = metrics.coverage(result.samples, x, level=0.9, where=unseen)
        yield {
            "solver": name,
            "digits": len(x),
            "gradients a sample": f"{result.vjps:.0f}",
            "PSNR of mean": f"{metrics.psnr(result.mean.clamp(0, 1), x).mean():.2f}",
            "CRPS": f"{metrics.crps(result.samples, x, where=unseen).mean():.4f}",
            "coverage of 90 %": f"{100 * float(inside.mean()):.1f}",
            "least ESS": f"{trace['ess'][-1].min():.1f}",
            "median ESS": f"{trace['ess'][-1].median():.1f}",
            "least families": f"{trace['families'][-1].min():.1f}" if "families" in trace else "",
            "median families": f"{trace['families'][-1].median():.1f}"
            if "families" in trace
            else "",
            "largest R-hat": f"{trace['r_hat'][-1].max():.2f}" if "r_hat" in trace else "",
            "median R-hat": f"{trace['r_hat'][-1].median():.2f}" if "r_hat" in trace else "",
            "log evidence": f"{trace['log_evidence'][-1].mean():.1f}"
            if "log_evidence" in trace
            else "",
            "converged": int(result.converged.sum()),
            "seconds": f"{time.perf_counter() - begin:.0f}",
        }


PARTS: dict[str, Callable[[argparse.Namespace], Rows]] = {
    "bits": bits,
    "speed": speed,
    "map": modes,
    "posterior": posterior,
}


def write(path: Path, rows: Rows) -> None:
    """Print rows as they come, and keep what there is of the table."""
    done: list[dict[str, Any]] = []
    for row in rows:
        print(row, flush=True)
        done.append(row)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(done[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(done)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for kind in dict.fromkeys(kind for kind, _ in FLOWS.values()):
        parser.add_argument(f"--{kind}", type=Path, help="folder of these images")
    parser.add_argument("--out", type=Path, default=Path("flows"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--flows", nargs="+", choices=FLOWS, default=list(FLOWS))
    parser.add_argument("--limit", type=int, help="images of `bits`; all if not given")
    parser.add_argument("--draws", type=int, default=1, help="of noise for each image of `bits`")
    parser.add_argument("--images", type=int, help="of `map`, 8, and of `posterior`, 20")
    parser.add_argument("--measurements", type=int, nargs="+", default=[150, 500, 1500])
    parser.add_argument("--steps", type=int, default=100, help="gradients of `map`")
    parser.add_argument("--solvers", nargs="+", default=[""], help="of `posterior`, in part")
    parser.add_argument("--particles", type=int, default=16)
    parser.add_argument("--langevin", type=int, default=600, help="gradients of each chain")
    given = parser.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    for part in given.parts:
        write(given.out / f"{part}.csv", PARTS[part](given))


if __name__ == "__main__":
    main()
