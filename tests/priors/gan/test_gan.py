"""GANs: losses against their closed forms, penalties against differences, turns, and a resume."""

import math

import pytest
import torch
from tools import identical, seeded
from torch import nn

import genprior
from genprior.data import ArrayImages
from genprior.priors import GAN, Turn, testing
from genprior.priors.gan.losses import LOSSES, AdversarialOptions, interpolates, squared_slope
from genprior.training import TrainingOptions

QUIET = {"progress": False, "grid": 0, "accelerator": "cpu"}
OPTIONS = TrainingOptions(**{**GAN.training_defaults, **QUIET})
NETWORKS = {
    "perceptron": {"kind": "perceptron", "hidden": [16]},
    "dcgan": {"kind": "dcgan", "widths": [8, 4]},
    "mapped": {"kind": "dcgan", "widths": [8, 4], "mapping": 2, "styles": 6, "hidden": 16},
    "residual": {"kind": "residual", "widths": [16, 8], "group": 8},
    "style": {"kind": "style", "widths": [16, 8], "mapping": 2, "styles": 6, "group": 8},
}


def smooth(inputs=4):
    """A small critic with slopes everywhere, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, 1))
    return nn.Sequential(layers, nn.Flatten(0)).double()


def draw(shape, seed):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("hidden", [0, 16])
def test_a_critic_with_a_hidden_layer_judges_the_whole(hidden):
    """Catches a layer that is left out: without it what two far places say is added up."""
    network = {"kind": "dcgan", "widths": [8, 4], "batch_norm": False, "hidden": hidden}
    critic = GAN((1, 16, 16), 5, network=network).critic().double()
    here, there = torch.zeros(2, 1, 1, 16, 16, dtype=torch.float64)
    here[..., :4, :4], there[..., 12:, 12:] = 3.0, -2.0
    with torch.no_grad():
        none, one, other, both = (critic(x)[0] for x in (0 * here, here, there, here + there))
    apart = float((both - one - other + none).abs())
    assert apart < 1e-12 if hidden == 0 else apart > 1e-4


def test_a_mapping_stands_before_the_first_level():
    """Catches a mapping beside the way from z to the image, and one of other sizes."""
    mapping, first, *_ = GAN((1, 8, 8), 5, network=NETWORKS["mapped"]).generator
    assert [(m.in_features, m.out_features) for m in mapping if isinstance(m, nn.Linear)] == [
        (5, 6), (6, 6)
    ]  # fmt: skip
    assert first.in_features == 6


@pytest.mark.parametrize(("option", "least"), [("mapping", 0), ("styles", 1), ("hidden", 0)])
def test_sizes_out_of_range_are_refused(option, least):
    with pytest.raises(ValueError, match=f"{option} must be whole numbers of at least {least}"):
        GAN((1, 8, 8), 5, network={"kind": "dcgan", "widths": [8, 4], option: least - 1})


@pytest.mark.parametrize("name", NETWORKS)
def test_contract(name, device):
    testing.check_prior(GAN((1, 8, 8), 5, network=NETWORKS[name]), device=device)


def trained_critic(real, fake, loss, *, steps):
    """Train a critic alone, on two laws: functions of a generator that give points (n, d)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        critic = nn.Sequential(
            nn.Linear(real(seeded()).shape[1], 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(),
            nn.Linear(32, 1), nn.Flatten(0),
        )  # fmt: skip
    optimizer = torch.optim.Adam(critic.parameters(), 1e-2, betas=(0.5, 0.99))
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    generator = seeded(1)
    for _ in range(steps):
        a, b = real(generator), fake(generator)
        value = LOSSES[loss.kind].critic(critic(a), critic(b)).mean()
        if loss.penalised:
            value = value + loss.penalty(critic, a, b, generator).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        decay.step()
    return critic


def test_the_best_critic_knows_the_probability_that_an_image_is_real():
    """Catches a term of the critic's loss with the wrong sign or weight: sigmoid(D) = p/(p+q).

    Quantiles stand for draws, whose scatter would need many more steps.
    """
    normal = torch.special.ndtri((torch.arange(512) + 0.5) / 512)[:, None]
    critic = trained_critic(
        lambda _: normal - 0.75, lambda _: normal + 0.75, AdversarialOptions(), steps=150
    )
    x = torch.linspace(-2, 2, 81)[:, None]
    truth = torch.sigmoid(-1.5 * x[:, 0])  # log p/q of two normals, 1.5 apart
    assert float((critic(x).sigmoid() - truth).abs().mean()) < 0.005


def test_a_penalised_critic_measures_the_distance():
    """Catches a penalty at the wrong points or slope: W1 of two equal laws is their shift.

    The best slope g maximises D g - lambda (g - 1)^2: it is 1 + D / (2 lambda), so that a small
    lambda overrates the distance. In the plane: on a line the penalty is a barrier that no slope
    of the wrong sign can cross.
    """
    shift, n = torch.tensor([1.8, 2.4]), torch.randn(20_000, 2, generator=seeded(2))

    def points(generator):
        return torch.randn(256, 2, generator=generator)

    for weight in (100.0, 10.0):
        loss = AdversarialOptions(kind="wasserstein", gradient_penalty=weight)
        critic = trained_critic(points, lambda g: points(g) + shift, loss, steps=200)
        with torch.no_grad():
            apart = float(critic(n).mean() - critic(n + shift).mean())
        assert apart == pytest.approx(3 * (1 + 3 / (2 * weight)), rel=0.02)
    assert abs(apart - 3) > 0.3


@pytest.mark.parametrize("kind", LOSSES)
def test_losses_draw_the_two_apart_and_the_generator_towards_the_data(kind):
    """Catches a sign: the critic gains by a high score of real images and a low one of others."""
    a, b = (torch.zeros(3, requires_grad=True) for _ in range(2))
    up, down = torch.autograd.grad(LOSSES[kind].critic(a, b).sum(), (a, b))
    assert (up < 0).all()
    assert (down > 0).all() or kind == "least-squares"
    (towards,) = torch.autograd.grad(LOSSES[kind].generator(a, b).sum(), b)
    assert (towards < 0).all()


def test_losses_as_in_the_papers():
    """Catches a constant or a factor, at scores where the loss has a known value."""
    a, b = torch.tensor([0.3], dtype=torch.float64), torch.tensor([-1.2], dtype=torch.float64)
    p, q = a.sigmoid(), b.sigmoid()
    cross = -(p.log() + (1 - q).log())
    expected = {
        "minimax": (cross, (1 - q).log()),
        "non-saturating": (cross, -q.log()),
        "hinge": ((1 - a).clamp(min=0) + (1 + b).clamp(min=0), -b),
        "least-squares": (((a - 1) ** 2 + b**2) / 2, (b - 1) ** 2 / 2),
        "wasserstein": (b - a, -b),
        "relativistic": (-(a - b).sigmoid().log(), -(b - a).sigmoid().log()),
    }
    assert expected.keys() == LOSSES.keys()
    for kind, (critic, generator) in expected.items():
        torch.testing.assert_close(LOSSES[kind].critic(a, b), critic)
        torch.testing.assert_close(LOSSES[kind].generator(a, b), generator)


def differences(function, x, step=1e-5):
    """Return the gradient of a function of one tensor by central differences."""
    flat = torch.zeros_like(x).flatten()
    for i in range(len(flat)):
        bump = torch.zeros_like(flat)
        bump[i] = step
        ahead, behind = (function(x + s * bump.view_as(x)) for s in (1, -1))
        flat[i] = (ahead - behind) / (2 * step)
    return flat.view_as(x)


def test_penalties_against_differences():
    """Catches a slope squared or halved wrongly, R1 and R2 exchanged, a penalty not trained."""
    critic, real, fake = smooth(), draw((3, 1, 2, 2), 1), draw((3, 1, 2, 2), 2)
    slopes = {
        "real": differences(lambda x: critic(x).sum().detach(), real).square().flatten(1).sum(1),
        "fake": differences(lambda x: critic(x).sum().detach(), fake).square().flatten(1).sum(1),
    }
    torch.testing.assert_close(squared_slope(critic, real), slopes["real"], rtol=1e-6, atol=1e-9)
    for options, expected in (
        ({"r1": 3.0}, 1.5 * slopes["real"]),
        ({"r2": 3.0}, 1.5 * slopes["fake"]),
    ):
        found = AdversarialOptions(**options).penalty(critic, real, fake, seeded(3))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    between = interpolates(real, fake, seeded(3))
    slope = differences(lambda x: critic(x).sum().detach(), between).flatten(1).norm(dim=1)
    lipschitz = AdversarialOptions(gradient_penalty=7.0)
    found = lipschitz.penalty(critic, real, fake, seeded(3))
    torch.testing.assert_close(found, 7 * (slope - 1) ** 2, rtol=1e-5, atol=1e-8)
    weights = critic[0][1].weight
    (trained,) = torch.autograd.grad(found.sum(), weights)

    def moved(w):
        kept = weights.data.clone()
        weights.data.copy_(w)
        value = lipschitz.penalty(critic, real, fake, seeded(3)).sum().detach()
        weights.data.copy_(kept)
        return value

    expected = differences(moved, weights.data.clone())
    torch.testing.assert_close(trained, expected, rtol=1e-4, atol=1e-6)


def test_interpolates_lie_between():
    real, fake = torch.ones(500, 1, 1, 1), torch.zeros(500, 1, 1, 1)
    t = interpolates(real, fake, seeded()).flatten()
    assert 0 <= float(t.min()) < 0.05
    assert 0.95 < float(t.max()) <= 1
    assert float(t.mean()) == pytest.approx(0.5, abs=0.06)


def data(count=64):
    return torch.rand(count, 1, 8, 8, generator=seeded(5))


@pytest.mark.parametrize("name", NETWORKS)
def test_turns_move_their_own_network_alone(name):
    """Catches a generator trained to please itself, or a critic that its opponent moves."""
    gan = GAN((1, 8, 8), 5, network=NETWORKS[name], loss={"critic_steps": 2, "r1": 0.1})
    objective = gan.objective()
    assert [g for g, _ in objective.turns] == ["critic", "generator"]
    assert dict(objective.turns) == {"critic": 2, "generator": 1}
    own = {g: set(map(id, objective.parameters(g))) for g in ("critic", "generator")}
    assert not own["critic"] & own["generator"]
    for group in own:
        objective.networks.zero_grad()
        objective.networks.requires_grad_(True)
        loss, logs = objective.loss(Turn(group, 0, 0), data(6), seeded(1))
        loss.backward()
        assert any(p.grad is not None for p in objective.parameters(group))
        assert all(not t.requires_grad for t in logs.values())
    critic_loss, _ = objective.loss(Turn("critic", 0, 0), data(6), seeded(1))
    used = torch.autograd.grad(
        critic_loss, list(gan.parameters()), allow_unused=True, retain_graph=True
    )
    assert all(g is None for g in used)


def test_a_lazy_penalty_counts_as_often_as_it_is_left_out():
    """Catches a lazy penalty whose weight is not made up for."""
    gan = GAN((1, 8, 8), 5, network=NETWORKS["perceptron"], loss={"r1": 2.0, "lazy": 4})
    objective = gan.objective()
    values = [objective.loss(Turn("critic", s, 0), data(6), seeded(1)) for s in range(4)]
    assert ["penalty" in logs for _, logs in values] == [True, False, False, False]
    extra = values[0][0] - values[1][0]
    torch.testing.assert_close(extra.detach(), 4 * values[0][1]["penalty"])


def train(gan, images=None, **settings):
    steps = settings.pop("steps", 6)
    out, batch_size = settings.pop("out", None), settings.pop("batch_size", 8)
    options = TrainingOptions(**{**vars(OPTIONS), **settings})
    images = data() if images is None else images
    return genprior.train(
        gan, images, out=out, steps=steps, batch_size=batch_size, options=options
    )


def test_a_resumed_run_is_the_run(tmp_path):
    """Catches a critic, an optimiser or draws that a checkpoint leaves out."""

    def build():
        return GAN((1, 8, 8), 5, network=NETWORKS["dcgan"], loss={"critic_steps": 2, "r1": 0.1})

    whole = train(build(), steps=8)
    train(build(), steps=4, out=tmp_path)
    parts = train(build(), steps=8, out=tmp_path)
    loaded = genprior.load(tmp_path).state_dict()
    for name, value in whole.state_dict().items():
        assert identical(parts.state_dict()[name], value), name
        assert identical(loaded[name], value), name


def test_batch_statistics_are_of_the_average():
    """Catches the last weights' statistics in the average, and those of the first training steps:
    what each layer normalises has the mean and variance that it divides by."""
    gan = GAN((1, 8, 8), 5, network=NETWORKS["dcgan"])
    trained = train(gan, steps=4, learning_rate=0.02, ema_half_life=1000)
    norms = [m for m in trained.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2
    came = {}
    for norm in norms:
        norm.register_forward_pre_hook(lambda norm, args: came.update({norm: args[0].detach()}))
    assert not trained.training
    trained.decode(torch.randn(4000, 5, generator=seeded(7)))
    for norm in norms:
        assert norm.momentum == 0.1
        std, channels = norm.running_var.sqrt(), came[norm].transpose(0, 1).flatten(1)
        away = (channels.mean(1) - norm.running_mean) / std
        assert float(away.abs().max()) < 0.1
        torch.testing.assert_close(channels.std(1), std, rtol=0.05, atol=0)


def test_clipped_weights_and_steps_of_one_length():
    """Catches clipping that is left out or meets the generator, or steps of any length."""
    gan = GAN((1, 8, 8), 5, network=NETWORKS["perceptron"], loss={"clip": 0.01})
    objective = gan.objective()
    for group in ("critic", "generator"):
        kept = list(objective.parameters(group))
        optimizer = objective.optimizer(group, 1e-3, kept)
        loss, _ = objective.loss(Turn(group, 0, 0), data(8), seeded(1))
        loss.backward()
        optimizer.step()
        largest = max(float(p.detach().abs().max()) for p in kept)
        assert (largest <= 0.01) == (group == "critic")
    gan = GAN((1, 8, 8), 5, network=NETWORKS["perceptron"], loss={"optimizer": "normalised"})
    objective = gan.objective()
    kept = list(objective.parameters("generator"))
    before = [p.detach().clone() for p in kept]
    optimizer = objective.optimizer("generator", 0.5, kept)
    objective.loss(Turn("generator", 0, 0), data(8), seeded(1))[0].backward()
    optimizer.step()
    moved = math.sqrt(
        sum(float((p - b).square().sum()) for p, b in zip(kept, before, strict=True))
    )
    assert moved == pytest.approx(0.5, rel=1e-4)


def test_it_learns_a_mean():
    """Catches networks that play against nothing: samples take on the data's mean and spread."""
    points = 0.3 + 0.1 * torch.randn(512, 1, 1, 2, generator=seeded(3))
    gan = GAN(
        (1, 1, 2),
        4,
        network={"kind": "perceptron", "hidden": [32, 32]},
        loss={"kind": "relativistic", "r1": 0.05, "r2": 0.05},
    )
    images = ArrayImages(points.numpy())
    trained = train(gan, images, steps=200, learning_rate=5e-3, ema_half_life=400)
    x = trained.sample(1000, generator=seeded(4)).flatten(1)
    torch.testing.assert_close(x.mean(0), torch.full((2,), 0.3), atol=0.05, rtol=0)
    assert 0.05 < float(x.std(0).min()) < 0.2


@pytest.mark.parametrize("truncation", [0, -0.1, 1.1, math.nan])
def test_truncations_out_of_range_are_refused(truncation):
    with pytest.raises(ValueError, match="truncation must be above 0 and at most 1"):
        GAN((1, 8, 8), 5).sample(1, truncation=truncation)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"loss": {"kind": "wgan"}}, r"loss.kind must be one of non-saturating"),
        ({"loss": {"lazy": 0}}, r"loss.lazy must be 1 to 1000"),
        ({"loss": {"r3": 1.0}}, "loss has no option 'r3'"),
        ({"loss": {"clip": 0.0}}, "loss.clip must be above 0"),
        ({"network": {"kind": "dcgan", "widths": [8, 8, 8, 8]}}, "cannot be halved 4 times"),
        ({"network": {"kind": "dcgan", "widths": []}}, "widths must name one level or more"),
        ({"network": {"kind": "transformer"}}, "network.kind must be one of perceptron"),
    ],
)
def test_what_cannot_be_built_is_said(options, says):
    with pytest.raises(ValueError, match=says):
        GAN((1, 8, 8), 5, **options)


def test_batches_that_share_statistics():
    """Catches a batch of one normalised to nothing, and one computed in parts."""
    gan = GAN((1, 8, 8), 5, network=NETWORKS["dcgan"])
    with pytest.raises(ValueError, match="batches of 2 images or more"):
        gan.objective().loss(Turn("critic", 0, 0), data(1), seeded(1))
    with pytest.raises(ValueError, match="accumulate must be 1"):
        train(gan, accumulate=2)
    train(GAN((1, 8, 8), 5, network=NETWORKS["residual"]), accumulate=2, steps=1)
    with pytest.raises(ValueError, match="batches of 2 images or more"):
        train(gan, batch_size=1)
