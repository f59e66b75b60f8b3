"""Three ways to train a denoiser, each with the formula that turns its network into one.

All work in normalised units: u = (x - data_mean) / data_std has unit variance, and s is the noise
std in those units. A network is called as `network(input, noise)`, with `input` of about unit
variance and `noise` (B,) a label of the noise level.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple, get_args, get_type_hints

import torch
from torch import Tensor

from genprior.operators.base import per_row
from genprior.operators.random import Generators, normal, uniform
from genprior.priors.base import check_counts
from genprior.priors.training import check_options, pick

Network = Callable[[Tensor, Tensor], Tensor]


class Reading(NamedTuple):
    """How a network F is read at one level: D(u; s) = skip u + out F(scale u; label)."""

    skip: float
    out: float
    scale: float
    label: float


class Parametrisation(ABC):
    """How a network is trained as a denoiser, and read as one.

    (`samplers.DDPM` is another thing: how noise is walked down with any denoiser.)
    """

    kind: ClassVar[str]

    @property
    def config(self) -> dict[str, Any]:
        """Plain data for `from_config`: its kind and its fields."""
        return {"kind": self.kind, **vars(self)}

    @property
    @abstractmethod
    def s_range(self) -> tuple[float, float]:
        """Smallest and largest s that training covers."""

    @abstractmethod
    def reading(self, s: float) -> Reading:
        """Return the coefficients at a level s >= 0, its label that of the nearest trained one."""

    def denoise(self, network: Network, u: Tensor, s: Sequence[float]) -> Tensor:
        """Return E[u0 | u0 + s n = u] for u (B, C, H, W) and B levels, or one for all.

        The coefficients are Python numbers: beside a small network, tensor operations on them
        would take longer than those on the images.
        """
        readings = [self.reading(level) for level in s]
        labels = u.new_tensor([reading.label for reading in readings]).expand(len(u))
        skip, out, scale = readings[0][:3] if len(s) == 1 else _rows(readings, u)
        return skip * u + out * network(scale * u, labels)

    def loss(self, network: Network, u0: Tensor, generator: Generators) -> Tensor:
        """Draw noise and levels, return the training loss of every image, (B,)."""
        given, label, target = self.example(u0, generator)
        return (network(given, label) - target).square().flatten(1).mean(1)

    @abstractmethod
    def example(self, u0: Tensor, generator: Generators) -> tuple[Tensor, Tensor, Tensor]:
        """Draw noise and levels, return the network's input, its label (B,), and its target."""


def _rows(readings: list[Reading], u: Tensor) -> list[Tensor]:
    coefficients = u.new_tensor([r[:3] for r in readings]).reshape(len(readings), 3)
    return [per_row(c, u) for c in coefficients.unbind(1)]


@dataclass(frozen=True)
class EDM(Parametrisation):
    """Preconditioned denoising: the network's input and target have unit variance at every s.

        D(u; s) = u / (1 + s^2) + s / sqrt(1 + s^2) F(u / sqrt(1 + s^2); ln(s) / 4)

    Attributes:
        log_mean, log_std: Training levels are ln s ~ N(log_mean, log_std^2).
        s_range: What the trained denoiser is trusted with.

    Source: Karras et al. 2022, arXiv:2206.00364, Table 1 and Section 5, in units of sigma_data.
    """

    kind: ClassVar[str] = "edm"
    log_mean: float = -0.5
    log_std: float = 1.2
    s_range: tuple[float, float] = (0.004, 160.0)

    def __post_init__(self) -> None:
        _check_range("s_range", self.s_range)
        low, high = map(math.log, self.s_range)
        if not low <= self.log_mean <= high:
            raise ValueError(
                f"log_mean must lie in ln s_range, {low:.3g} to {high:.3g}, not {self.log_mean}"
            )
        if not 0 < self.log_std <= high - low:
            raise ValueError(
                f"log_std must be positive, and at most the length of ln s_range, "
                f"{high - low:.3g}, not {self.log_std}"
            )

    def reading(self, s: float) -> Reading:
        total = math.sqrt(1 + s**2)
        return Reading(1 / total**2, s / total, 1 / total, math.log(_clamp(s, *self.s_range)) / 4)

    def example(self, u0: Tensor, generator: Generators) -> tuple[Tensor, Tensor, Tensor]:
        like = {"dtype": u0.dtype, "device": u0.device}
        log_s = self.log_mean + self.log_std * normal((len(u0),), generator, **like)
        noise = log_s.clamp(*map(math.log, self.s_range))
        s = per_row(noise.exp(), u0)
        n = normal(u0.shape, generator, **like)
        total = (1 + s**2).sqrt()
        # The network's target, (u0 - c_skip u) / c_out, written without cancellation: the loss
        # is the denoising error weighted by (1 + s^2) / s^2.
        target = (s * u0 - n) / total
        return (u0 + s * n) / total, noise / 4, target


