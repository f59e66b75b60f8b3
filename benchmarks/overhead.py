"""What a solver costs beside its network: time of a solve over time of the evaluations alone.

    python benchmarks/overhead.py --out overhead.csv [--peers] [--memory] [--networks 32x7 8x4]

The network is a stack of convolutions without sleeps, calibrated to 10 and to 1 ms for a forward
at 3x64x64 on one thread. Two runs may so end with networks of different shapes, whose ratios
differ by more than their spread: to compare two versions, name the networks (width x depth).

A solve's evaluations are written down once: batch, noise level, with a graph or without, how many
vector-Jacobian products. Then the solve and these evaluations alone take turns, and the median of
the rounds' ratios counts, of processor time on one thread: other work on the machine then
cancels. `spread` is half the distance between the ratios' quartiles.

Memory is the peak of live tensors in a solve over that in its evaluations alone.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


@dataclass
class Evaluation:
    """One forward of the network, and the vector-Jacobian products taken through it."""

    shape: tuple[int, ...]
    sigma: Tensor
    graph: bool
    vjps: int = 0


class Network(DenoisingPrior):
    """A Wiener filter plus a small share of a convolutional network of some width."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.name = f"{width}x{depth}"
        self.image_shape, self.sigma_range = SHAPE, (0.002, 80.0)
        self.register_buffer("data_mean", torch.tensor(0.5), persistent=False)
        self.register_buffer("data_std", torch.tensor(0.25), persistent=False)
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        for _ in range(depth):
            layers += [nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)]
        self.network = nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))
        self.record: list[Evaluation] | None = None
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
        out = 0.5 + 0.25**2 / (0.25**2 + noise2).sqrt() * scaled + 1e-3 * self.network(scaled)
        if self.record is not None:
            self._write_down(x, torch.as_tensor(sigma), out)
        return out

    def _write_down(self, x: Tensor, sigma: Tensor, out: Tensor) -> None:
        assert self.record is not None
        evaluation = Evaluation(tuple(x.shape), sigma.detach().clone(), out.requires_grad)
        self.record.append(evaluation)

        def count(gradient: Tensor) -> None:
            evaluation.vjps += 1

        if out.requires_grad:
            out.register_hook(count)


def median_time(run: Callable[[], Any], repeats: int = 15) -> float:
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        run()
        times.append(time.process_time() - begin)
    return statistics.median(times)


@torch.no_grad()
def forward_time(network: Network, repeats: int) -> float:
    """How long one image takes, in milliseconds."""
    x, sigma = torch.rand(1, *SHAPE), torch.ones(1)
    return 1000 * median_time(lambda: network.denoise(x, sigma), repeats)


def calibrated(milliseconds: float) -> Network:
    """The network whose forward takes nearest to so long."""
    found: list[tuple[float, Network]] = []
    for width in (8, 12, 16, 24, 32):
        for depth in range(1, 13):
            network = Network(width, depth)
            took = forward_time(network, 9)
            found.append((abs(took - milliseconds), network))
            if took > 1.3 * milliseconds:
                break
    return min(found, key=lambda f: f[0])[1]


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


def evaluations_of(run: Callable[[], Any], network: Network) -> list[Evaluation]:
    """What `run` asks of the network."""
    network.record = evaluations = []
    run()
    network.record = None
    return evaluations


def alone(evaluations: list[Evaluation], network: Network) -> None:
    """The same evaluations without anything else."""
    device = next(network.parameters()).device
    for evaluation in evaluations:
        x = torch.full(evaluation.shape, 0.5, device=device)
        if not evaluation.graph:
            with torch.no_grad():
                network.denoise(x, evaluation.sigma)
            continue
        with torch.enable_grad():
            out = network.denoise(x.requires_grad_(), evaluation.sigma)
        for left in reversed(range(evaluation.vjps)):
            torch.autograd.grad(out, x, out.detach(), retain_graph=left > 0)
        del out


