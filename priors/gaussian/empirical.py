"""A data set as a prior: a normal law of one width about every image."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from genprior.operators import Identity, Inpainting, Problem
from genprior.operators.base import Shape, per_row
from genprior.operators.random import Generators, normal, uniform
from genprior.priors.base import DenoisingPrior, DensityPrior, ExactPrior
from genprior.priors.gaussian.conditioning import check_linear_gaussian, noise_variance
from genprior.priors.gaussian.gaussian import SIGMA_MIN
from genprior.priors.gaussian.mixture import WeightedPosterior, choose
from genprior.priors.gaussian.principal import Images, batches

PIXELS_AT_ONCE = 2**25
"""Pixel values of the data set that a step holds at once beside the data set itself."""


class Empirical(DensityPrior, DenoisingPrior, ExactPrior):
    """x ~ 1/N sum_i N(x_i, h^2 I): kernel density estimation, on the real line.

    A mixture of as many components as there are images, without a matrix. Its posterior knows
    which images of the data set fit the measurement, and how well: a truth with many modes for
    solvers to be held against. `denoise` is what a network that has learned the data set by
    heart computes.

    Args:
        images: x_i, (N, C, H, W), N >= 1.
        bandwidth: h, standard deviation of a pixel about its image, pixel units, > 0.
    Raises:
        ValueError: Shapes or the bandwidth are out of range, or an image is not finite.
    Source: Parzen 1962, "On estimation of a probability density function and mode".
    """

    def __init__(self, images: Tensor, bandwidth: float | Tensor) -> None:
        super().__init__()
        if images.ndim != 4 or not len(images) or not images.is_floating_point():
            raise ValueError(
                f"images must be floats (N, C, H, W) with N >= 1, not {tuple(images.shape)} of "
                f"{images.dtype}"
            )
        width = torch.as_tensor(bandwidth, dtype=images.dtype, device=images.device)
        if width.ndim or not 0 < float(width) < math.inf:
            raise ValueError(f"bandwidth must be one number > 0, not {bandwidth}")
        if not bool(images.isfinite().all()):
            raise ValueError("images must be finite")
        self.image_shape: Shape = tuple(images.shape[1:])
        self.images: Tensor = nn.Buffer(images.detach().clone())
        self.bandwidth: Tensor = nn.Buffer(width.clone())

    @classmethod
    def fit(cls, images: Images, *, bandwidth: float | None = None) -> Empirical:
        """Hold a data set in memory.

        Args:
            images: (N, C, H, W), a data set of (C, H, W), or an iterable of batches.
            bandwidth: h; None takes the likeliest, each image judged by all the others.
        Raises:
            ValueError: A bandwidth is to be found for fewer than two images.
        """
        data = torch.cat(list(batches(images)))
        width = _likeliest_bandwidth(data) if bandwidth is None else bandwidth
        return cls(data, width)

    @property
    def config(self) -> dict[str, Any]:
        return {"image_shape": list(self.image_shape), "count": len(self.images)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Empirical:
        return cls(torch.zeros(config["count"], *config["image_shape"]), 1.0)

    def sample(
        self, n: int, *, size: tuple[int, int] | None = None, generator: Generators = None
    ) -> Tensor:
        shape = self.check_size(size)
        like = {"dtype": self.images.dtype, "device": self.images.device}
        u = uniform((n, 1), generator, dtype=torch.float64, device=like["device"])
        chosen = (u[:, 0] * len(self.images)).long().clamp(max=len(self.images) - 1)
        noise = normal((n, *shape), generator, **like)
        return self.images[chosen] + self.bandwidth * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, (B,)."""
        return self._log_joint(x, self.bandwidth.to(x).square().expand(len(x))).logsumexp(1)

    def modes(self, x: Tensor) -> Tensor:
        """Return the number of the image that explains each x (B, C, H, W) best, (B,) int64."""
        return squared_distances(x, self.images.to(x)).argmin(1)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Return E[x0 | x0 + sigma n = x].

        w_i ~ N(x; x_i, (h^2 + sigma^2) I),   g = h^2 / (h^2 + sigma^2)
        E[x0 | x] = g x + (1 - g) sum_i w_i x_i
        """
        h2, sigma2 = self.bandwidth.to(x).square(), per_row(sigma, x).square()
        total = (h2 + sigma2).expand(len(x), 1, 1, 1)
        shares = self._log_joint(x, total.flatten()).softmax(1)
        nearest = (shares @ self.images.to(x).flatten(1)).reshape(x.shape)
        gain = h2 / total
        return torch.where(sigma2 > 0, gain * x + (1 - gain) * nearest, x)

    def _log_joint(self, x: Tensor, variance: Tensor, seen: Tensor | None = None) -> Tensor:
        """log 1/N N(x; x_i, v I) over the pixels `seen`, for each row and image, (B, N)."""
        squares = squared_distances(x, self.images.to(x), seen)
        entries = x[0].numel() if seen is None else seen.flatten(1).sum(1, keepdim=True)
        v = variance.reshape(-1, 1)
        log_count = math.log(len(self.images))
        return -0.5 * (squares / v + entries * (2 * math.pi * v).log()) - log_count

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Up to ten times the std of the widest direction: there the start is all but normal."""
        centred = (self.images - self.images.mean(0)).flatten(1).double()
        small = centred if len(centred) < centred.shape[1] else centred.T
        widest = torch.linalg.eigvalsh(small @ small.T)[-1] / len(centred)
        return SIGMA_MIN, 10 * math.sqrt(float(widest) + float(self.bandwidth) ** 2)

    @property
    def data_mean(self) -> Tensor:
        return self.images.mean(0)

    @property
    def data_std(self) -> Tensor:
        return (self.images.var(0, correction=0) + self.bandwidth**2).sqrt()

    def has_posterior(self, problem: Problem) -> bool:
        pixelwise = isinstance(problem.operator, Identity | Inpainting)
        return pixelwise and super().has_posterior(problem)

    def posterior(self, problem: Problem) -> EmpiricalPosterior:
        """Condition on noisy pixels, all (`Identity`) or some (`Inpainting`).

        Raises:
            TypeError: Another operator, or noise that is not Gaussian.
            ValueError: The problem does not fit the prior.
        """
        check_linear_gaussian(self, problem)
        if not self.has_posterior(problem):
            raise TypeError(
                "Empirical has its posterior in closed form for Identity and Inpainting, not "
                f"{type(problem.operator).__name__}: take a GaussianMixture of rank 0, or a "
                "sampling solver (genprior.solvers.available(prior) lists them)"
            )
        return EmpiricalPosterior(self, problem)


