"""Every walk against the same walk written out for one image from its formulas.

Laws within a bar leave room for a wrong number; two ways to one result to rounding leave none.
"""

import math

import pytest
import torch
from tools import seeded
from written_out import walks
from written_out.dense import Dense
from written_out.samplers import Tape

import genprior
from genprior.operators import (
    Blur,
    Downsampling,
    GaussianNoise,
    Identity,
    Inpainting,
    Matrix,
    PoissonNoise,
    Problem,
    kernels,
)
from genprior.priors import Gaussian
from genprior.priors.samplers import DDPM, UniPC
from genprior.solvers import (
    DAPS,
    DDNM,
    DDRM,
    DPS,
    MMPS,
    SMC,
    DenoisingPosterior,
    DiffPIR,
    PiGDM,
    REDDiff,
    RePaint,
)
from genprior.solvers.testing import gaussian_field, noise_replaced

SHAPE = (1, 4, 4)
OPERATORS = {
    "mask": Inpainting(torch.rand(SHAPE, generator=seeded(1)) < 0.5),
    "blur": Blur(kernels.gaussian(0.8)[3:6, 2:6], SHAPE),
    "downsampling": Downsampling(2, SHAPE),
    "matrix": Matrix(2 * torch.randn(6, 16, generator=seeded(2)).double(), SHAPE),
    "identity": Identity(SHAPE),
    # sigma_y / s about the first level, 3.45, at the largest sigma_y
    "faint": Matrix(0.4 / 3.45 * torch.diag(torch.linspace(0.9, 1.1, 16)).double(), SHAPE),
}
EXACT = {"iterations": 24, "tolerance": 1e-13}
LINEAR = [
    (PiGDM(steps=7), walks.pigdm),
    (MMPS(steps=11, **EXACT), walks.mmps),
    (MMPS(steps=3, **EXACT), walks.mmps),
    (MMPS(steps=5, sampler=UniPC(), **EXACT), walks.mmps),
    (MMPS(steps=6, sampler=DDPM(), **EXACT), walks.mmps),
    (MMPS(steps=9, returns=2, **EXACT), walks.mmps),
    (MMPS(steps=20, steer=20.0, **EXACT), walks.steered),
    (DAPS(steps=7), walks.daps),
    (DAPS(steps=11, flow_steps=3), walks.daps),
    (DAPS(steps=6, flow_steps=2), walks.daps),
    (DiffPIR(steps=7, lam=0.7, zeta=0.3), walks.diffpir),
    (DiffPIR(steps=6, ddpm_levels=True), walks.diffpir),
    (DDNM(steps=7), walks.ddnm),
    (DDNM(steps=7, as_published=True), walks.ddnm),
    (DDRM(steps=7), walks.ddrm),
    (DDRM(steps=7, eta=0.8, eta_b=0.9), walks.ddrm),
    (DDRM(steps=7, as_published=True, smallest=0.2), walks.ddrm),
    (DPS(steps=7, zeta=0.8), walks.dps),
    (REDDiff(steps=7), walks.reddiff),
    (REDDiff(steps=7, ddpm_levels=True), walks.reddiff),
]
CASES = [
    (solver, walk, kind)
    for solver, walk in LINEAR
    for kind in ("mask", "blur", "downsampling", "matrix")
]
CASES += [
    (solver, walk, f"{kind}, photons")
    for solver, walk in ((DPS(steps=7), walks.dps), (REDDiff(steps=7), walks.reddiff))
    for kind in ("mask", "blur")
]
CASES += [(solver, walk, "faint") for solver, walk in LINEAR if isinstance(solver, DDNM | DDRM)]
STEERED = [MMPS(steps=n, steer=s, **EXACT) for n, s in ((2, 20.0), (8, 1.5), (20, 20.0))]
CASES += [(solver, walks.steered, "mask, wide") for solver in STEERED]
CASES += [(PiGDM(steps=5), walks.pigdm, "mask, wide")]
CASES += [(RePaint(steps=21, repeats=3), walks.repaint, "mask")]
CASES += [(DenoisingPosterior(steps=7), walks.denoising, "identity")]


class Wide(Gaussian):
    """Denoises at any noise level."""

    sigma_range = (0.0, math.inf)


