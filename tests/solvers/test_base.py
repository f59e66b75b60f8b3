"""The boundary that all solvers share: chunking, counting, messages, the Result."""

from dataclasses import dataclass

import pytest
import torch
from tools import seeded

import genprior
from genprior.operators import (
    GaussianNoise,
    Identity,
    Inpainting,
    Operator,
    PoissonNoise,
    Problem,
    masks,
)
from genprior.operators.random import normal
from genprior.priors import DenoisingPrior, Gaussian, LatentPrior, Prior
from genprior.solvers import (
    MMPS,
    ExactPosterior,
    GuidedSolver,
    JointMAP,
    Result,
    Solution,
    Solver,
    available,
)
from genprior.solvers.choice import REGISTRY
from genprior.solvers.testing import check_solver, gaussian_field

SHAPE = (1, 4, 3)


def gaussian(seed=0, shape=SHAPE):
    draws = normal((4, *shape), torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Gaussian(torch.full(shape, 0.5, dtype=torch.float64), 0.2 * draws[1:], residual=0.1)


def problem(count=3, operator=None, noise=None):
    x = gaussian().sample(count, generator=torch.Generator().manual_seed(1))
    return Problem.simulate(
        x,
        operator or Inpainting(masks.half(SHAPE[1:])),
        noise or GaussianNoise(0.1),
        generator=torch.Generator().manual_seed(2),
    )


class Latent(LatentPrior):
    """Latent-only: what a GAN is."""

    image_shape, latent_shape, config = SHAPE, SHAPE, {}

    def decode(self, z):
        return z

    def sample(self, n, *, size=None, generator=None):
        return normal((n, *SHAPE), generator)


class Square(Operator):
    """Nonlinear."""

    def forward(self, x):
        return x**2


@dataclass(frozen=True)
class _Walk(Solver):
    """Adds noise `steps` times; one forward and one VJP each."""

    steps: int = 3
    needs = (DenoisingPrior,)

    def _solve(self, chunk, prior):
        rows = chunk.rows
        x = torch.zeros(len(rows.y), *chunk.image_shape, dtype=rows.y.dtype)
        trace = []
        for _ in chunk.track(range(self.steps), "walk"):
            x = x + normal(x.shape, chunk.generators, dtype=x.dtype)
            with torch.enable_grad():
                leaf = x.clone().requires_grad_()
                out = prior.denoise(leaf, 0.5).square().sum()
            x = x + torch.autograd.grad(out, leaf)[0]
            trace.append(x.flatten(1).norm(dim=1).reshape(-1, chunk.samples).mean(1))
        samples = x.reshape(-1, chunk.samples, *chunk.image_shape)
        done = torch.ones(len(samples), dtype=torch.bool)
        return Solution(samples=samples, converged=done, trace={"norm": torch.stack(trace)})


def per_image(count):
    return [torch.Generator().manual_seed(100 + i) for i in range(count)]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8, 100])
def test_result_does_not_depend_on_chunks(batch_size):
    """Catches noise drawn per chunk, samples put together in the wrong order, traces mixed up."""
    want = _Walk()(problem(), gaussian(), num_samples=5, generator=per_image(3))
    got = _Walk()(
        problem(), gaussian(), num_samples=5, generator=per_image(3), batch_size=batch_size
    )
    torch.testing.assert_close(got.samples, want.samples)
    torch.testing.assert_close(got.std, want.std)
    torch.testing.assert_close(got.trace["norm"], want.trace["norm"])


def test_image_alone_equals_image_in_batch():
    """Catches a row whose result depends on its neighbours."""
    whole = _Walk()(problem(), gaussian(), num_samples=2, generator=per_image(3))
    one = _Walk()(
        problem().take(torch.tensor([1])), gaussian(), num_samples=2, generator=per_image(3)[1:2]
    )
    torch.testing.assert_close(one.samples[0], whole.samples[1])


def test_evaluations_are_counted_per_sample():
    """Catches a count per chunk or per batch, and VJPs left out."""
    result = _Walk(steps=4)(problem(), gaussian(), num_samples=3, batch_size=2)
    assert (result.forwards, result.vjps) == (4, 4)


def test_result_round_trip(tmp_path):
    """Catches a field that save forgets."""
    result = _Walk()(problem(), gaussian(), num_samples=2)
    result.save(tmp_path / "r.safetensors")
    again = Result.load(tmp_path / "r.safetensors")
    for name in ("samples", "mean", "std", "converged"):
        torch.testing.assert_close(getattr(again, name), getattr(result, name))
    torch.testing.assert_close(again.trace["norm"], result.trace["norm"])
    names = ("forwards", "vjps", "seconds", "solver", "point_estimate", "latents")
    assert [getattr(again, n) for n in names] == [getattr(result, n) for n in names]


