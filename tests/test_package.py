"""What importing the package costs, and what it promises by name."""

import subprocess
import sys

import genprior

HEAVY = ("deepinv", "lightning_fabric", "matplotlib", "skimage", "scipy", "jsonargparse")


def test_import_is_light():
    """Catches a library that loads slowly, imported at the top of a file."""
    code = f"import sys, genprior; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_exist():
    """Catches a name in __all__ that nothing defines."""
    modules = (genprior, genprior.operators, genprior.priors, genprior.solvers)
    for module in (*modules, genprior.pretrained):
        missing = [name for name in module.__all__ if not hasattr(module, name)]
        assert not missing, f"{module.__name__}: {missing}"