def peak_memory(run: Callable[[], Any]) -> int:
    """Most bytes of tensors that were alive at once during `run`, what it found aside."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    profiler: Any = profile.profiler
    events = [e for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def measured(
    run: Callable[[], Any], network: Network, options: argparse.Namespace
) -> dict[str, object]:
    """Ratio, its spread, evaluations, and memory of one solve."""
    run()
    evaluations = evaluations_of(run, network)
    ratios = []
    for _ in range(options.repeats):
        times = []
        for part in (run, lambda: alone(evaluations, network)):
            begin = time.process_time()
            part()
            times.append(time.process_time() - begin)
        ratios.append(times[0] / times[1])
    low, _, high = statistics.quantiles(ratios, n=4)
    found: dict[str, object] = {
        "forwards": sum(e.shape[0] for e in evaluations),
        "vjps": sum(e.shape[0] * e.vjps for e in evaluations),
        "ratio": round(statistics.median(ratios), 3),
        "spread": round((high - low) / 2, 3),
    }
    if options.memory:
        own = peak_memory(lambda: alone(evaluations, network))
        found["memory"] = round(peak_memory(run) / own, 2)
    return found


def deepinv_runs(network: Network) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """deepinv's solvers on the same network: (operator, name, run)."""
    import deepinv

    class Model(deepinv.models.Denoiser):
        def forward(self, x: Tensor, sigma: float | Tensor, **_: object) -> Tensor:
            return network.denoise(x, torch.as_tensor(sigma).flatten()[0])

    mask = masks.box(SHAPE[1:], size=24).float().expand(SHAPE)
    kernel = deepinv.physics.functional.blur.gaussian_blur(sigma=(1.5, 1.5))
    kernel = kernel.reshape(1, 1, *kernel.shape[-2:])
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
    model, levels = Model(), torch.linspace(1, 0, STEPS).numpy()
    solvers: dict[str, Any] = {
        "deepinv DPS": deepinv.sampling.DPS(model, num_steps=STEPS, dtype=torch.float32),
        "deepinv DiffPIR": deepinv.sampling.DiffPIR(
            model, deepinv.optim.L2(), sigma=0.05, max_iter=STEPS
        ),
        "deepinv DDRM": deepinv.sampling.DDRM(model, sigmas=levels),
    }
    for name, operator in physics.items():
        y = operator(torch.rand(1, *SHAPE))
        for solver_name, solver in solvers.items():
            if solver_name != "deepinv DDRM" or name in ("mask", "blur"):  # needs an SVD
                yield name, solver_name, lambda s=solver, y=y, o=operator: s(y, o)


def own_runs(network: Network) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    for name, problem in problems().items():
        for solver in SOLVERS:
            if not isinstance(solver, RePaint) or name == "mask":
                yield name, type(solver).__name__, lambda s=solver, p=problem: s(p, network)


def main() -> None:
    parser = argparse.ArgumentParser(description="Solver time over network time.")
    parser.add_argument("--out", type=Path, default=Path("overhead.csv"))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--peers", action="store_true", help="deepinv's solvers too")
    parser.add_argument("--memory", action="store_true", help="peak memory too")
    parser.add_argument("--only", help="one solver or operator")
    parser.add_argument("--networks", nargs="+", metavar="WIDTHxDEPTH", help="not calibrated")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    named = [Network(*map(int, name.split("x"))) for name in options.networks or ()]
    for network in named or map(calibrated, (10.0, 1.0)):
        took = forward_time(network, 50)
        print(f"a forward of {network.name} takes {took:.2f} ms")
        runs = [*own_runs(network), *(deepinv_runs(network) if options.peers else ())]
        for operator, solver, run in runs:
            if options.only in (None, operator, solver):
                case = {"network": network.name, "forward ms": round(took, 2)}
                case |= {"operator": operator, "solver": solver}
                rows.append({**case, **measured(run, network, options)})
                print(*rows[-1].values(), sep="\t", flush=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
