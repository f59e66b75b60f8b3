"""Metrics against closed forms, exact enumeration and brute force."""

import math

import numpy as np
import pytest
import torch
from common.features import VGG16, LeNet, extract, load_features
from tools import seeded
from torch.distributions import MultivariateNormal, kl_divergence

from genprior import metrics


def randn(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def within_five_errors(values, expected):
    """Whether the mean of independent values agrees with `expected`."""
    error = values.std() / math.sqrt(values.numel())
    return (values.mean() - expected).abs() < 5 * error


def test_psnr_is_per_image():
    """Would catch an error averaged over the batch, or a peak of 255."""
    truth = torch.full((2, 3, 4, 4), 0.5)
    x = truth + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    torch.testing.assert_close(
        metrics.psnr(x, truth), torch.tensor([20.0, 40.0]).double(), atol=1e-4, rtol=0
    )


def test_ssim_of_constants():
    """Would catch a wrong data range: for constants SSIM is (2ab + c) / (a^2 + b^2 + c)."""
    a, b = 0.2, 0.7
    x, y = torch.full((1, 3, 16, 16), a), torch.full((1, 3, 16, 16), b)
    expected = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    assert metrics.ssim(x, y).item() == pytest.approx(expected, abs=1e-6)
    assert metrics.ssim(x, x).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="11x11"):
        metrics.ssim(x[..., :8], y[..., :8])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 9, 50])
@pytest.mark.parametrize("level", [0.02, 0.3, 0.5, 0.9, 0.99])
def test_coverage_is_exact_over_ranks(count, level):
    """Would catch quantile rules whose nominal coverage is off for few samples: with every rank
    of the truth once, the mean score must be the level itself."""
    samples = torch.arange(1.0, count + 1).expand(1, count)[..., None].expand(1, count, count + 1)
    truth = torch.arange(count + 1)[None] + 0.5
    assert metrics.coverage(samples, truth, level).item() == pytest.approx(level, abs=1e-12)


def test_coverage_with_ties():
    """Would catch clipped pixels, tied with their samples, counted always or never."""
    for count in (4, 8):
        samples = randn(2000, count, 40).clamp_min(0)
        truth = randn(2000, 40, seed=1).clamp_min(0)
        assert within_five_errors(metrics.coverage(samples, truth, 0.9), 0.9)


def test_coverage_where():
    """Would catch a mask that weighs images by their missing pixels."""
    samples, truth = randn(3, 5, 2, 4, 4), randn(3, 2, 4, 4, seed=1)
    where = torch.rand((3, 1, 4, 4), generator=seeded()) < 0.5
    got = metrics.coverage(samples, truth, 0.5, where=where)
    for i in range(3):
        keep = where[i].expand(2, 4, 4)
        alone = metrics.coverage(samples[i][:, keep][None], truth[i][keep][None], 0.5)
        assert got[i].item() == pytest.approx(alone.item(), abs=1e-12)


def test_gaussian_coverage_at_quantiles():
    """Would catch a one-sided quantile (90 % taken for 95 %)."""
    shares = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    truth = 2 + 3 * torch.special.ndtri(shares)[None]
    mean, std = torch.full_like(truth, 2.0), torch.full_like(truth, 3.0)
    assert metrics.gaussian_coverage(mean, std, truth, 0.9).item() == pytest.approx(0.9)


def test_crps_is_fair():
    """Would catch the biased ensemble formula, which favours many samples, and a wrong weight."""
    truth = randn(4000, 1, seed=1)
    exact = metrics.gaussian_crps(torch.zeros_like(truth), torch.ones_like(truth), truth)
    for count in (2, 7):
        samples = randn(4000, count, 1, seed=count)
        scores = metrics.crps(samples, truth)
        assert within_five_errors(scores - exact, 0.0)
        pairs = (samples[:, :, None] - samples[:, None]).abs().sum((1, 2))[:, 0]
        brute = (samples - truth[:, None]).abs().mean((1, 2)) - pairs / (2 * count * (count - 1))
        torch.testing.assert_close(scores, brute)


