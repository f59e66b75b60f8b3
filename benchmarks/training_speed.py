"""What the training loop and the samplers cost beyond the network itself.

    python benchmarks/training_speed.py

Training: images per second of the loop of `genprior.train` over those of a bare one (goal: at
least 0.9). The bare loop has the same network, loss, precision and optimiser, and neither
average, clipping nor draws that follow from an image's number. Sampling: time of a walk over the
time of its evaluations alone, with a network of 10 ms (goal: at most 1.05).

The two sides of each ratio take turns, step by step, and the median of the ratios counts, of
processor time on one thread: other work on the machine then cancels.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from overhead import peak_memory
from torch import Tensor, nn

from genprior.priors import Diffusion, Turn, samplers
from genprior.priors.diffusion.unet import UNet
from genprior.training import TrainingOptions
from genprior.training.loop import _Run
from genprior.training.options import Length
from genprior.training.stream import as_images

BATCH, STEPS, ROUNDS = 64, 24, 9
QUIET = TrainingOptions(progress=False, grid=0, checkpoint_every=10**6, accelerator="cpu")


def build() -> Diffusion:
    return Diffusion(UNet(1, widths=(32, 128), blocks=(2, 3), attention=True), (1, 28, 28))


def bare(images: Tensor) -> Callable[[], None]:
    """Return a step without average, clipping, logging or reproducible draws."""
    prior = build().requires_grad_(True)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-3, betas=(0.9, 0.99), fused=True)
    generator = torch.Generator().manual_seed(0)
    objective = prior.objective()
    batches = itertools.cycle(images.split(BATCH))

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = objective.loss(Turn(), next(batches), generator)
        loss.backward()
        optimizer.step()

    return step


def ours(images: Tensor, folder: str) -> Callable[[], None]:
    """Return a step of the training loop, checkpoints aside."""
    run = _Run(
        build(),
        as_images(images),
        out=Path(folder),
        length=Length(steps=10**4),
        batch_size=BATCH,
        options=QUIET,
        card={},
        held=ExitStack(),
    )
    run.report.__enter__()
    batches, count = run._batches(), itertools.count()

    def step() -> None:
        number = next(count)
        run._update(number, number / 10**4, batches)
        run.report.progress(number + 1)

    return step


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def training() -> None:
    images = torch.rand(8 * BATCH, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        steps = bare(images), ours(images, folder)
        for step in steps:  # the optimiser's state is made in the first
            step()
            step()
        peaks = [peak_memory(step) for step in steps]
        ratios = [seconds(steps[0]) / seconds(steps[1]) for _ in range(STEPS)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"training: {middle:.3f} of a bare loop's images per second ({low:.3f} to {high:.3f})")
    print(f"memory of a step's tensors: {peaks[1] / peaks[0]:.3f} of the bare loop's")


class Slow(nn.Module):
    """Ten milliseconds of arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(512))
        self.repeats = 40
        for _ in range(3):  # the first calls are slower
            took = seconds(self.once)
        self.repeats = max(1, round(0.010 / (took / 40)))

    def once(self) -> Tensor:
        product = self.matrix
        for _ in range(self.repeats):
            product = product @ self.matrix
        return product

    def forward(self, u: Tensor, noise: Tensor) -> Tensor:
        return self.once()[0, 1] * u


@torch.no_grad()
def sampling_ratio(sampler: samplers.Sampler) -> float:
    network, steps = Slow(), 40
    prior = Diffusion(network, (3, 64, 64), data_std=0.25)
    evaluations = 2 * sampler.steps(steps) - 1 if isinstance(sampler, samplers.Heun) else steps

    def walk() -> None:
        generator = torch.Generator().manual_seed(0)
        prior.sample(1, steps=steps, sampler=sampler, generator=generator)

    def alone() -> None:
        for _ in range(evaluations):
            network.once()

    walk()
    return statistics.median(seconds(walk) / seconds(alone) for _ in range(ROUNDS))


def main() -> None:
    torch.set_num_threads(1)
    training()
    for sampler in (
        samplers.DPMSolver(),
        samplers.DPMSolver(stochastic=True),
        samplers.Heun(),
        samplers.Euler(),
        samplers.DDPM(),
    ):
        print(f"sampling, {sampler}: {sampling_ratio(sampler):.3f} x the evaluations alone")


if __name__ == "__main__":
    main()
