"""The figures of GANs: what they count, what they train, and what they say of it."""

import math
from types import SimpleNamespace

import pytest
import torch
from tools import identical, seeded

from genprior import cli
from genprior.figures import shares
from genprior.figures.gan import critics, plane, stacked, styles, trained, training
from genprior.operators import Downsampling, GaussianNoise, Problem
from genprior.priors import GAN, GaussianMixture


def test_a_mode_counts_from_a_quarter_of_its_share():
    """Catches another rule, a share of the near samples alone, or a KL of another base."""
    counts = torch.full((25,), 100)
    counts[0], counts[1] = 20, 26  # of 2,800 a quarter of a share is 28, a tenth 11.2
    centres = plane.means().repeat_interleave(counts, 0)
    astray = torch.full((2800 - len(centres), 2), 0.5)
    said = plane.counted(torch.cat([centres, astray]).view(-1, 1, 1, 2))
    q = counts / counts.sum()
    assert (said["modes"], said["loose"]) == (23, 25)
    assert said["within"] == pytest.approx(len(centres) / 2800)
    assert said["kl"] == pytest.approx(float((q * (25 * q).log()).sum()), abs=1e-5)


def test_controls_have_the_shares_of_closed_form():
    """Catches noise of another square, or a mixture of another spread, than the rule speaks of."""
    within = plane.counted(plane.gaussians(20_000, 0))["within"]
    assert within == pytest.approx(1 - math.exp(-4.5), abs=5 * (0.011 / 20_000) ** 0.5)
    noise = plane.counted(plane.uniform_noise(20_000, 0))
    share = 25 * math.pi * (3 * plane.STD) ** 2 / 4.3**2
    assert noise["within"] < share  # the outer circles stand over the edge
    assert (noise["modes"], noise["loose"]) == (0, 25)


def test_gans_side_by_side_are_the_single_ones():
    """Catches weights transposed, rows given to another's network, or a critic of another seed."""
    both = plane.PlaneGANs((3, 4), {"kind": "hinge"})
    z, x = torch.randn(10, 8, generator=seeded()), torch.randn(10, 1, 1, 2, generator=seeded())
    for seed, rows in ((3, slice(0, 5)), (4, slice(5, 10))):
        single = GAN((1, 1, 2), 8, network=plane.NETWORK, seed=seed)
        torch.testing.assert_close(both.decode(z)[rows], single.decode(z[rows]))
        torch.testing.assert_close(both.critic()(x)[rows], single.critic()(x[rows]))


def test_gans_side_by_side_train_alone():
    """Catches a loss or an optimiser that lets one GAN feel another."""
    x, loss = plane.gaussians(500, 0), {"kind": "relativistic", "r1": 0.1, "r2": 0.1}
    first, second = (
        plane.fit(loss, x, seeds=seeds, steps=3, batch_size=20).samples(9, 0)
        for seeds in ((0, 1), (0, 2))
    )
    torch.testing.assert_close(first[0], second[0])
    assert not first[1].allclose(second[1], atol=0.01)


def test_neighbours_are_the_nearest():
    """Catches distances that are not root mean squares, or another's neighbours."""
    x, others = torch.rand(12, 1, 4, 4, generator=seeded()).split((3, 9))
    away, places = trained.nearest(x, others, 2)
    whole = (x[:, None] - others).square().mean((2, 3, 4)).sqrt()
    torch.testing.assert_close(away, whole.sort(1).values[:, :2])
    assert (whole.argsort(1)[:, :2] == places).all()


def sides():
    """A generator whose first latent chooses the side, and whose second the brightness."""

    def decode(z):
        x = torch.zeros(len(z), 1, 2, 2)
        x[torch.arange(len(z)), 0, :, (z[:, 0] > 0).long()] = (0.5 + 0.1 * z[:, 1:]).clamp(0, 1)
        return x

    return SimpleNamespace(latent_shape=(2,), decode=decode)


def test_sums_are_bold_and_of_the_second_class():
    """Catches a sign, bold and thin mixed up, or classes of another image."""
    known = torch.zeros(20, 1, 2, 2)
    known[:10, 0, :, 0] = known[10:, 0, :, 1] = torch.linspace(0.3, 0.7, 10)[:, None]
    kinds = torch.arange(2).repeat_interleave(10)
    gan = sides()
    rows, images = trained.sums(gan, known, kinds, 0)
    assert [(row["a"], row["b"], row["class of sum"]) for row in rows] == [(0, 1, 1), (1, 0, 0)]
    for row, shown in zip(rows, images, strict=True):
        assert row["bold a"] > row["thin a"] + 0.1
        assert row["sum"] - row["thin b"] == pytest.approx(row["bold a"] - row["thin a"], abs=0.02)
        assert row["sum"] == pytest.approx(float(shown[3].mean()))