def test_result_of_truncated_file_is_an_error(tmp_path):
    """Catches a half-written result taken for whole."""
    path = tmp_path / "r.safetensors"
    _Walk()(problem(), gaussian()).save(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="whole safetensors"):
        Result.load(path)


def test_a_flipped_bit_of_a_result_is_noticed(tmp_path):
    """Catches samples, a name or a count that the disk has altered, taken for the solver's."""
    path = tmp_path / "r.safetensors"
    _Walk()(problem(), gaussian(), num_samples=2).save(path)
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 61):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=str(path)):
            Result.load(path)


def test_wrong_prior_names_what_would_do():
    """Catches a message that leaves the user without a next step."""
    with pytest.raises(TypeError, match=r"ExactPosterior needs an ExactPrior; Latent is latent"):
        ExactPosterior()(problem(), Latent())
    assert "ExactPosterior" in available(gaussian())
    assert "ExactPosterior" not in available(Latent())


class Drawn(Prior):
    """Can be sampled, no more."""

    image_shape, config = SHAPE, {}

    def sample(self, n, *, size=None, generator=None):
        return normal((n, *SHAPE), generator)


class Both(Latent, DenoisingPrior):
    """Latent and denoising."""

    sigma_range, data_mean, data_std = (0.1, 1.0), torch.zeros(SHAPE), torch.ones(SHAPE)

    def denoise(self, x, sigma):
        return x


def test_two_capabilities_are_joined_by_a_word():
    """Catches "a LatentPrior a DenoisingPrior"."""

    class _Two(_Walk):
        needs = (LatentPrior, DenoisingPrior)

    with pytest.raises(TypeError, match="_Two needs a LatentPrior and a DenoisingPrior; Latent"):
        _Two()(problem(), Latent())


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        (Latent(), "Latent is latent-only. Try LatentSampler."),
        (Both(), "Both is latent and denoising. Try MMPS."),
        (Drawn(), "Drawn is for sampling only. No solver serves it."),
    ],
    ids=lambda part: type(part).__name__,
)
def test_what_a_prior_is_and_what_to_try(prior, words):
    """Catches a prior called by another of its capabilities, and advice that fails in turn."""
    with pytest.raises(TypeError) as caught:
        ExactPosterior()(problem(), prior)
    assert str(caught.value).endswith(words)


def test_wrong_operator_and_noise_are_named():
    """Catches a formula for linear operators or Gaussian noise applied to others."""
    nonlinear = Problem(problem().y, Square(SHAPE, SHAPE), GaussianNoise(0.1))
    with pytest.raises(TypeError, match=r"linear operator; Square is not"):
        ExactPosterior()(nonlinear, gaussian())
    counts = Problem(problem().y, Identity(SHAPE), PoissonNoise(50.0))
    with pytest.raises(TypeError, match="PoissonNoise"):
        ExactPosterior()(counts, gaussian())


@pytest.mark.parametrize("keywords", [{"num_samples": 0}, {"batch_size": 0}])
def test_counts_below_one_are_refused(keywords):
    """Catches an empty result returned in silence."""
    with pytest.raises(ValueError, match="at least 1"):
        ExactPosterior()(problem(), gaussian(), **keywords)


def test_prior_of_another_size_is_refused():
    """Catches a broadcast that hides a mismatch, channels included."""
    for shape in [(1, 3, 3), (3, 4, 3)]:
        with pytest.raises(ValueError, match=r"\(1, 4, 3\)"):
            genprior.solve(problem(operator=Identity(SHAPE)), gaussian(shape=shape))


def test_out_of_memory_says_which_batch_size_to_try(monkeypatch):
    """Catches a bare allocator error."""

    def fail(self, chunk, prior):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(_Walk, "_solve", fail)
    with pytest.raises(MemoryError, match="batch_size=3"):
        _Walk()(problem(), gaussian(), num_samples=2)


def test_solve_is_exact_where_it_can_be():
    """Catches a default that samples where the posterior is known, and wrong moments."""
    result = genprior.solve(problem(), gaussian(), generator=torch.Generator().manual_seed(0))
    posterior = gaussian().posterior(problem())
    torch.testing.assert_close(result.mean, posterior.mean)
    torch.testing.assert_close(result.std, posterior.std)
    assert result.samples.shape == (3, 4, *SHAPE)
    assert not result.point_estimate


