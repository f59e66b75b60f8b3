"""The public contract suite on every diffusion solver, and on those of flows."""

import pytest

from genprior.solvers import (
    DAPS,
    DDNM,
    DDRM,
    DPS,
    MMPS,
    SMC,
    AnnealedImportance,
    DiffPIR,
    FlowMAP,
    PiGDM,
    REDDiff,
    RePaint,
)
from genprior.solvers.testing import check_solver

SOLVERS = [
    MMPS(steps=6),
    MMPS(steps=6, returns=2, window=(0.0, 1e9)),
    DAPS(steps=6, flow_steps=2),
    PiGDM(steps=6),
    DPS(steps=6),
    DPS(steps=6, matched=False),
    DiffPIR(steps=6),
    DDNM(steps=6),
    DDRM(steps=6),
    RePaint(steps=12, repeats=2),
    SMC(steps=6, particles=8),
    SMC(steps=6, particles=8, exact_entries=0),
    REDDiff(steps=6),
    AnnealedImportance(particles=8),
    FlowMAP(),
    FlowMAP(space="image"),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_contract(solver, device):
    """Catches norms over the batch, noise per chunk, changed inputs, wrong counts, spread NaN."""
    check_solver(solver, device=device)
