"""Every diffusion solver against the posterior of a Gaussian, known in closed form."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from genprior.metrics import gaussian_kl
from genprior.operators import Problem
from genprior.operators.random import normal
from genprior.priors import Gaussian
from genprior.solvers import DAPS, DDNM, DDRM, DPS, MMPS, SMC, DiffPIR, PiGDM, RePaint, Solver
from genprior.solvers.spectral import Spectral
from genprior.solvers.testing import affine_law, gaussian_field, noise_replaced, posterior_law


def affine(solver, problem, prior, scale=1.0):
    """Exact law of the samples; `scale` multiplies all noise drawn."""
    mean, covariance = affine_law(solver, problem, prior)
    return mean, scale**2 * covariance


def sampled(solver, problem, prior, scale=1.0):
    """Moments of 500 samples, for walks that are not affine in their noise."""

    def scaled(*args, **keywords):
        return scale * normal(*args, **keywords)

    generator = torch.Generator().manual_seed(0)
    with noise_replaced(scaled):
        result = solver(problem, prior, num_samples=500, batch_size=500, generator=generator)
    x = result.samples[0].flatten(1)
    return x.mean(0), torch.cov(x.T)


@dataclass(frozen=True)
class Bar:
    """What a solver must reach: KL from the posterior, variance over the posterior's."""

    solver: Solver
    kl: float
    variance: tuple[float, float]
    law: Callable = affine
    sigma: tuple[float, ...] = (0.01, 0.05, 0.2)

    def passes(self, *, sigma=0.05, scale=1.0):
        prior, problem = gaussian_field(900, sigma=sigma)
        mean, covariance = posterior_law(prior, problem)
        found_mean, found = self.law(self.solver, problem, prior, scale=scale)
        kl = float(gaussian_kl(found_mean, found, mean, covariance))
        ratio = float((found.diag() / covariance.diag()).mean())
        low, high = self.variance
        return kl < self.kl and low < ratio < high, (kl, ratio)


# Population figures, except DPS and SMC (500 samples, whose own error adds .15 to the KL).
BARS = {
    "MMPS": Bar(MMPS(iterations=8, tolerance=1e-9), 0.01, (0.97, 1.05)),
    "PiGDM": Bar(PiGDM(), 0.3, (0.85, 1.2)),
    "DAPS": Bar(DAPS(), 0.1, (0.95, 1.1)),
    "DiffPIR": Bar(DiffPIR(), 0.5, (0.75, 1.1)),
    "DDNM": Bar(DDNM(), 1.2, (0.75, 1.3), sigma=(0.01, 0.05)),
    "DDRM": Bar(DDRM(), 1.2, (0.6, 1.0), sigma=(0.01, 0.05)),
    "RePaint": Bar(RePaint(), 0.4, (0.8, 1.05)),
    "SMC": Bar(SMC(particles=1000), 0.6, (0.8, 1.15), law=sampled, sigma=(0.05,)),
    "DPS": Bar(DPS(), 3.0, (0.75, 1.7), law=sampled),
}


@pytest.mark.parametrize("name", BARS)
def test_samples_have_the_posterior_law(name):
    """Catches wrong noise, wrong guidance and a grid that does not follow the noise."""
    bar = BARS[name]
    for sigma in bar.sigma:
        passed, figures = bar.passes(sigma=sigma)
        assert passed, (sigma, figures)


@pytest.mark.parametrize("name", BARS)
def test_noise_scaled_by_root_two_is_noticed(name):
    """Catches bars so wide that the fault of a well-known DDRM passes."""
    for scale in (2**0.5, 2**-0.5):
        passed, figures = BARS[name].passes(scale=scale)
        assert not passed, (scale, figures)


@pytest.mark.parametrize("name", BARS)
def test_halved_guidance_is_noticed(name, monkeypatch):
    """Catches bars so wide that half the pull towards y passes."""
    if name in ("DDNM", "DDRM"):
        replace = Spectral.replace

        def half(self, x, coefficients):
            return x + 0.5 * (replace(self, x, coefficients) - x)

        monkeypatch.setattr(Spectral, "replace", half)
    elif name == "RePaint":
        put_back = staticmethod(lambda mask, a, b: torch.where(mask, (a + b) / 2, b))
        monkeypatch.setattr(RePaint, "_put_back", put_back)
    elif name == "DPS":
        zeta = DPS._zeta
        monkeypatch.setattr(DPS, "_zeta", lambda *a: zeta(*a) / 2)
    else:
        residual = Problem.residual
        monkeypatch.setattr(Problem, "residual", lambda self, x: residual(self, x) / 2)
    passed, figures = BARS[name].passes()
    assert not passed, figures


@pytest.mark.parametrize("name", BARS)
def test_sigma_in_other_units_is_noticed(name, monkeypatch):
    """Catches a denoiser told of sigma in units of [-1, 1]."""
    denoise = Gaussian.denoise
    monkeypatch.setattr(Gaussian, "denoise", lambda self, x, sigma: denoise(self, x, 2 * sigma))
    passed, figures = BARS[name].passes()
    assert not passed, figures
