"""The VAE: its densities sum to one, its bounds are exact where the model is Gaussian."""

from itertools import pairwise

import pytest
import torch
from tools import as_gaussian, linear_vae, seeded, set_exact_encoder

from genprior.commands.run import begin_with
from genprior.priors import VAE, Gaussian, Turn, testing
from genprior.priors.vae.pixels import (
    BernoulliPixels,
    CategoricalPixels,
    GaussianPixels,
    PixelDistribution,
)
from genprior.priors.vae.variational import BoundOptions
from genprior.training import TrainingOptions, train

SHAPE = (1, 4, 3)
SMALL = {"hidden": [8], "activation": "tanh"}


def orthogonal_vae():
    """A linear VAE whose posterior is factorised, with that posterior as its encoder."""
    vae = linear_vae(SHAPE)
    weight = vae.decoder[0].weight
    basis = torch.linalg.qr(weight).Q
    weight.copy_(basis * torch.tensor([0.5, 0.3, 0.2, 0.1], dtype=torch.float64))
    set_exact_encoder(vae)
    return vae


def test_bounds_are_exact_where_the_encoder_is():
    """Catches any wrong term of the bound: with q = p(z|x) every draw gives log p(x)."""
    vae = orthogonal_vae()
    gaussian = as_gaussian(vae)
    x = gaussian.sample(5, generator=seeded())
    exact = gaussian.log_prob(x)
    terms = vae.terms(x, samples=3, generator=seeded(1))
    draws = terms.log_likelihood + terms.log_ratio
    torch.testing.assert_close(draws, exact[:, None].expand(-1, 3), atol=1e-9, rtol=0)
    torch.testing.assert_close(
        vae.log_prob_estimate(x, samples=7, generator=seeded(), at_once=3), exact
    )


def test_log_prob_estimate_corrects_a_poor_encoder():
    """Catches importance weights that forget q or the prior."""
    vae = linear_vae(SHAPE)
    set_exact_encoder(vae)
    encoder = vae.encoder[1]
    encoder.bias[:4] += 0.02
    encoder.bias[4:] += 0.3  # too wide: the weights stay bounded
    gaussian = as_gaussian(vae)
    x = gaussian.sample(20, generator=seeded())
    count = 20_000
    estimate = vae.log_prob_estimate(x, samples=count, generator=seeded(1), at_once=5000)
    terms = vae.terms(x, samples=count, generator=seeded(2))
    weights = (terms.log_likelihood + terms.log_ratio - gaussian.log_prob(x)[:, None]).exp()
    error = weights.std(1) / count**0.5
    assert ((estimate - gaussian.log_prob(x)).abs() <= 5 * error).all()
    assert (vae.elbo(x, samples=200, generator=seeded(3)) < estimate).all()


def test_both_forms_of_the_kl_agree():
    """Catches a closed-form KL that is off: both are unbiased for the same bound."""
    vae = VAE(SHAPE, 3, network=SMALL).double()
    x = torch.rand(6, *SHAPE, generator=seeded(), dtype=torch.float64)
    count = 20_000
    terms = vae.terms(x, samples=count, generator=seeded(1))
    error = terms.log_ratio.std(1) / count**0.5
    assert ((terms.log_ratio.mean(1) + terms.kl.sum(1)).abs() <= 5 * error).all()
    closed, sampled = (
        vae.elbo(x, samples=count, closed_kl=c, generator=seeded(1)) for c in (True, False)
    )
    assert ((closed - sampled).abs() <= 5 * error).all()


def test_importance_bounds_tighten_with_samples():
    """Catches an IWAE bound that is a mean of logs, not a log of means."""
    vae = VAE(SHAPE, 3, network=SMALL).double()
    x = vae.sample(1, generator=seeded()).expand(400, -1, -1, -1)
    bounds = []
    for count in (1, 5, 50):
        values = vae.terms(x, samples=count, generator=seeded(count)).importance_bound()
        bounds.append((values.mean(), values.std() / len(x) ** 0.5))
    for (low, low_error), (high, high_error) in pairwise(bounds):
        assert high - low > 3 * (low_error**2 + high_error**2).sqrt()