def test_truncation_makes_samples_alike():
    """Catches a truncation that is not passed on, or a spread over other digits."""
    gan = GAN((1, 4, 4), 3, network={"kind": "perceptron", "hidden": [16]}).requires_grad_(False)
    test = gan.sample(1000, generator=seeded(1))
    rows, shown = trained.truncated(gan, test, test, 1)
    spread = [row["spread"] for row in rows]
    assert spread[:5] == sorted(spread[:5])
    assert spread[4] == pytest.approx(1)
    assert rows[4]["nearest"] == pytest.approx(0, abs=1e-3)
    torch.testing.assert_close(shown[-12:], test[:12])


def test_yardstick_knows_its_own():
    """Catches a distance between other images, or a spread upside down."""
    x = torch.rand(300, 1, 8, 8, generator=seeded())
    x[:, :, :2] = 0  # as the edges of digits
    yardstick = training.Yardstick(x, x)
    assert yardstick.floor == pytest.approx(0, abs=1e-3)
    assert yardstick.spread(0.1 * x) == pytest.approx(0.1)
    assert yardstick.distance(x + 0.5) > 1


def small_gan(**loss):
    network = {"kind": "perceptron", "hidden": [8]}
    return GAN((1, 4, 4), 2, network=network, loss=loss)


def test_later_stages_go_on_from_the_earlier(monkeypatch):
    """Catches epochs that each begin anew, of other lengths, or at another rate."""
    monkeypatch.setattr(training, "BATCH", 4)
    x = torch.rand(8, 1, 4, 4, generator=seeded())
    _, late = training.stages(small_gan(), x, (1, 3), 1e-2, seed=5)
    options = training.options(1e-2, batch=4, seed=5)
    whole = training.train(small_gan(), x, steps=6, batch_size=4, options=options)
    for a, b in zip(late.parameters(), whole.parameters(), strict=True):
        assert identical(a, b)


def test_the_best_settings_are_tried_again(monkeypatch):
    """Catches a choice of the worst, or new seeds with other settings."""
    seen = []

    def train(gan, x, *, steps, batch_size, options):
        seen.append((options.learning_rate, gan.loss, gan.seed))
        return gan.requires_grad_(False)

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(
        training, "CONTENDERS", {"a": training._penalised, "b": lambda _: {"kind": "hinge"}}
    )
    yardstick = SimpleNamespace(distance=lambda x: seen[-1][0])
    x = torch.zeros(4, 1, 14, 14)
    rows = training.compare(x, yardstick, trials=3, seeds=2, steps=1)
    assert [row["loss"] for row in rows] == ["a"] * 5 + ["b"] * 5
    for first in (0, 5):
        trials, again = seen[first : first + 3], seen[first + 3 : first + 5]
        best = min(trials, key=lambda run: run[0])
        assert [run[:2] for run in again] == [best[:2]] * 2
        assert [run[2] for run in again] == [1, 2]


def test_slopes_of_layers_are_the_gradients_in_their_inputs():
    """Catches layers in reverse, or gradients of the scores."""
    critic = GAN((1, 1, 2), 1, network=plane.NETWORK).critic()
    real, fake = torch.randn(2, 6, 1, 1, 2, generator=seeded())
    found = critics.slopes(critic, lambda a, b: b - a, real, fake)
    x = torch.cat([real, fake]).requires_grad_()
    score = critic(x)
    (gradient,) = torch.autograd.grad((score[6:] - score[:6]).mean(), x)
    assert found[0] == pytest.approx(float(gradient.norm()))
    assert found[-1] == pytest.approx(float(critic[-2].weight.norm()) * (12**0.5) / 6)


@pytest.mark.parametrize("draw", critics.DATA.values())
def test_critics_keep_to_their_constraint(draw):
    """Catches a constraint that does not reach the critic, or points off the picture."""
    x = draw(500, seeded())
    assert 1.5 < x.abs().max() < 3.2
    kept = critics.fit_critic(draw, {"clip": 0.01}, hidden=(8,), steps=3)
    assert max(p.abs().max() for p in kept.critic.parameters()) <= 0.01
    assert len(kept.gaps) == 3


def two_kinds():
    generator = seeded()
    mean, factor = torch.rand(2, 1, 28, 28, generator=generator)
    means, factors = torch.stack([mean, mean + 0.04]), (factor - 0.5).expand(2, 1, 1, 28, 28)
    shared = torch.tensor(shares.SHARES)
    return GaussianMixture.low_rank(shared, means, factors, torch.full((2,), 0.02))


