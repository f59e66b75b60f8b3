"""A generator trained against a critic."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from genprior.operators.random import Generators, normal
from genprior.priors.base import LatentPrior, check_counts
from genprior.priors.gan.losses import OPTIMIZERS, AdversarialOptions
from genprior.priors.gan.networks import pair
from genprior.priors.training import Loss, Objective, Trainable, Turn

NEAR = 0.25
"""Samples this much nearer to each other than images are: the generator collapses."""


class GAN(Trainable, LatentPrior):
    """x = G(z), z ~ N(0, I), with a generator that a critic could not tell from the data.

    It has no density: images off the generator's range have probability 0. The critic serves
    training alone and is not saved with the prior.

    Args:
        image_shape: (C, H, W).
        latent_size: Numbers of z.
        network: 'kind' (perceptron, dcgan or residual) and its options, for both networks.
        loss: Options of `AdversarialOptions`.
        seed: Of both networks' starting weights.
    Raises:
        ValueError: An option is unknown or out of range.

    Source: Goodfellow et al. 2014, arXiv:1406.2661.
    """

    training_defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 2e-4,
        "warmup": 0,
        "cooldown": 0.0,
        "clip": None,
        "precision": "fp32",
    }

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        latent_size: int = 64,
        *,
        network: dict[str, Any] | None = None,
        loss: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_counts("latent_size", latent_size)
        self.image_shape, self.latent_shape = tuple(image_shape), (latent_size,)
        self.network = {"kind": "dcgan", **(network or {})}
        self.loss = AdversarialOptions.from_config(loss or {})
        self.seed = seed
        self.generator = self._pair()[0]
        batch_norm = any(isinstance(m, nn.BatchNorm2d) for m in self.generator.modules())
        self.couples_rows = batch_norm

    def _pair(self) -> tuple[nn.Module, nn.Module]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            shape = cast(tuple[int, int, int], self.image_shape)  # none is open, as was asked
            return pair(shape, self.latent_shape[0], self.network)

    def critic(self) -> nn.Module:
        """Return an untrained critic, (B, C, H, W) -> (B,), the same each time."""
        return self._pair()[1]

    def decode(self, z: Tensor) -> Tensor:
        """Return G(z), (B, C, H, W), for latents (B, k)."""
        return self.generator(z.to(next(self.generator.parameters()).dtype)).to(z.dtype)

    def sample(
        self,
        n: int,
        *,
        size: tuple[int, int] | None = None,
        generator: Generators = None,
        truncation: float = 1.0,
    ) -> Tensor:
        """Decode n draws of z ~ N(0, truncation^2 I), (n, C, H, W).

        Below 1 samples are more typical and less varied, and not of the prior.

        Raises:
            ValueError: The truncation is not above 0 and at most 1.
        """
        if not 0 < truncation <= 1:
            raise ValueError(f"truncation must be above 0 and at most 1, not {truncation}")
        self.check_size(size)
        with torch.no_grad():
            return self.decode(truncation * self._normal(n, generator))

    def objective(self) -> Objective:
        return AdversarialTraining(self)


class AdversarialTraining(Objective):
    """The critic's turns, then the generator's; each draws images of its own."""

    model: GAN

    def __init__(self, gan: GAN) -> None:
        self.options = gan.loss
        self.critic = gan.critic().to(next(gan.parameters()).device)
        super().__init__(gan, nn.ModuleDict({"generator": gan, "critic": self.critic}))
        self.turns = (("critic", self.options.critic_steps), ("generator", 1))
        self._warned = False

    def parameters(self, group: str) -> Iterable[nn.Parameter]:
        return (self.critic if group == "critic" else self.model).parameters()

    def optimizer(
        self, group: str, learning_rate: float, parameters: Iterable[nn.Parameter]
    ) -> torch.optim.Optimizer:
        rate = learning_rate * (self.options.critic_rate if group == "critic" else 1.0)
        kept, bound = list(parameters), self.options.clip
        optimizer = OPTIMIZERS[self.options.optimizer](kept, rate)
        if group == "critic" and bound is not None:

            def within(*_: Any) -> None:
                with torch.no_grad():
                    for p in kept:
                        p.clamp_(-bound, bound)

            optimizer.register_step_post_hook(within)
        return optimizer

    def loss(self, turn: Turn, batch: Tensor, generator: Generators) -> Loss:
        if self.model.couples_rows and len(batch) < 2:
            raise ValueError("batch normalisation takes batches of 2 images or more, not 1")
        shape = (len(batch), *self.model.latent_shape)
        z = normal(shape, generator, dtype=batch.dtype, device=batch.device)
        if turn.group == "critic":
            return self._critic_loss(turn, batch, z, generator)
        fake = self.model.decode(z)
        real = self.critic(batch) if self.options.loss.paired else fake.new_zeros(len(fake))
        loss = self.options.loss.generator(real, self.critic(fake)).mean()
        spread = _spread(fake.detach()) / _spread(batch).clamp(min=1e-12)
        self._watch(turn, spread)
        return loss, {"spread": spread}

    def _critic_loss(self, turn: Turn, real: Tensor, z: Tensor, generator: Generators) -> Loss:
        with torch.no_grad():
            fake = self.model.decode(z)
        a, b = self.critic(real), self.critic(fake)
        loss = self.options.loss.critic(a, b).mean()
        logs = {"gap": (a.mean() - b.mean()).detach()}
        if self.options.loss.probability:
            logs["accuracy"] = 0.5 * ((a > 0).float().mean() + (b < 0).float().mean())
        if self.options.penalised and turn.step % self.options.lazy == 0:
            penalty = self.options.penalty(self.critic, real, fake, generator).mean()
            loss = loss + self.options.lazy * penalty
            logs["penalty"] = penalty.detach()
        return loss, logs

    def _watch(self, turn: Turn, spread: Tensor) -> None:
        """Say once, late enough, that samples resemble each other too much."""
        late = turn.images_seen > 20_000 and turn.step % 100 == 0
        if late and not self._warned and float(spread) < NEAR:
            self._warned = True
            warnings.warn(
                f"samples are {float(spread):.0%} as far from each other as the data: the "
                "generator has collapsed. Try a loss of kind relativistic with r1 and r2, a lower "
                "learning rate, or more critic_steps",
                stacklevel=2,
            )


def _spread(x: Tensor) -> Tensor:
    """Return the mean distance of each image from the next of the batch."""
    return (x - x.roll(1, 0)).flatten(1).norm(dim=1).mean() / math.sqrt(x[0].numel())
