"""L-BFGS on many functions at once: every row has its own curvature, step and end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.linalg import vecdot

from genprior.solvers.latent.curvature import Curvature, curvature

Function = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""f(x (n, d), rows (n,)) -> values (n,), gradients (n, d); `rows` says which functions."""

ARMIJO, CURVATURE = 1e-4, 0.9
TRIALS = 25
STILL = 5


@dataclass(frozen=True)
class Minimum:
    """Where N minimisations ended.

    Attributes:
        x: (N, d), the best point of each.
        value: (N,); infinite where the function was never finite.
        converged: (N,), the gradient is small, or as small as rounding lets it be.
        history: Values after each evaluation, (evaluations, N).
    """

    x: Tensor
    value: Tensor
    converged: Tensor
    history: Tensor


@dataclass
class _Rows:
    """The rows still at work: where each stands, and its line search."""

    row: Tensor  # which function, (n,)
    x: Tensor  # (n, d)
    f: Tensor
    g: Tensor
    p: Tensor  # direction
    slope: Tensor  # g . p
    t: Tensor  # trial step, between low and high
    low: Tensor
    high: Tensor
    trials: Tensor
    still: Tensor  # accepted steps in a row that did not change f beyond rounding

    def keep(self, index: Tensor) -> _Rows:
        return _Rows(*(getattr(self, f.name)[index] for f in fields(self)))


def minimise(function: Function, x0: Tensor, *, steps: int, tolerance: float) -> Minimum:
    """Minimise N functions by limited-memory BFGS with a weak Wolfe line search.

    Each evaluation tries one point of every row at work: a row whose trial is accepted goes on to
    a new direction while others still search theirs, so no row waits for another or is changed
    by it. A row that ended is evaluated no more. A trial that is NaN counts as too long a step.

    Args:
        function: Values and gradients of the rows that it is asked for.
        x0: Starts, (N, d).
        steps: Most evaluations of each row.
        tolerance: A row ends where its gradient's norm is at most this.

    Source: Liu, Nocedal 1989 (L-BFGS); Lewis, Overton 2013, Algorithm 2.6 (line search, by
        bisection); Hager, Zhang 2005, Equation 4.1 (what is accepted near rounding).
    """
    n = len(x0)
    row = torch.arange(n, device=x0.device)
    f, g = _finite(*function(x0, row))
    norm = g.norm(dim=1)
    zero, count, ends = torch.zeros_like(f), torch.zeros_like(row), Ends.start(x0, f)
    ends.close(row, x0, f, f.isfinite() & (norm <= tolerance))
    going = f.isfinite() & (norm > tolerance)
    rows = _Rows(
        row, x0, f, g, -g, -norm.square(), 1 / norm.clamp(min=1), zero, zero + torch.inf, count,
        count.clone(),
    ).keep(going.nonzero()[:, 0])  # fmt: skip
    bends = curvature(rows.x)
    for _ in range(steps - 1):
        if not len(rows.row):
            break
        trial = torch.addcmul(rows.x, rows.t[:, None], rows.p)
        f, g = _finite(*function(trial, rows.row))
        converged, over = _advance(rows, bends, trial, f, g, tolerance)
        ends.record(rows.row, rows.f)
        if bool(over.any()):
            gone, left = (mask.nonzero()[:, 0] for mask in (over, ~over))
            ends.close(rows.row[gone], rows.x[gone], rows.f[gone], converged[gone])
            rows = rows.keep(left)
            bends.keep(left)
    ends.close(rows.row, rows.x, rows.f, torch.zeros_like(rows.row, dtype=torch.bool))
    return ends.minimum()


