"""A measurement, what made it, and the noise in it: everything a solver is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from genprior.operators.base import Operator, Shape, concrete, fits
from genprior.operators.files.notebook import coloured, html_card, sizes
from genprior.operators.linear.base import LinearOperator
from genprior.operators.noise import GaussianNoise, Noise
from genprior.operators.random import Generators


@dataclass(frozen=True, eq=False)
class Problem:
    """y = noise(operator(x)): find x.

    Args:
        y: Measurements, float, (B, *operator.measurement_shape). What stands in entries that are
            not observed is ignored.
        operator: The degradation. Its per-image state, if any, is for B images.
        noise: Its parameters are shared or for B images.
    Raises:
        TypeError: y is not a floating-point tensor, or operator or noise is something else.
        ValueError: Shapes, batch sizes or devices disagree, or y is NaN or infinite.
    """

    y: Tensor
    operator: Operator
    noise: Noise

    def __post_init__(self) -> None:
        self._check_types()
        self._check_shapes()
        self._check_devices()
        observed = self.operator.observed
        bad = ~self.y.isfinite() if observed is None else ~self.y.isfinite() & observed
        if bool(bad.any()):
            rows = bad.flatten(1).any(1).nonzero().flatten().tolist()
            raise ValueError(
                f"y holds {int(bad.sum())} observed NaN or infinite values, in image(s) "
                f"{rows[:8]}: repair them or mark them as missing"
            )

    def __repr__(self) -> str:
        between = f"{_batched(self.operator.image_shape)} -> {tuple(self.y.shape)}"
        return f"Problem({type(self.operator).__name__} {between}, {self._noise_in_words})"

    def _repr_html_(self) -> str:
        """What a notebook shows: at most four measurements, operator, noise and sizes."""
        first = torch.arange(min(self.batch, 4), device=self.device)
        pictures, note = self.take(first).pictures()
        shown = [] if pictures is None else list(pictures)
        observed = self.observed_count / self.y[0].numel()
        return html_card(
            "Problem",
            {
                "operator": type(self.operator).__name__,
                "images": f"{self.batch} of {sizes(self.image_shape)}",
                "measurements": f"{self.batch} of {sizes(self.y.shape[1:])}",
                "observed": f"{100 * observed.mean().item():.3g} %",
                "noise": self._noise_in_words,
            },
            [[(note or f"y {i}", picture) for i, picture in enumerate(shown)]],
        )

    @property
    def _noise_in_words(self) -> str:
        values = ", ".join(f"{k}={_short(v)}" for k, v in vars(self.noise).items())
        return f"{type(self.noise).__name__}({values})"

    def pictures(self) -> tuple[Tensor | None, str]:
        """Make a picture of every measurement, (B, 3 or 1, h, w), and say which.

        Missing pixels are coloured; what is no image (compressed sensing) is shown through the
        pseudo-inverse, and what has none, not at all.
        """
        if self.y.ndim == 4 and self.y.shape[1] in (1, 3):
            return coloured(self.y, self.operator.observed), ""
        if not self.linear:
            return None, "no picture"
        return self.linear_operator.pinv(self.y), "pseudo-inverse"

    @staticmethod
    def simulate(
        x: Tensor, operator: Operator, noise: Noise, *, generator: Generators = None
    ) -> Problem:
        """Degrade the images x (B, C, H, W); zeros stand where nothing is observed."""
        if not fits(x.shape[1:], operator.image_shape):
            raise ValueError(
                f"x has shape {tuple(x.shape)}, but {type(operator).__name__} takes images "
                f"{_batched(operator.image_shape)}"
            )
        _check_rows(f"x holds {len(x)} images", len(x), operator=operator)
        clean = operator(x)
        y = noise.sample(clean, observed=operator.observed, generator=generator)
        return Problem(y, operator, noise)

    @property
    def batch(self) -> int:
        """Number of measurements B."""
        return len(self.y)

    @property
    def device(self) -> torch.device:
        return self.y.device

    @property
    def dtype(self) -> torch.dtype:
        return self.y.dtype

    @property
    def image_shape(self) -> Shape:
        """The operator's image shape, what it leaves open filled in from y where it is linear."""
        shape = self.operator.image_shape
        if None in shape and self.linear:
            first = torch.tensor([0], device=self.y.device)
            shape = tuple(self.linear_operator.take(first).adjoint(self.y[:1]).shape[1:])
        return shape

    @property
    def linear(self) -> bool:
        """Whether the operator is linear."""
        return isinstance(self.operator, LinearOperator)

    @property
    def linear_gaussian(self) -> bool:
        """Whether the operator is linear and the noise Gaussian, as closed forms ask."""
        return self.linear and isinstance(self.noise, GaussianNoise)

    @property
    def linear_operator(self) -> LinearOperator:
        """The operator.

        Raises:
            TypeError: It is not linear.
        """
        if not isinstance(self.operator, LinearOperator):
            raise TypeError(
                f"a linear operator is needed here; {type(self.operator).__name__} is not one"
            )
        return self.operator

    @cached_property
    def sigma(self) -> Tensor:
        """Standard deviation of the Gaussian noise of each measurement, (B,), in y's dtype.

        Raises:
            TypeError: The noise is not Gaussian.
        """
        if not isinstance(self.noise, GaussianNoise):
            raise TypeError(
                f"{type(self.noise).__name__} has no sigma: this needs GaussianNoise, or a "
                "solver that serves other noise"
            )
        # not as_tensor(...).to(y): that rounds a float to float32 on the way
        sigma = torch.as_tensor(self.noise.sigma, dtype=self.y.dtype, device=self.y.device)
        return sigma.reshape(-1).expand(len(self.y))

    @cached_property
    def observed_count(self) -> Tensor:
        """Number of observed entries of each measurement, (B,), in y's dtype."""
        observed = self.operator.observed
        if observed is None:
            return self.y.new_full((len(self.y),), self.y[0].numel())
        return observed.expand_as(self.y).flatten(1).sum(1).to(self.y)

    def through(
        self,
        decoder: Callable[[Tensor], Tensor],
        *,
        latent_shape: Sequence[int] | None = None,
    ) -> Problem:
        """Pose y = A(decode(z)) + noise: a nonlinear problem in the code z, for priors of codes.

        Args:
            decoder: Maps codes (B, *latent_shape) to images (B, C, H, W), rows independent; where
                it has a method `decode`, that one.
            latent_shape: Of one code; the decoder's own if None.
        Raises:
            ValueError: No latent shape is known.
        """
        shape = getattr(decoder, "latent_shape", None) if latent_shape is None else latent_shape
        if shape is None:
            raise ValueError(
                f"{type(decoder).__name__} has no latent_shape: pass latent_shape=, that of one "
                "code"
            )
        operator = Decoded(self.operator, decoder, tuple(shape), tuple(self.y.shape[1:]))
        return Problem._trusted(self.y, operator, self.noise)

    def residual(self, x: Tensor) -> Tensor:
        """Return y - A(x) on the observed entries and 0 elsewhere, (B, *measurement_shape)."""
        return self.operator.keep_observed(self.y - self.operator(x))

    def log_likelihood(self, x: Tensor) -> Tensor:
        """Return log p(y | x) in nats, observed entries only, for x (B, C, H, W): (B,)."""
        return self.noise.log_likelihood(self.y, self.operator(x), observed=self.operator.observed)

    def take(self, index: Tensor) -> Problem:
        """Return the problem of the rows `index` (int64), which may repeat."""
        return Problem._trusted(self.y[index], self.operator.take(index), self.noise.take(index))

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Problem:
        """Return a copy on `device` in `dtype`; the operator given is left where it is."""
        operator = self.operator.copy_to(device, dtype)
        y = self.y.to(device=device, dtype=dtype)
        return Problem(y, operator, self.noise.to(device, dtype))

    @staticmethod
    def _trusted(y: Tensor, operator: Operator, noise: Noise) -> Problem:
        """Build from parts of a problem that was checked; solvers take rows at every step."""
        problem = object.__new__(Problem)
        vars(problem).update(y=y, operator=operator, noise=noise)
        return problem

    def _check_types(self) -> None:
        for name, kind in {"y": Tensor, "operator": Operator, "noise": Noise}.items():
            came = type(getattr(self, name))
            if not issubclass(came, kind):
                raise TypeError(f"{name} must be a {kind.__name__}, not a {came.__name__}")
        if not self.y.is_floating_point():
            raise TypeError(f"y must be floating point, not {self.y.dtype}: call y.float()")

    def _check_shapes(self) -> None:
        expected = self.operator.measurement_shape
        if self.y.ndim == 0 or len(self.y) == 0 or not fits(self.y.shape[1:], expected):
            raise ValueError(
                f"y has shape {tuple(self.y.shape)}, but {type(self.operator).__name__} measures "
                f"{_batched(expected)} with B >= 1"
            )
        count = len(self.y)
        holds = f"y holds {count} measurements"
        _check_rows(holds, count, operator=self.operator, noise=self.noise)

    def _check_devices(self) -> None:
        parts = {"y": self.y.device}
        for name, buffer in self.operator.named_buffers():
            parts[f"operator.{name}"] = buffer.device
        for name, value in vars(self.noise).items():
            # A CPU scalar mixes with any device.
            if isinstance(value, Tensor) and value.ndim:
                parts[f"noise.{name}"] = value.device
        if len(set(parts.values())) > 1:
            listing = ", ".join(f"{name} on {device}" for name, device in parts.items())
            raise ValueError(f"mixed devices: {listing}; move them, or use Problem.to")


