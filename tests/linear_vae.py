"""A VAE whose decoder is affine, and the Gaussian that it then is."""

import torch

from genprior.priors import VAE, Gaussian


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
