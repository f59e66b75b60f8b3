"""Change every number and sign of the solvers and samplers, one at a time: do the tests notice?

    python benchmarks/mutants.py --out mutants.csv [--only solvers/diffusion/pigdm.py] [--limit 20]
                                 [--workers 2] [--again]

Whole numbers grow by 1, others are multiplied by 1.5 (0 becomes 1), + and -, * and / and
comparisons are swapped, a minus sign is dropped. Each is made in a scratch copy of the project.
One run of the tests tells which of them reach which line, and how long each takes: a mutant meets
those that reach its line, the quickest first, until one fails; for what is read on import, those
that reach its file or a file that imports it, and those of settings. A test that takes ten times
as long as it did fails.

The CSV tells who survived; its column `reason` is for a reader to fill in. A second call skips
what the CSV has, wherever it stands in the file by then, and drops what stands there no more; with
`--again` survivors are tried again.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import csv
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KEYS = ("file", "where", "kind", "before", "after", "occurrence")
FIELDS: tuple[str, ...] = (*KEYS, "line", "fate", "seconds", "reason")
SETTINGS = "tests/solvers/test_settings.py"
"""Looks at what is read on import, and reaches no line of it."""

TESTS = (
    "tests/solvers",
    "tests/priors/test_samplers.py",
    "tests/priors/test_samplers_written_out.py",
    "tests/priors/diffusion",
)
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
KILLER = "killer.txt"
SLOW = 10.0
"""How many times as long as before, and 20 seconds, a test may take."""


def mutants(source: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each mutation's place and words, and the changed source."""
    tree = ast.parse(source)
    seen: Counter[tuple[str, ...]] = Counter()
    for node, where, line in _nodes(tree):
        name, old, new = _change(node)
        if name is None:
            continue
        row = {"where": where, "kind": type(node).__name__, "before": ast.unparse(node)}
        setattr(node, name, new)
        row["after"] = ast.unparse(node)
        key = tuple(row.values())
        row |= {"occurrence": str(seen[key]), "line": str(line)}
        seen[key] += 1
        yield row, ast.unparse(tree)
        setattr(node, name, old)


def _nodes(tree: ast.AST, where: str = "") -> Iterator[tuple[Any, str, int]]:
    """Every expression, the function or class that it stands in, and its line."""
    for node in ast.iter_child_nodes(tree):
        inside = where
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            inside = f"{where}.{node.name}".lstrip(".")
        if isinstance(node, (ast.expr, ast.stmt)):
            yield node, inside, node.lineno
        yield from _nodes(node, inside)


def _change(node: ast.AST) -> tuple[str | None, Any, Any]:
    """Which field of `node` to change, from what to what; None: nothing to change."""
    match node:
        case ast.Constant(value=bool() | str() | bytes() | None):
            pass
        case ast.Constant(value=int() as v):
            return "value", v, v + 1
        case ast.Constant(value=float() as v):
            return "value", v, v * 1.5 or 1.0
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in SWAPS:
            return "op", op, SWAPS[type(op)]()
        case ast.UnaryOp(op=ast.USub() as op):
            return "op", op, ast.UAdd()
        case ast.Compare(ops=[op, *rest]) if type(op) in SWAPS:
            return "ops", [op, *rest], [SWAPS[type(op)](), *rest]
    return None, None, None


@dataclass
class Survey:
    """Which tests reach which lines, and how long they take.

    Attributes:
        seconds: Of each test.
        lines: File and line -> the tests that reach it.
        files: File -> the tests that reach any line of it within a function.
        modules: All that they import.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[tuple[str, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    files: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    modules: list[str] = field(default_factory=list)

    def tests_of(self, file: str, line: int) -> set[str]:
        found = self.lines.get((file, line), set())
        if found:
            return found
        module = file.removesuffix(".py").replace("/", ".")
        readers = [f for f in self.files if f"genprior.{module} import" in (ROOT / f).read_text()]
        settings = {test for test in self.seconds if test.startswith(SETTINGS)}
        return settings.union(*(self.files[f] for f in (file, *readers) if f in self.files))


def survey(copy: Path, files: list[str]) -> Survey:
    """Run all tests of `copy` once, in this process's child, and see what they reach."""
    import pickle

    path = copy / "survey.pickle"
    if _forked(copy, lambda: _run_survey(copy, files, path), bytecode=True) != 0:
        raise SystemExit("the tests fail as they are")
    return pickle.loads(path.read_bytes())