def posed(kind):
    """A prior of unlike pixels, and a problem for each of three noise levels."""
    prior, _ = gaussian_field(11)
    if "wide" in kind:
        prior = Wide(prior.mean, prior.factors, residual=prior.residual)
    operator = OPERATORS[kind.split(",")[0]]
    noise = GaussianNoise(torch.tensor([0.002, 0.03, 0.4], dtype=torch.float64))
    if "photons" in kind:
        noise = PoissonNoise(torch.tensor([300.0, 20.0, 0.1], dtype=torch.float64))
    x = prior.sample(3, generator=seeded(3)).clamp(min=0.01)
    return prior, Problem.simulate(x, operator, noise, generator=seeded(4))


@pytest.mark.filterwarnings("ignore:.*have not converged")
@pytest.mark.parametrize(
    ("solver", "walk", "kind"),
    CASES,
    ids=[f"{walk.__name__} {i}, {kind}" for i, (_, walk, kind) in enumerate(CASES)],
)
def test_walk_is_the_one_written_out(solver, walk, kind):
    """Catches any number or sign of a walk, its levels, start and trace, however small its share
    in the law; and any that is right for one operator or noise level only."""
    prior, problem = posed(kind)
    tape = Tape()
    with noise_replaced(tape):
        found = solver(problem, prior)
    for i in range(3):
        p = Dense.of(prior, problem.take(torch.tensor([i])), tape.row(i))
        x = walk(solver, p)
        torch.testing.assert_close(found.samples[i, 0].flatten(), x, rtol=1e-5, atol=1e-7)
        assert next(p.dealt, None) is None, "draws noise that the formula has not"
        sigmas = torch.tensor([*(s for s, *_ in p.record), 0.0], dtype=torch.float64)
        torch.testing.assert_close(found.trace["sigma"][:, i], sigmas)
        unit = p.sigma_y * len(p.y) ** 0.5
        p.noticed(0.0, x, p.weights(x, most=math.inf))
        norms = torch.stack([(w * p.residual(x0)).norm() / unit for _, x0, w in p.record])
        torch.testing.assert_close(found.trace["residual"][:, i], norms, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore:.*have not converged")
@pytest.mark.parametrize("kind", ["mask", "blur", "matrix"])
@pytest.mark.parametrize("entries", [0, 16])
def test_particles_are_those_written_out(entries, kind, monkeypatch):
    """Catches weights of the wrong sign, ratio or twist, and resampling from wrong places."""
    prior, problem = posed(kind)
    solver, samples = SMC(steps=7, particles=12, exact_entries=entries), 3
    tape, drawn = Tape(), []

    def uniform(shape, generator, **kind):
        drawn.append(torch.rand(shape, generator=tape.generator, **kind))
        return drawn[-1]

    monkeypatch.setattr(genprior.operators.random, "uniform", uniform)
    with noise_replaced(tape):
        found = solver(problem, prior, num_samples=samples)
    halved = []
    for i in range(3):
        p = Dense.of(prior, problem.take(torch.tensor([i])), tape.row(i))
        uniforms = iter([float(u[i, 0]) for u in drawn])
        x, effective, families = walks.smc(solver, p, uniforms=uniforms, samples=samples)
        torch.testing.assert_close(found.samples[i].flatten(1), x, rtol=1e-5, atol=1e-7)
        assert found.trace["effective"][:, i].tolist() == pytest.approx(effective)
        assert float(found.trace["families"][0, i]) == pytest.approx(families)
        halved += [size < solver.particles / 2 for size in effective[:-1]]
        unit = p.sigma_y * len(p.y) ** 0.5
        norms = [((p.y - x0 @ p.a.T).norm(dim=1) / unit).mean() for _, x0, _ in p.record]
        torch.testing.assert_close(found.trace["residual"][:-1, i], torch.stack(norms))
    assert 0.1 < sum(halved) / len(halved) < 0.9, "one case of resampling is not tried"


@pytest.mark.filterwarnings("ignore:.*have not converged")
@pytest.mark.parametrize("solver", [solver for solver, _ in LINEAR], ids=repr)
def test_levels_that_do_not_fall(solver):
    """Catches 0 / 0 in a step of length zero: a prior that denoises at one level only."""
    prior, problem = posed("mask")
    narrow = Wide(prior.mean, prior.factors, residual=prior.residual)
    narrow.sigma_range = (0.2, 0.2)
    found = solver(problem, narrow, generator=seeded())
    assert found.samples.isfinite().all()
    if not getattr(solver, "ddpm_levels", False) and not getattr(solver, "as_published", False):
        sigmas = found.trace["sigma"][:-1]
        torch.testing.assert_close(sigmas, torch.full_like(sigmas, 0.2))
