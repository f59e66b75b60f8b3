"""A generator trained against a critic."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from genprior.operators.base import Shape
from genprior.operators.random import Generators
from genprior.priors.base import LatentPrior, check_counts
from genprior.priors.gan.inversion import CANDIDATES, spread_about
from genprior.priors.gan.losses import AdversarialOptions
from genprior.priors.gan.networks import pair
from genprior.priors.gan.style import MappedGenerator, StyleGenerator, moments
from genprior.priors.gan.training import AdversarialTraining
from genprior.priors.gan.watch import Classifier
from genprior.priors.training import Objective, Trainable


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
        network: 'kind' (perceptron, dcgan, residual or style) and its options, for both
            networks.
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
        self.image_shape: Shape = tuple(image_shape)
        self.latent_shape: tuple[int, ...] = (latent_size,)
        self.network: dict[str, Any] = {"kind": "dcgan", **(network or {})}
        self.loss: AdversarialOptions = AdversarialOptions.from_config(loss or {})
        self.seed = seed
        self._decoder_std: float | None = None
        self.watch_modes(None)
        self.generator: nn.Module = self._pair()[0]
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

        Below 1 samples are more typical and less varied, and not of the prior. With network kind
        style it is not z but w that is drawn towards its mean: mean + truncation (w - mean).

        Raises:
            ValueError: The truncation is not above 0 and at most 1.
        """
        if not 0 < truncation <= 1:
            raise ValueError(f"truncation must be above 0 and at most 1, not {truncation}")
        self.check_size(size)
        with torch.no_grad():
            z = self._normal(n, generator)
            if truncation == 1 or not isinstance(self.generator, StyleGenerator):
                return self.decode(truncation * z)
            mean, _ = moments(self.generator, self.latent_shape[0])
            w = mean + truncation * (self.generator.style(z) - mean)
            return self.generator.in_style(w)

    def space(self, name: str) -> LatentPrior:
        """Return this prior with another latent, as solvers take it.

        Args:
            name: 'z', which is itself, or 'w': the whitened styles of network kind style, or of
                dcgan with a mapping.
        Raises:
            ValueError: There is no such space, or the network has no mapping.
        """
        if name not in ("z", "w"):
            raise ValueError(f"a GAN has the spaces 'z' and 'w', not {name!r}")
        return self if name == "z" else StyleSpace(self)

    def mix(self, z_a: Tensor, z_b: Tensor, level: int) -> Tensor:
        """Decode with the styles of one latent below a level, and another's from there on.

        Args:
            z_a: Of what is coarse, (B, k).
            z_b: Of what is fine, (B, k).
            level: Of `widths`, counted from 0: 1 leaves only the coarsest to z_a.
        Raises:
            ValueError: The network has no styles, or no such level to change at.
        """
        generator = self.styled("mix")
        if not 0 < level < generator.depth:
            raise ValueError(f"level must be 1 to {generator.depth - 1}, not {level}")
        own = generator.constant.dtype
        a, b = (generator.everywhere(generator.style(z.to(own))) for z in (z_a, z_b))
        return generator.synthesis(torch.cat([a[:, :level], b[:, level:]], 1)).to(z_a.dtype)

    def styled(self, what: str) -> StyleGenerator:
        """Return the generator, which `what` needs to be of network kind style.

        Raises:
            ValueError: It is of another.
        """
        if not isinstance(self.generator, StyleGenerator):
            kind = self.network["kind"]
            raise ValueError(f"{what} needs a GAN of network kind style, not {kind}")
        return self.generator

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


class StyleSpace(LatentPrior):
    """x = G(mean + L v), v ~ N(0, I), with one style w = mean + L v for all levels of the image.

    Mean and L L^T are the moments of w under the prior, so v has mean 0 and covariance I; its law
    is near normal and not normal, and so is this prior near the GAN's and not the same. There
    searches are easier than in z, as w need not lie on a sphere.

    Args:
        gan: As it is now: it is copied.
    Raises:
        ValueError: Its network has no mapping.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, gan: GAN) -> None:
        super().__init__()
        if not isinstance(gan.generator, StyleGenerator | MappedGenerator):
            kind = gan.network["kind"]
            raise ValueError(
                f"space w needs a GAN whose network has a mapping: kind style, or dcgan with one, "
                f"not {kind}"
            )
        self.gan: GAN = copy.deepcopy(gan).watch_modes(None)
        self.image_shape: Shape = gan.image_shape
        mean, factor = moments(self._generator, gan.latent_shape[0])
        self.latent_shape: tuple[int, ...] = tuple(mean.shape)
        self.register_buffer("mean", mean)
        self.register_buffer("factor", factor)

    @property
    def _generator(self) -> StyleGenerator | MappedGenerator:
        return cast("StyleGenerator | MappedGenerator", self.gan.generator)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(GAN.from_config(config["gan"]))

    @property
    def decoder_std(self) -> float | None:
        return self.gan.decoder_std

    def decode(self, z: Tensor) -> Tensor:
        """Return G(mean + L v), (B, C, H, W), for v (B, styles)."""
        w = self.mean + z.to(self.mean.dtype) @ self.factor.T
        return self._generator.in_style(w).to(z.dtype)
