"""Mixtures of normal laws: several kinds of image, each with a law of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from genprior.operators import Problem
from genprior.operators.base import Shape
from genprior.operators.random import Generators, normal, uniform
from genprior.priors.base import DenoisingPrior, DensityPrior, ExactPrior
from genprior.priors.gaussian.conditioning import check_linear_gaussian
from genprior.priors.gaussian.em import fit_mixture, log_joint
from genprior.priors.gaussian.gaussian import SIGMA_MIN, Gaussian
from genprior.priors.gaussian.low_rank import LowRankNormal
from genprior.priors.gaussian.principal import ROUNDING, Images, batches


class GaussianMixture(DensityPrior, DenoisingPrior, ExactPrior):
    """x ~ sum_k w_k N(m_k, S_k), on the real line: nothing is clipped.

    Args:
        weights: w, (K,), >= 0; divided by their sum.
        means: (K, C, H, W).
        covariances: (K, d, d), d = C H W. For images take `low_rank`.
    Raises:
        ValueError: Shapes do not fit, weights are negative or all zero, or a covariance is not
            symmetric and positive semidefinite.
    """

    components: Sequence[Gaussian]

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor) -> None:
        super().__init__()
        if len(means) != len(covariances):
            raise ValueError(f"{len(means)} means and {len(covariances)} covariances came")
        pairs = zip(means, covariances, strict=True)
        self._hold(weights, [Gaussian.from_covariance(m, c) for m, c in pairs])

    @classmethod
    def from_components(cls, weights: Tensor, components: Sequence[Gaussian]) -> GaussianMixture:
        """Build from Gaussian priors of one image shape."""
        mixture = cls.__new__(cls)
        nn.Module.__init__(mixture)
        mixture._hold(weights, components)
        return mixture

    @classmethod
    def low_rank(
        cls, weights: Tensor, means: Tensor, factors: Tensor, residuals: Tensor
    ) -> GaussianMixture:
        """Build from covariances sum_j f_kj f_kj^T + r_k^2 I.

        Args:
            weights: (K,).
            means: (K, C, H, W).
            factors: (K, k, C, H, W); k may be 0.
            residuals: r, (K,).
        """
        if not len(means) == len(factors) == len(residuals):
            raise ValueError(
                f"{len(means)} means, {len(factors)} sets of factors and {len(residuals)} "
                "residuals came: give one of each for every component"
            )
        parts = zip(means, factors, residuals, strict=True)
        return cls.from_components(weights, [Gaussian(m, f, residual=r) for m, f, r in parts])

    @classmethod
    def fit(
        cls,
        images: Images,
        components: int,
        *,
        rank: int | None = None,
        generator: torch.Generator | None = None,
        iterations: int = 100,
        tolerance: float = 1e-5,
        floor: float = ROUNDING,
        callback: Callable[[int, float], None] | None = None,
    ) -> GaussianMixture:
        """Fit by expectation-maximisation from a k-means++ start. Holds all images in memory.

        Args:
            images: (N, C, H, W), a data set of (C, H, W), or an iterable of batches.
            components: K.
            rank: Directions of each component (a mixture of probabilistic PCA); None for full
                covariances, which only small images afford.
            generator: For the start.
            iterations: At most so many steps.
            tolerance: Stop when a step gains less than so many nats per number of an image.
            floor: Least std along any direction; the default is that of 8-bit rounding. The
                log-likelihood, maximised under this constraint, never falls.
            callback: Called with (iteration, mean log-likelihood of an image in nats).
        Raises:
            ValueError: Fewer images than components, or a rank out of range.
        Source: Tipping, Bishop 1999, "Mixtures of probabilistic principal component analysers".
        """
        data = torch.cat(list(batches(images)))
        shape, d = tuple(data.shape[1:]), data[0].numel()
        if not 1 <= components <= len(data):
            raise ValueError(f"{len(data)} images cannot make {components} components")
        if rank is not None and not 0 <= rank < d:
            raise ValueError(f"images of {d} numbers allow ranks 0 to {d - 1}, not {rank}")
        fitted = fit_mixture(
            data.flatten(1),
            components,
            rank=d - 1 if rank is None else rank,
            generator=generator,
            floor=floor,
            iterations=iterations,
            tolerance=tolerance,
            callback=callback,
        )
        parts = [  # a direction at the floor is the residual's
            Gaussian(
                law.mean.reshape(shape),
                law.factors[law.variances > 0].reshape(-1, *shape),
                residual=law.residual,
            )
            for law in fitted.laws
        ]
        return cls.from_components(fitted.weights, parts)

    def _hold(self, weights: Tensor, components: Sequence[Gaussian]) -> None:
        if weights.shape != (len(components),) or not len(components):
            raise ValueError(
                f"weights {tuple(weights.shape)} for {len(components)} components: give one each"
            )
        # on the meta device, where files are checked, weights have no values
        valued = not weights.is_meta
        if valued and not (bool((weights >= 0).all()) and 0 < float(weights.sum()) < torch.inf):
            raise ValueError(f"weights must be >= 0 and not all 0, not {weights.tolist()}")
        shapes = {tuple(c.image_shape) for c in components}
        if len(shapes) > 1:
            raise ValueError(f"components of different image shapes {sorted(shapes)}")
        self.image_shape: Shape = components[0].image_shape
        self.weights: Tensor = nn.Buffer(weights.detach() / weights.sum())
        self.components = nn.ModuleList(components)  # type: ignore[assignment]  # of Gaussian

    @property
    def config(self) -> dict[str, Any]:
        ranks = [component.factors.shape[0] for component in self.components]
        return {"image_shape": list(self.image_shape), "ranks": ranks}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> GaussianMixture:
        shape, ranks = config["image_shape"], config["ranks"]
        parts = [Gaussian.from_config({"image_shape": shape, "rank": rank}) for rank in ranks]
        return cls.from_components(torch.ones(len(ranks)), parts)

    def laws(self, dtype: torch.dtype) -> list[LowRankNormal]:
        """The components' laws on flat images."""
        return [component.law(dtype) for component in self.components]

    def sample(
        self, n: int, *, size: tuple[int, int] | None = None, generator: Generators = None
    ) -> Tensor:
        self.check_size(size)
        dtype, device = self.weights.dtype, self.weights.device
        u = uniform((n, 1), generator, dtype=torch.float64, device=device)
        chosen = choose(self.weights.expand(n, -1), u)[:, 0]
        z = normal((n, *self.components[0].mean.shape), generator, dtype=dtype, device=device)
        x = torch.empty_like(z)
        for k, component in enumerate(self.components):
            rows = (chosen == k).nonzero()[:, 0]
            x[rows] = component.decode(z[rows])
        return x

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, (B,).

        Raises:
            ValueError: A component has residual 0.
        """
        for component in self.components:
            component.check_density("log_prob")
        joint = log_joint(x.flatten(1), self.weights.to(x.dtype), self.laws(x.dtype))
        return joint.logsumexp(1)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        variance = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).square().reshape(-1, 1)
        flat, laws = x.flatten(1), self.laws(x.dtype)
        # at sigma = 0 any responsibilities do: every component gives x back
        positive = variance.where(variance > 0, torch.ones_like(variance))
        joint = log_joint(flat, self.weights.to(x.dtype), laws, positive)
        shares = joint.softmax(1)
        # sum_k shares_k law_k.denoise(x), with few passes over (B, d)
        gains = [law.wiener(variance) for law in laws]
        rest = torch.stack([gain[:, 0].expand(len(flat)) for gain, _ in gains], 1)
        means = torch.stack([law.mean for law in laws])
        denoised = (shares * rest).sum(1, keepdim=True) * flat + (shares * (1 - rest)) @ means
        for k, (law, (gain, along)) in enumerate(zip(laws, gains, strict=True)):
            if law.rank:
                centred = (flat @ law.basis.T) - law.basis @ law.mean
                weighted = shares[:, k, None] * (along - gain) * centred
                denoised = denoised + weighted @ law.basis
        return torch.where(variance > 0, denoised, flat).reshape(x.shape)

    @property
    def _means(self) -> Tensor:
        return torch.stack([component.mean for component in self.components])

    @property
    def _spread(self) -> Tensor:
        """Means about the overall mean, times the roots of their weights, (K, C, H, W)."""
        return (self._means - self.data_mean) * self.weights.sqrt().reshape(-1, 1, 1, 1)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Up to ten times the std of the widest direction: there the start is all but normal."""
        widest = max(component.sigma_range[1] for component in self.components)
        spread = torch.linalg.matrix_norm(self._spread.flatten(1).double(), 2)
        return SIGMA_MIN, (widest**2 + 100 * float(spread) ** 2) ** 0.5

    @property
    def data_mean(self) -> Tensor:
        return torch.einsum("k,kchw->chw", self.weights, self._means)

    @property
    def data_std(self) -> Tensor:
        variances = torch.stack([component.data_std.square() for component in self.components])
        within = torch.einsum("k,kchw->chw", self.weights, variances)
        return (within + self._spread.square().sum(0)).sqrt()

    def posterior(self, problem: Problem) -> MixturePosterior:
        check_linear_gaussian(self, problem)
        return MixturePosterior(self, problem)


