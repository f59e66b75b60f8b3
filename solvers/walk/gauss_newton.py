"""A draw of x0 given y and a normal guess, for any differentiable A and Poisson noise too."""

from __future__ import annotations

import torch
from torch import Tensor

from genprior.operators import Problem
from genprior.operators.base import per_row
from genprior.operators.linear.conjugate_gradient import conjugate_gradient
from genprior.operators.linear.spectrum import Map
from genprior.priors.samplers.steps import plus
from genprior.solvers.fit import noise_std
from genprior.solvers.walk.state import Walk

STEPS = 6
"""Gauss-Newton steps; each moves a pixel half as far as the one before it may, at first 2 r."""

ITERATIONS, TOLERANCE = 20, 1e-2
"""Of the conjugate gradients for one step."""

DAMPING = 1e-4
"""Least measurement variance as a share of r^2, which keeps noise-free systems solvable."""


def randomised_draw(walk: Walk, x0hat: Tensor, r2: Tensor, before: Tensor) -> Tensor:
    """Draw x0, about from N(x0; x0hat, r^2 I) p(y | x0), by a minimum of what noise has moved.

        x0 = argmin_x |W (y - A(x)) + n|^2 + |x - (x0hat + r n')|^2 / r^2
        W = 1 / std(y | A(x0hat))

    Matheron's rule where A is linear, and exact there; else right to the first order in what A
    curves within the posterior. A pixel at which A is flat (clipped) comes from the guess alone.
    Costs no network evaluation.

    Args:
        walk: Its problem's rows.
        x0hat: The guess, (R, C, H, W).
        r2: Its variance, (R,).
        before: Where to look from: the last level's draw. Pixels that it has on the side of a
            clip on which y can be heard stay there; it counts to within r of x0hat, else what
            the first levels got wrong (the sign under x^2) would stay for ever.
    Source: Bardsley et al. 2014, "Randomize-then-optimize", section 2. Differs: without the
        projection; each step solved by conjugate gradients, pixels bound in how far they go.
    """
    problem, y = walk.problem, walk.data.y
    r = per_row(r2.sqrt(), x0hat)
    guess = plus(x0hat, r, walk.noise(x0hat))
    n = problem.operator.keep_observed(walk.noise(y))
    x = torch.maximum(torch.minimum(before, x0hat + r), x0hat - r)
    least = DAMPING**0.5 * per_row(r2.sqrt(), y)
    w = 1 / torch.maximum(noise_std(problem, problem.operator(x0hat)), least)
    for i in range(STEPS):
        clean, forward, adjoint = linearise(problem, x)
        downhill = adjoint(w * (w * (y - clean) + n)) + (guess - x) / r**2
        # the exact diagonal of J^T W^2 J where an entry of y sees one pixel
        diagonal = adjoint(problem.operator.keep_observed(w.expand_as(y))) ** 2 + 1 / r**2
        step, _, _ = conjugate_gradient(
            lambda v, f=forward, t=adjoint: t(w**2 * f(v)) + v / r**2,
            downhill,
            tolerance=TOLERANCE,
            max_iterations=ITERATIONS,
            precondition=lambda v, d=diagonal: v / d,
        )
        most = 2 * r / 2**i
        x = x + torch.maximum(torch.minimum(step, most), -most)
    return x


def linearise(problem: Problem, x: Tensor) -> tuple[Tensor, Map, Map]:
    """Return A(x), v -> J v and u -> J^T u with A's Jacobian J at x; unobserved entries are 0."""
    operator = problem.operator
    if problem.linear:
        linear = problem.linear_operator
        clean = linear.keep_observed(linear(x))
        return clean, lambda v: linear.keep_observed(linear(v)), linear.adjoint
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = operator.keep_observed(operator(x))
        u = torch.zeros_like(y, requires_grad=True)
        (pulled,) = torch.autograd.grad(y, x, u, create_graph=True)

    def forward(v: Tensor) -> Tensor:
        """J v as the derivative in u of J^T u."""
        return torch.autograd.grad(pulled, u, v, retain_graph=True)[0]

    def adjoint(c: Tensor) -> Tensor:
        return torch.autograd.grad(y, x, c, retain_graph=True)[0]

    return y.detach(), forward, adjoint
