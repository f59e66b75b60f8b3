"""What the training loop and the samplers cost beyond the network itself.

    python benchmarks/training_speed.py [--cpu-time]

Training: images per second of `genprior.train` over those of a bare loop over the same network,
loss and optimiser (goal: at least 0.9). Sampling: time of a walk over the time of its evaluations
alone, with a network of 10 ms (goal: at most 1.05). The fastest of several runs each; on a machine
that is busy with other things --cpu-time counts the seconds that this process was running.
"""

from __future__ import annotations

import sys
import tempfile
import time

import torch
from torch import Tensor, nn

from genprior.priors import Diffusion, samplers
from genprior.priors.unet import UNet
from genprior.training import TrainingOptions, train

BATCH, STEPS, ROUNDS = 64, 30, 3
clock = time.process_time if "--cpu-time" in sys.argv else time.perf_counter
QUIET = TrainingOptions(progress=False, grid=0, checkpoint_every=10**6, accelerator="cpu")


def build() -> Diffusion:
    return Diffusion(UNet(1, widths=(32, 128), blocks=(2, 3), attention=True), (1, 28, 28))


def bare(images: Tensor, steps: int) -> float:
    """Train without checkpoints, average, clipping, logging or reproducible draws."""
    prior = build().requires_grad_(True)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(0)
    objective = prior.objective()
    start = clock()
    for step in range(steps):
        batch = images[step * BATCH : (step + 1) * BATCH]
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = objective.loss("all", batch, generator)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return clock() - start


def ours(images: Tensor, steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = clock()
        train(build(), images, out=folder, steps=steps, batch_size=BATCH, options=QUIET)
        return clock() - start


def training_ratio() -> float:
    """Extra steps over extra time, so that set-up and the last checkpoint do not count."""
    images = torch.rand(2 * STEPS * BATCH, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    fastest = [
        [min(run(images, steps) for _ in range(ROUNDS)) for steps in (STEPS, 2 * STEPS)]
        for run in (bare, ours)
    ]
    (short, long), (short_ours, long_ours) = fastest
    return (long - short) / (long_ours - short_ours)


class Slow(nn.Module):
    """Ten milliseconds of arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(512))
        self.repeats = 40
        for _ in range(3):  # the first calls are slower
            start = clock()
            self.once()
            seconds = clock() - start
        self.repeats = max(1, round(0.010 / (seconds / 40)))

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
    alone, walks = [], []
    for _ in range(ROUNDS):
        start = clock()
        for _ in range(evaluations):
            network.once()
        alone.append(clock() - start)
        start = clock()
        generator = torch.Generator().manual_seed(0)
        prior.sample(1, steps=steps, sampler=sampler, generator=generator)
        walks.append(clock() - start)
    return min(walks) / min(alone)


def main() -> None:
    for sampler in (samplers.DPMSolver(), samplers.Heun(), samplers.DDPM()):
        print(f"sampling, {sampler}: {sampling_ratio(sampler):.3f} x the evaluations alone")
    print(f"training: {training_ratio():.2f} of a bare loop's images per second")


if __name__ == "__main__":
    main()
