"""Checks that every prior must pass, to be run on one's own class too.

from genprior.priors.testing import check_prior

def test_my_prior():
    check_prior(MyPrior(...))
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genprior.operators import GaussianNoise, Identity, Inpainting, Problem
from genprior.operators.random import normal, uniform
from genprior.priors.base import (
    DenoisingPrior,
    DensityPrior,
    EncodingPrior,
    ExactPrior,
    LatentPrior,
    Prior,
)
from genprior.priors.flows.checks import BIJECTION_CHECKS, check_bijection

__all__ = ["BIJECTION_CHECKS", "CHECKS", "check_bijection", "check_prior"]

COUNT = 3
"""Images in a batch."""

DRAWS = 4000
"""Samples behind a Monte Carlo check, which allows 5 standard errors."""


@dataclass(frozen=True)
class Example:
    """A prior in float64 on its device, and the size of images to try.

    `CHECKS` says which capabilities it has where it comes to a check.
    """

    prior: Any
    size: tuple[int, int]

    def generator(self, seed: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    @property
    def device(self) -> torch.device:
        tensors = (*self.prior.parameters(), *self.prior.buffers())
        return next((t.device for t in tensors), torch.device("cpu"))

    def images(self, n: int = COUNT, seed: int = 1) -> Tensor:
        """Images that the prior might have drawn, with a little noise."""
        x = self.prior.sample(n, size=self.size, generator=self.generator(seed))
        return x + 0.01 * self.noise(x.shape, seed + 1)

    def noise(self, shape: Sequence[int], seed: int) -> Tensor:
        """Standard normal noise that depends on `seed` alone."""
        return normal(shape, self.generator(seed), dtype=torch.float64, device=self.device)


def check_prior(
    prior: Prior, *, size: tuple[int, int] | None = None, device: torch.device | str = "cpu"
) -> None:
    """Run the checks of `CHECKS` that the prior's capabilities call for.

    Args:
        prior: Small: Jacobians of its images are formed. It is not changed.
        size: (H, W) to try; needed where the prior leaves its own open.
        device: Where to run.
    Raises:
        AssertionError: A promise is broken; the message says which and by how much.
    """
    example = make_example(prior, size=size, device=device)
    for capability, checks in CHECKS.items():
        if isinstance(prior, capability):
            for check in checks:
                check(example)


def make_example(
    prior: Prior, *, size: tuple[int, int] | None = None, device: torch.device | str = "cpu"
) -> Example:
    """Put a copy of `prior` in float64 on `device`."""
    _, height, width = prior.check_size(size)
    return Example(copy.deepcopy(prior).to(device, torch.float64).eval(), (height, width))


# ---------------------------------------------------------------------- every prior


def check_samples(example: Example) -> None:
    """Samples have the declared shape, dtype and device, and follow their generators."""
    prior, size = example.prior, example.size
    first = prior.sample(COUNT, size=size, generator=example.generator())
    again = prior.sample(COUNT, size=size, generator=example.generator())
    expected = (COUNT, prior.image_shape[0], *size)
    assert tuple(first.shape) == expected, f"samples are {tuple(first.shape)}, not {expected}"
    assert first.dtype == torch.float64, f"a float64 prior drew {first.dtype}"
    assert first.device == example.device, f"samples on {first.device}, prior on {example.device}"
    _close(first, again, "samples of the same generator")
    single = copy.deepcopy(prior).float().sample(1, size=size, generator=example.generator())
    assert single.dtype == torch.float32, f"a float32 prior drew {single.dtype}"
    rows = prior.sample(COUNT, size=size, generator=[example.generator(i) for i in range(COUNT)])
    last = prior.sample(1, size=size, generator=[example.generator(COUNT - 1)])
    _close(rows[-1:], last, "a sample drawn in a batch and alone")


def check_files(example: Example) -> None:
    """A prior comes back from its file: config, and samples but for rounding.

    Not bit for bit: loaded weights may lie otherwise in memory, which orders sums otherwise.
    """
    prior = example.prior
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prior.safetensors"
        prior.save(path)
        found = Prior.load(path, dtype=torch.float64).to(example.device).eval()
    assert type(found) is type(prior), f"a {type(prior).__name__} came back as {type(found)}"
    assert found.config == prior.config, f"config {prior.config} came back as {found.config}"
    first, again = (
        p.sample(2, size=example.size, generator=example.generator()) for p in (prior, found)
    )
    _close(first, again, "samples before and after the file")


def check_purity(example: Example) -> None:
    """Nothing that is called changes its input, the prior, or the global generator."""
    prior, x = example.prior, example.images()
    state = {name: value.clone() for name, value in prior.state_dict().items()}
    random_state = torch.random.get_rng_state()
    before = x.clone()
    for function in _functions(example):
        function(x)
    assert torch.equal(x, before), "an image was written to"
    for name, value in prior.state_dict().items():
        assert torch.equal(state[name], value), f"{name} was written to"
    assert torch.equal(random_state, torch.random.get_rng_state()), "the global generator moved"


def check_rows(example: Example) -> None:
    """Row i of a batch gives what row i gives alone, in float32 and float64 alike."""
    x = example.images()
    for function in _functions(example):
        whole = function(x)
        alone = torch.cat([function(row) for row in x.split(1)])
        _close(whole, alone, "rows in a batch and alone")
        single = function(x.float())
        assert single.dtype == torch.float32, f"float32 images gave {single.dtype}"


def _functions(example: Example) -> list[Callable[[Tensor], Tensor]]:
    """What the prior computes row by row from images."""
    prior = example.prior
    found: list[Callable[[Tensor], Tensor]] = []
    if isinstance(prior, EncodingPrior):
        found.append(prior.encode)
    if isinstance(prior, DensityPrior):
        found.append(prior.log_prob)
    if isinstance(prior, DenoisingPrior):
        found.append(lambda x: prior.denoise(x, _level(prior)))
    return found


# ---------------------------------------------------------------------- latents and densities


def check_latent(example: Example) -> None:
    """`decode` takes rows one by one and differentiably; z is standard normal."""
    prior = example.prior
    z = example.noise((COUNT, *_latent_shape(example)), 3)
    alone = torch.cat([prior.decode(row) for row in z.split(1)])
    _close(prior.decode(z), alone, "decoded rows in a batch and alone")
    law = torch.distributions.Normal(torch.zeros_like(z), 1.0)
    _close(prior.latent_log_prob(z), law.log_prob(z).flatten(1).sum(1), "log N(z; 0, I)")
    _check_gradient(prior.decode, z, example)


def check_encoder(example: Example) -> None:
    """An exact encoder inverts `decode` both ways."""
    prior = example.prior
    x = example.images()
    z = prior.encode(x)
    expected = (COUNT, *_latent_shape(example))
    assert tuple(z.shape) == expected, f"latents are {tuple(z.shape)}, not {expected}"
    if prior.exact_encoder:
        _close(prior.decode(z), x, "decode(encode(x)) and x", 1e-6)
        noise = example.noise(z.shape, 4)
        _close(prior.encode(prior.decode(noise)), noise, "encode(decode(z)) and z", 1e-5)


def _latent_shape(example: Example) -> tuple[int, ...]:
    """The latent's shape; like an image's where the prior serves any size."""
    shape = example.prior.latent_shape
    return (shape[0], *example.size) if None in shape else shape


def check_density(example: Example) -> None:
    """The density has a gradient; with an exact encoder it obeys the change of variables.

    log p(decode(z)) = log N(z; 0, I) - log |det d decode(z) / d z|
    """
    prior, x = example.prior, example.images()
    _check_gradient(lambda x: prior.log_prob(x)[:, None], x, example)
    invertible = all(isinstance(prior, kind) for kind in (LatentPrior, EncodingPrior))
    if invertible and prior.exact_encoder:
        decode, z = prior.decode, prior.encode(x[:1])
        jacobian: Any = torch.autograd.functional.jacobian(decode, z)
        log_volume = torch.linalg.slogdet(jacobian.reshape(z.numel(), -1)).logabsdet
        expected = prior.latent_log_prob(z) - log_volume
        _close(prior.log_prob(x[:1]), expected, "log p(x) and the change of variables", 1e-6)


# ---------------------------------------------------------------------- denoising


def check_denoiser(example: Example) -> None:
    """sigma = 0 gives x back; a sigma for each image is served; there is a gradient."""
    prior, x = example.prior, example.images()
    low, high = prior.sigma_range
    assert 0 <= low < high < math.inf, f"sigma_range is {(low, high)}"
    _close(prior.denoise(x, 0.0), x, "denoise(x, 0) and x", 1e-12)
    level = _level(prior)
    sigmas = torch.tensor([0.0, level, 2 * level], dtype=x.dtype, device=x.device)
    alone = [prior.denoise(row, float(s)) for row, s in zip(x.split(1), sigmas, strict=True)]
    _close(prior.denoise(x, sigmas), torch.cat(alone), "one sigma each and one by one")
    shape = (COUNT, *x.shape[1:])
    for name in ("data_mean", "data_std"):
        torch.broadcast_to(getattr(prior, name), shape)
    _check_gradient(lambda x: prior.denoise(x, level), x, example)


def check_exact_denoiser(example: Example) -> None:
    """For an exact prior denoising is conditioning, and obeys Tweedie's formula.

    With A = I the posterior mean is denoise(y, sigma), and its log evidence is log p_sigma(y),
    whose gradient by autograd is the score.
    """
    prior = example.prior
    if not isinstance(prior, ExactPrior):
        return
    assert isinstance(prior, DenoisingPrior)
    y = example.images().requires_grad_()
    level = torch.linspace(0.5, 2, COUNT).to(y) * _level(prior)
    posterior = prior.posterior(Problem(y, Identity(tuple(y.shape[1:])), GaussianNoise(level)))
    _close(posterior.mean, prior.denoise(y, level), "posterior mean and denoise", 1e-8)
    (score,) = torch.autograd.grad(posterior.log_evidence.sum(), y)
    _close(prior.score(y, level), score, "score and the gradient of log p_sigma", 1e-6)


def check_moments(example: Example) -> None:
    """data_mean and data_std are those of the samples, where the prior is exact."""
    prior = example.prior
    if not isinstance(prior, ExactPrior):
        return
    assert isinstance(prior, DenoisingPrior)
    x = prior.sample(DRAWS, size=example.size, generator=example.generator(5))
    _expected(x, prior.data_mean.expand(x.shape[1:]), "data_mean")
    squares = (x - prior.data_mean).square()
    _expected(squares, prior.data_std.square().expand(x.shape[1:]), "data_std^2")


def _level(prior: DenoisingPrior) -> float:
    """A sigma of the order of the data's std."""
    return min(0.5 * float(prior.data_std.mean()), prior.sigma_range[1] / 4)


