"""How good an estimate, a set of posterior samples, or a prior is. All in float64 inside."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genprior.operators.random import Generators, normal, uniform


def psnr(x: Tensor, truth: Tensor, *, peak: float = 1.0) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, 10 log10(peak^2 / mean (x - truth)^2).

    Args:
        x, truth: Images, (B, C, H, W).
        peak: The range of pixels.
    Returns:
        (B,), infinite where they are equal.
    """
    error = (x.double() - truth.double()).flatten(1).square().mean(1)
    return 10 * torch.log10(peak**2 / error)


def ssim(x: Tensor, truth: Tensor) -> Tensor:
    """Return the structural similarity of images (B, C, H, W) in [0, 1], (B,).

    Gaussian window of std 1.5 cut to 11x11, population covariances, mean over channels.

    Raises:
        ValueError: The images are smaller than the window.
    Source: Wang et al. 2004; computed by scikit-image.
    """
    from skimage.metrics import structural_similarity

    if min(x.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs images of 11x11 or more, not {tuple(x.shape[-2:])}")
    pairs = zip(x.double().cpu().numpy(), truth.double().cpu().numpy(), strict=True)
    values = [
        structural_similarity(
            a,
            b,
            data_range=1.0,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in pairs
    ]
    return torch.tensor(values, dtype=torch.float64, device=x.device)


def coverage(
    samples: Tensor, truth: Tensor, level: float, *, where: Tensor | None = None
) -> Tensor:
    """Return the share of pixels whose central credible interval of `level` holds the truth.

    Without bias for any number of samples. If truth and samples follow one distribution, the rank
    of the truth among them is uniform on 0 ... S, so the interval between the k-th smallest and
    the k-th largest sample holds it with probability 1 - 2k / (S + 1) exactly. `level` mostly
    lies between two of these; both intervals then count, weighted such that a calibrated
    posterior scores `level` exactly. A truth tied with samples (clipped pixels) scores the mean
    over the ranks that breaking the tie at random would give. With few samples a spread that is
    too narrow hardly shows: at level .9 a truth outside all of them scores .85 (S = 2), .75 (4),
    .45 (10) and only from S = 19 on 0.

    Args:
        samples: (B, S, C, H, W) or any (B, S, ...).
        truth: (B, ...).
        level: In (0, 1).
        where: The entries that count, bool, broadcasts to `truth`; None for all.
    Returns:
        (B,). NaN where no entry counts.
    """
    _check_level(level)
    count = samples.shape[1]
    ranks = torch.arange(count + 1, dtype=torch.float64, device=samples.device)
    depth = torch.minimum(ranks, count - ranks)
    score = (depth + 1 - (1 - level) * (count + 1) / 2).clamp(0, 1)
    # Only where even the innermost interval covers more than `level` is the sum not yet right.
    score *= level * (count + 1) / score.sum()
    total = torch.cat([score.new_zeros(1), score.cumsum(0)])
    below = (samples < truth[:, None]).sum(1)
    tied = (samples == truth[:, None]).sum(1)
    held = (total[below + tied + 1] - total[below]) / (tied + 1)
    return _mean(held, where)


def gaussian_coverage(
    mean: Tensor, std: Tensor, truth: Tensor, level: float, *, where: Tensor | None = None
) -> Tensor:
    """As `coverage`, with the interval mean +- z std of a normal distribution of that level."""
    _check_level(level)
    z = torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64))
    held = (truth.double() - mean.double()).abs() <= z.to(mean.device) * std.double()
    return _mean(held.double(), where)


