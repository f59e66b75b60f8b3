"""genprior: imaging inverse problems solved with generative priors.

In short:

    import genprior
    from genprior import operators, priors, solvers

    prior = genprior.load("cats64-gaussian")
    noise = operators.GaussianNoise(0.05)
    problem = operators.Problem.simulate(x, operators.Inpainting(mask), noise)
    result = genprior.solve(problem, prior)
"""

import sys
from pathlib import Path

# In a checkout the sub-packages lie beside this folder, not in it; a Python started there imports
# this folder, installed or not, and must find them.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").exists() and (_root / "operators").is_dir():
    __path__.append(str(_root))

_shell = Path(sys.argv[0]).stem == "genprior" or "genprior.cli" in sys.orig_argv
try:
    if _shell:
        import jsonargparse  # noqa: F401
    from genprior import data, metrics, operators, plots, priors, solvers
    from genprior.operators import Problem
    from genprior.pretrained import available, load
    from genprior.solve import solve
    from genprior.solvers import Result
    from genprior.training import train
except KeyboardInterrupt:  # these imports take seconds
    if not _shell:
        raise
    print("genprior: interrupted", file=sys.stderr)
    raise SystemExit(130) from None

__version__ = "0.2.0"

__all__ = [
    "Problem",
    "Result",
    "available",
    "data",
    "load",
    "metrics",
    "operators",
    "plots",
    "priors",
    "solve",
    "solvers",
    "train",
]