# ---------------------------------------------------------------------- exact posteriors


def check_posterior(example: Example) -> None:
    """Posterior samples have the posterior's mean and std, and rows do not see their batch."""
    prior, x = example.prior, example.images(2)
    draw = uniform((2, 1, *example.size), example.generator(6), device=example.device)
    noise = GaussianNoise(0.05 * float(x.std()))
    problem = Problem.simulate(x, Inpainting(draw < 0.5), noise, generator=example.generator(7))
    posterior = prior.posterior(problem)
    generators = [example.generator(8), example.generator(9)]
    samples = posterior.sample(DRAWS // 4, generator=generators)
    for i in range(2):
        _expected(samples[i], posterior.mean[i], "posterior mean")
        if posterior.std is not None:
            squares = (samples[i] - posterior.mean[i]).square()
            _expected(squares, posterior.std[i].square(), "posterior variance")
    alone = prior.posterior(problem.take(torch.tensor([1], device=example.device)))
    _close(alone.mean, posterior.mean[1:], "posterior means in a batch and alone")
    _close(alone.log_evidence, posterior.log_evidence[1:], "evidences in a batch and alone")
    row = alone.sample(3, generator=[example.generator(9)])
    fewer = posterior.sample(3, generator=[example.generator(8), example.generator(9)])
    _close(row, fewer[1:], "posterior samples in a batch and alone")


CHECKS: dict[type[Prior], tuple[Callable[[Example], None], ...]] = {
    Prior: (check_samples, check_files, check_purity, check_rows),
    LatentPrior: (check_latent,),
    EncodingPrior: (check_encoder,),
    DensityPrior: (check_density,),
    DenoisingPrior: (check_denoiser, check_exact_denoiser, check_moments),
    ExactPrior: (check_posterior,),
}
"""What each capability promises."""


def _close(found: Tensor, expected: Tensor, what: str, tolerance: float = 1e-8) -> None:
    """Equal to a relative tolerance, in units of the largest number expected."""
    scale = 1 + float(expected.detach().abs().max()) if expected.numel() else 1.0
    error = float((found - expected).detach().abs().max()) if expected.numel() else 0.0
    assert error <= tolerance * scale, f"{what} differ by {error:.2g} (numbers up to {scale:.2g})"


def _expected(draws: Tensor, mean: Tensor, what: str) -> None:
    """The mean of draws (n, ...) is `mean` within 5 standard errors, in every number."""
    error = (draws.mean(0) - mean).abs()
    standard = draws.std(0) / math.sqrt(len(draws)) + 1e-12
    worst = float((error / standard).max())
    assert worst < 5, f"{what} is {worst:.1f} standard errors from that of {len(draws)} samples"


def _check_gradient(function: Callable[[Tensor], Tensor], x: Tensor, example: Example) -> None:
    """The derivative exists and agrees with finite differences along one direction."""
    x = x.detach().requires_grad_()
    y = function(x)
    v = example.noise(y.shape, 10)
    (gradient,) = torch.autograd.grad(y, x, v)
    step = 1e-5 * example.noise(x.shape, 11)
    with torch.no_grad():
        ahead, behind = function(x + step), function(x - step)
    slope = (v * (ahead - behind) / 2).flatten(1).sum(1)
    _close((gradient * step).flatten(1).sum(1) * 1e5, slope * 1e5, "derivative", 1e-4)
