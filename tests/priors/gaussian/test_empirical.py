"""The data set as a prior, against the mixture of as many components that it is."""

import pytest
import torch
from cases import empirical
from tools import randn, seeded

from genprior.operators import Blur, GaussianNoise, Identity, Inpainting, Problem
from genprior.priors import Empirical, GaussianMixture
from genprior.priors.gaussian.empirical import squared_distances

SHAPE = (2, 3, 4)


def as_mixture(prior):
    images, n = prior.images, len(prior.images)
    return GaussianMixture.low_rank(
        torch.ones(n, dtype=images.dtype),
        images,
        images.new_zeros(n, 0, *images.shape[1:]),
        prior.bandwidth.expand(n),
    )


def operators():
    masks = torch.rand(3, 1, 3, 4, generator=seeded(1)) < 0.4
    masks[:, :, 0, 0] = True
    return {"identity": Identity(SHAPE), "mask": Inpainting(masks[:1]), "masks": Inpainting(masks)}


@pytest.mark.parametrize("sigma", [0.3, torch.tensor([0.05, 0.4, 0.01]).double()])
@pytest.mark.parametrize("operator", operators())
def test_posterior_is_the_mixture_s(operator, sigma):
    """Would catch weights that count missing pixels, or a std without the images' spread."""
    prior = empirical(SHAPE)
    x = prior.sample(3, generator=seeded(2))
    problem = Problem.simulate(x, operators()[operator], GaussianNoise(sigma), generator=seeded(3))
    found, expected = prior.posterior(problem), as_mixture(prior).posterior(problem)
    for name in ("mean", "std", "log_evidence"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    torch.testing.assert_close(found.weights, expected.weights)
    torch.testing.assert_close(found.log_prob(x), expected.log_prob(x))


def test_samples_have_the_posterior_s_moments():
    """Would catch noise of the wrong width, on seen pixels or missing ones, and wrong modes."""
    prior, n = empirical(SHAPE), 20_000
    x = prior.sample(1, generator=seeded(4))
    problem = Problem.simulate(x, operators()["mask"], GaussianNoise(0.3), generator=seeded(5))
    posterior = prior.posterior(problem)
    drawn = posterior.sample(n, generator=seeded(6))[0]
    error = posterior.std[0] / n**0.5
    assert bool(((drawn.mean(0) - posterior.mean[0]).abs() < 5 * error).all())
    second = (drawn - posterior.mean[0]).square()
    error = second.std(0) / n**0.5
    assert bool(((second.mean(0) - posterior.std[0].square()).abs() < 5 * error).all())


def test_density_and_denoiser_are_the_mixture_s():
    """Would catch a bandwidth left out of the noisy density, or a lost constant."""
    prior = empirical(SHAPE)
    x = prior.sample(4, generator=seeded(7))
    sigma = torch.tensor([0.0, 0.02, 0.5, 30.0]).double()
    torch.testing.assert_close(prior.log_prob(x), as_mixture(prior).log_prob(x))
    torch.testing.assert_close(prior.denoise(x, sigma), as_mixture(prior).denoise(x, sigma))
    torch.testing.assert_close(prior.data_mean, as_mixture(prior).data_mean)
    torch.testing.assert_close(prior.data_std, as_mixture(prior).data_std)
    assert prior.sigma_range == pytest.approx(as_mixture(prior).sigma_range)


def test_neighbours_in_float32_are_told_apart():
    """Would catch |x|^2 - 2 x.y + |y|^2 in float32, which sees no difference of 1e-3."""
    images = 0.5 + 1e-3 * randn(5, 1, 28, 28, seed=8).float()
    exact = (images[:, None].double() - images[None].double()).square().sum((2, 3, 4))
    torch.testing.assert_close(
        squared_distances(images, images).double(), exact, rtol=1e-5, atol=1e-9
    )


def test_bandwidth_is_the_likeliest_left_out():
    """Would catch images that explain themselves, which ends at a bandwidth of nothing."""
    truth = 0.1
    centres = randn(4, 1, 4, 4, seed=9)
    data = centres[torch.arange(400) % 4] + truth * randn(400, 1, 4, 4, seed=10)
    found = float(Empirical.fit(data).bandwidth)

    def left_out(h):
        squares = squared_distances(data, data) / h**2 + 16 * torch.tensor(h).square().log()
        return (-0.5 * squares.fill_diagonal_(torch.inf)).logsumexp(1).mean()

    assert left_out(found) > max(left_out(0.99 * found), left_out(1.01 * found))


def test_refusals():
    """Would catch a blur answered by the formulas for masks."""
    prior = empirical(SHAPE)
    blur = Blur(torch.ones(1, 2) / 2, SHAPE)
    with pytest.raises(TypeError, match="Identity and Inpainting, not Blur"):
        prior.posterior(Problem(prior.images[:1], blur, GaussianNoise(0.1)))
    for images, width, words in [
        (prior.images[0], 0.1, "must be floats"),
        (prior.images.byte(), 0.1, "must be floats"),
        (prior.images, 0.0, "bandwidth must be one number > 0"),
        (prior.images, torch.ones(3), "bandwidth must be one number > 0"),
        (prior.images * torch.nan, 0.1, "finite"),
    ]:
        with pytest.raises(ValueError, match=words):
            Empirical(images, width)
    with pytest.raises(ValueError, match="one image tells no bandwidth"):
        Empirical.fit(prior.images[:1])
