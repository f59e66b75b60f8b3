"""The code in the documentation runs."""

import re
from pathlib import Path

import pytest

from genprior.solvers import Solver

ROOT = Path(__file__).parent.parent.parent
PAGES = ["docs/guides/write-your-own.md", "docs/guides/write-a-guidance.md", "README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_code_on_the_page_runs(page, tmp_path, monkeypatch):
    """Catches a page that shows names or arguments which no longer exist."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.S)
    assert blocks
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Solver, "registry", dict(Solver.registry))  # the page's own stay on it
    exec(compile("\n".join(blocks), page, "exec"), {"__name__": "page"})
