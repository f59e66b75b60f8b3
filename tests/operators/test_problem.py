"""Noise models and the Problem that ties y, operator and noise together."""

import math

import pytest
import torch
from cases import OPERATORS
from tools import close, identical, seeded

from genprior.operators import (
    Blur,
    Compose,
    Downsampling,
    GaussianNoise,
    Identity,
    Inpainting,
    Matrix,
    Operator,
    PoissonNoise,
    Problem,
    fits,
    kernels,
)
from genprior.operators.random import normal, uniform

F64 = torch.float64
SIGMAS = torch.tensor([0.1, 0.2, 0.4], dtype=F64)


def images(*shape):
    return uniform(shape, seeded(), dtype=F64)


def mask():
    return torch.eye(4, dtype=torch.bool)[None]


# --- noise


@pytest.mark.parametrize("sigma", [0.3, SIGMAS])
def test_gaussian_likelihood_is_the_density(sigma):
    """Catches a missing normalisation, a variance for a std, a sum across the batch."""
    clean, y = images(3, 1, 4, 4), normal((3, 1, 4, 4), seeded(1), dtype=F64)
    std = torch.as_tensor(sigma, dtype=F64).reshape(-1, 1, 1, 1)
    expected = torch.distributions.Normal(clean, std).log_prob(y)
    noise = GaussianNoise(sigma)
    torch.testing.assert_close(noise.log_likelihood(y, clean), expected.flatten(1).sum(1))
    seen = noise.log_likelihood(y, clean, observed=mask())
    torch.testing.assert_close(seen, (expected * mask()).flatten(1).sum(1))


def test_poisson_likelihood_is_the_probability():
    """Catches counts and rates taken for pixel values, and a lost factorial."""
    clean, peak = images(3, 1, 4, 4), torch.tensor([5.0, 20.0, 100.0], dtype=F64)
    noise = PoissonNoise(peak)
    y = noise.sample(clean, generator=seeded(1))
    rate = clean * peak.view(-1, 1, 1, 1)
    counts = (y * peak.view(-1, 1, 1, 1)).round()
    expected = torch.distributions.Poisson(rate).log_prob(counts).flatten(1).sum(1)
    torch.testing.assert_close(noise.log_likelihood(y, clean), expected)


def test_impossible_counts_have_no_probability():
    """Catches NaN where a rate is zero or negative: solvers step there."""
    noise = PoissonNoise(10.0)
    y, clean = torch.tensor([[0.0], [0.5], [0.5]]), torch.tensor([[0.0], [0.0], [-0.1]])
    assert noise.log_likelihood(y, clean).tolist() == [0.0, -math.inf, -math.inf]


def test_samples_have_their_moments():
    """Catches a noise of another scale, and one level for the whole batch."""
    clean = torch.full((3, 20000), 0.6, dtype=F64)
    n = clean.shape[1]
    y = GaussianNoise(SIGMAS).sample(clean, generator=seeded())
    error = SIGMAS / math.sqrt(n)
    assert ((y.mean(1) - 0.6).abs() < 5 * error).all()
    assert ((y.var(1) - SIGMAS**2).abs() < 5 * SIGMAS**2 * math.sqrt(2 / n)).all()
    peak = torch.tensor([4.0, 10.0, 50.0], dtype=F64)
    y = PoissonNoise(peak).sample(clean, generator=seeded())
    variance = 0.6 / peak
    assert ((y.mean(1) - 0.6).abs() < 5 * (variance / n).sqrt()).all()
    fourth = (0.6 * peak + 2 * (0.6 * peak) ** 2) / peak**4
    assert ((y.var(1) - variance).abs() < 5 * (fourth / n).sqrt()).all()


@pytest.mark.parametrize("noise", [GaussianNoise(0.1), PoissonNoise(30.0)])
def test_samples_are_zero_where_nothing_is_observed(noise):
    """Catches noise painted onto missing pixels, and draws that depend on the batch."""
    clean = images(3, 1, 4, 4)
    seeds = [seeded(1), seeded(2), seeded(3)]
    y = noise.sample(clean, observed=mask(), generator=seeds)
    assert (y[:, ~mask()] == 0).all()
    alone = noise.sample(clean[1:2], observed=mask(), generator=[seeded(2)])
    close(alone[0], y[1], ulps=2)  # one product and one sum or quotient


