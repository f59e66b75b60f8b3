"""Images as one normal law: a mean, some directions, and an isotropic rest."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from genprior.operators import Problem
from genprior.operators.base import Shape
from genprior.operators.memo import Memo
from genprior.priors.base import (
    DenoisingPrior,
    DensityPrior,
    EncodingPrior,
    ExactPrior,
    LatentPrior,
)
from genprior.priors.gaussian.conditioning import check_linear_gaussian
from genprior.priors.gaussian.low_rank import LowRankNormal, as_residual, precise
from genprior.priors.gaussian.posterior import GaussianPosterior
from genprior.priors.gaussian.principal import ROUNDING, Images, fit_principal

SIGMA_MIN = 1e-3
"""Where a walk over sigma may end: a quarter of an 8-bit grey level."""


class Gaussian(LatentPrior, EncodingPrior, DensityPrior, DenoisingPrior, ExactPrior):
    """x ~ N(m, F F^T + r^2 I): every capability there is, all exact.

        x = m + (F F^T + r^2 I)^(1/2) z

    The symmetric root makes z an image too, and the map invertible where r > 0.

    Args:
        mean: m, (C, H, W).
        factors: Columns of F as images, (k, C, H, W); k may be 0.
        residual: r >= 0, pixel units. With r = 0 there is no density and no encoder.
    Raises:
        ValueError: Shapes do not fit, or the residual is negative.
    """

    exact_encoder: ClassVar[bool] = True
    quantisable: ClassVar[tuple[str, ...]] = ("factors",)

    def __init__(self, mean: Tensor, factors: Tensor, *, residual: float | Tensor = 0.0) -> None:
        super().__init__()
        if mean.ndim != 3 or factors.shape[1:] != mean.shape:
            raise ValueError(
                f"mean must be (C, H, W) and factors (k, C, H, W); {tuple(mean.shape)} and "
                f"{tuple(factors.shape)} came"
            )
        self.image_shape: Shape = tuple(mean.shape)
        self.latent_shape: tuple[int, ...] = tuple(mean.shape)
        self.mean: Tensor = nn.Buffer(mean.detach().clone())
        self.factors: Tensor = nn.Buffer(factors.detach().clone())
        self.residual: Tensor = nn.Buffer(as_residual(residual, mean))
        self._law = Memo()

    @classmethod
    def from_covariance(cls, mean: Tensor, covariance: Tensor) -> Gaussian:
        """Build from a covariance matrix (d, d), written as l_min I plus low rank.

        Raises:
            ValueError: The matrix is not (d, d), symmetric and positive semidefinite.
        """
        d = mean.numel()
        if covariance.shape != (d, d):
            raise ValueError(f"covariance must be {(d, d)}, not {tuple(covariance.shape)}")
        values, vectors = torch.linalg.eigh(covariance.to(precise(covariance)))
        rounding = 1e3 * torch.finfo(covariance.dtype).eps * float(values.abs().max())
        if not torch.allclose(covariance, covariance.mT, rtol=0, atol=rounding):
            raise ValueError("covariance is not symmetric")
        if float(values[0]) < -rounding:
            raise ValueError(f"covariance has a negative eigenvalue, {float(values[0]):.3g}")
        floor = values[0].clamp(min=0)
        above = values - floor
        # directions at the floor, one at least, are the residual's: c I has rank 0
        kept = above > 10 * torch.finfo(covariance.dtype).eps * values[-1]
        factors = (vectors * above.clamp(min=0).sqrt())[:, kept].T
        factors = factors.reshape(-1, *mean.shape).to(mean.dtype)
        return cls(mean, factors, residual=floor.sqrt().to(mean.dtype))

    @classmethod
    def fit(cls, images: Images, *, rank: int | None = None, floor: float = ROUNDING) -> Gaussian:
        """Fit by maximum likelihood: probabilistic principal component analysis.

        Streams over `images`, so they may be larger than memory.

        Args:
            images: (N, C, H, W), a data set of (C, H, W), or an iterable of batches that can be
                walked more than once.
            rank: Directions kept. None picks the rank under which every tenth image, held out,
                is likeliest.
            floor: Least residual; the default is the std of 8-bit rounding.
        Raises:
            ValueError: Fewer than two images, or a rank that they cannot support.
        Source: Tipping, Bishop 1999, "Probabilistic principal component analysis", eqs. 7 and 8.
        """
        law, shape = fit_principal(images, rank=rank, floor=floor)
        mean, factors = law.mean.reshape(shape), law.factors.reshape(-1, *shape)
        return cls(mean.float(), factors.float(), residual=law.residual)

    @property
    def config(self) -> dict[str, Any]:
        return {"image_shape": list(self.image_shape), "rank": self.factors.shape[0]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Gaussian:
        shape = tuple(config["image_shape"])
        return cls(torch.zeros(shape), torch.zeros(config["rank"], *shape))

    def law(self, dtype: torch.dtype) -> LowRankNormal:
        """The law on flat images. Its orthonormal directions are found once for each dtype."""
        return self._law.get(
            dtype,
            (self.mean, self.factors, self.residual),
            lambda: LowRankNormal.from_factors(
                self.mean.flatten().to(dtype),
                self.factors.flatten(1).to(dtype),
                self.residual.to(dtype),
            ),
        )

    def decode(self, z: Tensor) -> Tensor:
        law = self.law(z.dtype)
        return (law.mean + law.apply(z.flatten(1), torch.sqrt)).reshape(z.shape)

    def encode(self, x: Tensor) -> Tensor:
        """Map images to latents z = covariance^(-1/2) (x - m).

        Raises:
            ValueError: The residual is 0.
        """
        self.check_density("encode")
        law = self.law(x.dtype)
        return law.apply(x.flatten(1) - law.mean, torch.rsqrt).reshape(x.shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, (B,).

        Raises:
            ValueError: The residual is 0.
        """
        self.check_density("log_prob")
        return self.law(x.dtype).log_prob(x.flatten(1))

    def check_density(self, what: str) -> None:
        """Raise a ValueError unless there is a density, which `what` needs."""
        if float(self.residual) == 0:
            raise ValueError(
                f"{what} needs a residual > 0: with residual 0 the images fill at most "
                f"{len(self.factors)} of {self.mean.numel()} dimensions"
            )

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        noise = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).square()
        return self.law(x.dtype).denoise(x.flatten(1), noise).reshape(x.shape)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Up to ten times the std of the widest direction: there the start is all but normal."""
        law = self.law(self.mean.dtype)
        widest = float(law.variances.max()) if law.rank else 0.0
        std = (widest + float(law.residual) ** 2) ** 0.5
        return SIGMA_MIN, max(100 * SIGMA_MIN, 10 * std)

    @property
    def data_mean(self) -> Tensor:
        return self.mean

    @property
    def data_std(self) -> Tensor:
        return self.law(self.mean.dtype).variance().sqrt().reshape(self.mean.shape)

    def posterior(self, problem: Problem) -> GaussianPosterior:
        check_linear_gaussian(self, problem)
        return GaussianPosterior(self.law(problem.y.dtype), problem, self.mean.shape)
