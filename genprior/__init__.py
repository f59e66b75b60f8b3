"""genprior: imaging inverse problems solved with generative priors.

In short:

    import genprior
    from genprior import operators, priors, solvers

    prior = genprior.load("cats64-gaussian")
    noise = operators.GaussianNoise(0.05)
    problem = operators.Problem.simulate(x, operators.Inpainting(mask), noise)
    result = genprior.solve(problem, prior)
"""

from pathlib import Path

# In a checkout the sub-packages lie beside this folder, not in it; a Python started there imports
# this folder, installed or not, and must find them.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").exists() and (_root / "operators").is_dir():
    __path__.append(str(_root))

from genprior import data, metrics, operators, plots, priors, solvers  # noqa: E402
from genprior.operators import Problem  # noqa: E402
from genprior.pretrained import available, load  # noqa: E402
from genprior.solve import solve  # noqa: E402
from genprior.solvers import Result  # noqa: E402
from genprior.training import train  # noqa: E402

__version__ = "0.1.0"

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