def test_no_noise_is_legal_but_has_no_density():
    """Catches log 0 handed to a solver as a likelihood."""
    noise, x = GaussianNoise(0.0), images(1, 1, 2, 2)
    assert identical(noise.sample(x, generator=seeded()), x)
    with pytest.raises(ValueError, match="sigma = 0"):
        noise.log_likelihood(x, x)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianNoise(-0.1), r"-0\.1 came"),
        (lambda: GaussianNoise(math.nan), "nan came"),
        (lambda: GaussianNoise(torch.tensor([0.1, math.inf])), "finite"),
        (lambda: GaussianNoise(torch.ones(2, 1)), r"\(2, 1\)"),
        (lambda: PoissonNoise(0.0), "> 0"),
        (
            lambda: PoissonNoise(1.0).sample(torch.tensor([[-1.0]])),
            "Poisson rate cannot be negative",
        ),
    ],
)
def test_bad_noise_is_named(build, message):
    """Catches a level that is negative, NaN or misshapen and would be used."""
    with pytest.raises(ValueError, match=message):
        build()


# --- problems


@pytest.mark.parametrize("name", OPERATORS)
def test_rows_of_a_problem_stand_alone(name):
    """Catches a take that forgets the operator's or the noise's rows."""
    case = OPERATORS[name]
    x = images(3, *case.image_shape)
    problem = Problem.simulate(x, case.make(), GaussianNoise(SIGMAS), generator=seeded())
    together, residual = problem.log_likelihood(x), problem.residual(x)
    index = torch.tensor([2, 0, 2])
    rows = problem.take(index)
    torch.testing.assert_close(rows.log_likelihood(x[index]), together[index])
    torch.testing.assert_close(rows.residual(x[index]), residual[index], atol=1e-9, rtol=1e-9)


def test_what_is_not_observed_is_ignored():
    """Catches NaN or paint in missing pixels that reaches the likelihood or the residual."""
    operator, x = Inpainting(mask()), images(2, 3, 4, 4)
    problem = Problem.simulate(x, operator, GaussianNoise(0.1), generator=seeded())
    spoilt = Problem(torch.where(mask(), problem.y, torch.nan), problem.operator, problem.noise)
    assert identical(spoilt.log_likelihood(x), problem.log_likelihood(x))
    assert identical(spoilt.residual(x), problem.residual(x))
    assert (problem.residual(x)[..., ~mask()[0]] == 0).all()


@pytest.mark.parametrize("noise", [GaussianNoise(0.1), PoissonNoise(30.0)])
def test_gradients_ignore_what_is_not_observed(noise):
    """Catches 0 * NaN: paint in missing pixels of y, or 0 log 0, must not reach a gradient."""
    y = torch.where(mask(), images(2, 1, 4, 4).round(), torch.nan)
    x = images(2, 1, 4, 4)
    x[:, 0, 0, 0] = 0
    y[:, 0, 0, 0] = 0
    x.requires_grad_()
    log_likelihood = noise.log_likelihood(y, x, observed=mask())
    (gradient,) = torch.autograd.grad(log_likelihood.sum(), x)
    assert gradient.isfinite().all()
    assert (gradient[..., ~mask()[0]] == 0).all()
    assert (gradient[..., mask()[0]] != 0)[..., 1:].all()


def test_open_sizes_are_filled_in_from_y():
    """Catches y's own size given for the image's, which blur and decimation change."""
    noise, any_size = GaussianNoise(0.1), (None, None, None)
    y = images(2, 3, 4, 6)
    assert Problem(y, Identity(any_size), noise).image_shape == (3, 4, 6)
    assert Problem(y, Downsampling(2, any_size), noise).image_shape == (3, 8, 12)
    valid = Blur(kernels.uniform(3), any_size, boundary="valid")
    assert Problem(y, valid, noise).image_shape == (3, 6, 8)
    per_image = Inpainting(mask().expand(2, 1, 4, 4))
    assert Problem(images(2, 3, 4, 4), per_image, noise).image_shape == (3, 4, 4)


def test_a_moved_problem_leaves_its_source(device):
    """Catches Module.to's in-place move of the caller's operator."""
    operator = Blur(kernels.uniform(3), (1, 4, 4))
    problem = Problem(images(3, 1, 4, 4), operator, GaussianNoise(SIGMAS))
    moved = problem.to(device, torch.float32)
    assert (moved.dtype, moved.device.type) == (torch.float32, device.type)
    assert (moved.operator.kernel.dtype, moved.noise.sigma.dtype) == (torch.float32,) * 2
    assert (operator.kernel.dtype, operator.kernel.device.type) == (F64, "cpu")
    x = images(3, 1, 4, 4)
    torch.testing.assert_close(
        moved.log_likelihood(x.to(device, torch.float32)).cpu().double(),
        problem.log_likelihood(x),
        rtol=1e-4,
        atol=1e-3,
    )


