"""deepinv's and azula's diffusion solvers on any problem of ours, with the same network.

Each gets about `budget` evaluations (forwards plus vector-Jacobian products) for a sample, its
other settings as shipped, except that azula's noise levels are set to our pixel range.
Development-only dependencies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genprior.operators import GaussianNoise, LinearOperator, Problem, to_deepinv
from genprior.priors import DenoisingPrior
from genprior.solvers.base import Counted, image_shape

Peer = Callable[[Problem, Counted, int], Tensor]
"""(problem of R rows, counted prior, budget) -> R samples (R, C, H, W)."""


def _parts(problem: Problem) -> tuple[LinearOperator, float]:
    operator, noise = problem.operator, problem.noise
    assert isinstance(operator, LinearOperator)
    assert isinstance(noise, GaussianNoise)
    return operator, float(torch.as_tensor(noise.sigma))


def _deepinv(name: str) -> Peer:
    import deepinv

    class Model(deepinv.models.Denoiser):
        """Any sigma that deepinv passes: a number, (B,), (B, 1, 1, 1)."""

        def __init__(self, prior: Counted) -> None:
            super().__init__()
            self.prior = prior

        def forward(self, x: Tensor, sigma: Any, **_: object) -> Tensor:
            levels = torch.as_tensor(sigma, dtype=x.dtype).flatten()
            return self.prior.denoise(x, levels.expand(len(x)))

    def run(problem: Problem, prior: Counted, budget: int) -> Tensor:
        operator, sigma = _parts(problem)
        physics = to_deepinv(operator)
        physics.noise_model = deepinv.physics.GaussianNoise(sigma)
        model, fidelity = Model(prior), deepinv.optim.L2()
        if name == "DiffPIR":
            solver = deepinv.sampling.DiffPIR(model, fidelity, sigma=sigma, max_iter=budget)
            # y need not be an image: it starts from the pseudo-inverse
            with torch.no_grad():
                return solver(problem.y, physics, x_init=operator.pinv(problem.y))
        if name == "DPS":
            solver = deepinv.sampling.DPS(model, num_steps=budget // 2, dtype=torch.float32)
        else:
            kinds = {
                # forwards and products of a step: 1 and 1; 1 and 4
                "PiGDM": (deepinv.sampling.PiGDMDataFidelity(model), 2),
                "MomentMatching": (deepinv.sampling.MomentMatchingDataFidelity(model), 5),
            }
            guidance, cost = kinds[name]
            times = torch.linspace(1, 0, max(2, budget // cost))
            solver = deepinv.sampling.PosteriorDiffusion(
                data_fidelity=guidance,
                denoiser=model,
                sde=deepinv.sampling.VariancePreservingDiffusion(alpha=1.0, dtype=torch.float32),
                solver=deepinv.sampling.DDPMSolver(timesteps=times),
                dtype=torch.float32,
            )
        return solver(problem.y, physics, x_init=shape_of(problem, prior)).detach()

    return run


def shape_of(problem: Problem, prior: Counted) -> tuple[int, ...]:
    return (len(problem.y), *image_shape(problem, prior.prior))


def _azula(name: str) -> Peer:
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance import DiffPIRDenoiser, DPSSampler, MMPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.noise import VESchedule
    from azula.sample import DDIMSampler, DDPMSampler

    class Model(Denoiser):
        def __init__(self, prior: Counted) -> None:
            super().__init__()
            self.prior, self.schedule = prior, VESchedule(0.005, 20.0)

        def forward(self, x_t: Tensor, t: Tensor, **_: object) -> DiracPosterior:
            sigma = self.schedule(t)[1].flatten().to(x_t)
            return DiracPosterior(mean=self.prior.denoise(x_t, sigma.expand(len(x_t))))

    def run(problem: Problem, prior: Counted, budget: int) -> Tensor:
        operator, sigma = _parts(problem)
        seen = operator.observed
        weight = 1.0 if seen is None else seen.to(problem.y)

        def a(x: Tensor) -> Tensor:
            # unseen entries are zero on both sides: they carry no residual
            return weight * operator(x)

        y, model = weight * problem.y, Model(prior)
        variance = torch.tensor(sigma**2)
        settings: dict[str, Any] = {"silent": True, "dtype": torch.float32}
        if name == "DPS":
            sampler = DPSSampler(model, y, a, steps=budget // 2, **settings)
        elif name == "DiffPIR":
            guided = DiffPIRDenoiser(model, y, a, variance)
            sampler = DDPMSampler(guided, steps=budget, **settings)
        else:
            iterations = 3
            guided = MMPSDenoiser(
                model, y, a, IsotropicCovariance(variance), iterations=iterations
            )
            sampler = DDIMSampler(guided, eta=1.0, steps=budget // (2 + iterations), **settings)
        return sampler(sampler.init(shape_of(problem, prior))).detach()

    return run


PEERS: dict[str, tuple[Callable[[str], Peer], str]] = {
    "deepinv DPS": (_deepinv, "DPS"),
    "deepinv PiGDM": (_deepinv, "PiGDM"),
    "deepinv DiffPIR": (_deepinv, "DiffPIR"),
    "deepinv MomentMatching": (_deepinv, "MomentMatching"),
    "azula DPS": (_azula, "DPS"),
    "azula DiffPIR": (_azula, "DiffPIR"),
    "azula MMPS, 3 iterations": (_azula, "MMPS"),
}


def peer_samples(
    name: str, problem: Problem, prior: DenoisingPrior, count: int, *, budget: int
) -> tuple[Tensor, float, float]:
    """Draw `count` samples for each image.

    Returns:
        (B, count, C, H, W), and forwards and VJPs for each sample.
    """
    make, method = PEERS[name]
    batch = len(problem.y)
    rows = problem.take(torch.arange(batch).repeat_interleave(count))
    counted = Counted(prior)
    with torch.random.fork_rng():  # the peers draw from the global generator
        torch.manual_seed(0)
        x = make(method)(rows, counted, budget)
    per_sample = batch * count
    return (
        x.reshape(batch, count, *x.shape[1:]),
        counted.forwards / per_sample,
        counted.vjps / per_sample,
    )
