"""What variational autoencoders share: the bound on log p(x), its estimates, its training."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from genprior.operators.random import Generators
from genprior.priors.base import EncodingPrior, LatentPrior
from genprior.priors.flows.vectors import VectorFlow
from genprior.priors.training import Loss, Objective, Trainable, Turn, check_options
from genprior.priors.vae.pixels import PixelDistribution

ACTIVE = 0.01
"""A latent unit is active where its posterior mean varies over the data by more than this
variance (Burda et al. 2016, arXiv:1509.00519, Section 5.2)."""


@dataclass(frozen=True)
class BoundOptions:
    """Which bound is trained, and what keeps its latent in use.

    Attributes:
        samples: Draws of z for each image, K.
        importance: Train the importance-weighted bound of K samples (IWAE), not the ELBO.
        closed_kl: Take KL(q || p) in closed form, not from the same draws; both are unbiased.
        free_bits: Nats of KL for each latent unit that cost nothing.
        kl_weight: Weight of the KL; above 1 less is said in the latent and samples are cleaner,
            but images are reconstructed less well and the bound is looser.
        warm_up: Images over which the weight of the KL grows from 0.
        flow_only: Train the flow of the prior alone, and leave both networks as they start.

    Source: Burda et al. 2016, arXiv:1509.00519 (IWAE); Kingma et al. 2016, arXiv:1606.04934
        (free bits); Higgins et al. 2017 (weight, beta-VAE); Bowman et al. 2016, arXiv:1511.06349
        (warm-up).
    """

    samples: int = 1
    importance: bool = False
    closed_kl: bool = True
    free_bits: float = 0.0
    kl_weight: float = 1.0
    warm_up: int = 0
    flow_only: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (("samples", 1, 10_000), ("free_bits", 0, 100)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be {low} to {high}, not {getattr(self, name)}")
        if not 0 < self.kl_weight <= 1e4:
            raise ValueError(f"kl_weight must be positive, at most 1e4, not {self.kl_weight}")
        if not 0 <= self.warm_up < math.inf:
            raise ValueError(f"warm_up must be at least 0, not {self.warm_up}")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BoundOptions:
        """Build from plain data, checked."""
        check_options("bound", config, cls)
        return cls(**config)


@dataclass(frozen=True)
class BoundTerms:
    """The parts of the bound for K draws of z from q(z | x).

    Attributes:
        log_likelihood: log p(x | z), (B, K).
        log_ratio: log p(z) - log q(z | x) at the draws, (B, K).
        kl: KL(q || p) of each latent unit in closed form, (B, units); in a hierarchy each unit's
            KL is conditional on the draws above it, and with a flow (B, 1), the draws' own.
        means: Posterior means, (B, units): their variance over the data tells active units.
    """

    log_likelihood: Tensor
    log_ratio: Tensor
    kl: Tensor
    means: Tensor

    def elbo(self, *, closed_kl: bool = True) -> Tensor:
        """Return the evidence lower bound, (B,)."""
        if closed_kl:
            return self.log_likelihood.mean(1) - self.kl.sum(1)
        return (self.log_likelihood + self.log_ratio).mean(1)

    @classmethod
    def from_draws(
        cls, log_likelihood: Tensor, n: Tensor, *, mean: Tensor, std: Tensor
    ) -> BoundTerms:
        """Build from standard normal n of the draws z = mean + std n, all (B, K, units).

        Args:
            log_likelihood: log p(x | z), (B K,).
            n: (B, K, units).
            mean, std: Of q(z | x), (B, K or 1, units).
        """
        log_ratio = 0.5 * (n.square() - (mean + std * n).square()) + std.log()
        return cls(
            log_likelihood=log_likelihood.view(n.shape[:2]),
            log_ratio=log_ratio.sum(2),
            kl=normal_kl(mean, std).mean(1),
            means=mean.mean(1),
        )

    def importance_bound(self, kl_weight: float = 1.0) -> Tensor:
        """Return log 1/K sum_k p(x, z_k) / q(z_k | x), (B,)."""
        log_weights = self.log_likelihood + kl_weight * self.log_ratio
        return log_weights.logsumexp(1) - math.log(log_weights.shape[1])


def normal_kl(mean: Tensor, std: Tensor) -> Tensor:
    """Return KL(N(mean, std^2) || N(0, 1)) elementwise, nats."""
    return 0.5 * (mean.square() + std.square() - 1) - std.log()


class VariationalPrior(Trainable, LatentPrior, EncodingPrior):
    """p(x) = integral of p(x | z) N(z; 0, I), with an encoder q(z | x) that bounds it.

    `decode` and `sample` give the mean of p(x | z), as is the habit; the noise of p(x | z) is in
    `elbo` and `log_prob_estimate`, and in the likelihood of latent solvers that are told so.

    Attributes:
        pixels: p(x | what the decoder outputs).
        bound: What is trained.
        flow: What makes z standard normal, None where it is.
    """

    exact_encoder: ClassVar[bool] = False
    pixels: PixelDistribution
    bound: BoundOptions

    def __init__(self) -> None:
        super().__init__()
        self.flow: VectorFlow | None = None

    @abstractmethod
    def terms(self, x: Tensor, *, samples: int = 1, generator: Generators = None) -> BoundTerms:
        """Evaluate the bound's parts at images (B, C, H, W)."""

    @property
    def decoder_std(self) -> Tensor | None:
        """Standard deviation of x about decode(z) where it is one number, else None."""
        return self.pixels.std

    def elbo(
        self, x: Tensor, *, samples: int = 1, closed_kl: bool = True, generator: Generators = None
    ) -> Tensor:
        """Return a lower bound of log p(x) in nats, averaged over draws of z, (B,).

        Args:
            x: Images, (B, C, H, W).
            samples: Draws of z for each image.
            closed_kl: Take the KL in closed form, not from the draws.
            generator: None, one generator, or one for each image.
        """
        return self.terms(x, samples=samples, generator=generator).elbo(closed_kl=closed_kl)

    @torch.no_grad()
    def log_prob_estimate(
        self, x: Tensor, *, samples: int = 200, generator: Generators = None, at_once: int = 50
    ) -> Tensor:
        """Estimate log p(x) in nats by importance sampling from the encoder, (B,).

        It is low on average, and the less so the more samples are drawn.

        Args:
            x: Images, (B, C, H, W).
            samples: Draws of z for each image, K.
            generator: None, one generator, or one for each image.
            at_once: Draws held in memory together.
        """
        if samples < 1:
            raise ValueError(f"samples must be at least 1, not {samples}")
        parts = []
        for start in range(0, samples, at_once):
            count = min(at_once, samples - start)
            terms = self.terms(x, samples=count, generator=generator)
            parts.append(terms.log_likelihood + terms.log_ratio)
        return torch.cat(parts, 1).logsumexp(1) - math.log(samples)

    def objective(self) -> Objective:
        return VariationalTraining(self)


