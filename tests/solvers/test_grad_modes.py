"""Solvers where the caller has gradients off, half precision, and images that break."""

import pytest
import torch
from tools import identical, linear_vae, pose, problems, randn, seeded

from genprior.operators import Blur, GaussianNoise, Operator, Problem
from genprior.priors import Diffusion, Gaussian
from genprior.priors.diffusion.unet import UNet
from genprior.solvers import DAPS, DDRM, DPS, MMPS, ExactPosterior, LatentMAP, LatentSampler

SHAPE = (2, 4, 6)
SHORT = LatentSampler(steps=8, warm_up=20, chains=2, leapfrog=2)


def blurred():
    kernel = torch.tensor([[0.1, 0.8, 0.1]], dtype=torch.float64)
    operator = Blur(kernel, SHAPE)
    sigma = torch.tensor([0.05, 0.2], dtype=torch.float64)
    x = 0.5 + 0.2 * randn(2, *SHAPE)
    return Problem.simulate(x, operator, GaussianNoise(sigma), generator=seeded(1))


def gaussian():
    mean = torch.full(SHAPE, 0.5, dtype=torch.float64)
    return Gaussian(mean, 0.1 * randn(3, *SHAPE), residual=0.1)


def diffusion():
    return Diffusion(UNet(2, widths=(8,), blocks=(1,)), SHAPE, data_std=0.3).double()


def vae():
    return linear_vae(SHAPE)


PAIRS = [
    (MMPS(steps=3), diffusion),
    (DPS(steps=3), gaussian),
    (SHORT, vae),
    (LatentMAP(steps=3, restarts=1), vae),
    (ExactPosterior(), gaussian),
]


@pytest.mark.parametrize(("solver", "build"), PAIRS, ids=lambda p: getattr(p, "__name__", ""))
def test_inference_mode_changes_nothing(solver, build):
    """Catches gradients of tensors that have none: of y, of weights, of what an operator keeps."""
    problem, prior = blurred(), build()

    def solve(problem, prior):
        return solver(problem, prior, generator=seeded()).samples

    expected = solve(problem, prior)
    with torch.inference_mode():
        inside, prior_inside = blurred(), build()
        assert identical(solve(inside, prior), expected)
        assert identical(solve(problem, prior_inside), expected)
        problem.operator(problem.operator.adjoint(problem.y))  # it may keep what it computed
    assert identical(solve(problem, prior), expected)
    assert identical(solve(inside, prior_inside), expected)
    with torch.no_grad():
        assert identical(solve(problem, prior), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["circular blur", "valid blur", "downsampling"])
def test_half_precision_through_fourier_transforms(name, dtype):
    """Catches transforms that no processor has in half precision."""
    operator = problems()[name]
    fine = pose(operator)
    half = Problem(fine.y.to(dtype), operator.copy_to(dtype=dtype), GaussianNoise(0.2))
    fine = Problem(half.y.double(), operator, GaussianNoise(0.2))
    unit = torch.finfo(dtype).eps * float(fine.y.abs().max())
    x, adjoint = fine.operator.pinv(fine.y).to(dtype), half.operator.adjoint(half.y)
    assert adjoint.dtype == half.operator(x).dtype == dtype
    assert (half.operator(x).double() - operator(x.double())).abs().max() < 2 * unit
    assert (adjoint.double() - operator.adjoint(fine.y)).abs().max() < 2 * unit
    prior = gaussian()
    expected = ExactPosterior()(fine, prior).mean
    for solver in (ExactPosterior(), MMPS(steps=40), DDRM(steps=40), SHORT):
        if solver.serves(prior) and not (name == "valid blur" and isinstance(solver, DDRM)):
            found = solver(half, gaussian().to(dtype), num_samples=1, generator=seeded())
            assert found.mean.dtype == dtype
            assert found.mean.isfinite().all()
    mean = ExactPosterior()(half, gaussian().to(dtype)).mean
    assert (mean.double() - expected).abs().max() < 20 * torch.finfo(dtype).eps


class Rounded(Operator):
    """Torch's rounding has a derivative of 0, which has none; numpy has none at all."""

    def __init__(self, through_numpy):
        super().__init__(SHAPE, SHAPE)
        self.through_numpy = through_numpy

    def forward(self, x):
        x = torch.from_numpy(x.detach().numpy()) if self.through_numpy else x
        return (8 * x).round() / 8


@pytest.mark.parametrize(
    ("solver", "through_numpy"),
    [(DAPS(steps=3), False), (DAPS(steps=3), True), (DPS(steps=3), True), (SHORT, True)],
    ids=repr,
)
def test_an_operator_without_a_gradient_is_named(solver, through_numpy):
    """Catches torch's own words about element 0 of tensors."""
    y = 0.5 + 0.2 * randn(1, *SHAPE)
    problem = Problem(y, Rounded(through_numpy), GaussianNoise(0.05))
    with pytest.raises(TypeError, match=r"one gives none \(Rounded, Gaussian\): write them with"):
        solver(problem, gaussian(), generator=seeded())


class Breaking(Gaussian):
    """Decodes the first `broken` rows to NaN."""

    broken = 0

    def decode(self, z):
        x = super().decode(z)
        bad = torch.arange(len(x), device=x.device) < self.broken
        return x * torch.where(bad, torch.nan, 1.0)[:, None, None, None].to(x)


def test_nan_of_one_image_leaves_the_others():
    """Catches one image whose decoder breaks and ends the chains of the whole batch."""
    mean = torch.full((1, 4, 4), 0.5, dtype=torch.float64)
    prior = Breaking(mean, 0.2 * randn(2, 1, 4, 4), residual=0.1)
    problem = pose(problems((1, 4, 4))["identity"], (1, 4, 4), count=2)
    chains = LatentSampler(steps=40, warm_up=60, chains=2, leapfrog=4)
    expected = chains(problem, prior, num_samples=2, generator=[seeded(0), seeded(1)])
    prior.broken = 2  # both chains of the first image, and of it alone
    found = chains(problem, prior, num_samples=2, generator=[seeded(0), seeded(1)])
    assert not found.converged[0]
    torch.testing.assert_close(found.latents[1], expected.latents[1])
    assert found.converged[1] == expected.converged[1]