class EmpiricalPosterior(WeightedPosterior[Empirical]):
    """p(x | y): every image's posterior, weighted by how well it explains y.

    w_i ~ N(y; x_i, (h^2 + sigma_y^2) I) on observed pixels
    observed: N(x_i + g (y - x_i), g sigma_y^2),   g = h^2 / (h^2 + sigma_y^2)
    missing:  N(x_i, h^2)
    """

    def __init__(self, prior: Empirical, problem: Problem) -> None:
        super().__init__(prior, problem)
        y, operator = problem.y, problem.operator
        seen = operator.keep_observed(torch.ones_like(y)) > 0
        self._seen, self._y = seen, operator.keep_observed(y)
        h2, noise2 = prior.bandwidth.to(y).square(), noise_variance(problem)
        self._total = (h2 + noise2).expand(len(y))
        gain = per_row(h2 / self._total, y)
        self._gain = torch.where(seen, gain, 0.0)
        self._variance = torch.where(seen, gain * per_row(noise2, y), h2)

    @cached_property
    def _joint(self) -> Tensor:
        return self._prior._log_joint(self._y, self._total, self._seen)

    def _moment(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """sum_i p(i | y) function(x_i), (B, C, H, W)."""
        images = self._prior.images.to(self._y)
        return (self.weights @ function(images).flatten(1)).reshape(self._y.shape)

    @cached_property
    def mean(self) -> Tensor:
        return self._gain * self._y + (1 - self._gain) * self._moment(lambda x: x)

    @cached_property
    def std(self) -> Tensor:
        centre = self._prior.data_mean.to(self._y)
        first = self._moment(lambda x: x - centre)
        second = self._moment(lambda x: (x - centre).square())
        between = (1 - self._gain).square() * (second - first.square()).clamp(min=0)
        return (self._variance + between).sqrt()

    def sample(self, n: int, *, generator: Generators = None) -> Tensor:
        y = self._y
        u = uniform((len(y), n), generator, dtype=torch.float64, device=y.device)
        noise = normal((len(y), n, *y.shape[1:]), generator, dtype=y.dtype, device=y.device)
        centres = self._prior.images.to(y)[choose(self.weights, u)]
        gain, std = self._gain[:, None], self._variance.sqrt()[:, None]
        return centres + gain * (y[:, None] - centres) + std * noise


def squared_distances(x: Tensor, images: Tensor, seen: Tensor | None = None) -> Tensor:
    """|x_b - x_i|^2 over the pixels that row b has `seen` (all if None), (B, N), differentiable.

    As |x|^2 - 2 x.x_i + |x_i|^2 about the mean image, in float64 whatever x is: neighbours are
    told apart by what remains when these terms have all but cancelled.
    """
    centre = images.mean(0)
    weights = None if seen is None else seen.flatten(1).double()
    flat = (x - centre).flatten(1).double()
    flat = flat if weights is None else flat * weights
    parts = []
    for part in images.split(max(1, PIXELS_AT_ONCE // images[0].numel())):
        others = (part - centre).flatten(1).double()
        norms = others.square()
        norms = norms.sum(1) if weights is None else weights @ norms.T
        parts.append(norms - 2 * flat @ others.T)
    return (torch.cat(parts, 1) + flat.square().sum(1, keepdim=True)).to(x.dtype)


def _likeliest_bandwidth(data: Tensor) -> float:
    """Maximise sum_i log 1/(N-1) sum_{j != i} N(x_i; x_j, h^2 I) by EM in h.

    h^2 <- 1/(N d) sum_i sum_j r_ij |x_i - x_j|^2,   r_ij the share of j in x_i, r_ii = 0
    """
    if len(data) < 2:
        raise ValueError("one image tells no bandwidth: give it")
    flat = data.flatten(1).double()
    distances = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
    squares = distances.square_().fill_diagonal_(math.inf)
    d = flat.shape[1]
    variance = max(float(squares.amin(1).mean()) / d, 1e-12)
    for _ in range(1000):
        shares = (-0.5 * squares / variance).softmax(1)
        new = float((shares * squares.nan_to_num(posinf=0.0)).sum() / (len(data) * d))
        new = max(new, 1e-12)
        if abs(new / variance - 1) < 1e-9:
            break
        variance = new
    return math.sqrt(variance)