class VariationalTraining(Objective):
    """Minimises the negative bound in nats for each pixel value."""

    def __init__(self, prior: VariationalPrior) -> None:
        super().__init__(prior)
        if prior.bound.flow_only and prior.flow is None:
            raise ValueError("bound.flow_only trains a flow alone and this prior has none")
        self.prior = prior
        self._warned = False

    def parameters(self, group: str) -> Iterable[nn.Parameter]:
        flow = self.prior.flow if self.prior.bound.flow_only else None
        return (self.networks if flow is None else flow).parameters()

    def loss(self, turn: Turn, batch: Tensor, generator: Generators) -> Loss:
        prior, options = self.prior, self.prior.bound
        progress = min(1.0, turn.images_seen / options.warm_up) if options.warm_up else 1.0
        weight = options.kl_weight * progress
        x = prior.pixels.observe(batch, generator=generator)
        terms = prior.terms(x, samples=options.samples, generator=generator)
        if options.importance:
            bound = terms.importance_bound(weight).mean()
        elif options.closed_kl:
            kl = terms.kl.mean(0).clamp(min=options.free_bits) * self.unit_weights(progress)
            bound = terms.log_likelihood.mean() - options.kl_weight * kl.sum()
        else:
            bound = (terms.log_likelihood + weight * terms.log_ratio).mean()
        active = int((terms.means.detach().var(0) > ACTIVE).sum()) if len(batch) > 1 else 0
        units = terms.means.shape[1]
        if active == 0 and turn.images_seen > options.warm_up + 20_000 and not self._warned:
            self._warned = True
            warnings.warn(
                f"posterior collapse: none of the {units} latent units is active, the decoder "
                "ignores them. Try a KL warm-up (warm_up, in images), free_bits, or a smaller "
                "decoder std",
                RuntimeWarning,
                stacklevel=1,
            )
        logs = {
            "elbo": float(terms.elbo().mean().detach()),
            "kl": float(terms.kl.sum(1).mean().detach()),
            "kl_weight": weight,
            "active": float(active),
        }
        return -bound / batch[0].numel(), logs

    def unit_weights(self, progress: float) -> Tensor | float:
        """Return the weight of each unit's KL at a point of the warm-up, from 0 to 1."""
        return progress
