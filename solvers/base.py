"""What every solver shares: checks at the boundary, counting, one Result."""

from __future__ import annotations

import copy
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from genprior.operators import GaussianNoise, Noise, Problem, fits
from genprior.operators.base import concrete
from genprior.operators.random import Generators, spawn
from genprior.priors.base import Prior
from genprior.solvers.choice import REGISTRY, check_capability, without
from genprior.solvers.chunks import WORST, Chunk, Solution, Tracking, join
from genprior.solvers.result import Result, paired_std

T = TypeVar("T")

ROW_VALUES = 2**21
"""Pixel values in flight where no batch_size is given: 170 rows at 3x64x64, 2 at 3x500x500."""


MOST_STEPS = 1_000_000
"""The most that any count among a solver's fields can be: levels, draws and particles are laid
out before anything else is done, and more would fill the memory first."""


class Counted:
    """A prior whose network evaluations are counted, in rows. Other attributes pass through."""

    def __init__(self, prior: Prior) -> None:
        self.prior: Any = prior
        self.forwards: int = 0
        self.vjps: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prior, name)

    @cached_property
    def data_scale(self) -> float:
        """s, the root mean square of the prior's standard deviation; some are slow to say it."""
        return float(self.prior.data_std.double().square().mean().sqrt())

    def _count(self, output: Tensor) -> Tensor:
        self.forwards += output.shape[0]
        if output.requires_grad:
            output.register_hook(self._count_vjps)
        return output

    def _count_vjps(self, gradient: Tensor) -> None:
        self.vjps += gradient.shape[0]

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        return self._count(self.prior.denoise(x, sigma))

    def decode(self, z: Tensor) -> Tensor:
        return self._count(self.prior.decode(z))

    def encode(self, x: Tensor) -> Tensor:
        return self._count(self.prior.encode(x))

    def log_prob(self, x: Tensor) -> Tensor:
        return self._count(self.prior.log_prob(x))


