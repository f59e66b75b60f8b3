"""A small instance of every exact prior, by name."""

import torch
from dense import randn, random_covariance, seeded

from genprior.priors import Gaussian, GaussianMixture, StationaryGaussian

GREY, COLOUR = (1, 3, 4), (2, 4, 6)


def gaussian(shape=COLOUR, *, rank=5, residual=0.05):
    mean = 0.5 + 0.1 * randn(*shape, seed=1)
    return Gaussian(mean, 0.15 * randn(rank, *shape, seed=2), residual=residual)


def dense_gaussian():
    return Gaussian.from_covariance(0.5 + 0.1 * randn(*GREY, seed=1), random_covariance(12))


def mixture(shape=COLOUR):
    """Three components of unlike weights, far enough apart to matter, near enough to mix."""
    return GaussianMixture.low_rank(
        torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
        0.5 + 0.25 * randn(3, *shape, seed=3),
        0.1 * randn(3, 4, *shape, seed=4),
        torch.tensor([0.05, 0.1, 0.2], dtype=torch.float64),
    )


def wide_mixture():
    """Spherical components of rank 0 far outside [0, 1]: nothing may clip."""
    means = torch.tensor([-16.0, 0.0, 8.0], dtype=torch.float64)
    means = means.reshape(3, 1, 1, 1).expand(3, *GREY)
    weights, ones = torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    return GaussianMixture.low_rank(weights, means, means.new_zeros(3, 0, *GREY), ones)


def dense_mixture():
    covariances = torch.stack([random_covariance(12, seed=i) for i in range(2)])
    return GaussianMixture(torch.tensor([1.0, 3.0]).double(), randn(2, *GREY), covariances)


def texture(shape=(2, 6, 4), *, residual=0.05):
    image = torch.rand(*shape, generator=seeded(5), dtype=torch.float64)
    return StationaryGaussian.fit(image, residual=residual)


EXACT_PRIORS = {
    "gaussian": gaussian,
    "gaussian from a covariance": dense_gaussian,
    "gaussian of more factors than pixels": lambda: gaussian(GREY, rank=20),
    "isotropic gaussian": lambda: gaussian(rank=0, residual=0.2),
    "mixture": mixture,
    "mixture outside [0, 1]": wide_mixture,
    "mixture from covariances": dense_mixture,
    "colour texture": texture,
    "grey texture": lambda: texture((1, 5, 6)),
}