def test_training_reaches_the_optimum_of_a_linear_model():
    """Catches a biased gradient: the best linear VAE is the maximum-likelihood Gaussian."""
    scales = torch.tensor([0.5, 0.5, 0.4] + [0.1] * 9)
    basis = torch.linalg.qr(torch.randn(12, 12, generator=seeded())).Q
    x = (torch.randn(512, 12, generator=seeded(1)) * scales @ basis.T).view(-1, *SHAPE)
    vae = VAE(
        SHAPE,
        3,
        network={"hidden": []},
        pixels={"kind": "gaussian", "std": 0.3, "bounded": False},
    )
    objective, generator = vae.objective(), seeded(2)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.03)
    for step in range(1000):
        optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / 1000)
        optimizer.zero_grad()
        objective.loss(Turn(), x, generator)[0].backward()
        optimizer.step()
    vae.requires_grad_(False)
    best = Gaussian.fit(x, rank=3).log_prob(x).mean()
    found = as_gaussian(vae).log_prob(x).mean()
    assert best - 0.05 < found <= best + 1e-3
    bound = vae.elbo(x, samples=20, generator=seeded(1)).mean()
    assert found - 0.15 < bound <= found + 0.02


def test_bernoulli_and_categorical_pixels_sum_to_one():
    """Catches a log-probability that is not normalised."""
    images = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3).view(-1, 1, 1, 3).double()
    output = torch.randn(1, 1, 1, 3, generator=seeded(), dtype=torch.float64)
    total = BernoulliPixels().log_prob(images, output.expand(8, -1, -1, -1)).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-12)
    levels = (torch.arange(256, dtype=torch.float64) / 255).view(-1, 1, 1, 1)
    output = torch.randn(1, 256, 1, 1, generator=seeded(), dtype=torch.float64)
    total = CategoricalPixels().log_prob(levels, output.expand(256, -1, -1, -1)).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-12)


def test_gaussian_pixels_have_the_normal_density():
    """Catches a std that is off, in the exponent or in the normalisation."""
    x, output = torch.randn(2, 3, *SHAPE, generator=seeded(), dtype=torch.float64)
    pixels = GaussianPixels(std=0.3, bounded=False).double()
    expected = torch.distributions.Normal(output, pixels.std).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(pixels.log_prob(x, output), expected)


@pytest.mark.parametrize("kind", [GaussianPixels(), BernoulliPixels(), CategoricalPixels()])
def test_pixel_samples_have_the_stated_mean(kind: PixelDistribution):
    """Catches samples of one distribution beside the mean of another."""
    output = torch.randn(1, 2 * kind.outputs, 2, 2, generator=seeded(), dtype=torch.float64)
    draws = kind.double().sample(output.expand(20_000, -1, -1, -1), generator=seeded(1))
    assert draws.shape[1:] == (2, 2, 2)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - kind.mean(output)[0]).abs() <= 5 * error).all()


def test_binarised_training_data_have_the_grey_mean():
    """Catches a threshold where a draw is meant; black and white images must stay."""
    pixels = BernoulliPixels(binarize=True)
    grey = torch.full((20_000, 1, 1, 1), 0.3)
    drawn = pixels.observe(grey, generator=seeded())
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert abs(drawn.mean().item() - 0.3) < 5 * (0.21 / 20_000) ** 0.5
    assert torch.equal(pixels.observe(drawn, generator=seeded(1)), drawn)


def test_warm_up_counts_images_and_resumes(tmp_path):
    """Catches a warm-up that starts anew when training resumes."""
    vae = VAE(SHAPE, 2, network=SMALL, bound={"warm_up": 240})
    objective, x = vae.objective(), torch.rand(10, *SHAPE, generator=seeded())
    for seen, weight in ((0, 0), (60, 0.25), (240, 1), (480, 1)):
        assert objective.loss(Turn(images_seen=seen), x, seeded())[1]["kl_weight"] == weight
    options = {"cooldown": 0, "checkpoint_every": 50, "precision": "fp32", "grid": 0}
    for steps in (50, 100):  # at 2 images a step, the mean of the weights before and after
        points: list[tuple] = []
        settings = {"steps": steps, "batch_size": 2, "out": tmp_path}
        train(
            vae, x, options=TrainingOptions(progress=False, accelerator="cpu", **options),
            callback=lambda *point, to=points: to.append(point), **settings,
        )  # fmt: skip
    assert points[-1][1]["all/kl_weight"] == pytest.approx((100 + 198) / 2 / 240)


