"""Change every number and sign of the solvers and samplers, one at a time: do the tests notice?

    python benchmarks/mutants.py --out mutants.csv [--only solvers/diffusion/pigdm.py] [--limit 20]
                                 [--workers 2]

Numbers are multiplied by 1.5 (0 becomes 1), + and -, * and / and comparisons are swapped, a minus
sign is dropped. Each is made in a scratch copy of the project and the tests of `TESTS` run there.
The CSV tells who survived; its column `reason` is for a reader to fill in. A second call skips
what the CSV has.
"""

from __future__ import annotations

import argparse
import ast
import csv
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FIELDS: tuple[str, ...] = ("file", "line", "column", "kind", "before", "after", "fate", "reason")
TRUTH = ("test_truth_gaussian.py", "test_truth_operators.py", "test_walks.py")
WALKS = tuple(f"tests/solvers/{name}" for name in TRUTH)
TESTS = {  # The longest prefix counts.
    "priors/samplers": ("tests/priors/test_samplers.py",),
    "solvers": ("tests/solvers",),
    "solvers/diffusion": WALKS,
    "solvers/walk": (*WALKS, "tests/solvers/test_base.py"),
    "solvers/diffusion/denoising.py": ("tests/solvers/test_denoising_posterior.py",),
    "solvers/latent": ("tests/solvers/test_latent_map.py", "tests/solvers/test_latent_sampler.py"),
    "solvers/data_term.py": ("tests/solvers/test_data_term.py", *WALKS),
}
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


def mutants(source: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each mutation's place and words, and the changed source."""
    tree = ast.parse(source)
    nodes: list[Any] = list(ast.walk(tree))
    for node in nodes:
        field, old, new = _change(node)
        if field is None:
            continue
        before = ast.unparse(node)
        row: dict[str, Any] = {"kind": type(node).__name__, "before": before}
        if isinstance(node, (ast.expr, ast.stmt)):
            row |= {"line": node.lineno, "column": node.col_offset}
        setattr(node, field, new)
        yield row | {"after": ast.unparse(node)}, ast.unparse(tree)
        setattr(node, field, old)


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


def tests_of(file: str) -> tuple[str, ...]:
    """The tests that are to notice a change of `file`."""
    return TESTS[max((prefix for prefix in TESTS if file.startswith(prefix)), key=len)]


def fate(copy: Path, file: str, source: str, timeout: float) -> str:
    """Run the tests of `file` in `copy` with `source` in its place."""
    original = (copy / file).read_text()
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    (copy / file).write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    try:
        run = subprocess.run(
            [*command, *tests_of(file)],
            cwd=copy,
            env=environment,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "noticed: too slow"
    finally:
        (copy / file).write_text(original)
    return "survived" if run.returncode == 0 else "noticed"


def work(files: list[str], out: Path, *, limit: int | None, workers: int, timeout: float) -> None:
    """Try what `out` does not have yet, at most `limit` of them."""
    keys = FIELDS[:6]
    done: set[tuple[str, ...]] = set()
    if out.exists():
        with out.open(newline="") as file:
            done = {tuple(row[key] for key in keys) for row in csv.DictReader(file)}
    todo = []
    for name in files:
        for row, source in mutants((ROOT / name).read_text()):
            row = {"file": name, **row}
            if tuple(str(row[key]) for key in keys) not in done:
                todo.append((row, source))
    todo = todo[:limit]
    with tempfile.TemporaryDirectory() as folder, out.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if not done:
            writer.writeheader()
        copies: Queue[Path] = Queue()
        for i in range(workers):
            ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", "docs")
            copies.put(Path(shutil.copytree(ROOT, Path(folder) / str(i), ignore=ignored)))

        def attempt(task: tuple[dict[str, Any], str]) -> dict[str, Any]:
            row, source = task
            copy = copies.get()
            try:
                return {**row, "fate": fate(copy, str(row["file"]), source, timeout)}
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(workers) as pool:
            for row in pool.map(attempt, todo):
                writer.writerow(row)
                file.flush()
                print(*(row[key] for key in FIELDS[:7]), sep=" | ", flush=True)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("mutants.csv"))
    parser.add_argument("--only", nargs="+", default=None, help="files, from the project's root")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one mutant")
    args = parser.parse_args()
    found = [*ROOT.glob("solvers/**/*.py"), *ROOT.glob("priors/samplers/*.py")]
    files = args.only or sorted(str(path.relative_to(ROOT)) for path in found)
    work(files, args.out, limit=args.limit, workers=args.workers, timeout=args.timeout)


if __name__ == "__main__":
    main()