@dataclass(frozen=True)
class Solver(ABC):
    """Draws from p(x | y), or maximises it. Fields are hyperparameters; data goes to the call.

    Attributes:
        needs: The capabilities asked of the prior, all of them.
        needs_besides: What is asked of it besides, in words; `serves` looks for it.
        linear: Whether the operator must be linear.
        gaussian: Whether the noise must be Gaussian.
        point_estimate: Whether it gives a mode or mean, not samples.
        joint: Whether an image's samples are drawn together, so that no chunk may split them.
    """

    needs: ClassVar[tuple[type[Prior], ...]]
    needs_besides: ClassVar[str] = ""
    linear: ClassVar[bool] = False
    gaussian: ClassVar[bool] = False
    point_estimate: ClassVar[bool] = False
    joint: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        needs = vars(cls).get("needs")
        if isinstance(needs, type):
            cls.needs = (needs,)
        base = any(getattr(getattr(cls, n, None), "__isabstractmethod__", False) for n in dir(cls))
        if not (base or cls.__name__.startswith("_")):
            REGISTRY[cls.__name__] = cls

    @classmethod
    def serves(cls, prior: Prior) -> bool:
        """Whether `prior` has all that this solver needs."""
        return all(isinstance(prior, kind) for kind in cls.needs)

    @torch.inference_mode(False)  # in which nothing has a gradient
    def __call__(
        self,
        problem: Problem,
        prior: Prior,
        *,
        num_samples: int = 1,
        generator: Generators = None,
        batch_size: int | None = None,
        progress: Tracking = False,
    ) -> Result:
        """Solve B problems at once.

        Args:
            problem: Measurements, operator and noise.
            prior: Must have the capabilities `needs`.
            num_samples: Samples for each image, S.
            generator: None, one generator, or one for each image: image i's samples then depend
                on generator i alone, not on batch or chunk.
            batch_size: Most rows (image-sample pairs) in flight; images are split first.
            progress: Show a bar, or call this with the steps and a label to follow them.
        Raises:
            TypeError: The prior, operator or noise is of a kind that the solver does not serve.
            ValueError: Sizes, devices or counts do not fit.
            MemoryError: A chunk did not fit; says which batch_size to try.
        """
        problem, prior = _ordinary(problem), _ordinary(prior)
        shape = self._check(problem, prior, num_samples, batch_size)
        start = time.perf_counter()
        counted = Counted(prior)
        count = problem.y.shape[0]
        images = spawn(generator, count)
        rows = spawn(images, count, per=num_samples, mirrored=self._paired)
        parts = []
        for b0, b1, s0, s1 in self._chunks(count, num_samples, shape, batch_size):
            mine = [rows[b * num_samples + s] for b in range(b0, b1) for s in range(s0, s1)]
            whole = b1 - b0 == count
            some = problem if whole else problem.take(torch.arange(b0, b1, device=problem.device))
            chunk = Chunk(
                problem=some,
                samples=s1 - s0,
                image_shape=shape,
                image_generators=images[b0:b1],
                generators=mine,
                progress=progress,
            )
            with _at_rest(prior):
                parts.append((b0, self._solve_safely(chunk, counted)))
        found = join(parts)
        self._warn(found)
        std = found.std
        if std is None and num_samples > 1:
            std = paired_std(found.samples) if self._paired else found.samples.std(1)
        return Result(
            samples=found.samples,
            mean=found.samples.mean(1) if found.mean is None else found.mean,
            std=std,
            point_estimate=self.point_estimate,
            converged=found.converged,
            forwards=counted.forwards / max(1, count * num_samples),
            vjps=counted.vjps / max(1, count * num_samples),
            seconds=time.perf_counter() - start,
            latents=found.latents,
            trace=found.trace,
            antithetic=self._paired,
            solver=repr(self),
        )

    @abstractmethod
    def _solve(self, chunk: Chunk, prior: Counted) -> Solution:
        """Solve one chunk. Called without gradients; enable them where they are needed."""

    def _warn(self, found: Solution) -> None:
        """Say once which images have not converged, what to try, and the method's own remark."""
        said = [words for words in (self._failure(found), self._remark(found)) if words]
        if said:
            warnings.warn(
                f"{type(self).__name__}: {'. '.join(said)}", RuntimeWarning, stacklevel=4
            )

    def _failure(self, found: Solution) -> str:
        failed = found.converged.logical_not().nonzero().flatten().tolist()
        if not failed:
            return ""
        measures = {
            WORST if WORST in found.trace else "residual": (
                "the last residual |y - A x|",
                "where noise makes it 1",
            ),
            "r_hat": ("R-hat", "where chains that agree have 1"),
        }
        how_far = ""
        for key, (what, meaning) in measures.items():
            if key in found.trace:
                values = ", ".join(f"{float(found.trace[key][-1, i]):.3g}" for i in failed[:8])
                how_far += f"; {what} is {values}, {meaning}"
        return (
            f"{len(failed)} of {len(found.converged)} images have not converged: number "
            f"{numbered(failed)}{how_far}. Try more steps, another solver, or a larger sigma if "
            "that is a guess"
        )

    def _remark(self, found: Solution) -> str:
        """What else a user should be told of what was found; "" for nothing."""
        return ""

    @property
    def _paired(self) -> bool:
        """Whether samples come in pairs that are drawn with opposite noise."""
        return False

    def _rows_per_image(self, num_samples: int) -> int:
        """Rows in flight for each image."""
        return num_samples

    def _solve_safely(self, chunk: Chunk, prior: Counted) -> Solution:
        try:
            with torch.no_grad():
                return self._solve(chunk, prior)
        except RuntimeError as error:
            if "requires grad" in str(error) or "not require grad" in str(error):
                raise TypeError(
                    f"{type(self).__name__} follows gradients through the operator and the prior, "
                    f"and one gives none ({type(chunk.problem.operator).__name__}, "
                    f"{type(prior.prior).__name__}): write them with differentiable operations of "
                    "torch, without numpy, .detach(), .item() or rounding"
                ) from error
            short = isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
            if not short:
                raise
            rows = chunk.problem.y.shape[0] * self._rows_per_image(chunk.samples)
            advice = f"try batch_size={rows // 2}" if rows > 1 else "even one row does not fit"
            raise MemoryError(
                f"{type(self).__name__} ran out of memory with {rows} rows in flight: {advice}"
            ) from error

    def _chunks(
        self, count: int, samples: int, shape: tuple[int, int, int], batch_size: int | None
    ) -> Iterator[tuple[int, int, int, int]]:
        """Cut (images, samples) into blocks of at most `batch_size` rows, images first."""
        limit = batch_size or _default_rows(shape)
        per_image = self._rows_per_image(samples)
        images = max(1, limit // per_image)
        split = samples if self.joint else min(samples, max(1, limit * samples // per_image))
        for b in range(0, count, images):
            for s in range(0, samples, split):
                yield b, min(b + images, count), s, min(s + split, samples)

    def _check(
        self, problem: Problem, prior: Prior, num_samples: int, batch_size: int | None
    ) -> tuple[int, int, int]:
        name = type(self).__name__
        if not isinstance(problem, Problem):
            raise TypeError(f"{name} takes a Problem first, not {type(problem).__name__}")
        check_capability(type(self), prior)
        if self.linear and not problem.linear:
            raise TypeError(
                f"{name} needs a linear operator; {type(problem.operator).__name__} is not. "
                f"Nonlinear ones are served by {without('linear', prior)}."
            )
        if self.gaussian and not isinstance(problem.noise, GaussianNoise):
            raise TypeError(
                f"{name} needs Gaussian noise, not {type(problem.noise).__name__}. "
                f"Other noise is served by {without('gaussian', prior)}."
            )
        for field, value in vars(self).items():
            if isinstance(value, int) and value > MOST_STEPS:
                raise ValueError(f"{name}: {field} must be at most {MOST_STEPS}, not {value}")
        if num_samples < 1 or (batch_size is not None and batch_size < 1):
            raise ValueError(
                f"num_samples and batch_size must be at least 1, not {num_samples}, {batch_size}"
            )
        if self._paired and (num_samples < 4 or num_samples % 2):
            raise ValueError(
                f"antithetic=True draws samples in pairs: num_samples must be 4, 6, ..., not "
                f"{num_samples}"
            )
        if self.point_estimate and num_samples > 1:
            raise ValueError(
                f"{name} gives one point estimate, not {num_samples} samples; for samples take "
                f"{without('point_estimate', prior)}"
            )
        tensor = next(chain(prior.parameters(), prior.buffers()), None)
        if tensor is not None and tensor.device != problem.y.device:
            raise ValueError(
                f"the prior is on {tensor.device}, y on {problem.y.device}: move one of them"
            )
        return image_shape(problem, prior)


def numbered(images: list[int]) -> str:
    """Name the first eight."""
    return ", ".join(map(str, images[:8])) + ", ..." * (len(images) > 8)


def _ordinary(what: T) -> T:
    """Copy a problem, a noise or a module that has tensors made in `torch.inference_mode()`.

    They take no part in a gradient; their copies do.
    """
    return copy.deepcopy(what) if any(tensor.is_inference() for tensor in _tensors(what)) else what


@contextmanager
def _at_rest(prior: Prior) -> Iterator[None]:
    """Evaluate a prior that came in training mode as a trained one.

    In training mode batch normalisation couples rows, and each evaluation changes its statistics.
    """
    training = [module for module in prior.modules() if module.training]
    prior.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _tensors(what: object) -> Iterator[Tensor]:
    if isinstance(what, nn.Module):
        yield from chain(what.parameters(), what.buffers())
    elif isinstance(what, Tensor):
        yield what
    elif isinstance(what, Problem | Noise):
        yield from chain.from_iterable(_tensors(part) for part in vars(what).values())


def rows_in_flight(
    solver: Solver | None, samples: int, shape: tuple[int, int, int], batch_size: int | None
) -> int:
    """Return the most rows in flight while one image (C, H, W) is solved; None walks by rows."""
    if solver is None:
        return min(samples, batch_size or _default_rows(shape))
    return max(
        solver._rows_per_image(last - first)
        for _, _, first, last in solver._chunks(1, samples, shape, batch_size)
    )


def _default_rows(shape: tuple[int, int, int]) -> int:
    return max(1, ROW_VALUES // torch.Size(shape).numel())


def image_shape(problem: Problem, prior: Prior) -> tuple[int, int, int]:
    """Resolve (C, H, W) in the order operator, prior, y.

    Raises:
        ValueError: Operator and prior disagree on a size.
    """
    name, asked, known = type(prior).__name__, problem.operator.image_shape, prior.image_shape
    if not fits(asked, known):
        raise ValueError(
            f"the operator is for images {asked}, {name} for {known} (channels, height, "
            "width; None is any): fit the photo or take another prior"
        )
    posed = problem.image_shape  # y fills in what a linear operator leaves open
    if not fits(posed, known):
        raise ValueError(f"y is of images {posed}, {name} for {known}")
    shape = tuple(b if a is None else a for a, b in zip(posed, known, strict=True))
    channels, height, width = concrete(shape)
    return channels, height, width