Y = torch.zeros(2, 1, 4, 4)
IDENTITY = Identity((1, 4, 4))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: Problem(Y + math.nan, IDENTITY, GaussianNoise(1.0)), ValueError, "NaN"),
        (
            lambda: Problem(Y.log(), Inpainting(mask()), GaussianNoise(1.0)),
            ValueError,
            "8 observed",
        ),
        (
            lambda: Problem(Y[..., :3], IDENTITY, GaussianNoise(1.0)),
            ValueError,
            r"\(2, 1, 4, 3\), but Identity measures \(B, 1, 4, 4\)",
        ),
        (
            lambda: Problem.simulate(Y[..., :3], IDENTITY, GaussianNoise(1.0)),
            ValueError,
            r"takes images \(B, 1, 4, 4\)",
        ),
        (
            lambda: Problem.simulate(Y, Inpainting(mask().expand(3, 1, 4, 4)), GaussianNoise(1.0)),
            ValueError,
            "x holds 2 images",
        ),
        (lambda: Problem(Y[0], IDENTITY, GaussianNoise(1.0)), ValueError, "measures"),
        (lambda: Problem(Y[:0], IDENTITY, GaussianNoise(1.0)), ValueError, "B >= 1"),
        (
            lambda: Problem(Y, IDENTITY, GaussianNoise(torch.ones(3))),
            ValueError,
            "noise's per-image state is for 3",
        ),
        (
            lambda: Problem(Y, Inpainting(mask().expand(3, 1, 4, 4)), GaussianNoise(1.0)),
            ValueError,
            "operator's per-image state is for 3",
        ),
        (lambda: Problem(Y.long(), IDENTITY, GaussianNoise(1.0)), TypeError, "int64"),
        (lambda: Problem(Y, IDENTITY, 0.1), TypeError, "noise must be a Noise"),
        (lambda: Problem(Y, torch.nn.Identity(), GaussianNoise(1.0)), TypeError, "operator"),
        (
            lambda: Problem(Y, Inpainting(mask()).to("meta"), GaussianNoise(1.0)),
            ValueError,
            "mixed devices: y on cpu, operator.mask on meta",
        ),
    ],
)
def test_problems_that_do_not_fit_are_named(build, error, message):
    """Catches a problem that is built on parts that do not belong together."""
    with pytest.raises(error, match=message):
        build()


# --- what a problem says of itself


class Square(Operator):
    """Nonlinear."""

    def forward(self, x):
        return x**2


def test_an_operator_says_its_sizes():
    """Catches `Identity()`, which of two operators in a notebook tells neither."""
    assert repr(Identity((1, 4, 4))) == "Identity((1, 4, 4) -> (1, 4, 4))"
    assert "(1, 4, 4) -> (1, 2, 2)" in repr(
        Compose(Identity((1, 2, 2)), Downsampling(2, (1, 4, 4)))
    )


def test_a_problem_says_what_kind_it_is():
    """Catches a closed form taken where the operator is not linear or the noise not Gaussian."""
    shape, y = (1, 4, 4), images(2, 1, 4, 4)
    kinds = {
        (True, True): Problem(y, Identity(shape), GaussianNoise(0.1)),
        (True, False): Problem(y, Identity(shape), PoissonNoise(9.0)),
        (False, False): Problem(y, Square(shape, shape), GaussianNoise(0.1)),
    }
    for kind, problem in kinds.items():
        assert (problem.linear, problem.linear_gaussian) == kind
    with pytest.raises(TypeError, match="PoissonNoise has no sigma"):
        _ = kinds[True, False].sigma
    with pytest.raises(TypeError, match="linear operator is needed here; Square"):
        _ = kinds[False, False].linear_operator


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("sigma", [0.05, torch.tensor([0.05], dtype=F64), SIGMAS])
def test_sigma_is_one_for_each_measurement(sigma, dtype):
    """Catches a float rounded to float32 on its way to float64, and a scalar for B rows."""
    found = Problem(images(3, 1, 4, 4).to(dtype), IDENTITY, GaussianNoise(sigma)).sigma
    expected = torch.as_tensor(sigma, dtype=dtype).reshape(-1).expand(3)
    assert identical(found, expected)


