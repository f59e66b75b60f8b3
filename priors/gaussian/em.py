"""Expectation-maximisation for mixtures of probabilistic principal component analysers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from genprior.operators.random import normal, uniform
from genprior.priors.gaussian.low_rank import LowRankNormal, precise
from genprior.priors.gaussian.principal import leading

EXACT = 2048
"""Rows or numbers up to which a component's eigenvectors are found exactly."""

_PASSES = 3
_LLOYD_STEPS = 10
_ROW_VALUES = 2**22


@dataclass(frozen=True)
class Mixture:
    """weights (K,) and their laws on flat images."""

    weights: Tensor
    laws: list[LowRankNormal]


def fit_mixture(
    x: Tensor,
    components: int,
    *,
    rank: int,
    generator: torch.Generator | None,
    floor: float,
    iterations: int,
    tolerance: float,
    callback: Callable[[int, float], None] | None = None,
) -> Mixture:
    """Maximise the likelihood of rows x (N, d) over mixtures with variances >= floor^2.

    No step loses log-likelihood (but for rounding): each solves its constrained maximisation, or
    where a component has over `EXACT` rows of over `EXACT` numbers comes nearer to it.

    Args:
        x: Images flattened, (N, d).
        components: K.
        rank: Directions of each component, < d; d - 1 gives full covariances.
        generator: For the k-means++ start.
        floor: Least std along any direction.
        iterations: At most so many steps.
        tolerance: Stop when a step gains less, nats per number.
        callback: Called with (iteration, mean log-likelihood of an image in nats).
    Source: Tipping, Bishop 1999, "Mixtures of probabilistic principal component analysers",
        appendix C; Arthur, Vassilvitskii 2007 (k-means++).
    """
    responsibilities = _k_means(x, components, generator)
    previous: Sequence[LowRankNormal | None] = [None] * components
    before = -math.inf
    for step in range(iterations):
        totals = responsibilities.double().sum(0)
        shares = zip(responsibilities.T, previous, strict=True)
        laws = [_fit_component(x, share, rank, floor, law) for share, law in shares]
        weights = (totals / totals.sum()).to(x.dtype)
        joint = _log_joint(x, weights, laws)
        evidence = joint.logsumexp(1)
        likelihood = float(evidence.double().mean())
        if callback is not None:
            callback(step, likelihood)
        if likelihood - before < tolerance * x.shape[1]:
            break
        before, previous = likelihood, laws
        responsibilities = (joint - evidence[:, None]).exp()
    return Mixture(weights, laws)


def log_joint(
    x: Tensor, weights: Tensor, laws: list[LowRankNormal], noise_variance: float | Tensor = 0.0
) -> Tensor:
    """Return log w_k N(x; law k + noise_variance I) for rows x (B, d), (B, K)."""
    densities = [law.log_prob(x, noise_variance) for law in laws]
    return torch.stack(densities, 1) + weights.log()


def _log_joint(x: Tensor, weights: Tensor, laws: list[LowRankNormal]) -> Tensor:
    """The same for all data, a few rows at a time."""
    chunks = x.split(max(1, _ROW_VALUES // x.shape[1]))
    return torch.cat([log_joint(chunk, weights, laws) for chunk in chunks])


def _squared_distances(x: Tensor, centre: Tensor) -> Tensor:
    distances = torch.cdist(x, centre[None], compute_mode="donot_use_mm_for_euclid_dist")
    return distances[:, 0].square()


def _k_means(x: Tensor, components: int, generator: torch.Generator | None) -> Tensor:
    """Hard assignments (N, K) by k-means++ and a few Lloyd steps."""
    draws = uniform((components,), generator, dtype=torch.float64, device=x.device)
    first = int(draws[0] * len(x))
    centres = [x[first]]
    nearest = _squared_distances(x, centres[0])
    for draw in draws[1:]:
        shares = nearest.double().cumsum(0)
        pick = torch.searchsorted(shares, draw * shares[-1]).clamp(max=len(x) - 1)
        centres.append(x[int(pick)])
        nearest = torch.minimum(nearest, _squared_distances(x, centres[-1]))
    means = torch.stack(centres)
    assigned = torch.zeros(len(x), components, dtype=x.dtype, device=x.device)
    for _ in range(_LLOYD_STEPS):
        scores = means.square().sum(1) - 2 * x @ means.T
        assigned = torch.nn.functional.one_hot(scores.argmin(1), components).to(x.dtype)
        counts = assigned.sum(0)[:, None]
        means = torch.where(counts > 0, assigned.T @ x / counts.clamp(min=1), means)
    return assigned


def _fit_component(
    x: Tensor, share: Tensor, rank: int, floor: float, previous: LowRankNormal | None
) -> LowRankNormal:
    """The likeliest law of given rank for rows x weighted by `share` (N,)."""
    total = share.sum()
    held = share > torch.finfo(share.dtype).eps
    if int(held.sum()) < 2 and previous is not None:
        return previous  # nothing to learn from: a step that leaves it alone cannot lose
    rows, share = x[held], share[held] / total.clamp(min=torch.finfo(x.dtype).tiny)
    mean = share @ rows if len(rows) else x.mean(0)
    root = (rows - mean) * share.sqrt()[:, None]
    if min(root.shape) <= EXACT:
        values, basis = _eigenpairs(root.to(precise(root)), rank)
    else:
        values, basis = _subspace(root, rank, previous)
    energy = root.square().sum(1).to(values).sum()
    rest = (energy - values.sum()) / (x.shape[1] - len(values))
    variance = rest.clamp(min=floor**2)
    return LowRankNormal(
        mean,
        basis.T.to(x.dtype),
        (values - variance).clamp(min=0).to(x.dtype),
        variance.sqrt().to(x.dtype),
    )


def _eigenpairs(root: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues (k,) of root^T root and their vectors (d, k), k <= rank."""
    if len(root) < root.shape[1]:  # the same eigenvalues from a smaller matrix
        values, vectors = torch.linalg.eigh(root @ root.T)
        kept = min(rank, int((values > 1e-10 * values[-1]).sum()))
        values, vectors = values.flip(0)[:kept], vectors.flip(1)[:, :kept]
        return values, torch.linalg.qr(root.T @ (vectors / values.sqrt())).Q
    return leading(root.T @ root, rank)


def _subspace(root: Tensor, rank: int, previous: LowRankNormal | None) -> tuple[Tensor, Tensor]:
    """The same for large matrices, by subspace iteration from the component's last basis.

    What the subspace captures only grows, so EM stays monotone though the maximum is approached
    over several steps.
    """
    seeded = torch.Generator().manual_seed(0)  # the start does not show in the limit
    columns = rank // 4 + 8 + (rank if previous is None else 0)
    shape = (root.shape[1], columns)
    basis = normal(shape, seeded, dtype=root.dtype, device=root.device)
    if previous is not None:
        basis = torch.cat([previous.basis.T, basis], 1)
    basis = torch.linalg.qr(basis).Q
    for _ in range(_PASSES):
        basis = torch.linalg.qr(root.T @ (root @ basis)).Q
    projected = (root @ basis).to(precise(root))
    values, vectors = leading(projected.T @ projected, rank)
    return values, torch.linalg.qr(basis @ vectors.to(basis)).Q