def crps(samples: Tensor, truth: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Return the continuous ranked probability score, mean over pixels; lower is better.

        E|X - truth| - E|X - X'| / 2

    The fair estimator: its expectation does not depend on the number of samples.

    Args:
        samples: (B, S, ...), S >= 2.
        truth: (B, ...).
        where: As in `coverage`.
    Returns:
        (B,), in pixel units.
    Source: Ferro 2014, "Fair scores for ensemble forecasts".
    """
    count = samples.shape[1]
    if count < 2:
        raise ValueError(f"CRPS needs 2 samples or more for each image, {count} came")
    ordered = samples.double().sort(1).values
    error = (ordered - truth[:, None].double()).abs().mean(1)
    # sum_ij |x_i - x_j| = 2 sum_i (2i - S + 1) x_(i), i from 0.
    weight = 2 * torch.arange(count, dtype=torch.float64, device=samples.device) - count + 1
    spread = (ordered.movedim(1, -1) @ weight) / (count * (count - 1))
    return _mean(error - spread, where)


def gaussian_crps(
    mean: Tensor, std: Tensor, truth: Tensor, *, where: Tensor | None = None
) -> Tensor:
    """As `crps`, in closed form for independent normal pixels, std > 0.

    Source: Gneiting, Raftery 2007, equation 21.
    """
    std = std.double()
    z = (truth.double() - mean.double()) / std
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    value = z * (2 * torch.special.ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi)
    return _mean(std * value, where)


def sbc_ranks(samples: Tensor, truth: Tensor, *, generator: Generators = None) -> Tensor:
    """Return the truth's rank among its samples, ties broken at random: uniform on 0 ... S
    if the samples are from the right posterior (simulation-based calibration).

    Args:
        samples: Of the posterior, or of any function of it, (B, S, ...).
        truth: (B, ...).
    Returns:
        int64, (B, ...).
    Source: Talts et al. 2018, arXiv:1804.06788.
    """
    below = (samples < truth[:, None]).sum(1)
    tied = (samples == truth[:, None]).sum(1)
    share = uniform(truth.shape, generator, dtype=torch.float64, device=truth.device)
    return below + (share * (tied + 1)).long()


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return 2 E|X - Y| - E|X - X'| - E|Y - Y'| (a scalar), unbiased, so it may be negative.

    Args:
        a, b: Samples (N, ...) and (M, ...) of two distributions, N, M >= 2; flattened.
    Source: Szekely, Rizzo 2013.
    """
    a, b = _flat_pair(a, b)
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise ValueError(f"the energy distance needs 2 samples of each, {n} and {m} came")
    within = _total_distance(a, a) / (n * (n - 1)) + _total_distance(b, b) / (m * (m - 1))
    return 2 * _total_distance(a, b) / (n * m) - within


def sliced_wasserstein(
    a: Tensor,
    b: Tensor,
    *,
    directions: int = 200,
    order: int = 1,
    generator: Generators = None,
) -> Tensor:
    """Return the Wasserstein distance of projections, averaged over random directions.

        (E_u W_p(u.X, u.Y)^p)^(1/p)

    Exact in each direction for any two sample sizes.

    Args:
        a, b: Samples (N, ...) and (M, ...), flattened.
        directions: Number of directions u, uniform on the sphere.
        order: p.
        generator: Draws the directions.
    Source: Bonneel et al. 2015.
    """
    a, b = _flat_pair(a, b)
    n, m = len(a), len(b)
    u = normal((directions, a.shape[1]), generator, dtype=torch.float64, device=a.device)
    u = u / u.norm(dim=1, keepdim=True)
    a, b = (a @ u.T).sort(0).values, (b @ u.T).sort(0).values
    # Both quantile functions are constant between consecutive multiples of 1/n and 1/m; in units
    # of 1/(n m) these are whole numbers.
    steps = (torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n)
    ends = torch.cat(steps).unique().to(a.device)
    widths = torch.diff(ends, prepend=ends.new_zeros(1)).double() / (n * m)
    gaps = (a[(ends - 1) // m] - b[(ends - 1) // n]).abs() ** order
    return (widths @ gaps).mean() ** (1 / order)


def frechet_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the Frechet distance of normal distributions fitted to two sets of features.

    Args:
        a, b: Features (N, k) and (M, k), as from `genprior.features.load_features`; name the
            network wherever the figure is quoted.
    Source: Heusel et al. 2017 (FID; there the features are Inception's).
    """
    a, b = _flat_pair(a, b)
    return gaussian_frechet(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))


def gaussian_frechet(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    """Return the squared 2-Wasserstein distance of two normal distributions (a scalar).

        |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^(1/2) C_b C_a^(1/2))^(1/2))

    Args:
        mean_a, mean_b: (k,).
        cov_a, cov_b: (k, k), may be singular.
    """
    mean_a, cov_a, mean_b, cov_b = (t.double() for t in (mean_a, cov_a, mean_b, cov_b))
    cov_a, cov_b = cov_a.reshape(len(mean_a), -1), cov_b.reshape(len(mean_b), -1)
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    moved = (mean_a - mean_b).square().sum()
    return (moved + cov_a.trace() + cov_b.trace() - 2 * cross).clamp_min(0)


def gaussian_kl(mean_p: Tensor, cov_p: Tensor, mean_q: Tensor, cov_q: Tensor) -> Tensor:
    """Return KL(p || q) in nats of normal distributions with means (k,), covariances (k, k)."""
    mean_p, cov_p, mean_q, cov_q = (t.double() for t in (mean_p, cov_p, mean_q, cov_q))
    factor = torch.linalg.cholesky(cov_q)
    difference = torch.linalg.solve_triangular(factor, (mean_q - mean_p)[:, None], upper=False)
    trace = torch.cholesky_solve(cov_p, factor).trace()
    log_ratio = 2 * factor.diagonal().log().sum() - torch.linalg.slogdet(cov_p).logabsdet
    return 0.5 * (trace + difference.square().sum() - len(mean_p) + log_ratio)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, as 0.9 for 90 %, not {level}")


def _mean(values: Tensor, where: Tensor | None) -> Tensor:
    """Mean over all axes but the first, of the entries `where`."""
    if where is None:
        return values.flatten(1).mean(1)
    counts = torch.broadcast_to(where, values.shape).flatten(1).double()
    return (values.flatten(1) * counts).sum(1) / counts.sum(1)


def _flat_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = a.double().reshape(len(a), -1), b.double().reshape(len(b), -1)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"samples have {a.shape[1]} and {b.shape[1]} values each: they must agree"
        )
    return a, b


def _total_distance(a: Tensor, b: Tensor) -> Tensor:
    # Differences, not the faster |x|^2 + |y|^2 - 2 x.y, which loses the small distances.
    mode = "donot_use_mm_for_euclid_dist"
    return torch.stack(
        [torch.cdist(part, b, compute_mode=mode).sum() for part in a.split(512)]
    ).sum()
