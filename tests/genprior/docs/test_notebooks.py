"""Tutorials: their notebooks are in step, and what their Python names exists.

`make notebooks` runs them from top to bottom; this is what can be held in a second.
"""

import ast
import importlib
import inspect
import sys
from pathlib import Path

import pytest
from make import PAGES

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "docs" / "site"))
import notebooks  # noqa: E402

WITH_PYTHON = [page for page in PAGES if notebooks.BLOCK.search(page.read_text())]


@pytest.mark.parametrize("page", notebooks.pages(), ids=lambda page: page.stem)
def test_notebook_is_in_step_with_its_page(page):
    """Catches a page that was edited and a notebook that was not."""
    pytest.importorskip("nbformat")
    stands = notebooks.place(page).read_text()
    assert notebooks.notebook(page) == stands, "python docs/site/notebooks.py writes them"
    assert not {p.stem for p in notebooks.place(page).parent.iterdir()} - {
        p.stem for p in notebooks.pages()
    }


class Named(ast.NodeVisitor):
    """What a page's Python imports, reaches by dots and calls, looked up without running it."""

    def __init__(self):
        self.known, self.faults = {}, []

    def visit_Import(self, node):
        for alias in node.names:
            module = importlib.import_module(alias.name)
            top = alias.name.partition(".")[0]
            self.known[alias.asname or top] = module if alias.asname else sys.modules[top]

    def visit_ImportFrom(self, node):
        module = importlib.import_module(node.module)
        for alias in node.names:
            if not hasattr(module, alias.name):
                self.faults.append(f"{node.module}.{alias.name}")
            self.known[alias.asname or alias.name] = getattr(module, alias.name, None)

    def found(self, node):
        """What an expression of names and dots stands for; None where it is a page's own."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.found(node.value)
            if owner is None or not (inspect.ismodule(owner) or inspect.isclass(owner)):
                return None
            if not hasattr(owner, node.attr):
                self.faults.append(f"{owner.__name__}.{node.attr}")
            return getattr(owner, node.attr, None)
        return None

    def visit_Attribute(self, node):
        self.found(node)
        self.generic_visit(node)

    def visit_Call(self, node):
        called = self.found(node.func)
        if called is not None and "genprior" in (getattr(called, "__module__", "") or ""):
            given = {k.arg: None for k in node.keywords if k.arg}
            try:
                inspect.signature(called).bind_partial(*[None] * len(node.args), **given)
            except TypeError as error:
                self.faults.append(f"{called.__name__}: {error}")
        self.generic_visit(node)


def faults(code):
    visitor = Named()
    visitor.visit(ast.parse(code))
    return visitor.faults


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_names_on_the_page_exist(page):
    """Catches a page that shows a name or an argument which no longer exists."""
    assert not faults("\n".join(notebooks.BLOCK.findall(page.read_text())))


@pytest.mark.parametrize(
    "line",
    [
        "from genprior.solvers import NoSolver",
        "import genprior\ngenprior.plots.no_figure",
        "from genprior.solvers import MMPS\nMMPS(stepz=3)",
        "from genprior.solvers import MMPS\nMMPS.steered(stepz=3)",
        "import genprior\ngenprior.solve(1, 2, 3)",
    ],
)
def test_a_wrong_name_is_found(line):
    """Catches a guard that sees nothing."""
    assert len(faults(line)) == 1


def test_cells_are_the_pages_own(tmp_path):
    """Catches a cell that is lost, a picture that needs a file, and a link that leads astray."""
    nbformat = pytest.importorskip("nbformat")
    page = tmp_path / "a.md"
    page.write_text(
        "# A\n\nA notebook of this page: [a.ipynb](a.ipynb)\n\nText, [b](../b.md).\n\n"
        "```python\nx = 1\n```\n\n![drawn](x.png)\n\nMore.\n\n```python\nx\n```\n"
    )
    cells = nbformat.reads(notebooks.notebook(page), as_version=4).cells
    assert [(cell.cell_type, cell.source) for cell in cells] == [
        ("markdown", "# A\n\nText, [b](../../b.md)."),
        ("code", "x = 1"),
        ("markdown", "More."),
        ("code", "x"),
    ]