def test_mode_is_the_most_probable_image():
    """Catches the mode of the other kind, or one that leaves out the shares."""
    prior = two_kinds()
    x = prior.sample(40, generator=seeded())
    problem = Problem.simulate(
        x, Downsampling(7, (1, 28, 28)), GaussianNoise(0.1), generator=seeded()
    )
    posterior = prior.posterior(problem)
    found = shares.mode(prior, problem)
    height = posterior.log_prob(found)
    for part in prior.components:
        mean = part.posterior(problem).mean
        assert (height >= posterior.log_prob(mean) - 1e-3).all()
    for size in (-0.01, 0.01):
        aside = size * torch.rand(x.shape, generator=seeded())
        assert (height > posterior.log_prob(found + aside)).all()
    chosen = shares.kind_of(prior, found)
    assert (chosen == posterior.weights.argmax(1)).all()  # volumes are equal
    assert 0 < (chosen == 0).sum() < 0.2 * len(x)


def test_exact_samples_have_the_shares_of_the_truths(monkeypatch):
    """Catches answers under another's name, or shares of the frequent kind."""
    monkeypatch.setattr(shares, "SOLVERS", {})
    rows, _ = shares.compared(two_kinds(), 0.1, draws=400, seed=0)
    rare = {row["answer"]: row["rare"] for row in rows}
    assert rare["truth"] == pytest.approx(0.2, abs=0.1)
    assert rare["exact"] == pytest.approx(rare["posterior"], abs=5 * (0.2 * 0.8 / 400) ** 0.5)
    assert rare["MAP"] < 0.8 * rare["posterior"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["between", "--prior", "mnist-vae"], "needs a GAN"),
        (["masks", "--full"], "leave out --full"),
        (["epochs"], "--data"),
    ],
)
def test_what_a_figure_cannot_do_is_said(words, says, tmp_path, capsys):
    """Catches an option that is silently ignored, or a traceback."""
    assert cli.main(["figure", *words, "--out", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err


def test_stacked_classes_are_those_of_both_channels():
    """Catches channels swapped, an unsure sample counted, or another rule of a quarter."""
    known = torch.rand(10, 1, 4, 4, generator=seeded()).repeat_interleave(5, 0)
    kinds = torch.arange(10).repeat_interleave(5)
    first, second = torch.tensor([3, 7, 0]), torch.tensor([1, 7, 9])
    x = torch.stack([known[5 * first, 0], known[5 * second, 0]], 1)
    kind, sure = stacked.kinds_of(x, known, kinds)
    assert kind.tolist() == [31, 77, 9]
    assert sure.all()
    torn = kinds.clone()
    torn[35] = 1  # one of the five that are nearest to a 7
    assert stacked.kinds_of(x, known, torn)[1].tolist() == [True, False, True]
    many = torch.cat([x[:1].repeat(399, 1, 1, 1), x[2:]])
    said = stacked.counted(many, known, kinds)
    assert (said["classes"], said["sure"]) == (2, 1.0)
    assert said["kl"] == pytest.approx(
        0.9975 * math.log(99.75) + 0.0025 * math.log(0.25), abs=1e-5
    )
    assert stacked.counted(torch.cat([many, x[:1]]), known, kinds)["classes"] == 1


def test_stacked_digits_are_drawn_apart():
    """Catches channels that hold the same digit, or a digit split over both."""
    x = torch.arange(50.0).view(50, 1, 1, 1).expand(50, 1, 2, 2)
    pairs = stacked.stack(x, 2000, 0)[..., 0, 0]
    assert abs(float(torch.corrcoef(pairs.T)[0, 1])) < 0.1
    assert set(pairs.flatten().tolist()) == set(range(50))


def test_mixed_styles_stand_between_their_sources():
    """Catches rows and columns swapped: with the mixture at no level, an image is its source."""
    gan = styles.style_gan(torch.rand(8, 1, 4, 4, generator=seeded()), steps=1, seed=0)
    table = styles.mixed(gan, 0).unflatten(0, (1 + styles.SOURCES, 1 + styles.SOURCES))
    coarse, fine = torch.randn(2, styles.SOURCES, *gan.latent_shape, generator=seeded())
    with torch.no_grad():
        torch.testing.assert_close(table[0, 1:], gan.decode(fine))
        torch.testing.assert_close(table[1:, 0], gan.decode(coarse))
        torch.testing.assert_close(table[2, 5][None], gan.mix(coarse[1:2], fine[4:5], level=1))
