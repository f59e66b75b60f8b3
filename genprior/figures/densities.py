"""Planar and radial flows bent towards four densities in the plane, without any samples of them.

Rezende, Mohamed 2015 (arXiv:1505.05770), table 1 and figure 3. Densities of which only
-log p + constant is known are fitted from the other side: x = f(z), z ~ N(0, I), which is easy for
these layers, is brought near by the gap of the evidence bound,

    KL(q | p) = E_q[log q(x) + U(x)] + log Z,   log q(x) = log N(z) - log |det df/dz|
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from genprior.figures.canvas import Measured, canvas
from genprior.priors import PlanarFlow, RadialFlow
from genprior.priors.flows.bijection import Bijection

if TYPE_CHECKING:
    pass

KINDS = {"planar": PlanarFlow, "radial": RadialFlow}
DEPTHS = (2, 8, 32)
TARGETS = 4

STARTS = 2
"""Fits of each flow to each density; the nearest is kept."""

WALL = 0.4
"""Std of the wall at |x1| = 4 that closes the last three densities, which have no end."""


def energies(x: Tensor) -> Tensor:
    """Return -log p + constant of the four densities at points (..., 2), as (4, ...)."""
    a, b = x.unbind(-1)
    wave = b - torch.sin(torch.pi / 2 * a)
    dent = 3 * torch.exp(_normal(a - 1, 0.6))
    step = 3 * torch.sigmoid((a - 1) / 0.3)
    wall = _normal((a.abs() - 4).clamp(min=0), WALL)
    ring = _normal(x.norm(dim=-1) - 2, 0.4)
    two = torch.logaddexp(_normal(a - 2, 0.6), _normal(a + 2, 0.6))
    log_p = [
        ring + two,
        wall + _normal(wave, 0.4),
        wall + torch.logaddexp(_normal(wave, 0.35), _normal(wave + dent, 0.35)),
        wall + torch.logaddexp(_normal(wave, 0.4), _normal(wave + step, 0.35)),
    ]
    return -torch.stack(log_p)


def _normal(away: Tensor, std: float) -> Tensor:
    return -0.5 * (away / std) ** 2


def square(half: float, cells: int) -> Tensor:
    """Return the middles of the cells of a square about 0, (cells, cells, 2): rows are x2."""
    side = ((torch.arange(cells) + 0.5) / cells * 2 - 1) * half
    return torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)


def log_normalisers() -> Tensor:
    """Return log Z of the four densities by a sum over a square, (4,)."""
    half, cells = 7.0, 700
    return (-energies(square(half, cells))).flatten(1).logsumexp(1) + 2 * math.log(
        2 * half / cells
    )


def log_density(flow: Bijection, x: Tensor) -> Tensor:
    """Return log q(x) at points (..., 2), where q is the law of f(z), z ~ N(0, I)."""
    with torch.no_grad():
        z = flow.inverse(x.reshape(-1, 2))
        _, log_det = flow(z)
    return (_log_normal(z.flatten(1)) - log_det).view(x.shape[:-1])


def _log_normal(z: Tensor) -> Tensor:
    return -0.5 * z.square().sum(-1) - math.log(2 * math.pi)


def fit(
    kind: str, depth: int, *, steps: int = 1000, starts: int = STARTS, seed: int = 0
) -> list[tuple[Bijection, float]]:
    """Fit a flow to each of the four densities; all fits and starts run as one.

    As in the source U counts little at first. Differs: Adam, and the best of several starts.

    Returns:
        The flow and KL(q | p) in nats for each density, by 20,000 draws.
    """
    count = TARGETS * starts
    flows = [KINDS[kind]((1, 1, 2), layers=depth, seed=seed + i).bijection for i in range(count)]
    parameters, _ = stack_module_state(flows)
    parameters = {name: p.detach().requires_grad_() for name, p in parameters.items()}
    move = vmap(lambda p, z: functional_call(flows[0], p, (z,)))
    generator = torch.Generator().manual_seed(seed)

    def bounds(draws: int, weight: float) -> Tensor:
        z = torch.randn(count, draws, 1, 1, 2, generator=generator)
        x, log_det = move(parameters, z)
        log_q = _log_normal(z.flatten(2)) - log_det
        each = energies(x.unflatten(0, (TARGETS, starts))).diagonal().permute(2, 0, 1)
        return (log_q + weight * each.reshape(count, draws)).mean(1)

    rate = 0.01
    adam = torch.optim.Adam(parameters.values(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, rate, total_steps=steps, pct_start=0.05)
    for step in range(steps):
        adam.zero_grad()
        bounds(256, min(1.0, 0.01 + 2 * step / steps)).sum().backward()
        adam.step()
        schedule.step()
    with torch.no_grad():
        gaps = bounds(20_000, 1.0).view(TARGETS, starts) + log_normalisers()[:, None]
    found = []
    for target, start in enumerate(gaps.argmin(1).tolist()):
        flow = flows[target * starts + start]
        flow.load_state_dict({k: p[target * starts + start] for k, p in parameters.items()})
        found.append((flow, float(gaps[target, start])))
    return found


def densities(data: str | None, seed: int) -> Measured:
    """Draw the four densities, and flows of each kind and depth fitted to them."""
    points, log_z = square(4.5, 120), log_normalisers()
    panels = (-energies(points) - log_z[:, None, None]).exp()
    figure = canvas(10, 6)
    axes = figure.subplots(TARGETS, 1 + len(KINDS) * len(DEPTHS))
    for axis, density, number in zip(axes[:, 0], panels, "1234", strict=True):
        _panel(axis, density, f"U{number}")
    rows: list[dict[str, Any]] = []
    column = 0
    for kind in KINDS:
        for depth in DEPTHS:
            column += 1
            for target, (flow, gap) in enumerate(fit(kind, depth, seed=seed)):
                density = log_density(flow, points).exp()
                _panel(axes[target, column], density, f"{kind}, {depth}: KL {gap:.2f}")
                row = {"density": f"U{target + 1}", "flow": kind, "layers": depth, "kl": gap}
                rows.append(row)
                print(f"U{target + 1}, {depth} {kind} layers: KL {gap:.3f}", flush=True)
    return Measured(figure, rows)


def _panel(axis: Any, density: Tensor, title: str) -> None:
    axis.imshow(density, origin="lower", cmap="magma_r", interpolation="bilinear")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=7)