def test_free_bits_cost_nothing():
    """Catches free bits that are added to the bound, or still push a unit to the prior."""
    vae = VAE(SHAPE, 2, network=SMALL, bound={"free_bits": 50.0})
    x = torch.rand(10, *SHAPE, generator=seeded())
    loss, _ = vae.objective().loss(Turn(), x, seeded())
    terms = vae.terms(x, generator=seeded())
    expected = -(terms.log_likelihood.mean() - 100) / 12
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("closed_kl", [True, False])
def test_the_weight_of_the_kl(closed_kl):
    """Catches a weight on the whole bound, or one that a form of the KL forgets."""
    options = {"kl_weight": 3.0, "closed_kl": closed_kl, "samples": 4}
    vae = VAE(SHAPE, 2, network=SMALL, bound=options)
    x = torch.rand(10, *SHAPE, generator=seeded())
    loss, _ = vae.objective().loss(Turn(), x, seeded())
    terms = vae.terms(x, samples=4, generator=seeded())
    kl = terms.kl.sum(1).mean() if closed_kl else -terms.log_ratio.mean()
    torch.testing.assert_close(loss, -(terms.log_likelihood.mean() - 3 * kl) / 12)


def test_collapse_is_named():
    """Catches a run whose latent is ignored without a word."""
    vae = VAE(SHAPE, 2, network=SMALL)
    with torch.no_grad():
        vae.encoder[-1].weight.zero_()
    objective = vae.objective()
    turn = Turn(images_seen=1_000_000)
    with pytest.warns(RuntimeWarning, match="none of the 2 latent units"):
        _, logs = objective.loss(turn, torch.rand(10, *SHAPE, generator=seeded()), seeded())
    assert logs["active"] == 0


@pytest.mark.parametrize(
    "network",
    [SMALL, {"kind": "convolutional", "widths": [4, 8]}],
    ids=["perceptron", "convolutional"],
)
def test_contract(network, device):
    """Catches broken promises: purity, row independence, files, devices, generators."""
    shape = (1, 4, 3) if "kind" not in network else (2, 8, 12)
    testing.check_prior(VAE(shape, 3, network=network), device=device)


def test_encoder_gives_the_same_for_a_row_alone():
    """Catches normalisation across the batch."""
    vae = VAE((1, 8, 8), 3, network={"kind": "convolutional", "widths": [4, 8]}).double()
    x = torch.rand(3, 1, 8, 8, generator=seeded(), dtype=torch.float64)
    whole = vae.elbo(x, generator=[seeded(i) for i in range(3)])
    alone = vae.elbo(x[1:2], generator=[seeded(1)])
    torch.testing.assert_close(alone, whole[1:2])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: VAE(SHAPE, 0), "between 1 and the image's 12"),
        (lambda: VAE(SHAPE, 13), "between 1 and the image's 12"),
        (lambda: VAE(SHAPE, 2, pixels={"kind": "laplace"}), "laplace"),
        (lambda: VAE(SHAPE, 2, pixels={"std": -1.0}), "std"),
        (lambda: VAE(SHAPE, 2, network={"kind": "transformer"}), "transformer"),
        (lambda: VAE(SHAPE, 2, network={"activation": "sine"}), "sine"),
        (lambda: VAE(SHAPE, 2, network={"kind": "convolutional"}), "halved"),
        (lambda: BoundOptions(samples=0), "samples"),
        (lambda: VAE(SHAPE, 2).encode(torch.zeros(2, 1, 4, 4)), "images of shape"),
        (lambda: VAE(SHAPE, 2).sample(2, size=(8, 8)), "size"),
        (lambda: VAE(SHAPE, 2).log_prob_estimate(torch.zeros(2, *SHAPE), samples=0), "samples"),
        (lambda: VAE.from_images([]), "no image"),
    ],
)
def test_bad_input_is_refused(make, match):
    """Catches arguments that fail late or silently."""
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_pixels_outside_their_range_are_refused(kind):
    """Catches a likelihood of images that the decoder cannot make."""
    vae = VAE(SHAPE, 2, network=SMALL, pixels={"kind": kind})
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        vae.elbo(torch.full((1, *SHAPE), 1.5), generator=seeded())


def test_training_may_begin_with_a_trained_vae_of_the_same_network(tmp_path):
    """Catches weights that are not taken over, or those of another network taken silently."""
    path = tmp_path / "trained.safetensors"
    trained = VAE(SHAPE, 2, network={**SMALL, "seed": 3})
    trained.save(path)
    vae = VAE(SHAPE, 2, network={**SMALL, "seed": 3}, bound={"samples": 5, "importance": True})
    with torch.no_grad():
        vae.encoder[-1].weight.zero_()
    begin_with(vae, str(path))
    for name, weight in vae.state_dict().items():
        assert torch.equal(weight, trained.state_dict()[name])
    assert vae.bound.samples == 5
    with pytest.raises(ValueError, match="cannot start from"):
        begin_with(VAE(SHAPE, 3, network=SMALL), str(path))
