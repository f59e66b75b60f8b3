"""The training of a generator against a critic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from genprior.operators.random import Generators, normal
from genprior.priors.base import Model
from genprior.priors.gan.losses import OPTIMIZERS, AdversarialOptions
from genprior.priors.gan.style import StyleGenerator
from genprior.priors.gan.watch import Watch
from genprior.priors.training import Loss, Objective, Turn

if TYPE_CHECKING:
    from genprior.priors.gan.gan import GAN

MEASURED = 16
"""Images to which `decoder_std` is fitted in the end."""
BATCHES, DRAWS = 8, 256
"""Of z, from which batch statistics are estimated in the end."""


class AdversarialTraining(Objective):
    """The critic's turns, then the generator's; each draws images of its own."""

    model: GAN

    def __init__(self, gan: GAN) -> None:
        self.options: AdversarialOptions = gan.loss
        self.critic: nn.Module = gan.critic().to(next(gan.parameters()).device)
        super().__init__(gan, nn.ModuleDict({"generator": gan, "critic": self.critic}))
        self.turns: tuple[tuple[str, int], ...] = (
            ("critic", self.options.critic_steps),
            ("generator", 1),
        )
        self.watch = Watch(gan.loss, gan.classifier)

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
        fake = self._fake(z, generator)
        a, options = fake.new_zeros(len(fake)), self.options
        if options.loss.paired:
            a = self.critic(options.seen(batch, generator))
        loss = options.loss.generator(a, self.critic(options.seen(fake, generator))).mean()

        def more(batches: int) -> Tensor:
            return self._samples(batches, shape, like=batch, generator=generator)

        return loss, self.watch.samples(turn, fake.detach(), batch, more)

    def _fake(self, z: Tensor, generator: Generators) -> Tensor:
        network = self.model.generator
        if isinstance(network, StyleGenerator):
            return network.training_images(z, generator)
        return self.model.decode(z)

    @torch.no_grad()
    def _samples(
        self, batches: int, shape: Sequence[int], *, like: Tensor, generator: Generators
    ) -> Tensor:
        """Draw samples as `sample` does, which moves no statistics."""
        draw = {"dtype": like.dtype, "device": like.device}
        training = self.model.training
        self.model.eval()
        x = [self.model.decode(normal(shape, generator, **draw)) for _ in range(batches)]
        self.model.train(training)
        return torch.cat(x)

    def finish(self, model: Model, images: Tensor, generator: Generators) -> None:
        gan = cast("GAN", model)
        estimate_statistics(gan, generator)
        gan.measure_decoder_std(images[:MEASURED], generator=generator)

    def _critic_loss(self, turn: Turn, real: Tensor, z: Tensor, generator: Generators) -> Loss:
        with torch.no_grad():
            real = self.options.seen(real, generator)
            fake = self.options.seen(self._fake(z, generator), generator)
        a, b = self.critic(real), self.critic(fake)
        loss = self.options.loss.critic(a, b).mean()
        logs = self.watch.scores(turn, self.critic, a, b, fake)
        if self.options.penalised and turn.step % self.options.lazy == 0:
            penalty = self.options.penalty(self.critic, real, fake, generator).mean()
            loss = loss + self.options.lazy * penalty
            logs["penalty"] = penalty.detach()
        return loss, logs


@torch.no_grad()
def estimate_statistics(gan: GAN, generator: Generators) -> None:
    """Set the generator's running means and variances to those of its own weights.

    The average of the weights never ran in training: what it has are the last weights' statistics,
    which do not fit it.

    Source: Izmailov et al. 2018, arXiv:1803.05407, section 3.3.
    """
    norms = [m for m in gan.modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        return
    training, momenta = gan.training, [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    like = next(gan.parameters())
    shape = (DRAWS, *gan.latent_shape)
    gan.train()
    for _ in range(BATCHES):
        gan.decode(normal(shape, generator, dtype=like.dtype, device=like.device))
    gan.train(training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