@dataclass(frozen=True)
class _Encoded(Solver):
    """Asks for two capabilities and one thing besides."""

    needs = (LatentPrior, DenoisingPrior)
    needs_besides = "an exact encoder"

    @classmethod
    def serves(cls, prior):
        return super().serves(prior) and getattr(prior, "exact_encoder", False)

    def _solve(self, chunk, prior):
        return Solution(prior.sample(len(chunk.problem.y))[:, None])


def test_all_capabilities_are_asked_for():
    """Catches a prior taken that has one of several capabilities, and a message that hides one."""
    words = "_Encoded needs a LatentPrior, a DenoisingPrior and an exact encoder; Latent is latent"
    with pytest.raises(TypeError, match=words):
        _Encoded()(problem(), Latent())
    assert _Encoded()(problem(), gaussian()).converged.all()
    with pytest.raises(TypeError, match="a LatentPrior, an EncodingPrior and a decoder_std"):
        JointMAP()(problem(), gaussian())
    assert "JointMAP" not in available(gaussian())


def test_solvers_are_ranked_and_bases_left_out():
    """Catches a ranking that follows imports, and an abstract class offered to a user."""

    @dataclass(frozen=True)
    class Newcomer(_Walk):
        pass

    try:
        names = available(gaussian())
        assert names[:3] == ["ExactPosterior", "MMPS", "DAPS"]
        assert names[-1] == "Newcomer"
        assert set(names) <= set(available())
        assert not {"DiffusionSolver", "GuidedSolver"} & set(available())
    finally:
        del REGISTRY["Newcomer"]


class Bare(DenoisingPrior):
    """Forgets what its base declares."""

    config = None

    def __init__(self, **attributes):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)

    def sample(self, n, *, size=None, generator=None):
        return torch.zeros(n, *SHAPE)

    def denoise(self, x, sigma):
        return x


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({}, "lacks image_shape, sigma_range, data_mean, data_std"),
        (
            {"image_shape": SHAPE, "sigma_range": (0.01, 9.0), "data_mean": 0.5},
            "lacks data_std, data_mean as a tensor",
        ),
    ],
)
def test_a_prior_of_ones_own_is_told_all_that_it_lacks(attributes, words):
    """Catches one AttributeError after the other, from deep inside a walk."""
    with pytest.raises(TypeError) as caught:
        MMPS()(problem(), Bare(**attributes))
    assert sorted(words.removeprefix("lacks ").split(", ")) == sorted(
        str(caught.value).split("lacks ")[1].split(". Set")[0].split(", ")
    )


def test_images_that_are_not_finite_have_not_converged():
    """Catches NaN passed off as an answer where a solver says nothing of convergence."""
    samples = torch.zeros(3, 2, *SHAPE)
    samples[1, 0, 0, 0, 0] = torch.nan
    assert Solution(samples).converged.tolist() == [True, False, True]


def test_check_solver_says_what_is_wrong():
    """Catches an AssertionError without a word."""

    class _Wrong(_Walk):
        def _solve(self, chunk, prior):
            found = super()._solve(chunk, prior)
            return Solution(found.samples, converged=found.samples[:, 0, 0, 0, 0])

    with pytest.raises(AssertionError, match=r"converged is torch.float64, not bool"):
        check_solver(_Wrong())


@dataclass(frozen=True)
class _Mean(GuidedSolver):
    """Ignores y; counts what the hooks are called with."""

    steps: int = 4

    def start(self, walk):
        assert walk.sigmas.shape == (self.steps, len(walk.problem.y))
        return super().start(walk)

    def guide(self, walk, x, sigma):
        assert sigma.shape == (len(x),)
        return walk.prior.denoise(x, sigma)


def test_a_guidance_needs_one_method():
    """Catches hooks that a third party's class does not reach."""
    result = _Mean()(problem(), gaussian(), num_samples=2, batch_size=2)
    assert result.forwards == 4
    assert result.trace["residual"].shape == (5, 3)  # the last of the images returned


def test_solve_takes_a_solver_by_its_name():
    """Catches a name that is called as if it were a solver."""
    prior, asked = gaussian_field(0)
    found = genprior.solve(asked, prior, solver="mmps", num_samples=1, generator=seeded())
    assert found.solver.startswith("MMPS(steps=20")
    with pytest.raises(ValueError, match=r"unknown solver 'MMSP'\. There is MMPS"):
        genprior.solve(asked, prior, solver="MMSP")
    with pytest.raises(TypeError, match=r"is a class: write MMPS\(\)"):
        genprior.solve(asked, prior, solver=MMPS)
    with pytest.raises(TypeError, match="for a seed write"):
        genprior.solve(asked, prior, generator=0)
