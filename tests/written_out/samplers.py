"""Samplers for one image, step by step from the papers' formulas: x and noise are flat."""

import math
from dataclasses import fields
from itertools import pairwise

import numpy as np
import torch
from numpy.polynomial import Polynomial


def log_uniform(high, low, steps):
    return [high * (low / high) ** (i / max(1, steps - 1)) for i in range(steps)]


def rho_levels(high, low, steps, rho=7):
    """Karras et al. 2022, equation 5."""
    a, b = high ** (1 / rho), low ** (1 / rho)
    return [(a + i / (steps - 1) * (b - a)) ** rho for i in range(steps)]


def ddpm_levels(steps):
    """Every so manieth of the 1000 levels of Ho et al. 2020, for pixels in [0, 1]."""
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    chosen = [round(999 * (1 - i / (steps - 1))) for i in range(steps)] if steps > 1 else [999]
    return [math.sqrt((1 - kept[i]) / kept[i]) / 2 for i in chosen]


def ancestral(x, x0, sigma, lower, noise, eta=1.0):
    """Song, Meng, Ermon 2021, equations 12 and 16; noise 0 draws none."""
    fresh = eta * lower / sigma * math.sqrt(max(0.0, sigma**2 - lower**2))
    kept = math.sqrt(max(0.0, lower**2 - fresh**2)) / sigma
    return x0 + kept * (x - x0) + fresh * noise


def ddim(guide, x, sigmas, noise, *, eta):
    for sigma, lower in pairwise(sigmas):
        x0 = guide(x, sigma)
        x = ancestral(x, x0, sigma, lower, noise() if eta > 0 else 0, eta)
    return guide(x, sigmas[-1])


def heun(guide, x, sigmas, noise, *, churn=0.0, churn_range=(0.0, math.inf), churn_noise=1.0):
    """Karras et al. 2022, Algorithm 2; the last step is to the denoised image."""
    for sigma, lower in pairwise(sigmas):
        acts = churn_range[0] <= sigma <= churn_range[1]
        gamma = min(churn / len(sigmas), math.sqrt(2) - 1) if acts else 0
        raised = sigma + gamma * sigma
        if churn > 0:
            x = x + math.sqrt(raised**2 - sigma**2) * churn_noise * noise()
        slope = (x - guide(x, raised)) / raised
        ahead = x + (lower - raised) * slope
        then = (ahead - guide(ahead, lower)) / lower
        x = x + (lower - raised) * (slope + then) / 2
    return guide(x, sigmas[-1])


def dpm_solver(guide, x, sigmas, noise, *, stochastic=False):
    """Lu et al. 2022, Algorithm 2 and, stochastic, appendix B."""
    before, h_before = None, 0.0
    for sigma, lower in pairwise(sigmas):
        x0, h = guide(x, sigma), math.log(sigma / lower)
        aim = x0 if h_before == 0 else x0 + h / (2 * h_before) * (x0 - before)
        kept = math.exp(-2 * h) if stochastic else math.exp(-h)
        x = kept * x + (1 - kept) * aim
        if stochastic:
            x = x + lower * math.sqrt(1 - kept) * noise()
        before, h_before = x0, h
    return guide(x, sigmas[-1])


def adams(nodes, h, k):
    """The integrals of k e^(-k (h - t)) L_j(t) over [0, h], L_j(node_i) = 1 where i = j else 0."""
    weights, (at, share) = [], np.polynomial.legendre.leggauss(40)
    t, share = h * (at + 1) / 2, h * share / 2
    for j, node in enumerate(nodes):
        others = [other for i, other in enumerate(nodes) if i != j]
        scale = math.prod(node - other for other in others)
        lagrange = Polynomial.fromroots(others) / scale if others else Polynomial([1.0])
        weights.append(float((share * k * np.exp(-k * (h - t)) * lagrange(t)).sum()))
    return weights


def sa_solver(guide, x, sigmas, noise, *, tau=1.0, tau_low=0.4, turn=0.4, longest=0.8):
    """Xue et al. 2023, Algorithm 1, three x0 to predict and four to correct."""
    places = [-math.log(s) for s in sigmas]
    at = places[0] + turn * (places[-1] - places[0])
    known, step = [], None
    for i, sigma in enumerate(sigmas[:-1]):
        x0 = guide(x, sigma)
        if step is not None:
            base, weights = step
            x = base + sum(w * image for w, image in zip(weights, [x0, *known], strict=False))
        known = [x0, *known[:2]]
        h = places[i + 1] - places[i]
        tau2 = (tau if places[i + 1] <= at + 1e-12 else tau_low) ** 2
        k, nodes = 1 + tau2, [places[i - j] - places[i] for j in range(len(known))]
        base = math.exp(-k * h) * x
        if tau > 0 or tau_low > 0:
            base = base + sigmas[i + 1] * math.sqrt(1 - math.exp(-2 * tau2 * h)) * noise()
        if h <= longest and len({h, *nodes}) > len(nodes):
            ahead, back = adams(nodes, h, k), adams([h, *nodes], h, k)
        else:  # too long for polynomials, or of length zero: DPM-Solver++(2M), not corrected
            slope = -h / (2 * nodes[1]) if len(nodes) > 1 and nodes[1] else 0
            whole = 1 - math.exp(-k * h)
            ahead = [whole * (1 + slope), -whole * slope]
            back = [0, *ahead]
        x = base + sum(w * image for w, image in zip(ahead, known, strict=False))
        step = base, back
    return guide(x, sigmas[-1])


SAMPLERS = {
    "DDIM": ddim,
    "DDPM": ddim,
    "Euler": ddim,
    "Heun": heun,
    "DPMSolver": dpm_solver,
    "SASolver": sa_solver,
    "UniPC": sa_solver,
}


def walk_by(sampler, guide, x, sigmas, noise):
    """Walk as the library's `sampler` says it does."""
    settings = {field.name: getattr(sampler, field.name) for field in fields(sampler)}
    return SAMPLERS[type(sampler).__name__](guide, x, sigmas, noise, **settings)


class Tape:
    """Stands for `normal`: keeps what it deals, so that another walk can be dealt the same."""

    def __init__(self, seed=0):
        self.generator, self.dealt = torch.Generator().manual_seed(seed), []

    def __call__(self, shape, generator, *, dtype=torch.float32, device="cpu"):
        drawn = torch.randn(shape, generator=self.generator, dtype=dtype)
        self.dealt.append(drawn.flatten(1))
        return drawn

    def row(self, i):
        """Deal what row i got, call by call."""
        return iter([drawn[i] for drawn in self.dealt])
