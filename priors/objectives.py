"""Three ways to train a denoiser, each with the formula that turns its network into one.

All work in normalised units: u = (x - data_mean) / data_std has unit variance, and s is the noise
std in those units. A network is called as `network(input, noise)`, with `input` of about unit
variance and `noise` (B,) a label of the noise level.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from genprior.operators.base import per_row
from genprior.operators.random import Generators, normal, uniform

Network = Callable[[Tensor, Tensor], Tensor]


class DenoisingObjective(Protocol):
    """What a training objective tells the diffusion prior."""

    @property
    def s_range(self) -> tuple[float, float]:
        """Smallest and largest s that training covers."""
        ...

    def denoise(self, network: Network, u: Tensor, s: Tensor) -> Tensor:
        """Return E[u0 | u0 + s n = u] for u (B, C, H, W) and s (B,) > 0."""
        ...

    def loss(self, network: Network, u0: Tensor, generator: Generators) -> Tensor:
        """Draw noise and levels, return the training loss of every image, (B,)."""
        ...


@dataclass(frozen=True)
class EDM:
    """Preconditioned denoising: the network's input and target have unit variance at every s.

        D(u; s) = u / (1 + s^2) + s / sqrt(1 + s^2) F(u / sqrt(1 + s^2); ln(s) / 4)

    Attributes:
        log_mean, log_std: Training levels are ln s ~ N(log_mean, log_std^2).
        s_range: What the trained denoiser is trusted with.

    Source: Karras et al. 2022, arXiv:2206.00364, Table 1 and Section 5, in units of sigma_data.
    """

    log_mean: float = -0.5
    log_std: float = 1.2
    s_range: tuple[float, float] = (0.004, 160.0)

    def denoise(self, network: Network, u: Tensor, s: Tensor) -> Tensor:
        noise = s.clamp(*self.s_range).log() / 4
        s = per_row(s, u)
        total = (1 + s**2).sqrt()
        scaled = u / total
        return torch.addcmul(scaled / total, s / total, network(scaled, noise))

    def loss(self, network: Network, u0: Tensor, generator: Generators) -> Tensor:
        like = {"dtype": u0.dtype, "device": u0.device}
        log_s = self.log_mean + self.log_std * normal((len(u0),), generator, **like)
        noise = log_s.clamp(*map(math.log, self.s_range))
        s = per_row(noise.exp(), u0)
        n = normal(u0.shape, generator, **like)
        total = (1 + s**2).sqrt()
        # The network's target, (u0 - c_skip u) / c_out, written without cancellation: the loss
        # is the denoising error weighted by (1 + s^2) / s^2.
        target = (s * u0 - n) / total
        error = network((u0 + s * n) / total, noise / 4) - target
        return error.square().flatten(1).mean(1)


@dataclass(frozen=True)
class DDPM:
    """Variance-preserving noise in T discrete steps.

        u_t = sqrt(a_t) u0 + sqrt(1 - a_t) n,   s_t = sqrt(1 / a_t - 1),   D(u; s) = u - s F

    Between the trained levels the label t is interpolated in ln s.

    Attributes:
        schedule: 'linear' betas (Ho 2020), 'scaled_linear' (linear square roots) or 'cosine'
            (Nichol and Dhariwal 2021).
        steps: T.
        beta_range: First and last beta of the linear schedules.
        target: What F predicts: the 'noise' n as above, the 'image' u0, or the 'velocity'
            sqrt(a) n - sqrt(1 - a) u0.

    Source: Ho et al. 2020, arXiv:2006.11239, Equation 14 (L_simple); Nichol and Dhariwal 2021,
    arXiv:2102.09672, Section 3.2 (cosine).
    """

    schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    steps: int = 1000
    beta_range: tuple[float, float] = (1e-4, 0.02)
    target: Literal["noise", "image", "velocity"] = "noise"

    def levels(self) -> Tensor:
        """Return s_t for t = 0 ... T - 1, increasing, float64."""
        low, high = self.beta_range
        if self.schedule == "linear":
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
        levels = self.levels()
        return levels[0].item(), levels[-1].item()

    def denoise(self, network: Network, u: Tensor, s: Tensor) -> Tensor:
        t = _interpolate(s.double().log(), self.levels().log().to(s.device)).to(u.dtype)
        s = per_row(s, u)
        total = (1 + s**2).sqrt()
        output = network(u / total, t / self.steps)
        if self.target == "image":
            return output
        return u - s * output if self.target == "noise" else (u / total - s * output) / total

    def loss(self, network: Network, u0: Tensor, generator: Generators) -> Tensor:
        like = {"dtype": u0.dtype, "device": u0.device}
        t = (uniform((len(u0),), generator, **like) * self.steps).long()
        s = per_row(self.levels().to(u0)[t], u0)
        n = normal(u0.shape, generator, **like)
        total = (1 + s**2).sqrt()
        targets = {"noise": n, "image": u0, "velocity": (n - s * u0) / total}
        error = network((u0 + s * n) / total, t / self.steps) - targets[self.target]
        return error.square().flatten(1).mean(1)


@dataclass(frozen=True)
class FlowMatching:
    """Velocity of the straight path from image to noise.

        u_t = (1 - t) u0 + t n,   s = t / (1 - t),   F = n - u0,   D(u; s) = u_t - t F

    Attributes:
        s_range: What the trained denoiser is trusted with.

    Source: Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003. The times are
    logit-normal (Esser et al. 2024, arXiv:2403.03206), that is, ln s ~ N(0, 1).
    """

    s_range: tuple[float, float] = (0.004, 160.0)

    def denoise(self, network: Network, u: Tensor, s: Tensor) -> Tensor:
        label = s.clamp(*self.s_range)
        s = per_row(s, u)
        u_t = u / (1 + s)
        return u_t - s / (1 + s) * network(u_t, label / (1 + label))

    def loss(self, network: Network, u0: Tensor, generator: Generators) -> Tensor:
        like = {"dtype": u0.dtype, "device": u0.device}
        time = normal((len(u0),), generator, **like).sigmoid()
        t = per_row(time, u0)
        n = normal(u0.shape, generator, **like)
        error = network((1 - t) * u0 + t * n, time) - (n - u0)
        return error.square().flatten(1).mean(1)


KINDS: dict[str, Callable[..., EDM | DDPM | FlowMatching]] = {
    "edm": EDM,
    "ddpm": DDPM,
    "flow": FlowMatching,
}


def to_config(objective: EDM | DDPM | FlowMatching) -> dict[str, Any]:
    """Describe an objective as plain data: its kind and its fields."""
    kind = next(name for name, cls in KINDS.items() if cls is type(objective))
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(objective).items()}
    return {"kind": kind, **fields}


def from_config(config: dict[str, Any]) -> EDM | DDPM | FlowMatching:
    """Build the objective that `to_config` described.

    Raises:
        ValueError: The kind is unknown.
    """
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    kind = fields.pop("kind", "edm")
    if kind not in KINDS:
        raise ValueError(f"objective {kind!r} is unknown: choose one of {', '.join(KINDS)}")
    return KINDS[kind](**fields)


def _interpolate(value: Tensor, knots: Tensor) -> Tensor:
    """Position of each value among increasing knots, in 0 ... len - 1, linear between them."""
    right = torch.searchsorted(knots, value.detach()).clamp(1, len(knots) - 1)
    low, high = knots[right - 1], knots[right]
    return (right - 1 + ((value - low) / (high - low))).clamp(0, len(knots) - 1)
