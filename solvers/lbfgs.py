"""L-BFGS on many functions at once: every row has its own curvature, step and end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

Function = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""f(x (n, d), rows (n,)) -> values (n,), gradients (n, d); `rows` says which functions."""

ARMIJO, CURVATURE = 1e-4, 0.9
MEMORY = 10
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


@dataclass(frozen=True)
class _Rows:
    """The rows still at work: where each stands, and its line search."""

    row: Tensor  # which function, (n,)
    x: Tensor  # (n, d)
    f: Tensor
    g: Tensor
    p: Tensor  # direction
    t: Tensor  # trial step, between low and high
    low: Tensor
    high: Tensor
    trials: Tensor
    still: Tensor  # accepted steps in a row that did not change f beyond rounding
    s: Tensor  # steps (n, MEMORY, d), newest last
    y: Tensor  # their changes of gradient
    rho: Tensor  # 1 / s.y, (n, MEMORY), 0 where there is no pair yet

    def keep(self, mask: Tensor) -> _Rows:
        return _Rows(**{f.name: getattr(self, f.name)[mask] for f in fields(self)})


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
    n, d = x0.shape
    row = torch.arange(n, device=x0.device)
    f, g = _finite(*function(x0, row))
    norm = g.norm(dim=1)
    zero, ends = torch.zeros_like(f), Ends.start(x0, f)
    ends.close(row, x0, f, f.isfinite() & (norm <= tolerance))
    rows = _Rows(
        row, x0, f, g, -g, 1 / norm.clamp(min=1), zero, zero + torch.inf,
        torch.zeros_like(row), torch.zeros_like(row),
        x0.new_zeros(n, MEMORY, d), x0.new_zeros(n, MEMORY, d), x0.new_zeros(n, MEMORY),
    ).keep(f.isfinite() & (norm > tolerance))  # fmt: skip
    for _ in range(steps - 1):
        if not len(rows.row):
            break
        x = rows.x + rows.t[:, None] * rows.p
        f, g = _finite(*function(x, rows.row))
        rows, converged, failed = _advance(rows, x, f, g, tolerance)
        ends.record(rows.row, rows.f)
        over = converged | failed
        if bool(over.any()):
            ends.close(rows.row[over], rows.x[over], rows.f[over], converged[over])
            rows = rows.keep(~over)
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
    good = f.isfinite() & g.isfinite().all(1)
    return f.where(good, torch.inf), g.where(good[:, None], 0.0)


def _advance(
    rows: _Rows, x: Tensor, f: Tensor, g: Tensor, tolerance: float
) -> tuple[_Rows, Tensor, Tensor]:
    """Take in one trial of every row; say which rows converged and which cannot go on."""
    slope, new_slope = (rows.g * rows.p).sum(1), (g * rows.p).sum(1)
    rounding = 10 * torch.finfo(f.dtype).eps * rows.f.abs().clamp(min=1)
    lower = f <= rows.f + ARMIJO * rows.t * slope
    lower = lower | ((f <= rows.f + rounding) & (new_slope <= (2 * ARMIJO - 1) * slope))
    steep = new_slope < CURVATURE * slope
    exhausted = rows.trials + 1 >= TRIALS
    accepted = lower & (~steep | exhausted)
    failed = exhausted & ~lower

    low = rows.t.where(lower & steep, rows.low)
    high = rows.t.where(~lower, rows.high)
    trials = rows.trials + 1
    shorter = _interpolate(rows.f, slope, rows.t, f, low, high)
    t = torch.where(high.isfinite(), shorter, 3 * rows.t)

    moved = _accept(rows, x, f, g)
    zero = torch.zeros_like(f)
    fresh = replace(
        moved, t=zero + 1, low=zero, high=zero + torch.inf, trials=torch.zeros_like(rows.trials)
    )
    change = (rows.f - f).abs() <= rounding
    fresh = replace(fresh, still=(rows.still + 1).where(change, 0 * rows.still))
    waiting = replace(rows, t=t, low=low, high=high, trials=trials)
    rows = _where(accepted, fresh, waiting)
    converged = accepted & ((rows.g.norm(dim=1) <= tolerance) | (rows.still >= STILL))
    # A search that fails where f no longer changes has met the limit of rounding.
    limit = failed & ((f - rows.f).abs() <= rounding)
    return rows, converged | limit, failed & ~limit


def _interpolate(
    f0: Tensor, slope: Tensor, t: Tensor, f: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """The next trial inside (low, high): a parabola's minimum where it is trusted, else halves."""
    width = high - low
    parabola = -slope * t.square() / (2 * (f - f0 - slope * t))
    inside = (parabola > low + 0.1 * width) & (parabola < high - 0.1 * width) & (low == 0)
    return torch.where(inside, parabola, low + 0.5 * width)


def _accept(rows: _Rows, x: Tensor, f: Tensor, g: Tensor) -> _Rows:
    """Move to the trial: remember its curvature, choose the next direction."""
    s, y = x - rows.x, g - rows.g
    sy = (s * y).sum(1)
    good = sy > 1e-10 * s.norm(dim=1) * y.norm(dim=1)
    shifted = replace(
        rows,
        s=torch.cat([rows.s[:, 1:], s[:, None]], 1),
        y=torch.cat([rows.y[:, 1:], y[:, None]], 1),
        rho=torch.cat([rows.rho[:, 1:], (1 / sy)[:, None]], 1),
    )
    rows = _where(good, shifted, rows)
    p = -_inverse_hessian(rows, g)
    downhill = (p * g).sum(1) < 0
    p = p.where(downhill[:, None], -g)
    rho = rows.rho.where(downhill[:, None], 0.0)
    return replace(rows, x=x, f=f, g=g, p=p, rho=rho)


def _inverse_hessian(rows: _Rows, g: Tensor) -> Tensor:
    """Apply each row's approximate inverse Hessian to its gradient (the two-loop recursion)."""
    q, alphas = g, []
    for i in reversed(range(MEMORY)):
        alpha = rows.rho[:, i] * (rows.s[:, i] * q).sum(1)
        q = q - alpha[:, None] * rows.y[:, i]
        alphas.append(alpha)
    newest = rows.y[:, -1].square().sum(1) * rows.rho[:, -1]
    q = q * torch.where(newest > 0, 1 / newest, torch.ones_like(newest))[:, None]
    for i, alpha in zip(range(MEMORY), reversed(alphas), strict=True):
        beta = rows.rho[:, i] * (rows.y[:, i] * q).sum(1)
        q = q + (alpha - beta)[:, None] * rows.s[:, i]
    return q


def _where(mask: Tensor, yes: _Rows, no: _Rows) -> _Rows:
    """Choose between two states row by row."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return a if a is b else a.where(mask.view(-1, *[1] * (a.ndim - 1)), b)

    return _Rows(**{f.name: pick(getattr(yes, f.name), getattr(no, f.name)) for f in fields(yes)})
