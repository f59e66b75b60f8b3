"""Every bijection: inverse, volume, gradients, rows; two independent libraries as oracles."""

import copy
import math

import pytest
import torch
from tools import randn, seeded

from genprior.priors import testing
from genprior.priors.flows.bijection import Bijection, Chain, Flatten, first_not_finite
from genprior.priors.flows.conditioners import conditioner
from genprior.priors.flows.coupling import (
    AdditiveCoupling,
    AffineCoupling,
    Channels,
    Checkerboard,
)
from genprior.priors.flows.layers import ActNorm, ChannelMix, Logit, Scaling
from genprior.priors.flows.multiscale import MultiScale, Squeeze
from genprior.priors.flows.planar import Planar, Radial

SHAPE = (4, 4, 4)
PLANE = (1, 1, 2)


def network(size=(4, 4), kind="perceptron"):
    options = {"hidden": (8,)} if kind == "perceptron" else {"width": 8}
    return conditioner({"kind": kind, **options}, size)


def multiscale():
    fine = Chain([Squeeze(), ActNorm(4), AffineCoupling(4, Channels(), network((2, 2)))])
    coarse = Chain([Squeeze(), ActNorm(8), ChannelMix(8, seeded())])
    return MultiScale([fine, coarse], [(4, 2, 2), (8, 1, 1)])


BIJECTIONS = {
    "additive-channels": (lambda: AdditiveCoupling(4, Channels(), network()), SHAPE),
    "additive-swapped": (lambda: AdditiveCoupling(4, Channels(swapped=True), network()), SHAPE),
    "additive-checkerboard": (lambda: AdditiveCoupling(1, Checkerboard(), network((1, 2))), PLANE),
    "affine-channels": (lambda: AffineCoupling(4, Channels(), network()), SHAPE),
    "affine-odd-channels": (lambda: AffineCoupling(3, Channels(), network()), (3, 4, 4)),
    "affine-checkerboard": (
        lambda: AffineCoupling(4, Checkerboard(swapped=True), network(kind="convolutional")),
        SHAPE,
    ),
    "affine-plane": (lambda: AffineCoupling(1, Checkerboard(), network((1, 2))), PLANE),
    "actnorm": (lambda: ActNorm(4), SHAPE),
    "scaling": (lambda: Scaling(PLANE), PLANE),
    "channel-mix": (lambda: ChannelMix(4, seeded()), SHAPE),
    "logit": (lambda: Logit(0.01), SHAPE),
    "squeeze": (Squeeze, SHAPE),
    "flatten": (lambda: Flatten(SHAPE), SHAPE),
    "multiscale": (multiscale, (1, 4, 4)),
    "planar": (lambda: Planar(2, seeded()), PLANE),
    "planar-more-numbers": (lambda: Planar(64, seeded(1)), SHAPE),
    "radial": (lambda: Radial(2, seeded()), PLANE),
    "radial-more-numbers": (lambda: Radial(64, seeded(1)), SHAPE),
    "chain": (lambda: Chain([Planar(2, seeded()), Radial(2, seeded()), Scaling(PLANE)]), PLANE),
}


def stirred(bijection, seed=0, amount=0.3):
    """Move every weight, so that nothing is an identity any more."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in bijection.parameters():
            parameter += amount * torch.randn(parameter.shape, generator=generator)
    return bijection


@pytest.fixture(autouse=True)
def starting_weights():
    """Networks draw theirs from the global generator; families wrap that, these tests too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("name", BIJECTIONS)
def test_bijection(name):
    """Catches a sign or a factor in a log-determinant, an inverse that is none, dead weights."""
    make, shape = BIJECTIONS[name]
    testing.check_bijection(stirred(make()), shape)


def test_planes_and_points_stay_invertible_wherever_weights_go():
    """Catches w u < -1 and beta < -alpha, where a layer folds space over itself."""
    for seed in range(20):
        testing.check_bijection(stirred(Planar(2, seeded(seed)), seed, 3.0), PLANE)
        testing.check_bijection(stirred(Radial(2, seeded(seed)), seed, 1.5), PLANE)


class Broken(Bijection):
    """A layer whose log-determinant or inverse is wrong in one way."""

    def __init__(self, inner, fault):
        super().__init__()
        self.inner, self.fault = inner, fault

    def forward(self, x):
        z, log_det = self.inner(x)
        if self.fault == "rows":
            z = z + 0.1 * z.mean(0)
        return z, {"sign": -log_det, "half": log_det / 2}.get(self.fault, log_det)

    def inverse(self, z):
        return self.inner.inverse(z) * (1.01 if self.fault == "inverse" else 1.0)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("sign", "Jacobian"),
        ("half", "Jacobian"),
        ("inverse", r"inverse\(f\(x\)\)"),
        ("rows", "inverse|batch"),
    ],
)
def test_the_checks_notice(fault, message):
    """Catches a list of checks that passes whatever it is given."""
    with pytest.raises(AssertionError, match=message):
        testing.check_bijection(Broken(stirred(Scaling(PLANE)), fault), PLANE)


def test_the_checks_notice_a_weight_without_use():
    class Idle(Scaling):
        def __init__(self):
            super().__init__(PLANE)
            self.idle = torch.nn.Parameter(torch.ones(3))

    with pytest.raises(AssertionError, match="no gradient reaches idle"):
        testing.check_bijection(stirred(Idle()), PLANE)


