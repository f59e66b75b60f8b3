"""What the shell's options say of prior, solver and machine."""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass
from typing import Literal

import torch

from genprior.data.limits import option, refuse_outside
from genprior.operators import Problem
from genprior.operators.random import Generators
from genprior.pretrained import load
from genprior.priors import Diffusion, Prior
from genprior.priors.base import as_prior
from genprior.restoration import memory
from genprior.restoration.degradation import Size
from genprior.restoration.windows import Window
from genprior.solve import default_solver, solve
from genprior.solvers import Result, Solver
from genprior.solvers.base import image_shape, rows_in_flight
from genprior.solvers.choice import named
from genprior.solvers.chunks import Tracking

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16"]

PRIOR = "photos-diffusion"
"""What restores where no prior is named: photos of any size."""

LARGE = 128 * 128
"""Pixels from which on bfloat16 pays; on few it is slower."""


@dataclass(frozen=True)
class Solving:
    """How to restore.

    Attributes:
        prior: Name of a shipped prior (`genprior priors` lists them), a weights file or a folder
            of diffusers; by default one of photos of any size.
        solver: Name of a solver (`genprior solvers` lists them); the best that fits by default.
        steps: Its steps, for solvers that walk.
        samples: Posterior samples for each image. Their mean, mean.png, is nearest to the truth;
            one sample alone can be worse than interpolation.
        seed: Of everything drawn.
        device: Where to compute; auto takes a GPU if there is one.
        batch_size: Most images and samples in flight at once; lower it if memory runs out.
        precision: Of a diffusion prior's network. bf16 is two to three times faster where the
            machine has units for it; auto takes it there for photos of 128x128 pixels or more.
        antithetic: Draw samples in pairs of opposite noise, for a better mean, where the solver
            can and there are 4, 6, ... of them; `--antithetic false` turns it off.
    """

    prior: str | None = None
    solver: str | None = None
    steps: int | None = None
    samples: int = 4
    seed: int = 0
    device: Device = "auto"
    batch_size: int | None = None
    precision: Precision = "auto"
    antithetic: bool = True

    def __post_init__(self) -> None:
        refuse_outside(vars(self), said=option)

    @property
    def prior_name(self) -> str:
        return self.prior or PRIOR

    def load_prior(self) -> Prior:
        return as_prior(load(self.prior_name, device=find_device(self.device)))

    def set_precision(self, prior: Prior, size: Size, device: torch.device) -> None:
        """Choose how the network of a prior that `load_prior` gave computes on images (H, W)."""
        if not isinstance(prior, Diffusion):
            if self.precision == "bf16":
                raise ValueError(
                    f"--precision bf16 is for diffusion priors, not {self.prior_name}"
                )
            return
        fast = size[0] * size[1] >= LARGE and has_bfloat16(device)
        half = self.precision == "bf16" or (self.precision == "auto" and fast)
        prior.autocast = torch.bfloat16 if half else None

    def find_solver(self, problem: Problem, prior: Prior) -> Solver:
        """Make the solver that was asked for, else the default one."""
        solver = named(self.solver) if self.solver is not None else default_solver(problem, prior)
        known = {field.name for field in dataclasses.fields(solver)}
        changes = {}
        if self.steps is not None:
            if "steps" not in known:
                raise ValueError(f"{type(solver).__name__} takes no --steps")
            changes["steps"] = self.steps
        in_pairs = self.samples >= 4 and self.samples % 2 == 0
        alone = "antithetic" in known and not (solver.joint or solver.point_estimate)
        if self.antithetic and in_pairs and alone:
            changes["antithetic"] = True
        return dataclasses.replace(solver, **changes)

    def refuse_too_large(
        self,
        prior: Prior,
        shape: tuple[int, int, int],
        *,
        windows: list[Window] | None = None,
        enlarged: int = 1,
    ) -> None:
        """Raise a MemoryError if restoring one image (C, H, W) would take more than is free.

        Args:
            prior: What restores it.
            shape: Of the restored image.
            windows: The parts of it that are worked on one after the other, if not the whole.
            enlarged: How many times larger it is than the photo.
        """
        if None not in prior.image_shape:
            return  # of a size that the prior was trained at
        solver, besides = None if self.solver is None else named(self.solver), 0
        if windows is not None:
            besides = memory.held(shape, self.samples)
            sizes = ((r.stop - r.start, c.stop - c.start) for r, c in windows)
            shape = (shape[0], *max(sizes, key=math.prod))
        rows = rows_in_flight(solver, self.samples, shape, self.batch_size)
        memory.refuse_too_large(
            prior,
            shape,
            rows=rows,
            samples=self.samples,
            device=find_device(self.device),
            enlarged=enlarged,
            besides=besides,
        )

    def run(
        self,
        problem: Problem,
        prior: Prior,
        *,
        generator: Generators = None,
        progress: Tracking | None = None,
    ) -> Result:
        """Solve, with a progress bar if the output is a terminal, or as `progress` says."""
        self.set_precision(prior, image_shape(problem, prior)[1:], problem.device)
        return solve(
            problem,
            prior,
            solver=self.find_solver(problem, prior),
            num_samples=self.samples,
            generator=generator or torch.Generator().manual_seed(self.seed + 1),
            batch_size=self.batch_size,
            progress=sys.stderr.isatty() if progress is None else progress,
        )


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has units for bfloat16, not only software."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and supported is not None and supported()


def find_device(name: Device) -> torch.device:
    """Return the device asked for; auto is CUDA, then MPS, then the CPU.

    Raises:
        ValueError: This machine has none of that kind.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, there in present.items() if there))
    if not present[name]:
        raise ValueError(f"--device {name}: this machine has none; try --device auto")
    return torch.device(name)