@dataclass(frozen=True)
class DDPM(Parametrisation):
    """Variance-preserving noise in T discrete steps.

        u_t = sqrt(a_t) u0 + sqrt(1 - a_t) n,   s_t = sqrt(1 / a_t - 1),   D(u; s) = u - s F

    Between the trained levels the label t is interpolated in ln s.

    Attributes:
        schedule: 'linear' betas (Ho 2020), 'scaled_linear' (linear square roots) or 'cosine'
            (Nichol and Dhariwal 2021).
        steps: T.
        beta_range: First and last beta of the linear schedules.
        betas: All T of them, instead of a schedule.
        target: What F predicts: the 'noise' n as above, the 'image' u0, or the 'velocity'
            sqrt(a) n - sqrt(1 - a) u0.

    Source: Ho et al. 2020, arXiv:2006.11239, Equation 14 (L_simple); Nichol and Dhariwal 2021,
    arXiv:2102.09672, Section 3.2 (cosine).
    """

    kind: ClassVar[str] = "ddpm"
    schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    steps: int = 1000
    beta_range: tuple[float, float] = (1e-4, 0.02)
    target: Literal["noise", "image", "velocity"] = "noise"
    betas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("schedule", "target"):
            choices = get_args(get_type_hints(DDPM)[name])
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}"
                )
        check_counts("steps", self.steps, least=2)
        if self.betas is not None and (
            len(self.betas) != self.steps or not all(0 < beta < 1 for beta in self.betas)
        ):
            raise ValueError(f"betas must be {self.steps} numbers in (0, 1), one for each step")
        _check_range("beta_range", self.beta_range, most=1)

    def levels(self) -> Tensor:
        """Return s_t for t = 0 ... T - 1, increasing, float64."""
        low, high = self.beta_range
        if self.betas is not None:
            betas = torch.tensor(self.betas, dtype=torch.float64)
        elif self.schedule == "linear":
            betas = torch.linspace(low, high, self.steps, dtype=torch.float64)
        elif self.schedule == "scaled_linear":
            roots = torch.linspace(low**0.5, high**0.5, self.steps, dtype=torch.float64)
            betas = roots**2
        else:
            t = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
            a = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1 - a[1:] / a[:-1]).clamp(max=0.999)
        a = torch.cumprod(1 - betas, dim=0)
        return (1 / a - 1).sqrt()

    @property
    def s_range(self) -> tuple[float, float]:
        levels = _log_levels(self)
        return math.exp(levels[0]), math.exp(levels[-1])

    def reading(self, s: float) -> Reading:
        total = math.sqrt(1 + s**2)
        label = _position(math.log(_clamp(s, *self.s_range)), _log_levels(self)) / self.steps
        skip, out = {
            "noise": (1.0, -s),
            "image": (0.0, 1.0),
            "velocity": (1 / total**2, -s / total),
        }[self.target]
        return Reading(skip, out, 1 / total, label)

    def example(self, u0: Tensor, generator: Generators) -> tuple[Tensor, Tensor, Tensor]:
        like = {"dtype": u0.dtype, "device": u0.device}
        t = (uniform((len(u0),), generator, **like) * self.steps).long()
        s = per_row(self.levels().to(u0)[t], u0)
        n = normal(u0.shape, generator, **like)
        total = (1 + s**2).sqrt()
        targets = {"noise": n, "image": u0, "velocity": (n - s * u0) / total}
        return (u0 + s * n) / total, t / self.steps, targets[self.target]


@dataclass(frozen=True)
class FlowMatching(Parametrisation):
    """Velocity of the straight path from image to noise.

        u_t = (1 - t) u0 + t n,   s = t / (1 - t),   F = n - u0,   D(u; s) = u_t - t F

    Attributes:
        s_range: What the trained denoiser is trusted with.

    Source: Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003. The times are
    logit-normal (Esser et al. 2024, arXiv:2403.03206), that is, ln s ~ N(0, 1).
    """

    kind: ClassVar[str] = "flow_matching"
    s_range: tuple[float, float] = (0.004, 160.0)

    def __post_init__(self) -> None:
        _check_range("s_range", self.s_range)

    def reading(self, s: float) -> Reading:
        t, trained = (level / (1 + level) for level in (s, _clamp(s, *self.s_range)))
        return Reading(1 - t, -t, 1 - t, trained)

    def example(self, u0: Tensor, generator: Generators) -> tuple[Tensor, Tensor, Tensor]:
        like = {"dtype": u0.dtype, "device": u0.device}
        time = normal((len(u0),), generator, **like).sigmoid()
        t = per_row(time, u0)
        n = normal(u0.shape, generator, **like)
        return (1 - t) * u0 + t * n, time, n - u0


KINDS = {cls.kind: cls for cls in (EDM, DDPM, FlowMatching)}


def from_config(config: dict[str, Any]) -> EDM | DDPM | FlowMatching:
    """Build the parametrisation that a `config` describes; EDM where it names no kind.

    Raises:
        ValueError: The kind is unknown, or an option out of range.
    """
    if config.get("kind") == "flow":  # its name in older files
        config = {**config, "kind": "flow_matching"}
    kind, options = pick("objective", config, KINDS)
    check_options("objective", options, kind)
    fields: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in options.items()
    }
    return kind(**fields)


def _check_range(name: str, bounds: tuple[float, float], most: float = math.inf) -> None:
    if not (len(bounds) == 2 and 0 < bounds[0] < bounds[1] < most):
        raise ValueError(f"{name} must be 0 < low < high < {most}, not {bounds}")


def _clamp(s: float, low: float, high: float) -> float:
    return min(max(s, low), high)


@cache
def _log_levels(objective: DDPM) -> list[float]:
    return objective.levels().log().tolist()


def _position(value: float, knots: list[float]) -> float:
    """Position among increasing knots, in 0 ... len - 1, linear between them."""
    right = min(max(bisect_left(knots, value), 1), len(knots) - 1)
    low, high = knots[right - 1], knots[right]
    return _clamp(right - 1 + (value - low) / (high - low), 0, len(knots) - 1)
