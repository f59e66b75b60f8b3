"""Which blur a photo has: the evidence p(y | kernel) over families of kernels."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from genprior.operators import Blur, GaussianNoise, Problem, kernels
from genprior.priors import ExactPrior, Prior

POWERS = (1.8, 2.2, 2.6)
"""Exponents p of the power spectra f^-p of photographs (Field 1987: about 2)."""

SIDE = 256
"""Side of the largest part of a photo that is looked at."""

CLEAR = 100.0
"""Nats by which an estimate must beat other kinds of blur: on crops of Kodak's photos those that
led by more were right or next to it, those below often wrong."""

SECTORS = 12
"""Directions that each have an amplitude of their own: few scenes look alike in all."""


def candidates() -> dict[str, Tensor]:
    """Return kernels by the words that name them: Gaussians, disks, straight motions."""
    widths = (0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3, 4, 5)
    radii = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8)
    found = {f"gaussian:{std:g}": kernels.gaussian(std) for std in widths}
    found |= {f"disk:{radius:g}": kernels.disk(radius) for radius in radii}
    for length in (3, 5, 7, 9, 11, 13, 15):
        for angle in range(0, 180, 15):
            found[f"motion:{length},{angle}"] = kernels.motion(length, angle)
    return found


def exact_evidence(photo: Tensor, prior: ExactPrior, sigma: float) -> dict[str, float]:
    """Return log p(y | kernel) in nats for blurs that wrap around, in closed form.

    Args:
        photo: (C, H, W), of the prior's size.
        prior: Whose evidence it is.
        sigma: Noise std in pixel units.
    """
    y, shape = photo[None], tuple(photo.shape)
    evidence = {}
    for name, kernel in candidates().items():
        if max(kernel.shape) <= min(shape[1:]):
            problem = Problem(y, Blur(kernel, shape).to(y.device), GaussianNoise(sigma))
            evidence[name] = prior.posterior(problem).log_evidence.item()
    return evidence


def estimated_evidence(photo: Tensor, sigma: float) -> dict[str, float]:
    """Estimate log p(y | kernel) in nats, up to a constant, by a Gaussian law of photographs.

        E |Y(f)|^2 = a |f|^-p |K(f)|^2 + sigma^2

    with Y the Fourier transform of the photo, faded out towards its borders, p and an a for each
    direction of f such as make it largest. An estimate: no photograph is Gaussian.

    Args:
        photo: (C, H, W); the mean of its channels is looked at, in the middle.
        sigma: Noise std in pixel units.
    Source: Whittle 1953; Levin et al. 2011, "Efficient marginal likelihood optimization in blind
        deconvolution", for the evidence of kernels under such a law.
    """
    grey = photo.mean(0).double().cpu()
    top, left = (max(0, (n - SIDE) // 2) for n in grey.shape)
    grey = grey[top : top + SIDE, left : left + SIDE]
    height, width = grey.shape
    fade = torch.outer(*(torch.hann_window(n + 2, dtype=torch.float64)[1:-1] for n in grey.shape))
    fade = fade / fade.square().mean().sqrt()
    mean = (grey * fade.square()).sum() / fade.square().sum()
    power = torch.fft.rfft2((grey - mean) * fade, norm="ortho").abs().square()
    rows, columns = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
    f = torch.hypot(rows[:, None], columns).double()
    used = f > 3 / min(height, width)  # what is slower than the fading cannot be told from it
    angle = torch.atan2(rows[:, None].expand_as(f), columns.expand_as(f)) / math.pi + 0.5
    sector = (angle[used] * SECTORS).long().clamp(max=SECTORS - 1)
    power, f, noise = power[used].float(), f[used].float(), max(sigma**2 / len(photo), 1e-10)
    evidence = {}
    for name, kernel in candidates().items():
        if kernel.shape[0] > height or kernel.shape[1] > width:
            continue
        gain = torch.fft.rfft2(kernel, s=(height, width)).abs().square()[used].float()
        evidence[name] = max(_fit(power, gain * f**-p, noise, sector) for p in POWERS)
    return evidence


def _fit(power: Tensor, shape: Tensor, noise: float, sector: Tensor) -> float:
    """log p(power) for exponential laws of means a shape + noise, the best a in each sector."""
    usual = (power - noise).mean().clamp(min=1e-12) / shape.mean()
    expected = (usual * 2.0 ** torch.arange(-7, 8))[:, None] * shape + noise
    fits = -(expected.log() + power / expected)
    sums = fits.new_zeros(len(fits), SECTORS).index_add_(1, sector, fits)
    return sums.amax(0).sum().item()


def find_kernel(
    photo: Tensor, prior: Prior, sigma: float, *, circular: bool
) -> tuple[str, dict[str, float], bool]:
    """Return the kernel of the greatest evidence, all evidences, and whether they are exact."""
    exact = circular and isinstance(prior, ExactPrior) and tuple(photo.shape) == prior.image_shape
    if exact and isinstance(prior, ExactPrior):
        evidence = exact_evidence(photo, prior, sigma)
    else:
        evidence = estimated_evidence(photo, sigma)
    best = max(evidence, key=lambda name: evidence[name])
    kind = best.partition(":")[0]
    others = [value for name, value in evidence.items() if not name.startswith(kind)]
    if not exact and evidence[best] - max(others) < CLEAR:
        warnings.warn(
            f"--kernel auto takes {best}, but the photo hardly tells it from other kinds of blur: "
            "try a part with more detail (--fit crop), or a kernel that you know",
            stacklevel=2,
        )
    return best, evidence, exact
