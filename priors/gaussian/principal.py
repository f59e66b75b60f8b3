"""Probabilistic principal component analysis of a stream of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from genprior.priors.gaussian.low_rank import LowRankNormal

Images = Tensor | Dataset[Any] | Sequence[Tensor] | Iterable[Tensor]
"""(N, C, H, W), a data set or list of (C, H, W), or an iterable of batches (B, C, H, W)."""

ROUNDING = 1 / (255 * 12**0.5)
"""Std of the error of rounding to 8 bits."""

DENSE = 4096
"""Most numbers in an image for which the covariance matrix is formed."""

_PASSES = 5
_BATCH = 256


def batches(images: Images, size: int = _BATCH) -> Iterator[Tensor]:
    """Walk over images in batches (b, C, H, W). Labels beside images are dropped."""
    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise ValueError(f"images must be (N, C, H, W), not {tuple(images.shape)}")
        yield from images.split(size)
        return
    if isinstance(images, Iterator):
        raise ValueError("images is a one-shot iterator: pass something to walk more than once")
    batch = getattr(images, "batch", None)
    if batch is not None:  # genprior.data's, quicker than one by one
        count = len(images)  # type: ignore[arg-type]
        for start in range(0, count, size):
            yield batch(range(start, min(start + size, count)))
        return
    items: Iterable[Any] = images  # type: ignore[assignment]  # a Dataset without a length is one
    if hasattr(images, "__len__") and hasattr(images, "__getitem__"):  # may not end by itself
        items = map(images.__getitem__, range(len(images)))  # type: ignore[arg-type]
    pending: list[Tensor] = []
    for item in items:
        image = item[0] if isinstance(item, tuple | list) else item
        if image.ndim == 4:
            yield from image.split(size)
            continue
        pending.append(image)
        if len(pending) == size:
            yield torch.stack(pending)
            pending = []
    if pending:
        yield torch.stack(pending)


def fit_principal(
    images: Images, *, rank: int | None, floor: float
) -> tuple[LowRankNormal, tuple[int, ...]]:
    """Fit mean, `rank` directions and residual by maximum likelihood, residual >= floor.

    Returns the law in float64 and the images' shape (C, H, W).

    Up to `DENSE` numbers in an image the covariance matrix is accumulated in one pass; beyond,
    the leading subspace is found by randomised subspace iteration in `_PASSES` + 2 passes.

    Source: Tipping, Bishop 1999; Halko, Martinsson, Tropp 2011, algorithm 4.4.
    """
    count, mean, shape = _mean(images)
    d = mean.numel()
    most = min(d, count) - 1
    if rank is not None and not 0 <= rank <= most:
        raise ValueError(f"{count} images of {d} numbers support ranks 0 to {most}, not {rank}")
    if d <= DENSE:
        parts = _scatter(images, mean, held_out=rank is None)
        values, vectors = leading((parts[0] + parts[1]) / count, d)
        trace = float(values.sum())
        if rank is None:
            rank = min(most, _likeliest_rank(parts[0], parts[1], count, floor))
    elif rank is None:
        raise ValueError(f"images of {d} numbers (over {DENSE}) need a rank: try 100 to 500")
    else:
        values, vectors, trace = _subspace(images, mean, count, rank)
    rest = max((trace - float(values[:rank].sum())) / (d - rank), floor**2)
    variances = (values[:rank] - rest).clamp(min=0)
    residual = mean.new_tensor(rest**0.5)
    return LowRankNormal(mean, vectors[:, :rank].T, variances, residual), shape


def _mean(images: Images) -> tuple[int, Tensor, tuple[int, ...]]:
    count, total, shape = 0, torch.zeros(()), ()
    for batch in batches(images):
        shape = tuple(batch.shape[1:])
        total = total + batch.double().flatten(1).sum(0)
        count += len(batch)
    if count < 2:
        raise ValueError(f"a normal law needs at least 2 images; {count} came")
    return count, total / count, shape


def _scatter(images: Images, mean: Tensor, *, held_out: bool) -> list[Tensor]:
    """Sums of outer products about the mean, of nine images in ten and of every tenth."""
    parts = [torch.zeros(len(mean), len(mean), dtype=mean.dtype, device=mean.device)] * 2
    first = 0
    for batch in batches(images):
        centred = batch.flatten(1).double() - mean
        tenth = (torch.arange(first, first + len(batch), device=mean.device) % 10 == 9) & held_out
        for i, rows in enumerate((centred[~tenth], centred[tenth])):
            parts[i] = parts[i] + rows.T @ rows
        first += len(batch)
    return parts


def leading(covariance: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest eigenvalues of a matrix (d, d), and their vectors (d, k)."""
    values, vectors = torch.linalg.eigh(covariance)
    return values.flip(0)[:k].clamp(min=0), vectors.flip(1)[:, :k]


def _likeliest_rank(kept: Tensor, held: Tensor, count: int, floor: float) -> int:
    """The rank fitted to `kept` under which the images of `held` are likeliest."""
    d, tenth = len(kept), count // 10
    if tenth == 0:
        return min(d, count) - 1
    values, vectors = leading(kept / (count - tenth), d)
    spread = ((held / tenth) @ vectors * vectors).sum(0)
    ranks = torch.arange(d, device=kept.device)
    rest = (values.flip(0).cumsum(0).flip(0) / (d - ranks)).clamp(min=floor**2)
    values = values.clamp(min=floor**2)
    head = values.log() + spread / values
    head = head.cumsum(0) - head  # over directions before the rank-th
    tail = spread.flip(0).cumsum(0).flip(0)
    return int((head + (d - ranks) * rest.log() + tail / rest).argmin())


def _subspace(images: Images, mean: Tensor, count: int, rank: int) -> tuple[Tensor, Tensor, float]:
    """Leading eigenpairs of the covariance and its trace, without forming it."""
    width = min(len(mean), count, rank + max(32, rank // 4))
    seeded = torch.Generator().manual_seed(0)  # the start does not show in the result
    q = torch.randn(len(mean), width, generator=seeded).to(mean.device)
    centre = mean.float()
    for _ in range(_PASSES):
        product = torch.zeros_like(q)
        for batch in batches(images):
            centred = batch.flatten(1).float() - centre
            product += centred.T @ (centred @ q)
        q = torch.linalg.qr(product / count).Q
    small = torch.zeros(width, width, dtype=torch.float64, device=mean.device)
    trace = 0.0
    for batch in batches(images):
        centred = batch.flatten(1).float() - centre
        projected = (centred @ q).double()
        small += projected.T @ projected
        trace += float(centred.double().square().sum())
    values, vectors = leading(small / count, width)
    return values, q.double() @ vectors, trace / count
