"""What a solver costs beside its network: time of a solve over time of the evaluations alone.

    python benchmarks/overhead.py --out overhead.csv [--peers]

The network is a stack of convolutions without sleeps, calibrated to 1 and to 10 ms for a forward
at 3x64x64 on one thread; vector-Jacobian products are counted at their own measured cost.
Network and solver alternate in one run, and the median ratio counts, of processor time on one
thread: other work on the machine then cancels.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genprior.operators import (
    Blur,
    Downsampling,
    GaussianNoise,
    Inpainting,
    LinearOperator,
    Problem,
    kernels,
    masks,
)
from genprior.operators.base import per_row
from genprior.operators.random import Generators, normal
from genprior.priors import DenoisingPrior
from genprior.solvers import (
    DAPS,
    DDNM,
    DDRM,
    DPS,
    MMPS,
    SMC,
    DiffPIR,
    PiGDM,
    REDDiff,
    RePaint,
    Solver,
)

SHAPE = (3, 64, 64)
STEPS = 10
SOLVERS: list[Solver] = [
    MMPS(steps=STEPS),
    PiGDM(steps=STEPS),
    DAPS(steps=STEPS),
    DPS(steps=STEPS),
    DiffPIR(steps=STEPS),
    DDNM(steps=STEPS),
    DDRM(steps=STEPS),
    RePaint(steps=STEPS, repeats=2),
    REDDiff(steps=STEPS),
    SMC(steps=STEPS, particles=1),
]


class Network(DenoisingPrior):
    """A Wiener filter plus a small share of a convolutional network of some width."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.image_shape, self.sigma_range = SHAPE, (0.002, 80.0)
        self.data_mean, self.data_std = torch.tensor(0.5), torch.tensor(0.25)
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        for _ in range(depth):
            layers += [nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)]
        self.network = nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    @property
    def config(self) -> dict[str, Any]:
        return {}

    def sample(self, n: int, *, size: Any = None, generator: Generators = None) -> Tensor:
        return 0.5 + 0.25 * normal((n, *SHAPE), generator)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        noise2 = per_row(sigma, x) ** 2
        scaled = (x - 0.5) / (0.25**2 + noise2).sqrt()
        return 0.5 + 0.25**2 / (0.25**2 + noise2).sqrt() * scaled + 1e-3 * self.network(scaled)


def median_time(run: Callable[[], Any], repeats: int = 15) -> float:
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        run()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def calibrated(milliseconds: float) -> Network:
    """Widen and deepen until a forward takes about so long."""
    x, sigma = torch.rand(1, *SHAPE), torch.ones(1)
    best = Network(4, 1)
    for width in (4, 8, 16, 32):
        for depth in (1, 2, 3, 4, 6, 8):
            network = Network(width, depth)
            if 1000 * median_time(lambda n=network: n.denoise(x, sigma), 7) > milliseconds:
                return network
            best = network
    return best


def problems() -> dict[str, Problem]:
    x = 0.5 + 0.25 * normal((1, *SHAPE), torch.Generator().manual_seed(0))
    cases: dict[str, LinearOperator] = {
        "mask": Inpainting(masks.box(SHAPE[1:], size=24)),
        "blur": Blur(kernels.gaussian(1.5), SHAPE),
        "superres": Downsampling(4, SHAPE),
    }
    generator = torch.Generator().manual_seed(1)
    return {
        name: Problem.simulate(x, operator, GaussianNoise(0.05), generator=generator)
        for name, operator in cases.items()
    }


def ratio(solver: Solver, problem: Problem, network: Network, repeats: int) -> float:
    """Median over rounds of (solve) / (forwards and VJPs alone, in the same round)."""
    x, sigma = torch.rand(1, *SHAPE), torch.ones(1)

    def with_graph() -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        return leaf, network.denoise(leaf, sigma)

    cost = solver(problem, network)
    ratios = []
    for _ in range(repeats):
        begin = time.process_time()
        solver(problem, network)
        solved = time.process_time() - begin
        begin = time.process_time()
        done = 0.0
        for _ in range(round(cost.forwards)):
            if cost.vjps == 0:
                with torch.no_grad():
                    network.denoise(x, sigma)
                continue
            leaf, out = with_graph()
            done += cost.vjps / cost.forwards
            while done >= 1:
                torch.autograd.grad(out, leaf, out, retain_graph=True)
                done -= 1
        ratios.append(solved / (time.process_time() - begin))
    return statistics.median(ratios)


def deepinv_rows(network: Network, milliseconds: float, repeats: int) -> list[dict[str, object]]:
    """deepinv's DDRM and DiffPIR on the same network, mask and circular blur."""
    import deepinv

    class Model(deepinv.models.Denoiser):
        calls = 0

        def forward(self, x: Tensor, sigma: float | Tensor, **_: object) -> Tensor:
            Model.calls += 1
            return network.denoise(x, torch.as_tensor(sigma).flatten()[0])

    mask = masks.box(SHAPE[1:], size=24).float().expand(SHAPE)
    kernel = deepinv.physics.functional.blur.gaussian_blur(sigma=1.5)
    noise = deepinv.physics.GaussianNoise(0.05)
    physics = {
        "mask": deepinv.physics.Inpainting(
            SHAPE,  # type: ignore[arg-type]
            mask=mask,
            noise_model=noise,
        ),
        "blur": deepinv.physics.BlurFFT(SHAPE, filter=kernel, noise_model=noise),
        "spatial blur": deepinv.physics.Blur(filter=kernel, padding="circular"),
    }
    x, sigma, rows = torch.rand(1, *SHAPE), torch.ones(1), []
    for name, operator in physics.items():
        y = operator(torch.rand(1, *SHAPE))
        solvers: dict[str, Any] = {
            "deepinv DiffPIR": deepinv.sampling.DiffPIR(
                Model(), deepinv.optim.L2(), sigma=0.05, max_iter=STEPS
            )
        }
        if name != "spatial blur":
            levels = torch.linspace(1, 0, STEPS).numpy()
            solvers["deepinv DDRM"] = deepinv.sampling.DDRM(Model(), sigmas=levels)
        for solver_name, solver in solvers.items():
            ratios = []
            for _ in range(repeats):
                Model.calls, begin = 0, time.process_time()
                with torch.no_grad():
                    solver(y, operator)
                solved, begin = time.process_time() - begin, time.process_time()
                with torch.no_grad():
                    for _ in range(Model.calls):
                        network.denoise(x, sigma)
                ratios.append(solved / (time.process_time() - begin))
            rows.append(
                {
                    "milliseconds": milliseconds,
                    "operator": name,
                    "solver": solver_name,
                    "ratio": statistics.median(ratios),
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Solver time over network time.")
    parser.add_argument("--out", type=Path, default=Path("overhead.csv"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peers", action="store_true", help="deepinv's solvers too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for milliseconds in (10.0, 1.0):
        network = calibrated(milliseconds)
        for name, problem in problems().items():
            for solver in SOLVERS:
                if isinstance(solver, RePaint) and name != "mask":
                    continue
                found = ratio(solver, problem, network, options.repeats)
                kind = type(solver).__name__
                rows.append(
                    {
                        "milliseconds": milliseconds,
                        "operator": name,
                        "solver": kind,
                        "ratio": found,
                    }
                )
                print(rows[-1], flush=True)
        if options.peers:
            rows += deepinv_rows(network, milliseconds, options.repeats)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
