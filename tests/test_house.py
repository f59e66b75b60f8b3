"""The layout: few entries in a folder, imports that only run down, no circles; honest equality."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("operators", "priors", "solvers", "pretrained", "genprior")
MOST = 12


def modules():
    """Name -> file of every module of the package."""
    found = {}
    for floor in FLOORS:
        for path in (ROOT / floor).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if floor == "genprior" else ("genprior", *parts)
            found[".".join(p for p in parts if p != "__init__")] = path
    return found


class _Imports(ast.NodeVisitor):
    """Modules that a file imports, anywhere in it, but for the type checker's sake."""

    def __init__(self, known):
        self.known, self.found = known, set()

    def visit_If(self, node):
        if getattr(node.test, "id", "") != "TYPE_CHECKING":
            self.generic_visit(node)

    def visit_Import(self, node):
        self.found |= {alias.name for alias in node.names if alias.name in self.known}

    def visit_ImportFrom(self, node):
        for alias in node.names:
            deep = f"{node.module}.{alias.name}"
            self.found.add(deep if deep in self.known else node.module)


def imports():
    """Module -> the modules of ours that it imports."""
    known = modules()
    graph = {}
    for name, path in known.items():
        visitor = _Imports(known)
        visitor.visit(ast.parse(path.read_text()))
        graph[name] = {m for m in visitor.found if m in known and m != name}
    return graph


def floor(module):
    part = [*module.split("."), "genprior"][1]
    return FLOORS.index(part) if part in FLOORS else len(FLOORS) - 1


def test_no_arrow_runs_up():
    """Catches an import of a higher floor, late ones inside functions included."""
    up = [
        f"{a} -> {b}" for a, targets in imports().items() for b in targets if floor(b) > floor(a)
    ]
    assert not up


def test_no_circles():
    """Catches files that import each other, however far round.

    A package's `__init__` only lists what it holds, so it is no part of a circle of its own.
    """
    graph = {a: {b for b in t if modules_are_files(b)} for a, t in imports().items()}
    graph = {a: t for a, t in graph.items() if modules_are_files(a)}
    state = {}

    def visit(name, path):
        if state.get(name) == "done":
            return
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        for target in sorted(graph[name]):
            visit(target, [*path, name])
        state[name] = "done"

    for name in sorted(graph):
        visit(name, [])


KNOWN = modules()


def modules_are_files(name):
    return KNOWN[name].name != "__init__.py"


CODE = ("genprior", "operators", "priors", "solvers", "tests", "benchmarks", "examples", "docs")


@pytest.mark.parametrize("top", CODE)
def test_a_folder_shows_at_most_twelve_entries(top):
    """A newcomer reads one listing; weights and recipes are data and have their own."""
    hidden = ("__pycache__", ".pytest_cache")
    for folder in (ROOT / top, *(p for p in (ROOT / top).rglob("*") if p.is_dir())):
        entries = [p.name for p in folder.iterdir() if p.name not in hidden]
        if "__pycache__" not in folder.parts:
            assert len(entries) <= MOST, f"{folder.relative_to(ROOT)}: {sorted(entries)}"


def bare_equalities(source):
    """Lines of a test that compare every bit without saying that they may."""
    found = []
    for node in ast.walk(ast.parse(source)):
        name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "name", "")
        exact = name in ("equal", "array_equal", "array_equiv", "assert_array_equal")
        if isinstance(node, ast.Call):
            zeros = [k.arg for k in node.keywords if getattr(k.value, "value", None) == 0]
            exact = {"rtol", "atol"} <= set(zeros)
        if exact:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    "line",
    [
        "assert torch.equal(a, b)",
        "from torch import equal",
        "np.testing.assert_array_equal(a, b)",
        "torch.testing.assert_close(a, b, rtol=0, atol=0.0)",
    ],
)
def test_bare_equality_is_found(line):
    """Catches a guard that sees nothing."""
    assert bare_equalities(line) == [1]
    assert not bare_equalities("torch.testing.assert_close(a, b, rtol=0, atol=1e-9)")


def test_bits_are_compared_by_name():
    """Catches two computations held to agree in their last bits, which other processors break.

    `tools.identical` says when bits may be compared; `tools.close` is for the rest.
    """
    paths = [p for p in (ROOT / "tests").rglob("*.py") if p.name != "tools.py"]
    found = {p.name: lines for p in paths if (lines := bare_equalities(p.read_text()))}
    assert not found