def _run_survey(copy: Path, files: list[str], path: Path) -> int:
    import pickle

    import coverage
    import pytest

    watch = coverage.Coverage(data_file=None, include=[str(copy / f) for f in files])
    found = Survey()

    class Plugin:
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
            watch.switch_context(item.nodeid)
            begin = time.perf_counter()
            outcome = yield
            found.seconds[item.nodeid] = time.perf_counter() - begin
            return outcome

    watch.start()
    status = pytest.main([*TESTS, "-q", "-p", "no:cacheprovider"], plugins=[Plugin()])
    watch.stop()
    data = watch.get_data()
    for name in data.measured_files():
        file = str(Path(name).relative_to(copy))
        for line, tests in data.contexts_by_lineno(name).items():
            reached = {test for test in tests if test in found.seconds}
            found.lines[file, line] |= reached
            found.files[file] |= reached
    found.modules = list(sys.modules)
    path.write_bytes(pickle.dumps(found))
    return int(status)


def _forked(copy: Path, run: Any, **keywords: bool) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(_fork(copy, run, **keywords), 0)[1])


def _fork(copy: Path, run: Any, *, bytecode: bool = False) -> int:
    """Start `run` in a child that works in `copy` and says nothing; return its number."""
    child = os.fork()
    if child:
        return child
    os.setpgrp()
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    sys.dont_write_bytecode = not bytecode
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    status = 1
    try:
        status = run()
    finally:
        os._exit(status)


def _try(copy: Path, tests: list[str], seconds: dict[str, float]) -> int:
    """Run `tests` in their order until one fails or takes too long; write its name down."""
    import pytest

    killer = copy / KILLER

    rank = {test: i for i, test in enumerate(tests)}
    functions = {test.split("[")[0] for test in tests}

    def wanted(item: pytest.Item) -> bool:
        # a mutant may have changed a name in brackets, which tells a setting
        renamed = item.nodeid not in seconds and item.nodeid.split("[")[0] in functions
        return renamed or item.nodeid in rank

    class Plugin:
        def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
            items[:] = filter(wanted, items)
            items.sort(key=lambda item: rank.get(item.nodeid, len(rank)))

        def pytest_runtest_setup(self, item: pytest.Item) -> None:
            killer.write_text(item.nodeid)
            signal.alarm(int(20 + SLOW * seconds.get(item.nodeid, 1.0)))

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    left_out = ("cacheprovider", "warnings", "hypothesispytest", "xdist")
    without = [word for name in left_out for word in ("-p", f"no:{name}")]
    files = dict.fromkeys(test.split("::")[0] for test in tests)
    return int(pytest.main([*files, "-q", "-x", *without], plugins=[Plugin()]))


@dataclass
class Attempt:
    """A mutant at work in one of the copies."""

    row: dict[str, str]
    copy: Path
    original: str
    begin: float

    @property
    def killer(self) -> str:
        """The test that noticed, as far as one did."""
        note = self.copy / KILLER
        return note.read_text() if note.exists() else ""

    def end(self, status: int) -> dict[str, str]:
        (self.copy / self.row["file"]).write_text(self.original)
        code = os.waitstatus_to_exitcode(status)
        known = {0: "survived", 5: "survived", -signal.SIGALRM: "noticed: too slow"}
        fate = known.get(code, "noticed")
        took = f"{time.perf_counter() - self.begin:.1f}"
        return {**self.row, "fate": fate, "seconds": took, "reason": ""}


