"""What tests share: seeds, equality, textbook formulas with d x d matrices, a Gaussian VAE."""

from __future__ import annotations

import math

import torch

from genprior.operators import (
    Blur,
    Compose,
    CompressedSensing,
    Downsampling,
    GaussianNoise,
    Identity,
    Inpainting,
    Matrix,
    Problem,
)
from genprior.priors import VAE, Gaussian


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def identical(a, b):
    """Whether two tensors agree in every bit.

    To be asked only of copies (indexing, masks, files, another device), of sums with 0 and
    products with powers of 2, and of one computation done twice on tensors that lie alike in
    memory. All else differs in its last bits from processor to processor: a row alone and in a
    batch, a network built and one loaded (`channels_last` or not), two formulas for one number.
    `close` is for those.
    """
    return torch.equal(a, b)


def close(found, expected, *, ulps):
    """Assert equality but for rounding errors, in units of the largest number's last place.

        |found - expected| <= ulps eps max |expected|

    A sum of n numbers rounds n times: about sqrt(n) ulps where the errors are independent. Say
    in the test how many there are.
    """
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    unit = torch.finfo(expected.dtype).eps * float(expected.detach().abs().max())
    error = float((found - expected).detach().abs().max())
    assert error <= ulps * unit, f"{error:.2g} apart, {ulps} ulps are {ulps * unit:.2g}"


def random_covariance(d, *, seed=0, spread=0.15):
    """A covariance matrix whose eigenvalues span two orders of magnitude."""
    q = torch.linalg.qr(randn(d, d, seed=seed)).Q
    scales = spread * torch.logspace(0.3, -0.7, d, dtype=torch.float64)
    return (q * scales**2) @ q.T


def matrix_of(problem, row):
    """A of image `row` on observed entries, (m, d)."""
    shape = tuple(problem.image_shape)
    d = math.prod(shape)
    index = torch.full((d,), row)
    operator = problem.operator.take(index)
    impulses = torch.eye(d, dtype=problem.y.dtype).reshape(d, *shape)
    columns = operator(impulses).flatten(1).T
    observed = problem.operator.take(index[:1]).observed
    if observed is None:
        return columns, slice(None)
    seen = observed.expand(1, *problem.y.shape[1:]).flatten()
    return columns[seen], seen


def condition(mean, covariance, problem, row):
    """Mean, covariance and log evidence of p(x | y) for x ~ N(mean (d,), covariance)."""
    a, seen = matrix_of(problem, row)
    y = problem.y[row].flatten()[seen]
    sigma = torch.as_tensor(problem.noise.sigma, dtype=y.dtype)
    sigma = sigma.reshape(-1)[row if sigma.numel() > 1 else 0]
    of_y = a @ covariance @ a.T + sigma**2 * torch.eye(len(y), dtype=y.dtype)
    gain = torch.linalg.solve(of_y, a @ covariance).T
    law = torch.distributions.MultivariateNormal(a @ mean, of_y)
    return (
        mean + gain @ (y - a @ mean),
        covariance - gain @ a @ covariance,
        law.log_prob(y),
    )


def problems(shape=(2, 4, 6), *, count=3):
    """Name -> operator for images of `shape`, with and without per-image state."""
    channels, height, width = shape
    d = math.prod(shape)
    masks = torch.rand(count, 1, height, width, generator=seeded(1)) < 0.6
    masks[:, :, 0, 0] = True
    colour = torch.rand(channels, height, width, generator=seeded(2)) < 0.3
    colour[0, 0, 0] = True
    kernel = torch.rand(3, 2, generator=seeded(4), dtype=torch.float64)
    kernel = kernel / kernel.sum()
    return {
        "identity": Identity(shape),
        "masks": Inpainting(masks),
        "colour mask": Inpainting(colour),
        "matrix": Matrix(randn(7, d, seed=3), shape),
        "circular blur": Blur(kernel, shape),
        "valid blur": Blur(kernel, shape, boundary="valid"),
        "downsampling": Downsampling(2, shape),
        "downsampling with a kernel": Downsampling(2, shape, kernel=kernel),
        "compressed sensing": CompressedSensing(shape, 9, generator=seeded(5)),
        "structured sensing": CompressedSensing(shape, 9, generator=seeded(5), structured=True),
        "blur then masks": Compose(Inpainting(masks), Blur(kernel, shape)),
    }


def pose(operator, shape=(2, 4, 6), *, count=3, sigma=None, seed=7):
    """A problem of `count` images near one half, with one sigma for each."""
    x = 0.5 + 0.2 * randn(count, *shape, seed=seed)
    sigma = (
        torch.tensor([0.05, 0.2, 0.01], dtype=torch.float64)[:count] if sigma is None else sigma
    )
    return Problem.simulate(x, operator, GaussianNoise(sigma), generator=seeded(seed))


def linear_vae(shape=(1, 4, 3), latent_size=4, std=0.1, seed=0):
    """A VAE in float64: x = W z + b + std e, with weights of a pixel-like size."""
    vae = VAE(
        shape,
        latent_size,
        network={"hidden": [], "seed": seed},
        pixels={"kind": "gaussian", "std": std, "learned": False, "bounded": False},
    ).double()
    vae.requires_grad_(False)
    affine = vae.decoder[0]
    affine.weight.mul_(0.4)
    affine.bias.copy_(torch.linspace(0.3, 0.7, len(affine.bias), dtype=torch.float64))
    return vae


def as_gaussian(vae):
    """The distribution N(b, W W^T + std^2 I) that a linear VAE is."""
    affine = vae.decoder[0]
    factors = affine.weight.T.reshape(-1, *vae.image_shape)
    mean = affine.bias.reshape(vae.image_shape)
    return Gaussian(mean, factors, residual=float(vae.decoder_std))


def set_exact_encoder(vae):
    """Give a linear VAE the encoder at which its bound is highest; return the exact covariance."""
    affine, (_, encoder) = vae.decoder[0], vae.encoder
    w, s = affine.weight, vae.decoder_std
    k = w.shape[1]
    covariance = torch.linalg.inv(torch.eye(k, dtype=w.dtype) + w.T @ w / s**2)
    gain = covariance @ w.T / s**2
    encoder.weight[:k].copy_(gain)
    encoder.bias[:k].copy_(-gain @ affine.bias)
    encoder.weight[k:] = 0
    # The best factorised q has the precision's diagonal, not the covariance's.
    precision = torch.linalg.inv(covariance)
    encoder.bias[k:] = -0.5 * precision.diagonal().log()
    return covariance
