"""What a critic and a generator minimise, from the critic's scores; and penalties on its slope."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from genprior.operators.random import Generators, uniform
from genprior.priors.gan.augmentation import augmented
from genprior.priors.training import check_options


class Adversarial(NamedTuple):
    """Two losses of scores a = D(x), b = D(G(z)), (B,) each; both are minimised.

    Attributes:
        critic: Of (a, b): what D minimises, (B,).
        generator: Of (a, b): what G minimises, (B,).
        paired: Whether G's depends on a, so that real images must be scored in its turn.
        threshold: The score above which the critic takes an image for real; None: the score says
            none.
    """

    critic: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    paired: bool = False
    threshold: float | None = 0.0

    def accuracy(self, a: Tensor, b: Tensor) -> Tensor | None:
        """Return the share of scores a, b that D has right; of pairs, where it compares them."""
        if self.paired:
            return (a > b).float().mean()
        if self.threshold is None:
            return None
        return 0.5 * ((a > self.threshold).float().mean() + (b < self.threshold).float().mean())


LOSSES = {
    # -log sigmoid(b), where D's loss is -log sigmoid(a) - log(1 - sigmoid(b)).
    "non-saturating": Adversarial(
        critic=lambda a, b: softplus(-a) + softplus(b),
        generator=lambda a, b: softplus(-b),
    ),
    # log(1 - sigmoid(b)): flat where D is sure.
    "minimax": Adversarial(
        critic=lambda a, b: softplus(-a) + softplus(b),
        generator=lambda a, b: -softplus(b),
    ),
    "hinge": Adversarial(
        critic=lambda a, b: relu(1 - a) + relu(1 + b),
        generator=lambda a, b: -b,
    ),
    "least-squares": Adversarial(
        critic=lambda a, b: 0.5 * ((a - 1).square() + b.square()),
        generator=lambda a, b: 0.5 * (b - 1).square(),
        threshold=0.5,
    ),
    "wasserstein": Adversarial(
        critic=lambda a, b: b - a,
        generator=lambda a, b: -b,
        threshold=None,
    ),
    "relativistic": Adversarial(
        critic=lambda a, b: softplus(b - a),
        generator=lambda a, b: softplus(a - b),
        paired=True,
    ),
}
"""Goodfellow et al. 2014, arXiv:1406.2661 (minimax, non-saturating); Lim, Ye 2017,
arXiv:1705.02894 (hinge); Mao et al. 2017, arXiv:1611.04076 (least squares); Arjovsky et al. 2017,
arXiv:1701.07875 (Wasserstein); Jolicoeur-Martineau 2019, arXiv:1807.00734 (relativistic)."""


@dataclass(frozen=True)
class AdversarialOptions:
    """What is trained, and how.

    Attributes:
        kind: Of `LOSSES`.
        critic_steps: Updates of the critic for each of the generator.
        r1, r2: gamma of gamma / 2 |grad D|^2 at real and at generated images.
        gradient_penalty: lambda of lambda (|grad D| - 1)^2 between real and generated images.
        lazy: Penalties are computed once in so many of the critic's updates, and count so many
            times.
        clip: The critic's weights are kept within -clip and clip; None leaves them.
        optimizer: 'adam' with betas (0, .99), 'sgd', or 'normalised': SGD whose step has the
            length of the learning rate.
        critic_rate: The critic's learning rate over the generator's.
        augment: Probability with which the critic sees an image, real or generated, moved or with
            a hole, and half of it for other colours; for small data. Penalties are computed
            there.

    Source: Mescheder et al. 2018, arXiv:1801.04406 (R1, R2); Gulrajani et al. 2017,
        arXiv:1704.00028 (gradient penalty); Karras et al. 2020, arXiv:1912.04958 (lazy).
    """

    kind: str = "non-saturating"
    critic_steps: int = 1
    r1: float = 0.0
    r2: float = 0.0
    gradient_penalty: float = 0.0
    lazy: int = 1
    clip: float | None = None
    optimizer: str = "adam"
    critic_rate: float = 1.0
    augment: float = 0.0

    def __post_init__(self) -> None:
        for name, known in (("kind", LOSSES), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"loss.{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}"
                )
        for name, low, high in (
            ("critic_steps", 1, 1000), ("lazy", 1, 1000), ("r1", 0, 1e6), ("r2", 0, 1e6),
            ("gradient_penalty", 0, 1e6), ("critic_rate", 1e-6, 1e6), ("augment", 0, 1),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"loss.{name} must be {low} to {high}, not {getattr(self, name)}")
        if self.clip is not None and not 0 < self.clip <= 1e6:
            raise ValueError(f"loss.clip must be above 0, not {self.clip}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> AdversarialOptions:
        """Build from plain data, checked."""
        check_options("loss", config, cls)
        return cls(**config)

    @property
    def loss(self) -> Adversarial:
        return LOSSES[self.kind]

    @property
    def penalised(self) -> bool:
        return max(self.r1, self.r2, self.gradient_penalty) > 0

    def seen(self, x: Tensor, generator: Generators) -> Tensor:
        """Return images as the critic is to see them, differentiable in them."""
        return augmented(x, self.augment, generator) if self.augment else x

    def penalty(
        self, critic: nn.Module, real: Tensor, fake: Tensor, generator: Generators
    ) -> Tensor:
        """Return the penalties' sum, (B,), differentiable in the critic's weights."""
        total = real.new_zeros(len(real))
        if self.r1:
            total = total + 0.5 * self.r1 * squared_slope(critic, real)
        if self.r2:
            total = total + 0.5 * self.r2 * squared_slope(critic, fake)
        if self.gradient_penalty:
            between = interpolates(real, fake, generator)
            # The root of 0 has no derivative.
            norm = (squared_slope(critic, between) + 1e-12).sqrt()
            total = total + self.gradient_penalty * (norm - 1).square()
        return total


def squared_slope(critic: nn.Module, x: Tensor) -> Tensor:
    """Return |grad D(x)|^2 for images x (B, C, H, W), (B,), differentiable in D's weights."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    slope = slope.to(torch.promote_types(slope.dtype, torch.float32))
    return slope.square().flatten(1).sum(1)


def interpolates(real: Tensor, fake: Tensor, generator: Generators) -> Tensor:
    """Return t x + (1 - t) G(z), t uniform in [0, 1) for each image."""
    t = uniform((len(real),), generator, dtype=real.dtype, device=real.device)
    t = t.view(-1, *[1] * (real.ndim - 1))
    return t * real + (1 - t) * fake


class NormalisedSGD(torch.optim.SGD):
    """Gradient descent whose steps all have the length of the learning rate."""

    def step(self, closure: Any = None) -> Any:
        gradients = [
            p.grad for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        if gradients:
            norm = torch.stack([g.norm() for g in gradients]).norm().clamp(min=1e-12)
            for gradient in gradients:
                gradient.div_(norm)
        return super().step(closure)


def _adam(parameters: Any, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=rate, betas=(0.0, 0.99), fused=True)


OPTIMIZERS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "adam": _adam,
    "sgd": lambda parameters, rate: torch.optim.SGD(parameters, lr=rate),
    "normalised": lambda parameters, rate: NormalisedSGD(parameters, lr=rate),
}
