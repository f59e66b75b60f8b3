"""What importing the package costs, and what it promises by name."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import genprior

ROOT = Path(__file__).parent.parent
IMPORTED_AS = {"scikit_image": "skimage", "scikit_learn": "sklearn", "pillow": "PIL"}
BY_NAME = ("pillow_heif", "pydicom", "nibabel", "h5py", "tensorboard")
"""Extras that are imported by name, or asked for before something else imports them."""
NOT_IMPORTED = {"imagecodecs"}
"""What another library looks for itself: tifffile."""

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


def test_dependencies_are_those_that_are_imported():
    """Catches a library that is imported and not declared, or declared and not imported."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has it")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = declared["optional-dependencies"]
    wanted = [
        *declared["dependencies"],
        *(w for k, v in extras.items() if k not in ("dev", "docs") for w in v),
    ]
    names = {re.split(r"[\[>=]", word)[0].lower().replace("-", "_") for word in wanted}
    names = {IMPORTED_AS.get(name, name) for name in names}
    found = set()
    for folder in ("genprior", "operators", "priors", "solvers", "pretrained"):
        for file in (ROOT / folder).rglob("*.py"):
            text = file.read_text()
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    found.add((node.module or "").partition(".")[0])
            found |= {name for name in BY_NAME if f'"{name}"' in text}
    assert found - sys.stdlib_module_names - {"genprior"} == names - NOT_IMPORTED


def test_every_folder_of_code_is_installed():
    """Catches a package that a checkout has and an installation has not."""
    toml = (ROOT / "pyproject.toml").read_text()
    listed = set(re.findall(r'"(genprior[\w.]*)",', toml.partition("packages = [")[2]))
    folders = ("genprior", "operators", "priors", "solvers", "pretrained")
    files = [p for name in folders for p in (ROOT / name).rglob("__init__.py")]
    parts = [p.parent.relative_to(ROOT).parts for p in files]
    found = {".".join(("genprior", *p) if p[0] != "genprior" else p) for p in parts}
    assert found == listed & found
    assert len(found) > 15


def test_one_version_everywhere():
    """Catches a release whose citation, changelog or code names another version or day."""
    yaml = pytest.importorskip("yaml")
    declared = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), flags=re.M)
    newest = re.search(r"^## \[(.*)\] - (.*)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert declared
    assert newest
    assert declared[1] == genprior.__version__ == newest[1] == cited["version"]
    assert str(cited["date-released"]) == newest[2]


def test_every_paper_of_the_code_is_cited():
    """Catches a method whose paper, named under its Source by arXiv's number, is not cited."""
    named = set()
    for folder in ("genprior", "operators", "priors", "solvers"):
        for file in (ROOT / folder).rglob("*.py"):
            named |= set(re.findall(r"arXiv:([\w./-]*\d)", file.read_text()))
    cited = (ROOT / "CITATION.cff").read_text()
    assert len(named) > 50
    assert not [number for number in named if f"arxiv.org/abs/{number}\n" not in cited]
