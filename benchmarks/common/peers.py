"""deepinv's and azula's diffusion solvers on the Gaussian problems of truth.py, table 1a.

Their defaults, except that azula's noise levels are set to the pixel range (20 to .005) and its
numbers of steps to ours. Development-only dependencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from genprior.metrics import gaussian_kl
from genprior.operators import Problem
from genprior.priors import Gaussian
from genprior.solvers.testing import gaussian_field, posterior_law

Run = Callable[[Gaussian, Problem, int], Tensor]
DRAWS = 1000


def _deepinv(name: str) -> Run:
    import deepinv

    class Model(deepinv.models.Denoiser):
        """The exact denoiser behind deepinv's interface."""

        def __init__(self, prior: Gaussian) -> None:
            super().__init__()
            self.prior = prior

        def forward(self, x: Tensor, sigma: float | Tensor, **_: object) -> Tensor:
            sigma = torch.as_tensor(sigma, dtype=x.dtype).flatten()
            return self.prior.denoise(x, sigma if len(sigma) > 1 else sigma[0])

    def run(prior: Gaussian, problem: Problem, seed: int) -> Tensor:
        torch.manual_seed(seed)
        mask = problem.operator.observed[0].double()  # type: ignore[index]
        sigma = float(problem.noise.sigma)  # type: ignore[attr-defined]
        noise = deepinv.physics.GaussianNoise(sigma)
        physics = deepinv.physics.Inpainting(
            (1, 4, 4),  # type: ignore[arg-type]
            mask=mask,
            noise_model=noise,
        )
        y = problem.y.expand(DRAWS, -1, -1, -1).clone()
        fidelity = deepinv.optim.L2()
        if name == "DDRM":
            return deepinv.sampling.DDRM(Model(prior))(y, physics)
        if name == "DiffPIR":
            return deepinv.sampling.DiffPIR(Model(prior), fidelity, sigma=sigma)(y, physics)
        return deepinv.sampling.DPS(Model(prior), num_steps=1000)(y, physics)

    return run


def _azula(name: str) -> Run:
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance import DiffPIRDenoiser, DPSSampler, MMPSDenoiser, PGDMSampler
    from azula.linalg.covariance import IsotropicCovariance
    from azula.noise import VESchedule
    from azula.sample import DDIMSampler, DDPMSampler

    class Model(Denoiser):
        """The exact denoiser behind azula's interface."""

        def __init__(self, prior: Gaussian) -> None:
            super().__init__()
            self.prior, self.schedule = prior, VESchedule(0.005, 20.0)

        def forward(self, x_t: Tensor, t: Tensor, **_: object) -> DiracPosterior:
            return DiracPosterior(mean=self.prior.denoise(x_t, self.schedule(t)[1].flatten()[0]))

    def run(prior: Gaussian, problem: Problem, seed: int) -> Tensor:
        torch.manual_seed(seed)
        seen = problem.operator.observed[0].flatten()  # type: ignore[index]
        y = problem.y[0].flatten()[seen].expand(DRAWS, -1)
        variance = torch.tensor(float(problem.noise.sigma) ** 2).double()  # type: ignore

        def a(x: Tensor) -> Tensor:
            return x.flatten(1)[:, seen]

        def a_inv(v: Tensor) -> Tensor:
            x = torch.zeros(len(v), 16, dtype=v.dtype)
            x[:, seen] = v
            return x.reshape(-1, 1, 4, 4)

        model = Model(prior)
        settings = {"silent": True, "dtype": torch.float64}
        if name.startswith("MMPS"):
            iterations = 1 if name == "MMPS" else 5
            guided = MMPSDenoiser(
                model, y, a, IsotropicCovariance(variance), iterations=iterations
            )
            sampler = DDIMSampler(guided, eta=1.0, steps=20, **settings)
        elif name == "DiffPIR":
            guided = DiffPIRDenoiser(model, y, a, variance)
            sampler = DDPMSampler(guided, steps=100, **settings)
        elif name == "PiGDM":
            sampler = PGDMSampler(model, y, a, a_inv, eta=1.0, steps=100, **settings)
        else:
            sampler = DPSSampler(model, y, a, steps=1000, **settings)
        x = sampler.init((DRAWS, 1, 4, 4))
        return sampler(x)

    return run


PEERS: dict[str, tuple[Callable[[str], Run], str]] = {
    "deepinv DDRM": (_deepinv, "DDRM"),
    "deepinv DiffPIR": (_deepinv, "DiffPIR"),
    "deepinv DPS, 1000": (_deepinv, "DPS"),
    "azula MMPS, 20": (_azula, "MMPS"),
    "azula MMPS, 20 x 5": (_azula, "MMPS5"),
    "azula PiGDM, 100": (_azula, "PiGDM"),
    "azula DiffPIR, 100": (_azula, "DiffPIR"),
    "azula DPS, 1000": (_azula, "DPS"),
}


def peer_rows(seeds: range) -> Iterable[dict[str, object]]:
    """Mean KL over problems, and variance ratios, as in table 1a; 1000 samples."""
    for name, (make, method) in PEERS.items():
        run, kls, ratios = make(method), [], []
        for seed in seeds:
            prior, problem = gaussian_field(seed, sigma=0.05)
            mean, covariance = posterior_law(prior, problem)
            with torch.random.fork_rng():
                x = run(prior, problem, seed).detach().flatten(1)
            found = torch.cov(x.T)
            kls.append(float(gaussian_kl(x.mean(0), found, mean, covariance)))
            seen = problem.operator.observed.flatten()  # type: ignore[union-attr]
            ratio = found.diag() / covariance.diag()
            ratios.append((float(ratio[seen].mean()), float(ratio[~seen].mean())))
        kl = torch.tensor(kls, dtype=torch.float64)
        observed, missing = torch.tensor(ratios, dtype=torch.float64).mean(0).tolist()
        yield {
            "table": "1a",
            "case": "sigma 0.05",
            "solver": name,
            "KL of samples": float(kl.mean()),
            "se": float(kl.std() / math.sqrt(len(kls))),
            "variance seen": observed,
            "variance missing": missing,
        }