def test_gaussian_crps_by_integration():
    """Would catch an error in the closed form: CRPS = int (F(t) - 1[t >= truth])^2 dt."""
    t = torch.linspace(-40, 40, 800_001, dtype=torch.float64)
    step = (torch.special.ndtr((t - 1) / 2) - (t >= 2.5).double()).square()
    got = metrics.gaussian_crps(*(torch.tensor([[v]]) for v in (1.0, 2.0, 2.5)))
    assert got.item() == pytest.approx(torch.trapezoid(step, t).item(), abs=1e-4)


def test_sbc_ranks():
    """Would catch ranks counted from 1, and ties always ranked low."""
    samples = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    assert metrics.sbc_ranks(samples, torch.tensor([0.0, 2.5])).tolist() == [0, 2]
    samples, truth = randn(20000, 4).clamp_min(0), randn(20000, seed=1).clamp_min(0)
    ranks = metrics.sbc_ranks(samples, truth, generator=seeded())
    counts = torch.bincount(ranks, minlength=5)
    assert ((counts - 4000).abs() < 5 * math.sqrt(20000 * 0.2 * 0.8)).all()


def test_energy_distance():
    """Would catch the biased form, which is positive for equal laws, and lost chunks."""
    a, b = randn(600, 3), randn(530, 3, seed=1) + 0.5

    def mean_distance(x, y, pairs):
        return (x[:, None] - y[None]).norm(dim=-1).sum() / pairs

    brute = (
        2 * mean_distance(a, b, 600 * 530)
        - mean_distance(a, a, 600 * 599)
        - mean_distance(b, b, 530 * 529)
    )
    assert metrics.energy_distance(a, b).item() == pytest.approx(brute.item(), abs=1e-12)
    null = [
        metrics.energy_distance(randn(20, 2, seed=s), randn(30, 2, seed=s + 999))
        for s in range(200)
    ]
    assert within_five_errors(torch.stack(null), 0.0)


def test_sliced_wasserstein():
    """Would catch unequal sizes cut to the shorter, and unnormalised directions."""
    from scipy.stats import wasserstein_distance

    a, b = randn(7, 1), randn(12, 1, seed=1)
    expected = wasserstein_distance(a[:, 0].numpy(), b[:, 0].numpy())
    assert metrics.sliced_wasserstein(a, b, generator=seeded()).item() == pytest.approx(expected)
    assert metrics.sliced_wasserstein(a, torch.cat([a, a]), generator=seeded()) < 1e-12
    # Between points v apart: E |u.v| for a random direction u.
    d = 5
    v = torch.zeros(1, d)
    v[0, 0] = 3
    expected = 3 * math.gamma(d / 2) / (math.sqrt(math.pi) * math.gamma((d + 1) / 2))
    got = torch.stack(
        [
            metrics.sliced_wasserstein(torch.zeros(1, d), v, directions=10, generator=seeded(s))
            for s in range(400)
        ]
    )
    assert within_five_errors(got, expected)
    second = metrics.sliced_wasserstein(torch.zeros(1, 1), torch.ones(1, 1) * 3, order=2)
    assert second.item() == pytest.approx(3)


def test_gaussian_frechet():
    """Would catch the root of the wrong product; singular covariances must not give NaN."""
    s, t = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 0.5, 1.0])
    rotation = torch.linalg.qr(randn(3, 3)).Q
    cov = [rotation @ torch.diag(v.double() ** 2) @ rotation.T for v in (s, t)]
    mean = [torch.zeros(3), torch.ones(3)]
    got = metrics.gaussian_frechet(mean[0], cov[0], mean[1], cov[1])
    assert got.item() == pytest.approx(3 + (s - t).square().sum().item())
    from scipy.linalg import sqrtm

    a, b = (m @ m.T for m in (randn(4, 4), randn(4, 4, seed=1)))
    brute = np.trace(a + b) - 2 * np.trace(sqrtm((a @ b).numpy())).real
    zero = torch.zeros(4)
    assert metrics.gaussian_frechet(zero, a, zero, b).item() == pytest.approx(brute, abs=1e-6)
    features = randn(50, 4)
    assert metrics.frechet_distance(features, features + 2).item() == pytest.approx(16)


