"""The three training objectives against a Gaussian, whose best network is known exactly."""

import math

import pytest
import torch

from genprior.operators.base import per_row
from genprior.priors.diffusion import parametrisations as objectives
from genprior.priors.diffusion.parametrisations import DDPM, EDM, FlowMatching

VARIANCE = 0.2
OBJECTIVES = [EDM(), DDPM(), DDPM(schedule="cosine"), FlowMatching()]


def level(objective, noise):
    """s from the network's label."""
    if isinstance(objective, EDM):
        return (4 * noise).exp()
    if isinstance(objective, FlowMatching):
        return noise / (1 - noise)
    return objective.levels()[(noise * objective.steps).round().long()].to(noise)


def best_network(objective):
    """The minimiser of the loss for u0 ~ N(0, VARIANCE I), from E[u0 | u] = v u / (v + s^2)."""

    def network(given, noise):
        s = per_row(level(objective, noise), given)
        if isinstance(objective, FlowMatching):
            u = given * (1 + s)
            return (u - VARIANCE / (VARIANCE + s**2) * u) / s - VARIANCE / (VARIANCE + s**2) * u
        u = given * (1 + s**2).sqrt()
        denoised = VARIANCE / (VARIANCE + s**2) * u
        if isinstance(objective, EDM):
            return (denoised - u / (1 + s**2)) * (1 + s**2).sqrt() / s
        return (u - denoised) / s

    return network


def best_output_square(objective, best, u0, generator):
    """Mean square of what a network gives on the inputs of the loss."""
    seen = []

    def network(u, noise):
        seen.append(best(u, noise))
        return seen[0]

    objective.loss(network, u0, generator)
    return seen[0].square().mean()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_denoise_reads_the_network_rightly(objective):
    """Would catch a wrong coefficient or label between the network and E[u0 | u]."""
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(6, 1, 2, 3, generator=generator, dtype=torch.float64)
    if isinstance(objective, DDPM):  # where t is an integer
        s = objective.levels()[torch.tensor([0, 10, 100, 500, 900, 999])]
    else:
        s = torch.tensor([0.004, 0.05, 0.5, 2.0, 20.0, 160.0], dtype=torch.float64)
    got = objective.denoise(best_network(objective), u, s.tolist())
    exact = VARIANCE / (VARIANCE + per_row(s, u) ** 2) * u
    assert (got - exact).abs().max() < 1e-9 * max(1, s.max().item())


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_training_loss_is_least_at_the_exact_denoiser(objective):
    """Would catch a loss whose noise, target or label disagrees with `denoise`.

    The derivative of the loss along the network's own output vanishes at the best network.
    """
    generator = torch.Generator().manual_seed(1)
    u0 = math.sqrt(VARIANCE) * torch.randn(
        20_000, 1, 2, 2, generator=generator, dtype=torch.float64
    )
    best = best_network(objective)
    scale = torch.ones(len(u0), dtype=torch.float64, requires_grad=True)
    rows = objective.loss(lambda u, t: per_row(scale, u) * best(u, t), u0, generator)
    (slopes,) = torch.autograd.grad(rows.sum(), scale)
    error = slopes.std() / math.sqrt(len(slopes))
    assert slopes.mean().abs() < 5 * error
    # It has power: a network five per cent too strong is noticed.
    curvature = 2 * best_output_square(objective, best, u0, generator)
    assert 0.05 * curvature > 5 * error


def test_edm_weights_are_those_of_the_paper():
    """Would catch a loss that is not the denoising error times (1 + s^2) / s^2."""
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    u0 = torch.randn(50, 1, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    objective, calls = EDM(), []

    def network(u, noise):
        calls.append((u, noise))
        return torch.tanh(u)

    loss = objective.loss(network, u0, generators[0])
    given, noise = calls[0]
    s = (4 * noise).exp()
    u = given * per_row((1 + s**2).sqrt(), given)
    denoised = objective.denoise(network, u, s.tolist())
    expected = (denoised - u0).square().flatten(1).mean(1) * (1 + s**2) / s**2
    assert torch.allclose(loss, expected, rtol=1e-9)


def test_ddpm_levels():
    """Would catch an off-by-one in the schedules: first and last levels in closed form."""
    linear = DDPM().levels()
    assert linear[0] == pytest.approx(math.sqrt(1e-4 / (1 - 1e-4)), rel=1e-12)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = math.exp(torch.log1p(-betas).sum().item())
    assert linear[-1] == pytest.approx(math.sqrt(1 / kept - 1), rel=1e-9)
    cosine = DDPM(schedule="cosine", steps=10).levels()
    kept = [math.cos((i / 10 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(11)]
    assert cosine[4] == pytest.approx(math.sqrt(kept[0] / kept[5] - 1), rel=1e-9)


def test_config_round_trip():
    """Would catch an option that a saved prior forgets."""
    for objective in (EDM(log_mean=-1.0), DDPM("cosine", 50), FlowMatching(s_range=(0.01, 10.0))):
        assert objectives.from_config(objective.config) == objective
    with pytest.raises(ValueError, match="edm, ddpm, flow_matching"):
        objectives.from_config({"kind": "vp"})
    assert objectives.from_config({"kind": "flow"}) == FlowMatching()  # as older files say
