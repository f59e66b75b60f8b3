"""What training says of itself: modes, a collapse, a critic that has won, and a NaN."""

import math
import warnings

import pytest
import torch
from tools import identical, seeded
from torch import nn

import genprior
from genprior.priors import GAN, Turn
from genprior.priors.gan.losses import LOSSES
from genprior.priors.gan.watch import modes
from genprior.training import TrainingOptions, checkpoints

PERCEPTRON = {"kind": "perceptron", "hidden": [16]}
QUIET = {"progress": False, "grid": 0, "accelerator": "cpu"}


def data(count=64):
    return torch.rand(count, 1, 8, 8, generator=seeded(5))


def train(gan, *, out, **settings):
    steps = settings.pop("steps", 4)
    options = TrainingOptions(**{**GAN.training_defaults, **QUIET, **settings})
    return genprior.train(gan, data(), out=out, steps=steps, batch_size=8, options=options)


def test_modes_by_hand():
    """Catches samples that no class is sure of counted, shares of all samples in place of the
    sure, and a class that too few samples show."""
    rows = [[0.95, 0.05, 0.0, 0.0]] * 96 + [[0.0, 0.89, 0.11, 0.0]] * 42
    rows += [[0.0, 0.0, 1.0, 0.0]] * 2
    found = modes(torch.tensor(rows))
    assert float(found["modes"]) == 1  # a tenth of a quarter of 98 is 2.45
    assert float(found["unsure"]) == pytest.approx(42 / 140)
    found = modes(torch.tensor([*rows, rows[-1]]))
    assert float(found["modes"]) == 2
    assert float(modes(torch.full((5, 4), 0.25))["modes"]) == 0


class Thirds(nn.Module):
    """Tells images by their mean pixel: below 1/3, to 2/3, above."""

    def __init__(self):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(1e4))

    def forward(self, x):
        assert not self.training
        mean = x.flatten(1).mean(1)
        return -self.sharpness * (mean[:, None] - torch.tensor([1, 3, 5]) / 6).square()


def test_a_classifier_counts_and_changes_nothing(tmp_path):
    """Catches statistics that move, noise that shifts, and a classifier saved as weights."""

    def build():
        return GAN((1, 8, 8), 5, network={"kind": "dcgan", "widths": [8, 4]})

    logs = []
    watched = build().watch_modes(Thirds())
    assert watched.state_dict().keys() == build().state_dict().keys()
    assert watched.config == build().config
    objective = watched.objective()
    for step in (0, 1, 50):
        logs.append(objective.loss(Turn("generator", step, 0), data(8), seeded(1))[1])
    assert ["modes" in x and "unsure" in x for x in logs] == [True, False, True]
    assert float(logs[0]["modes"]) == 1  # grey, as untrained networks are
    assert float(logs[0]["unsure"]) == 0
    varied = data(8) * 0.1 + 0.45  # as little as the samples
    with pytest.warns(UserWarning, match="samples show 1 of 3 classes.*collapsed. Try"):
        objective.loss(Turn("generator", 4000, 24_000), varied, seeded(1))
    plain, seen = (train(gan, out=None) for gan in (build(), build().watch_modes(Thirds())))
    for name, value in plain.state_dict().items():
        assert identical(seen.state_dict()[name], value), name
    seen.save(tmp_path / "gan.safetensors")
    assert genprior.load(tmp_path / "gan.safetensors").classifier is None
    watched = build().watch_modes(lambda x: x.flatten(1).mean(1))
    with pytest.raises(ValueError, match=r"gave \(1000,\) for 1000 images"):
        watched.objective().loss(Turn("generator", 0, 0), data(8), seeded(1))


def test_a_collapse_is_named():
    """Catches a generator of one image that trains on without a word."""
    gan = GAN((1, 8, 8), 5, network=PERCEPTRON)
    with torch.no_grad():
        for p in gan.parameters():
            p.mul_(1e-3)
    objective = gan.objective()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective.loss(Turn("generator", 0, 0), data(8), seeded(1))  # too early to tell
    with pytest.warns(UserWarning, match="the generator has collapsed"):
        objective.loss(Turn("generator", 3000, 24_000), data(8), seeded(1))