class Decoded(Operator):
    """z -> A(decode(z)). See `Problem.through`."""

    def __init__(
        self,
        operator: Operator,
        decoder: Callable[[Tensor], Tensor],
        latent_shape: tuple[int, ...],
        measurement_shape: tuple[int, ...],
    ) -> None:
        super().__init__(concrete(latent_shape), measurement_shape)
        self.operator: Operator = operator
        self.decoder: Callable[[Tensor], Tensor] = decoder

    def forward(self, x: Tensor) -> Tensor:
        return self.operator(getattr(self.decoder, "decode", self.decoder)(x))

    @property
    def observed(self) -> Tensor | None:
        return self.operator.observed

    @property
    def rows(self) -> int | None:
        return self.operator.rows

    def take(self, index: Tensor) -> Self:
        return self if self.rows is None else self._copy_with(operator=self.operator.take(index))


def _check_rows(holds: str, count: int, **parts: Operator | Noise) -> None:
    """Refuse parts whose per-image state is not for `count` images."""
    for name, part in parts.items():
        if part.rows not in (None, count):
            raise ValueError(
                f"{holds}, but the {name}'s per-image state is for {part.rows}: pass one for "
                "each, or one shared by all"
            )


def _short(value: Any) -> str:
    """Say a number, or how many there are."""
    many = isinstance(value, Tensor) and value.numel() > 1
    return f"{len(value)} values" if many else f"{float(value):g}"


def _batched(shape: Shape) -> str:
    return f"(B, {', '.join('any' if n is None else str(n) for n in shape)})"
