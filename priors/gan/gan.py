"""A generator trained against a critic."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from genprior.operators.random import Generators, normal
from genprior.priors.base import LatentPrior, Model, check_counts
from genprior.priors.gan.inversion import CANDIDATES, spread_about
from genprior.priors.gan.losses import OPTIMIZERS, AdversarialOptions
from genprior.priors.gan.networks import pair
from genprior.priors.gan.watch import Classifier, Watch
from genprior.priors.training import Loss, Objective, Trainable, Turn

MEASURED = 16
"""Images to which `decoder_std` is fitted in the end of training."""


class GAN(Trainable, LatentPrior):
    """x = G(z), z ~ N(0, I), with a generator that a critic could not tell from the data.

    It has no density: images off the generator's range have probability 0. The critic serves
    training alone and is not saved with the prior.

    Attributes:
        decoder_std: Standard deviation of images about the generator's range, measured when
            training ends; None before. See `measure_decoder_std`.

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

    _classifier: Classifier | None
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
        self._decoder_std: float | None = None
        self.watch_modes(None)
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

    @property
    def config(self) -> dict[str, Any]:
        measured = {} if self._decoder_std is None else {"decoder_std": self._decoder_std}
        return {**super().config, **measured}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        arguments = dict(config)
        std = arguments.pop("decoder_std", None)
        if std is not None and not (isinstance(std, float) and 0 < std < math.inf):
            raise ValueError(f"decoder_std must be above 0 and finite, not {std!r}")
        gan = super().from_config(arguments)
        gan._decoder_std = std
        return gan

    @property
    def decoder_std(self) -> float | None:
        return self._decoder_std

    def measure_decoder_std(
        self,
        images: Tensor,
        *,
        starts: int = 4,
        steps: int = 100,
        generator: Generators = None,
    ) -> float:
        """Set `decoder_std` to the s of x = G(z) + s e, fitted to images, and return it.

        Training does so with 16 of its images. Saved with the weights, it comes back on loading.

        Args:
            images: A dozen or more, (B, C, H, W), pixels in [0, 1].
            starts: Of the search for each image's z.
            steps: Of that search.
            generator: Of its starts.
        Raises:
            ValueError: The images are not of the prior's shape, or a count is below 1.
        """
        if images.shape[1:] != self.image_shape or not len(images):
            raise ValueError(f"images of {tuple(images.shape)} came, not (B, *{self.image_shape})")
        check_counts("starts", starts)
        check_counts("steps", steps)
        if starts > CANDIDATES:
            raise ValueError(f"starts must be at most {CANDIDATES}, not {starts}")
        training = self.training
        try:
            self._decoder_std = spread_about(
                self.eval().decode,
                images.to(next(self.generator.parameters())),
                self.latent_shape[0],
                starts=starts,
                steps=steps,
                generator=generator,
            )
        finally:
            self.train(training)
        return self._decoder_std

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

    @property
    def classifier(self) -> Classifier | None:
        """What tells classes of samples apart while this GAN is in training."""
        return self._classifier

    def watch_modes(self, classifier: Classifier | None) -> Self:
        """Have training count the classes that samples show; it is not saved with the weights.

        The log gains `generator/modes` and `generator/unsure`, the share of samples that are of no
        class with a probability above .9; a collapse onto less than half of the classes is said.

        Args:
            classifier: Images (B, C, H, W) -> the scores of K classes (B, K), as a softmax takes
                them; None for none.
        """
        vars(self)["_classifier"] = classifier  # as no part of it, if it is a module
        return self

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
        fake = self.model.decode(z)
        a, options = fake.new_zeros(len(fake)), self.options
        if options.loss.paired:
            a = self.critic(options.seen(batch, generator))
        loss = options.loss.generator(a, self.critic(options.seen(fake, generator))).mean()

        def more(batches: int) -> Tensor:
            return self._samples(batches, shape, like=batch, generator=generator)

        return loss, self.watch.samples(turn, fake.detach(), batch, more)

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
        assert isinstance(model, GAN)
        model.measure_decoder_std(images[:MEASURED], generator=generator)

    def _critic_loss(self, turn: Turn, real: Tensor, z: Tensor, generator: Generators) -> Loss:
        with torch.no_grad():
            real = self.options.seen(real, generator)
            fake = self.options.seen(self.model.decode(z), generator)
        a, b = self.critic(real), self.critic(fake)
        loss = self.options.loss.critic(a, b).mean()
        logs = self.watch.scores(turn, self.critic, a, b, fake)
        if self.options.penalised and turn.step % self.options.lazy == 0:
            penalty = self.options.penalty(self.critic, real, fake, generator).mean()
            loss = loss + self.options.lazy * penalty
            logs["penalty"] = penalty.detach()
        return loss, logs