def test_observed_entries_are_counted():
    """Catches channels or rows forgotten where a mask is shared by them."""
    per_image = torch.stack([mask(), torch.ones(1, 4, 4, dtype=torch.bool)])
    y = images(2, 3, 4, 4)
    assert Problem(y, Inpainting(per_image), GaussianNoise(0.1)).observed_count.tolist() == [
        12,
        48,
    ]
    assert Problem(y, Inpainting(mask()), GaussianNoise(0.1)).observed_count.tolist() == [12, 12]
    everything = Problem(y, Identity((3, 4, 4)), GaussianNoise(0.1)).observed_count
    assert everything.tolist() == [48, 48]


@pytest.mark.parametrize(
    ("shape", "wanted", "answer"),
    [
        ((1, 4), (1, 4), True),
        ((None, 4), (3, None), True),
        ((1, 4), (1, 5), False),
        ((1, 4), (1, 4, 4), False),
        ((), (), True),
        ((0, 4), (None, 4), True),
        ((0,), (1,), False),
    ],
)
def test_shapes_fit(shape, wanted, answer):
    """Catches an axis dropped by zip, and 0 taken for an open size."""
    assert fits(shape, wanted) is answer
    assert fits(wanted, shape) is answer


class Decoder(torch.nn.Module):
    """A linear decoder of codes (1, 2, 2) to images (1, 4, 4)."""

    latent_shape = (1, 2, 2)

    def __init__(self):
        super().__init__()
        self.register_buffer("matrix", normal((16, 4), seeded(5), dtype=F64))

    def decode(self, z):
        return (z.flatten(1) @ self.matrix.T).reshape(-1, 1, 4, 4)


@pytest.mark.parametrize("state", ["shared", "per image"])
def test_a_problem_through_a_decoder(state):
    """Catches rows of the operator, or what is not observed, forgotten on the way to codes."""
    masks = torch.rand(3, 1, 4, 4, generator=seeded(3)) < 0.5
    operator = Inpainting(masks if state == "per image" else masks[0])
    decoder, z = Decoder(), normal((3, 1, 2, 2), seeded(4), dtype=F64)
    x = decoder.decode(z)
    problem = Problem.simulate(x, operator, GaussianNoise(SIGMAS), generator=seeded(1))
    coded = problem.through(decoder)
    assert (coded.image_shape, coded.linear) == ((1, 2, 2), False)
    torch.testing.assert_close(coded.log_likelihood(z), problem.log_likelihood(x))
    assert identical(coded.observed_count, problem.observed_count)
    index = torch.tensor([2, 0])
    torch.testing.assert_close(coded.take(index).residual(z[index]), problem.residual(x)[index])
    bare = problem.through(decoder.decode, latent_shape=(1, 2, 2))
    torch.testing.assert_close(bare.residual(z), problem.residual(x))
    with pytest.raises(ValueError, match="no latent_shape: pass latent_shape="):
        problem.through(decoder.decode)


def test_codes_are_found_through_a_decoder():
    """Catches a gradient that does not reach the code: the mode is the exact mean there."""
    from genprior.priors import Gaussian
    from genprior.solvers import LatentMAP

    decoder = Decoder()
    prior = Gaussian.from_covariance(torch.zeros(1, 2, 2, dtype=F64), torch.eye(4, dtype=F64))
    mask = torch.rand(1, 4, 4, generator=seeded(3)) < 0.6
    x = decoder.decode(prior.sample(2, generator=seeded(1)))
    problem = Problem.simulate(x, Inpainting(mask), GaussianNoise(0.3), generator=seeded(2))
    found = LatentMAP(tolerance=1e-9)(problem.through(decoder), prior, generator=seeded(3))
    linear = Compose(Inpainting(mask), _AsOperator(decoder))
    exact = prior.posterior(Problem(problem.y, linear, problem.noise)).mean
    torch.testing.assert_close(found.samples[:, 0], exact, atol=1e-6, rtol=0)


class _AsOperator(Matrix):
    """The decoder as a matrix whose measurements are images."""

    def __init__(self, decoder):
        super().__init__(decoder.matrix, (1, 2, 2))
        self.measurement_shape = (1, 4, 4)

    def forward(self, x):
        return super().forward(x).reshape(-1, 1, 4, 4)

    def adjoint(self, y):
        return super().adjoint(y.flatten(1))

    def spectrum(self, like=None):
        return None
