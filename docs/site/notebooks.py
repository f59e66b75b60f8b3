"""Write the tutorials as notebooks, run them, or make their pictures.

    python docs/site/notebooks.py                       writes docs/tutorials/notebooks/*.ipynb
    python docs/site/notebooks.py --run                 runs each from top to bottom, timed
    python docs/site/notebooks.py --page NAME --out DIR runs the Python of a page in a folder

A tutorial is written once, as a page of Markdown. Its blocks of Python become cells; its pictures
stay behind, as the cells draw them.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from pathlib import Path

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
PICTURE = re.compile(r"^!\[[^]]*\]\([^)]*\)\n+", re.M)
LINK = re.compile(r"\]\((?!http)([^)]+)\)")
OUTSIDE = re.compile(r"^A notebook of this page: .*\n+", re.M)
LIMIT = 180
"""Seconds that a notebook may take on two cores."""


def pages() -> list[Path]:
    """The tutorials, without their index."""
    return sorted(p for p in TUTORIALS.glob("*.md") if p.name != "index.md")


def notebook(page: Path) -> str:
    """Return a page as a notebook, without outputs, in JSON."""
    import nbformat

    new = nbformat.v4
    text = OUTSIDE.sub("", PICTURE.sub("", page.read_text()))
    text = LINK.sub(r"](../\1)", text)  # it lies a folder deeper
    cells = []
    for i, part in enumerate(BLOCK.split(text)):
        if part.strip():
            make = new.new_code_cell if i % 2 else new.new_markdown_cell
            cells.append(make(part.strip(), id=f"{page.stem}-{i}"[:64]))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    written = new.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.validate(written)
    return nbformat.writes(written) + "\n"


def place(page: Path) -> Path:
    return TUTORIALS / "notebooks" / f"{page.stem}.ipynb"


def run(page: Path) -> None:
    """Execute a notebook in an empty folder.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raised.
        TimeoutError: It took over `LIMIT` seconds.
    """
    import nbformat
    from nbclient import NotebookClient

    written = nbformat.reads(notebook(page), as_version=4)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(written, resources={"metadata": {"path": folder}}).execute()
    seconds = time.perf_counter() - start
    print(f"{page.stem}: {seconds:.0f} s", flush=True)
    if seconds > LIMIT:
        raise TimeoutError(f"{page.stem} took {seconds:.0f} s, over {LIMIT}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", action="store_true", help="run each from top to bottom")
    parser.add_argument("--page", choices=[page.stem for page in pages()])
    parser.add_argument("--out", type=Path, help="folder in which the Python of --page runs")
    options = parser.parse_args()
    chosen = [p for p in pages() if options.page in (None, p.stem)]
    if options.out is not None:
        if options.page is None:
            parser.error("--out takes a --page")
        code = "\n".join(BLOCK.findall(chosen[0].read_text()))
        os.chdir(options.out)
        exec(compile(code, str(chosen[0]), "exec"), {"__name__": "__main__"})
        return
    place(chosen[0]).parent.mkdir(exist_ok=True)
    for page in chosen:
        place(page).write_text(notebook(page))
        if options.run:
            run(page)


if __name__ == "__main__":
    main()