def test_gaussian_kl():
    """Would catch p and q exchanged."""
    mean, cov = [randn(4), randn(4, seed=1)], []
    for seed in (2, 3):
        root = randn(4, 4, seed=seed)
        cov.append(root @ root.T + torch.eye(4))
    p, q = (MultivariateNormal(m, c) for m, c in zip(mean, cov, strict=True))
    got = metrics.gaussian_kl(mean[0], cov[0], mean[1], cov[1])
    assert got.item() == pytest.approx(kl_divergence(p, q).item())


def test_feature_networks(tmp_path):
    """Would catch weights loaded in part, and one network's file taken for another's."""
    torch_state = torch.random.get_rng_state()
    lenet, vgg = LeNet(), VGG16()
    torch.random.set_rng_state(torch_state)
    for folder in ("mnist_lenet", "vgg16_conv"):
        (tmp_path / folder).mkdir()
    torch.save(lenet.state_dict(), tmp_path / "mnist_lenet" / "lenet.pth")
    short = {"weight": "w", "bias": "b"}
    arrays = {
        f"{name}_{short[kind]}": value.numpy().astype(np.float16)
        for key, value in vgg.state_dict().items()
        if key.startswith("layers.")
        for _, name, kind in [key.split(".")]
    }
    np.savez(tmp_path / "vgg16_conv" / "vgg16_conv_hed_finetuned_fp16.npz", **arrays)
    digits = torch.rand((5, 1, 28, 28), generator=seeded())
    loaded = load_features("lenet", tmp_path)
    torch.testing.assert_close(extract(loaded, digits, batch_size=2), lenet(digits).detach())
    assert load_features("vgg16", tmp_path)(digits).shape == (5, 4224)
    torch.save({"other": torch.zeros(1)}, tmp_path / "mnist_lenet" / "lenet.pth")
    with pytest.raises(ValueError, match="another network"):
        load_features("lenet", tmp_path)
    with pytest.raises(ValueError, match="no weights at"):
        load_features("mobilenet", tmp_path)
    with pytest.raises(ValueError, match="lenet, alexnet, mobilenet, vgg16"):
        load_features("inception", tmp_path)


def test_metrics_on_every_device(device):
    """Would catch a constant left on the CPU."""
    samples = torch.rand((2, 6, 1, 12, 12), generator=seeded())
    truth = torch.rand((2, 1, 12, 12), generator=seeded(1))
    mean, std = samples.mean(1), samples.std(1)

    def every(samples, truth, mean, std):
        flat, other = samples.flatten(2)[0], samples.flatten(2)[1]
        yield metrics.psnr(mean, truth)
        yield metrics.ssim(mean, truth)
        yield metrics.coverage(samples, truth, 0.9)
        yield metrics.gaussian_coverage(mean, std, truth, 0.9)
        yield metrics.crps(samples, truth)
        yield metrics.gaussian_crps(mean, std, truth)
        yield metrics.sbc_ranks(samples, truth, generator=seeded())
        yield metrics.energy_distance(flat, other)
        yield metrics.sliced_wasserstein(flat, other, generator=seeded())
        yield metrics.frechet_distance(flat[:, :3], other[:, :3])

    here = list(every(samples, truth, mean, std))
    there = list(every(*(t.to(device) for t in (samples, truth, mean, std))))
    for a, b in zip(here, there, strict=True):
        assert b.device.type == device.type
        torch.testing.assert_close(b.cpu(), a)