class Judge(nn.Module):
    """Scores the mean pixel over a half, in large units."""

    def __init__(self, unit):
        super().__init__()
        self.unit = nn.Parameter(torch.tensor(float(unit)))

    def forward(self, x):
        return self.unit * (x.flatten(1).mean(1) - 0.5)


def looks(kind, unit, *, real=0.9, mistaken=()):
    """A critic's figures at every look, where generated images are dark, and real ones that are
    `mistaken` darker still."""
    gan = GAN((1, 8, 8), 5, network=PERCEPTRON, loss={"kind": kind})
    with torch.no_grad():
        gan.generator[-3].bias.fill_(-2.0)
    objective = gan.objective()
    objective.critic = Judge(unit)
    for step in range(0, 1000, 50):
        batch = torch.full((8, 1, 8, 8), 0.0 if step in mistaken else real)
        yield objective.loss(Turn("critic", step, 0), batch, seeded(1))[1]


def test_a_critic_that_has_won_stops_the_training():
    """Catches a run that goes on without a gradient, and one that is stopped although it learns:
    the same critic pulls where the loss does not saturate, or where it mistakes images."""
    with pytest.raises(ArithmeticError, match=r"500 steps, until step 450.*non-saturating"):
        list(looks("minimax", 1e3))
    for kind, unit, real in (
        ("non-saturating", 1e3, 0.9), ("minimax", 1, 0.9), ("minimax", 1e3, 0.1),
        ("hinge", 1e3, 0.9), ("wasserstein", 1e3, 0.9),
    ):  # fmt: skip
        assert len(list(looks(kind, unit, real=real))) == 20
    assert len(list(looks("minimax", 1e3, mistaken=(450, 950)))) == 20
    first = next(looks("minimax", 1))
    assert float(first["accuracy"]) == 1
    b = 0.4 - float(first["gap"])  # |d/dx -softplus(b)| = sigmoid(b) |dD/dx|, roughly alike
    assert float(first["pull"]) == pytest.approx(1 / (1 + math.exp(-b)) / 8, rel=0.01)


def test_accuracy_of_each_loss():
    """Catches a threshold at the wrong score, or a critic of pairs judged by one."""
    a, b = torch.tensor([0.2, 0.4, 0.8, 2.0]), torch.tensor([-0.1, 0.3, 0.6, 1.0])
    expected = {
        "non-saturating": 5 / 8, "minimax": 5 / 8, "hinge": 5 / 8, "least-squares": 4 / 8,
        "relativistic": 1.0, "wasserstein": None,
    }  # fmt: skip
    for kind, value in expected.items():
        found = LOSSES[kind].accuracy(a, b)
        assert found is None if value is None else float(found) == value, kind


def test_a_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    """Catches checkpoints or weights that hold what is not finite, of either network."""
    loss = {"kind": "wasserstein", "optimizer": "sgd"}
    gan = GAN((1, 8, 8), 5, network=PERCEPTRON, loss=loss)
    with pytest.raises(ArithmeticError, match=r"NaN or infinite.*kept in.*Try half"):
        train(gan, out=tmp_path, steps=40, learning_rate=10.0, checkpoint_every=4)
    kept = checkpoints.newest(tmp_path / "checkpoints")
    assert 0 < kept["step"] < 40
    assert all(bool(t.isfinite().all()) for t in kept["networks"].values())
    weights = genprior.load(tmp_path).state_dict()
    assert all(bool(t.isfinite().all()) for t in weights.values())


def test_another_loss_does_not_resume(tmp_path):
    """Catches a run that goes on with what its optimisers were not made for."""
    train(GAN((1, 8, 8), 5, network=PERCEPTRON, loss={"kind": "hinge"}), out=tmp_path, steps=2)
    for loss, says in (
        ({"kind": "minimax"}, "loss.kind: hinge before, minimax now"),
        ({"kind": "hinge", "r1": 0.1}, "loss.r1: 0.0 before, 0.1 now"),
        ({"kind": "hinge", "augment": 0.3}, "loss.augment: 0.0 before, 0.3 now"),
    ):
        with pytest.raises(ValueError, match=says):
            train(GAN((1, 8, 8), 5, network=PERCEPTRON, loss=loss), out=tmp_path)
