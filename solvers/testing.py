"""Checks that every solver must pass, and the truth to hold it against, for one's own class too.

from genprior.operators.base import Shape
from genprior.solvers.testing import affine_law, check_solver, gaussian_field, posterior_law

def test_my_solver():
    check_solver(MySolver())
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from genprior.operators import GaussianNoise, Inpainting, LinearOperator, Problem
from genprior.operators.base import Shape
from genprior.priors import DenoisingPrior, Gaussian
from genprior.solvers.base import Solver
from genprior.solvers.result import Result

NORMAL = "genprior.operators.random"
"""Where `normal` is defined."""

COUNT = 3
"""Images in a batch."""


def gaussian_field(
    seed: int,
    *,
    sigma: float | Tensor = 0.05,
    observed: int = 8,
    size: int = 4,
    smooth: float = 0.0,
    operator: LinearOperator | None = None,
) -> tuple[Gaussian, Problem]:
    """Draw a Gaussian prior on square images and one problem under it, float64.

    Pixels have means .3 to .7 and standard deviations .1 to .2, correlated as exp(-distance /
    length) with a length of 1 to 3 pixels.

    Args:
        seed: Draws prior, mask, truth and noise.
        sigma: Of the measurement noise.
        observed: Pixels seen, of size^2, where no operator is given.
        size: Height and width.
        smooth: If above 0, the length in pixels of a Matern 5/2 correlation instead, which hangs
            together over long distances.
        operator: For images (1, size, size); inpainting if None.
    """
    g = torch.Generator().manual_seed(seed)
    pixels = size**2

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    places = torch.cartesian_prod(*[torch.arange(size, dtype=torch.float64)] * 2)
    length, std = 1 + 2 * uniform(1), 0.1 + 0.1 * uniform(pixels)
    distance = torch.cdist(places, places)
    correlation = torch.exp(-distance / length)
    if smooth > 0:
        r = 5**0.5 * distance / smooth
        correlation = (1 + r + r**2 / 3) * torch.exp(-r)
    covariance = std[:, None] * std * correlation
    prior = Gaussian.from_covariance(0.3 + 0.4 * uniform(1, size, size), covariance)
    mask = torch.zeros(pixels, dtype=torch.bool)
    mask[torch.randperm(pixels, generator=g)[:observed]] = True
    x = prior.sample(1, generator=g)
    operator = operator or Inpainting(mask.reshape(1, size, size))
    return prior, Problem.simulate(x, operator, GaussianNoise(sigma), generator=g)


def posterior_law(prior: Gaussian, problem: Problem) -> tuple[Tensor, Tensor]:
    """Return the mean (d,) and covariance (d, d) of p(x | y) for one measurement.

    By dense algebra, independent of `Gaussian.posterior`.
    """
    operator = problem.linear_operator
    law = prior.law(torch.float64)
    eye = torch.eye(law.dimension, dtype=torch.float64)
    prior_covariance = law.factors.T @ law.factors + law.residual**2 * eye
    a = operator.dense_matrix(problem.y).reshape(-1, law.dimension)
    y = problem.y[0].flatten()
    if operator.observed is not None:
        seen = operator.observed.expand_as(problem.y)[0].flatten()
        a, y = a[seen], y[seen]
    noise_covariance = problem.sigma**2 * torch.eye(len(y), dtype=torch.float64)
    gain = prior_covariance @ a.T @ torch.linalg.inv(a @ prior_covariance @ a.T + noise_covariance)
    mean = law.mean
    return mean + gain @ (y - a @ mean), prior_covariance - gain @ a @ prior_covariance


class _UnitVectors:
    """Stands for `normal`: counts the numbers drawn, or deals each call its unit vectors."""

    def __init__(self, deal: bool) -> None:
        self.deal, self.drawn = deal, 0

    def __call__(
        self,
        shape: tuple[int, ...],
        generator: Any,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        size = torch.Size(shape[1:]).numel()
        out = torch.zeros(shape[0], size, dtype=dtype, device=device)
        if self.deal:
            out[1 + self.drawn : 1 + self.drawn + size] = torch.eye(size, dtype=dtype)
        self.drawn += size
        return out.reshape(shape)


@contextmanager
def noise_replaced(function: Callable[..., Tensor]) -> Iterator[None]:
    """Put `function` in the place of `operators.random.normal` wherever noise is drawn."""
    modules = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("genprior.") and "normal" in vars(module) and name != NORMAL
    ]
    originals = [vars(module)["normal"] for module in modules]
    try:
        for module in modules:
            vars(module)["normal"] = function
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            vars(module)["normal"] = original


def affine_law(solver: Solver, problem: Problem, prior: Gaussian) -> tuple[Tensor, Tensor]:
    """Return the exact mean (d,) and covariance (d, d) of a solver's samples.

    On a Gaussian prior a guidance that is linear in y - A x0 makes each step affine in x and in
    the noise drawn, so a sample is a + L n with n standard normal. Unit vectors sent through in
    place of n give a and L: the law N(a, L L^T) without any Monte Carlo error.

    Args:
        solver: Affine in its noise; solved with one generator for each sample.
        problem: One measurement.
        prior: Gaussian.
    """
    counted = _UnitVectors(deal=False)
    with noise_replaced(counted):
        solver(problem, prior)
    rows = 1 + counted.drawn
    with noise_replaced(_UnitVectors(deal=True)):
        result = solver(problem, prior, num_samples=rows, batch_size=rows)
    x = result.samples[0].flatten(1)
    columns = x[1:] - x[0]
    return x[0], columns.T @ columns


class Failing(DenoisingPrior):
    """A denoiser that returns NaN for image 1 of a batch of `COUNT` below some noise level."""

    def __init__(self, prior: Gaussian, *, below: float) -> None:
        super().__init__()
        self.prior: Gaussian = prior
        self.below: float = below
        self.image_shape: Shape = prior.image_shape
        self.sigma_range: tuple[float, float] = prior.sigma_range
        self.data_mean: Tensor = prior.data_mean
        self.data_std: Tensor = prior.data_std

    @property
    def config(self) -> dict[str, Any]:
        return {}

    def sample(self, n: int, *, size: Any = None, generator: Any = None) -> Tensor:
        return self.prior.sample(n, size=size, generator=generator)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        x0 = self.prior.denoise(x, sigma)
        image = torch.arange(len(x), device=x.device) * COUNT // len(x)
        low = torch.as_tensor(sigma, device=x.device) < self.below
        broken = ((image == 1) & low)[:, None, None, None]
        return torch.where(broken, torch.nan, 1.0) * x0


def check_solver(
    solver: Solver,
    *,
    device: torch.device | str = "cpu",
    operator: LinearOperator | None = None,
) -> None:
    """Run every check on problems of a small Gaussian prior.

    Whether it converges, and to the right law, is not looked at: `converged` may be False.

    Args:
        solver: Give it few steps; statistics are not looked at.
        device: Where to run.
        operator: For images 1x4x4; inpainting, a mask for each image, if None.
    Raises:
        AssertionError: A promise is broken; the message says which.
    """
    prior, problem = _batch(torch.device(device), operator)
    for check in (check_repeats, check_rows, check_chunks, check_inputs, check_counts):
        check(solver, problem, prior)
    if DenoisingPrior in solver.needs:
        check_failing_network(solver, problem, prior)


def _batch(device: torch.device, operator: LinearOperator | None) -> tuple[Gaussian, Problem]:
    """Images with noise levels, and masks if no operator is given, of their own."""
    prior, _ = gaussian_field(1)
    if operator is None:
        operators = [gaussian_field(i)[1].operator for i in range(COUNT)]
        operator = Inpainting(torch.cat([o.mask for o in operators if isinstance(o, Inpainting)]))
    x = prior.sample(COUNT, generator=torch.Generator().manual_seed(2))
    noise = GaussianNoise(torch.tensor([0.02, 0.05, 0.2], dtype=torch.float64))
    problem = Problem.simulate(x, operator, noise, generator=torch.Generator().manual_seed(3))
    return prior.to(device), problem.to(device)


def _solve(solver: Solver, problem: Problem, prior: Any, **keywords: Any) -> Result:
    """Solve with a generator for each image, seeded alike every time."""
    generators = [torch.Generator().manual_seed(10 + i) for i in range(COUNT)]
    samples = 1 if solver.point_estimate else 2
    keywords = {"num_samples": samples, "generator": generators, **keywords}
    result = solver(problem, prior, **keywords)
    name, shape, count = type(solver).__name__, result.samples.shape, len(problem.y)
    wanted = (count, keywords["num_samples"], *prior.image_shape)
    assert shape == wanted, f"{name} gave samples {tuple(shape)}, not {wanted}"
    assert result.converged.dtype == torch.bool, (
        f"converged is {result.converged.dtype}, not bool: one True or False for each image"
    )
    assert result.converged.shape == (count,), (
        f"converged has shape {tuple(result.converged.shape)}, not ({count},), one an image"
    )
    return result


def _same(a: Tensor, b: Tensor, message: str) -> None:
    torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda m: f"{message}: {m}")


def check_repeats(solver: Solver, problem: Problem, prior: Gaussian) -> None:
    """The same generators give the same samples; the global one is not touched."""
    before = torch.random.get_rng_state()
    first, second = (_solve(solver, problem, prior) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator moved"
    _same(first.samples, second.samples, "the same generators gave other samples")
    kind, wanted = [(t.dtype, t.device) for t in (first.samples, problem.y)]
    assert kind == wanted, f"samples are {kind}, but y is {wanted}"
    assert bool(first.samples.isfinite().all()), "samples are NaN or infinite"
    if not solver.point_estimate:
        apart = (first.samples[:, 0] - first.samples[:, 1]).abs().max()
        assert apart > 1e-6, (
            "the samples of an image are copies of one another"
        )  # not by rounding alone


def check_rows(solver: Solver, problem: Problem, prior: Gaussian) -> None:
    """Image i alone gives what image i of a batch gives: no norm or test spans the batch."""
    whole = _solve(solver, problem, prior)
    for i in range(COUNT):
        one = _solve(
            solver,
            problem.take(torch.tensor([i], device=problem.y.device)),
            prior,
            generator=[torch.Generator().manual_seed(10 + i)],
        )
        _same(one.samples[0], whole.samples[i], f"image {i} depends on its neighbours")


def check_chunks(solver: Solver, problem: Problem, prior: Gaussian) -> None:
    """Samples do not depend on how rows are grouped."""
    whole = _solve(solver, problem, prior)
    for batch_size in (1, 3):
        parts = _solve(solver, problem, prior, batch_size=batch_size)
        _same(parts.samples, whole.samples, f"batch_size={batch_size} gives other samples")


def check_inputs(solver: Solver, problem: Problem, prior: Gaussian) -> None:
    """y, operator, noise and prior are as they were."""
    state = {**problem.operator.state_dict(), **prior.state_dict(), "y": problem.y}
    before = copy.deepcopy(state)
    _solve(solver, problem, prior)
    after = {**problem.operator.state_dict(), **prior.state_dict(), "y": problem.y}
    for name, value in before.items():
        assert torch.equal(value, after[name]), f"{name} was changed"


def check_counts(solver: Solver, problem: Problem, prior: Gaussian) -> None:
    """`forwards` is the number of images the network saw, for each sample."""
    seen = 0
    original = type(prior).denoise

    def denoise(self: Gaussian, x: Tensor, sigma: float | Tensor) -> Tensor:
        nonlocal seen
        seen += len(x)
        return original(self, x, sigma)

    watched = copy.deepcopy(prior)
    vars(watched)["denoise"] = denoise.__get__(watched)
    result = _solve(solver, problem, watched)
    if DenoisingPrior in solver.needs:
        expected = seen / result.samples[:, :, 0, 0, 0].numel()
        assert result.forwards == expected, f"{result.forwards} counted, {expected} made"


def check_failing_network(solver: Solver, problem: Problem, prior: Gaussian) -> None:
    """NaN for one image leaves the others as they were and says so."""
    sound = _solve(solver, problem, prior)
    broken = _solve(solver, problem, Failing(prior, below=0.1))
    others = torch.tensor([True, False, True], device=problem.y.device)
    expected = sound.converged & others
    assert torch.equal(broken.converged, expected), f"converged is {broken.converged.tolist()}"
    assert bool(broken.samples.isfinite().all()), "NaN reached the samples"
    for i in (0, 2):
        _same(broken.samples[i], sound.samples[i], f"image 1 failed and image {i} changed")
    failed = broken.trace["residual"][:, 1].isnan()
    assert bool(failed.any()), "the trace does not show where the network failed"
    first = int(failed.nonzero()[0])
    assert bool(failed[first:].all()), "the trace recovers after a failure"