Exact = TypeVar("Exact", bound=DensityPrior)


class WeightedPosterior(ABC, Generic[Exact]):
    """p(x | y): the components' posteriors, weighted by how well each explains y.

    p(x | y) = sum_k p(k | y) p_k(x | y),   p(k | y) proportional to w_k p_k(y)
    """

    def __init__(self, prior: Exact, problem: Problem) -> None:
        self._prior, self._problem = prior, problem

    @property
    @abstractmethod
    def _joint(self) -> Tensor:
        """log w_k p_k(y), (B, K)."""

    @cached_property
    def weights(self) -> Tensor:
        """p(k | y), (B, K)."""
        return self._joint.softmax(1)

    @cached_property
    def log_evidence(self) -> Tensor:
        return self._joint.logsumexp(1)

    def log_prob(self, x: Tensor) -> Tensor:
        likelihood = self._problem.log_likelihood(x)
        return self._prior.log_prob(x) + likelihood - self.log_evidence


class MixturePosterior(WeightedPosterior[GaussianMixture]):
    """The components' posteriors are those of normal laws."""

    def __init__(self, prior: GaussianMixture, problem: Problem) -> None:
        super().__init__(prior, problem)
        self._parts = [component.posterior(problem) for component in prior.components]

    def tasks(self) -> list[Callable[[], object]]:
        """Those of the components."""
        return [task for part in self._parts for task in part.tasks()]

    @cached_property
    def _joint(self) -> Tensor:
        evidences = torch.stack([part.log_evidence for part in self._parts], 1)
        return evidences + self._prior.weights.to(evidences).log()

    @cached_property
    def mean(self) -> Tensor:
        means = torch.stack([part.mean for part in self._parts], 1)
        return torch.einsum("bk,bkchw->bchw", self.weights, means)

    @cached_property
    def std(self) -> Tensor:
        variance = torch.zeros_like(self.mean)
        for part, weight in zip(self._parts, self.weights.T, strict=True):
            within = part.std.square() + (part.mean - self.mean).square()
            variance = variance + weight.reshape(-1, 1, 1, 1) * within
        return variance.sqrt()

    def sample(self, n: int, *, generator: Generators = None) -> Tensor:
        y = self._problem.y
        count = y.shape[0]
        u = uniform((count, n), generator, dtype=torch.float64, device=y.device)
        chosen = choose(self.weights, u).flatten()
        size = max(part.noise_size for part in self._parts)
        noise = normal((count, n * size), generator, dtype=y.dtype, device=y.device)
        noise = noise.reshape(count * n, size)
        images = torch.arange(count, device=y.device).repeat_interleave(n)
        samples = y.new_empty(count * n, *self.mean.shape[1:])
        for k, part in enumerate(self._parts):
            rows = (chosen == k).nonzero()[:, 0]
            if len(rows):
                samples[rows] = part.push(noise[rows, : part.noise_size], images[rows])
        return samples.reshape(count, n, *self.mean.shape[1:])


def choose(weights: Tensor, u: Tensor) -> Tensor:
    """Components (B, n) drawn from weights (B, K) by uniform numbers u (B, n)."""
    shares = weights.double().cumsum(1).contiguous()
    drawn = torch.searchsorted(shares, (u * shares[:, -1:]).contiguous(), right=True)
    return drawn.clamp(max=weights.shape[1] - 1)
