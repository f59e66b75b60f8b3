"""One image's problem under a Gaussian prior, in dense matrices and flat vectors."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from genprior.operators import PoissonNoise


@dataclass
class Dense:
    """y = A x + sigma_y n on observed entries, x ~ N(mean, covariance).

    Attributes:
        seen: Which entries of the whole y are observed.
        sigma_y: Of an average entry, where photons are counted.
        peak: Photons of a pixel of 1, where they are counted, else None.
        dealt: Noise in the order in which it is drawn.
        record: Of each step sigma, x0 and the residual's weights, as in the solver's trace.
    """

    a: Tensor
    y: Tensor
    seen: Tensor
    sigma_y: float
    mean: Tensor
    covariance: Tensor
    sigma_range: tuple[float, float]
    peak: float | None
    dealt: Iterator[Tensor]
    record: list[tuple[float, Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, prior, problem, dealt):
        a = problem.linear_operator.dense_matrix(problem.y).reshape(-1, prior.mean.numel())
        observed = problem.operator.observed
        seen = torch.ones(problem.y[0].numel(), dtype=torch.bool)
        if observed is not None:
            seen = observed.expand_as(problem.y)[0].flatten()
        flat = prior.factors.flatten(1)
        covariance = flat.T @ flat + prior.residual**2 * torch.eye(
            flat.shape[1], dtype=torch.float64
        )
        y, mean, peak = problem.y[0].flatten()[seen], prior.mean.flatten(), None
        if isinstance(problem.noise, PoissonNoise):
            peak = float(problem.noise.peak[0])
            sigma_y = math.sqrt(max(float(y.sum()), 1 / peak) / peak / len(y))
        else:
            sigma_y = float(problem.sigma[0])
        return cls(a[seen], y, seen, sigma_y, mean, covariance, prior.sigma_range, peak, dealt)

    def noise(self) -> Tensor:
        return next(self.dealt)

    def measured_noise(self) -> Tensor:
        return self.noise()[self.seen]

    @property
    def data_std(self) -> float:
        return math.sqrt(float(self.covariance.diag().mean()))

    @property
    def gain(self) -> float:
        return float(torch.linalg.matrix_norm(self.a, ord=2))

    def jacobian(self, sigma: float) -> Tensor:
        eye = torch.eye(len(self.mean), dtype=torch.float64)
        return self.covariance @ torch.linalg.inv(self.covariance + sigma**2 * eye)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        return self.mean + self.jacobian(sigma) @ (x - self.mean)

    def residual(self, x: Tensor) -> Tensor:
        return self.y - self.a @ x

    def weights(self, x0: Tensor, most: float = 1.0) -> Tensor:
        """sigma_y over the std of each entry of y about A x0, at most `most`."""
        if self.peak is None:
            return torch.ones_like(self.y)
        photons = (self.peak * (self.a @ x0)).clamp(min=0.2)
        return (self.sigma_y * self.peak / photons.sqrt()).clamp(max=most)

    def r2(self, sigma: float) -> float:
        """Variance of x0 given x_sigma for white data."""
        return sigma**2 * self.data_std**2 / (sigma**2 + self.data_std**2)

    def noticed(self, sigma: float, x0: Tensor, weights: Tensor | None = None) -> Tensor:
        if weights is None:
            weights = self.weights(x0)
        self.record.append((sigma, x0, weights))
        return x0

    def start(self, sigma: float) -> Tensor:
        return self.mean + (self.covariance.diag() + sigma**2).sqrt() * self.noise()

    def gram_solve(self, scale: float, damping: float, r: Tensor) -> Tensor:
        eye = torch.eye(len(self.y), dtype=torch.float64)
        return torch.linalg.solve(scale * self.a @ self.a.T + damping * eye, r)

    def noise_levels(self, steps, *, below_noise=0.1, below_data=0.03, top=1.0):
        """Down to a share of sigma_y / gain, from at most a hundred times the data."""
        from written_out.samplers import log_uniform

        s, (smallest, largest) = self.data_std, self.sigma_range
        low = min(below_noise * self.sigma_y / self.gain, below_data * s)
        low = max(low if self.sigma_y > 0 else 0.03 * s, smallest)
        return log_uniform(max(low, top * min(largest, 100 * s)), low, steps)