@dataclass
class Ends:
    """Where the rows ended, and their values on the way."""

    x: Tensor
    value: Tensor
    converged: Tensor
    history: list[Tensor]

    @classmethod
    def start(cls, x: Tensor, value: Tensor) -> Ends:
        """Begin with every row at its start."""
        converged = torch.zeros_like(value, dtype=torch.bool)
        return cls(x.clone(), value.clone(), converged, [value.clone()])

    def record(self, row: Tensor, value: Tensor) -> None:
        """Note the values of the rows at work; the others keep theirs."""
        last = self.history[-1]
        every = len(row) == len(last)
        self.history.append(value if every else last.index_copy(0, row, value))

    def close(self, row: Tensor, x: Tensor, value: Tensor, converged: Tensor) -> None:
        """Note where some rows ended."""
        self.x[row], self.value[row], self.converged[row] = x, value, converged

    def minimum(self) -> Minimum:
        return Minimum(self.x, self.value, self.converged, torch.stack(self.history))


def _finite(f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Make a value that is not finite, or has no finite gradient, infinite with gradient 0."""
    good = (f + g.sum(1)).isfinite()
    if bool(good.all()):
        return f, g
    return f.where(good, torch.inf), g.where(good[:, None], 0.0)


def _advance(
    rows: _Rows, bends: Curvature, x: Tensor, f: Tensor, g: Tensor, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Take in one trial of every row; say which rows converged, and which are over."""
    new_slope = vecdot(g, rows.p)
    rounding = 10 * torch.finfo(f.dtype).eps * rows.f.abs().clamp(min=1)
    change = f - rows.f
    lower = change <= ARMIJO * rows.t * rows.slope
    lower |= (change <= rounding) & (new_slope <= (2 * ARMIJO - 1) * rows.slope)
    rows.trials += 1
    exhausted = rows.trials >= TRIALS
    accepted = lower & ((new_slope >= CURVATURE * rows.slope) | exhausted)
    same = change.abs() <= rounding
    # A search that fails where f no longer changes has met the limit of rounding.
    failed = exhausted & ~lower
    limit = failed & same

    if not bool(accepted.all()):
        _search(rows, f, lower)
        x, g = (new.where(accepted[:, None], old) for new, old in ((x, rows.x), (g, rows.g)))
        f = f.where(accepted, rows.f)
    _move(rows, bends, x, f, g, accepted)
    rows.still = ((rows.still + 1) * same).where(accepted, rows.still)
    small = g.norm(dim=1) <= tolerance
    converged = limit | (accepted & (small | (rows.still >= STILL)))
    return converged, converged | failed


def _search(rows: _Rows, f: Tensor, lower: Tensor) -> None:
    """Choose the next trial: a parabola's minimum where it is trusted, else halves or triples."""
    low, high = rows.t.where(lower, rows.low), rows.high.where(lower, rows.t)
    width = high - low
    parabola = -rows.slope * rows.t.square() / (2 * (f - rows.f - rows.slope * rows.t))
    # where f did not fall enough at `high`, the parabola's minimum is in the lower half
    inside = (parabola > low + 0.1 * width) & (low == 0)
    shorter = parabola.where(inside, low + 0.5 * width)
    rows.t = shorter.where(high.isfinite(), 3 * rows.t)
    rows.low, rows.high = low, high


def _move(
    rows: _Rows, bends: Curvature, x: Tensor, f: Tensor, g: Tensor, accepted: Tensor
) -> None:
    """Remember the curvature on the way to x, choose the next direction; begin a search there."""
    bends.learn(x - rows.x, g - rows.g)
    p = bends.apply(g).neg_()
    slope = vecdot(p, g)
    uphill = slope >= 0
    if bool(uphill.any()):
        bends.forget(uphill)
        p = p.where(~uphill[:, None], -g)
        slope = vecdot(p, g)
    rows.x, rows.f, rows.g, rows.p, rows.slope = x, f, g, p, slope
    rows.t.masked_fill_(accepted, 1.0)
    rows.low.masked_fill_(accepted, 0.0)
    rows.high.masked_fill_(accepted, torch.inf)
    rows.trials.masked_fill_(accepted, 0)