def work(todo: list[tuple[dict[str, str], str]], workers: int) -> Iterator[dict[str, str]]:
    """Try mutants in so many copies of the project at a time; yield each one's fate."""
    import torch

    torch.set_num_threads(1)
    files = sorted({str(p.relative_to(ROOT)) for p in _sources()})
    with tempfile.TemporaryDirectory() as folder:
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", "docs", "build")
        copies = [Path(folder) / str(i) for i in range(workers)]
        shutil.copytree(ROOT, copies[0], ignore=ignored)
        known = survey(copies[0], files)
        for copy in copies[1:]:  # with the bytecode that the survey has written
            shutil.copytree(copies[0], copy)
        _preload(known.modules)
        if _forked(copies[0], lambda: _try(copies[0], list(known.seconds), known.seconds)) != 0:
            failed = (copies[0] / KILLER).read_text()
            raise SystemExit(f"{failed} fails when run by its name in another order")
        print(f"{len(known.seconds)} tests in {sum(known.seconds.values()):.0f} s", flush=True)
        kills: dict[str, Counter[str]] = defaultdict(Counter)
        running: dict[int, Attempt] = {}
        queue = iter(todo)
        while True:
            task = next(queue, None) if copies else None
            if task is not None:
                row, source = task
                copy, file = copies.pop(), row["file"]
                tests = known.tests_of(file, int(row["line"]))
                if not tests:
                    copies.append(copy)
                    yield {**row, "fate": "survived", "seconds": "0", "reason": "no test"}
                    continue
                order = sorted(tests, key=lambda t: (-kills[file][t], known.seconds[t]))
                attempt = Attempt(row, copy, (copy / file).read_text(), time.perf_counter())
                (copy / file).write_text(source)
                child = _fork(copy, lambda c=copy, o=order: _try(c, o, known.seconds))
                running[child] = attempt
                continue
            if not running:
                return
            child, status = os.wait()
            attempt = running.pop(child)
            row = attempt.end(status)
            if row["fate"] != "survived":
                kills[row["file"]][attempt.killer] += 1
            copies.append(attempt.copy)
            yield row


def _preload(modules: list[str]) -> None:
    """Import what the tests import, but nothing of ours: that is most of a mutant's time."""
    ours = {"genprior", *(p.stem for p in (ROOT / "tests").glob("*"))}
    for name in modules:
        if name.split(".")[0] not in ours:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def _sources() -> list[Path]:
    return sorted([*ROOT.glob("solvers/**/*.py"), *ROOT.glob("priors/samplers/*.py")])


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("mutants.csv"))
    parser.add_argument("--only", nargs="+", default=None, help="files, from the project's root")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="try survivors again")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    # Neither benchmarks/photos.py for the tests' photos.py, nor the checkout for its copies.
    hidden = (ROOT, Path(__file__).resolve().parent)
    sys.path[:] = [p for p in sys.path if Path(p).resolve() not in hidden]
    known: list[dict[str, str]] = []
    if args.out.exists():
        with args.out.open(newline="") as file:
            known = list(csv.DictReader(file))
    rows = {tuple(row[key] for key in KEYS): row for row in known}
    todo, standing = [], set()
    paths = args.only or [str(p.relative_to(ROOT)) for p in _sources()]
    for path in paths:
        for row, source in mutants((ROOT / path).read_text()):
            row = {"file": path, **row}
            key = tuple(row[key] for key in KEYS)
            standing.add(key)
            before = rows.get(key)
            if before is None or (args.again and before["fate"] == "survived"):
                todo.append((row, source))
    rows = {key: row for key, row in rows.items() if row["file"] not in paths or key in standing}
    for row in work(todo[: args.limit], args.workers):
        key = tuple(row[key] for key in KEYS)
        row["reason"] = row["reason"] or rows.get(key, row)["reason"]
        rows[key] = row
        print(*(row[key] for key in FIELDS[:9]), sep=" | ", flush=True)
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows.values())


if __name__ == "__main__":
    main()