def test_no_value_stays_after_two_couplings():
    """Catches halves that never take turns: a unit row is left in the Jacobian."""
    for half in (Channels, Checkerboard):
        layers = [AffineCoupling(4, half(swapped=i == 1), network()) for i in range(2)]
        chain = stirred(Chain(layers)).double()
        x = randn(1, *SHAPE)
        jacobian = torch.autograd.functional.jacobian(lambda v, c=chain: c(v)[0], x)
        jacobian = jacobian.reshape(64, 64)
        eye = torch.eye(64, dtype=torch.float64)
        assert not ((jacobian - eye).abs().amax(1) < 1e-12).any()


def test_scales_are_bounded():
    """Catches exp of whatever a network says: far from the data it overflows."""
    layer = AffineCoupling(4, Channels(), network())
    with torch.no_grad():
        layer.network.layers[-1].bias += 1e6
    z, log_det = layer(randn(1, *SHAPE).float())
    assert log_det.item() == pytest.approx(32)  # 32 values, each scaled by e at most at the start
    assert z.isfinite().all()


def test_actnorm_starts_at_mean_0_and_std_1():
    """Catches a start in the wrong units, and one that is not kept."""
    norm = ActNorm(4).double()
    x = 3 + 2 * randn(50, *SHAPE)
    norm.measuring = True
    z, _ = norm(x)
    norm.measuring = False
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4).double(), atol=1e-10, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(4).double())
    again = copy.deepcopy(norm)
    again.load_state_dict(norm.state_dict())
    torch.testing.assert_close(again(x[:2])[0], z[:2])


def test_a_squeeze_keeps_neighbours_together():
    """Catches a reshape that mixes rows of an image."""
    x = torch.arange(16.0).view(1, 1, 4, 4)
    z, _ = Squeeze()(x)
    assert z[0, :, 0, 0].tolist() == [0, 1, 4, 5]


def test_groups_come_coarse_first():
    """Catches a layout in which what is done last is not first."""
    scales = multiscale()
    assert [tuple(g.shape) for g in scales.split(torch.zeros(2, 16))] == [
        (2, 8, 1, 1),
        (2, 2, 2, 2),
    ]


def test_the_first_broken_layer_is_named():
    """Catches a NaN of which nobody knows where it began."""
    chain = Chain([Scaling(PLANE), Logit(0.1), Scaling(PLANE)])
    assert first_not_finite(chain, torch.full((1, *PLANE), 0.5)) is None
    assert first_not_finite(chain, torch.full((1, *PLANE), 5.0)) == "layers.1 (Logit)"


def test_a_singular_matrix_is_refused():
    """Catches weights whose inverse is infinite, found out in the middle of a solve."""
    mix = ChannelMix(3, seeded())
    for bad in (-math.inf, math.nan, -80.0):
        state = mix.state_dict()
        state["log_scale"] = torch.tensor([0.0, bad, 0.0])
        with pytest.raises(ValueError, match="log_scale makes the 1x1 convolution singular"):
            ChannelMix(3, seeded()).load_state_dict(state)


@pytest.mark.parametrize("kind", ["planar", "radial"])
def test_oracle_normflows_of_vectors(kind):
    """normflows on shared weights: the paper's constraints, values and log-determinants."""
    nf = pytest.importorskip("normflows")
    x = randn(5, 3)
    for seed in range(3):
        if kind == "planar":
            ours = stirred(Planar(3, seeded(seed)), seed).double()
            u, w = (v.detach()[None] for v in (ours.u, ours.w))
            theirs = nf.flows.Planar((3,), u=u, w=w, b=ours.b.detach())
        else:
            ours = stirred(Radial(3, seeded(seed)), seed).double()
            theirs = nf.flows.Radial((3,), z_0=ours.x0.detach()[None]).double()
            with torch.no_grad():
                theirs.alpha.fill_(ours._constrained()[0])
                theirs.beta.fill_(ours.raw_beta)
        z, log_det = ours(x.view(5, 1, 1, 3))
        expected, theirs_log_det = theirs(x)
        torch.testing.assert_close(z.flatten(1), expected)
        torch.testing.assert_close(log_det, theirs_log_det)


@pytest.mark.parametrize("kind", ["coupling", "mix", "actnorm"])
def test_oracle_normflows(kind):
    """normflows on shared weights: the same values and log-determinants."""
    nf = pytest.importorskip("normflows")
    x = randn(4, 4, 6, 6, seed=3)
    if kind == "mix":
        ours = stirred(ChannelMix(4, seeded())).double()
        lower, upper = ours.factors()
        theirs = nf.flows.Invertible1x1Conv(4, use_lu=False).double()
        with torch.no_grad():  # theirs multiplies by W's inverse in `forward`
            theirs.W.copy_((lower @ upper)[ours.order])
        expected, log_det = theirs.inverse(x)
    elif kind == "actnorm":
        ours = stirred(ActNorm(4)).double()
        theirs = nf.flows.ActNorm((4, 1, 1)).double()
        theirs.data_dep_init_done = torch.tensor(1.0)
        with torch.no_grad():  # x = z exp(s) + t
            theirs.s.copy_(-ours.log_scale[None])
            theirs.t.copy_((-ours.shift * (-ours.log_scale).exp())[None])
        expected, log_det = theirs.inverse(x)
    else:
        ours = stirred(AffineCoupling(4, Channels(), network((6, 6)))).double()

        class Shared(torch.nn.Module):
            """Theirs wants shift and scale in turn, one pair for each channel."""

            def forward(self, a):
                s, t = ours._scale_and_shift(a)
                return torch.stack([t, s], 2).flatten(1, 2)

        theirs = nf.flows.AffineCouplingBlock(Shared(), scale_map="exp", split_mode="channel")
        expected, log_det = theirs(x)
    z, found = ours(x)
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(found, log_det.expand(4))
