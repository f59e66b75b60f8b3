"""Descent of many functions at once against the same descent of one, written out in numbers."""

import math

import pytest
import torch
from tools import randn

from genprior.solvers.latent.lbfgs import minimise

EPS = torch.finfo(torch.float64).eps


def descend(function, x, *, steps, tolerance):
    """BFGS (Nocedal, Wright 2006, 6.17 and 6.20) with Lewis and Overton's line search, whose
    first trial inside a bracket is the parabola's minimum where that is not near its ends.

    Returns:
        x, whether it converged, and f after each evaluation.
    """
    f, g = function(x)
    history = [float(f)]
    if float(g.norm()) <= tolerance:
        return x, True, history
    h, p, t = None, -g, 1 / max(1.0, float(g.norm()))
    low, high, trials, still = 0.0, math.inf, 0, 0
    for _ in range(steps - 1):
        slope = float(g @ p)
        there = x + t * p
        f_there, g_there = function(there)
        ahead, change = float(g_there @ p), float(f_there - f)
        rounding = 10 * EPS * max(1.0, abs(float(f)))
        enough = change <= 1e-4 * t * slope
        enough |= change <= rounding and ahead <= (2e-4 - 1) * slope  # Hager and Zhang's
        trials += 1
        if enough and (ahead >= 0.9 * slope or trials == 25):
            s, y = there - x, g_there - g
            x, f, g = there, f_there, g_there
            if float(s @ y) > 1e-10 * float(s.norm() * y.norm()):
                eye = torch.eye(len(x), dtype=torch.float64)
                h = float(s @ y / (y @ y)) * eye if h is None else h
                left = eye - torch.outer(s, y) / (s @ y)
                h = left @ h @ left.T + torch.outer(s, s) / (s @ y)
            p = -g if h is None else -h @ g
            low, high, trials, t = 0.0, math.inf, 0, 1.0
            still = still + 1 if abs(change) <= rounding else 0
            history.append(float(f))
            if float(g.norm()) <= tolerance or still == 5:
                return x, True, history
            continue
        history.append(float(f))
        if trials == 25:
            return x, abs(change) <= rounding, history
        parabola = -slope * t**2 / (2 * (f_there - f - slope * t)) if high else 0
        low, high = (t, high) if enough else (low, t)
        width = high - low
        if high == math.inf:
            t = 3 * t
        elif low == 0 and 0.1 * width < parabola < 0.9 * width:
            t = float(parabola)
        else:
            t = low + width / 2
    return x, False, history


def rosenbrock(x):
    a, b = x
    return (1 - a) ** 2 + 30 * (b - a**2) ** 2


def steep(x):
    return (3 * x).exp().sum() - x.sum()


def flat(x):
    return 1e-4 * (x**2).sum() + (1e-4 * x).sin().sum()


def rough(x):
    return (x.abs() ** 1.3).sum() + 0.1 * (7 * x).sin().sum()


def wall(x):
    """From 0 every step goes up, from elsewhere the second or a later one."""
    return -x[0] + 0.3 * x[0] ** 2 + 10.0 * (x[0] > x[1].round())


def plateau(x):
    return 1e9 + 1e-9 * (x**2 + 0.1 * x**4).sum()


def barely(x):
    """Falls by 1.2 ten-thousandths of what the slope at 0 promises."""
    return 0.5 * (-x[0] + 4 * (1 - 1.2e-4) * x[0] ** 3)


def early(x):
    """Its minimum is at .12 of the first step from 0."""
    return -x[0] + x[0] ** 2 / 0.24


def narrow(x):
    return ((x - 0.3).abs() * 1e6).sum().sqrt() + x.sum()


FUNCTIONS = [rosenbrock, steep, flat, rough, wall, plateau, barely, early, narrow]
COUNTED = (wall, plateau, barely, early)
"""How many evaluations these take, rounding does not decide."""


def with_gradient(function, x):
    x = x.detach().requires_grad_()
    f = function(x)
    return f.detach(), torch.autograd.grad(f, x)[0]


@pytest.mark.parametrize("steps", [1, 2, 7, 60])
@pytest.mark.parametrize("tolerance", [0.0, 1e-6, 0.5])
def test_rows_go_down_as_one_alone(steps, tolerance):
    """Catches any number of the line search: what is enough, how a bracket shrinks or a step
    grows, when to give up, and what counts as a minimum that rounding hides."""
    starts = [randn(2, seed=i) for i in range(4)]
    starts += [torch.tensor(x, dtype=torch.float64) for x in ((0.0, 0.0), (0.0, 1.0))]
    rows = [(function, start) for function in FUNCTIONS for start in starts]

    counts = torch.zeros(len(rows), dtype=torch.int64)

    def every(x, index):
        counts[index] += 1
        found = [with_gradient(rows[i][0], row) for i, row in zip(index, x, strict=True)]
        return tuple(torch.stack(values) for values in zip(*found, strict=True))

    start = torch.stack([start for _, start in rows])
    found = minimise(every, start, steps=steps, tolerance=tolerance)
    for i, (function, first) in enumerate(rows):
        x, converged, history = descend(
            lambda x, f=function: with_gradient(f, x), first, steps=steps, tolerance=tolerance
        )
        mine = found.history[:, i]
        head = min(len(history), 25)
        expected = torch.tensor(history[:head], dtype=torch.float64)
        torch.testing.assert_close(mine[:head], expected, rtol=1e-6, atol=1e-9)
        if function in COUNTED and (function is plateau or not first[0]):
            assert counts[i] == len(history), function.__name__
        if len(history) < 25:
            assert bool(found.converged[i]) == converged, function.__name__
            torch.testing.assert_close(found.x[i], x, rtol=1e-4, atol=1e-6)
            rest = mine[len(history) :]
            torch.testing.assert_close(rest, mine[len(history) - 1].expand_as(rest))
