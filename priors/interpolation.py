"""Paths between images through the latent space of a prior."""

from __future__ import annotations

import torch
from torch import Tensor

from genprior.priors.base import EncodingPrior, LatentPrior


def spherical(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Interpolate along the great circle, which stays where a normal law has its mass.

        z_t = sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b,   w the angle between a and b

    Args:
        a, b: Latents, (B, ...).
        weight: t in [0, 1], (T,).
    Returns:
        (B, T, ...).
    """
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    angle = torch.nn.functional.cosine_similarity(flat_a, flat_b).clamp(-1, 1).arccos()
    t, w = weight.to(a), angle[:, None]
    # Where the two are (nearly) parallel the circle is a line.
    straight = w.sin() < 1e-4
    safe = torch.where(straight, torch.ones_like(w), w)
    left = torch.where(straight, 1 - t, ((1 - t) * safe).sin() / safe.sin())
    right = torch.where(straight, t.expand_as(left), (t * safe).sin() / safe.sin())
    path = left[..., None] * flat_a[:, None] + right[..., None] * flat_b[:, None]
    return path.unflatten(2, a.shape[1:])


def interpolate(prior: LatentPrior, x: Tensor, other: Tensor, *, steps: int = 8) -> Tensor:
    """Decode the great circle between the latents of two batches of images.

    Args:
        prior: With an encoder: a flow, a VAE, a diffusion prior (its probability flow).
        x, other: Images, (B, C, H, W).
        steps: Images on each path, both ends included.
    Returns:
        (B, steps, C, H, W).
    Raises:
        TypeError: The prior has no encoder.
    """
    if not isinstance(prior, EncodingPrior):
        raise TypeError(
            f"interpolate needs a prior with an encoder; {type(prior).__name__} has none"
        )
    z = spherical(prior.encode(x), prior.encode(other), torch.linspace(0, 1, steps))
    return prior.decode(z.flatten(0, 1)).unflatten(0, (len(x), steps))
