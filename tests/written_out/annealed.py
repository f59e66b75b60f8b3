"""Annealed importance sampling for one image and a linear decoder, from the papers' formulas."""

import math

import torch
from scipy.optimize import brentq

from genprior.operators.random import normal, spawn, uniform


def annealed(solver, *, matrix, y, sigma, generator, samples):
    """Weighted particles of p(z | y) for y = matrix z + sigma n.

    Args:
        solver: For its settings.
        matrix: (m, d), y: (m,), sigma: float.
        generator: The image's.
        samples: Drawn at the end.
    Returns:
        The samples' latents (S, d), and log p(y), its variance, the effective sizes of particles
        and of their families, and the number of temperatures.
    """
    count = max(solver.particles, samples)
    own = spawn([generator], 1, per=count)

    def number():
        return float(uniform((1, 1), [generator], dtype=y.dtype, device="cpu"))

    def loss(z):
        return 0.5 * (y - z @ matrix.T).square().sum(1) / sigma**2

    z = normal((count, matrix.shape[1]), own, dtype=y.dtype, device="cpu")
    w = torch.full((count,), 1 / count, dtype=y.dtype)
    family = list(range(count))
    beta, log_evidence, variance, taken = 0.0, 0.0, 0.0, 0
    step = DualAveraging(0.5 * 2.5 / solver.leapfrog, target=0.8, most=2.5 / solver.leapfrog)
    while beta < 1:
        least = loss(z).min()
        above = loss(z) - least

        def kept(delta, w=w, above=above):
            v = (-delta * above).exp()
            return float((w * v).sum() ** 2 / (w * v**2).sum())

        left = 1 - beta
        if kept(left) >= solver.share:
            delta, beta = left, 1.0
        else:
            delta = brentq(lambda d: kept(d) - solver.share, 0, left, xtol=1e-14, rtol=1e-14)
            beta += delta
        v = (-delta * above).exp()
        mean = (w * v).sum()
        log_evidence += float(mean.log() - delta * least)
        variance += float((w**2 * (v / mean - 1) ** 2).sum())
        w, taken = w * v / mean, taken + 1
        places = (torch.arange(count) + number()) / count
        if 1 / float((w**2).sum()) < count / 2:
            drawn = torch.searchsorted(w.cumsum(0), places)
            z, family = z[drawn], [family[i] for i in drawn.tolist()]
            w = torch.full_like(w, 1 / count)
        for _ in range(solver.moves):
            middle = w @ z
            spread = (w @ (z - middle) ** 2).sqrt()
            z, rate = hamiltonian(
                z, beta * matrix.T @ matrix / sigma**2 + torch.eye(z.shape[1], dtype=y.dtype),
                beta * matrix.T @ y / sigma**2, spread, step.size, solver.leapfrog, own,
            )  # fmt: skip
            step.update(rate)
    of_family = [
        sum(float(p) for p, f in zip(w, family, strict=True) if f == g) for g in set(family)
    ]
    places = (torch.arange(samples) + number()) / samples
    chosen = torch.searchsorted(w.cumsum(0), places)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
    sizes = 1 / float((w**2).sum()), 1 / sum(share**2 for share in of_family)
    return z[chosen[order]], log_evidence, variance, sizes, taken


def hamiltonian(z, precision, linear, spread, size, leapfrog, generators):
    """One move of every row under U = z^T precision z / 2 - linear z; the mean acceptance too."""
    r = normal(z.shape, generators, dtype=z.dtype, device="cpu")
    u = uniform((len(z), 2), generators, dtype=z.dtype, device="cpu")
    epsilon = size * (0.8 + 0.4 * u[:, :1])

    def energy(z, r):
        potential = 0.5 * ((z @ precision) * z).sum(1) - z @ linear
        return potential + 0.5 * r.square().sum(1)

    start, q = energy(z, r), z
    for _ in range(leapfrog):
        r = r - epsilon / 2 * spread * (q @ precision - linear)
        q = q + epsilon * spread * r
        r = r - epsilon / 2 * spread * (q @ precision - linear)
    acceptance = (start - energy(q, r)).exp().clamp(max=1)
    return torch.where((u[:, 1] < acceptance)[:, None], q, z), float(acceptance.mean())


class DualAveraging:
    """The step size of Hoffman and Gelman 2014, section 3.2: gamma .05, t0 10, at most `most`."""

    def __init__(self, size, *, target, most):
        self.size, self.target, self.most = size, target, most
        self.mu, self.h, self.t = min(math.log(10 * size), math.log(most)), 0.0, 0

    def update(self, rate):
        self.t += 1
        self.h += (self.target - rate - self.h) / (self.t + 10)
        log_size = self.mu - math.sqrt(self.t) / 0.05 * self.h
        self.size = math.exp(min(log_size, math.log(self.most)))
