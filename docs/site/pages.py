"""What is put into a page while Sphinx reads it, so that its Markdown needs no directives."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

API = re.compile(r"^```\{api\} (\S+)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"^- \[[^]]+\]\(([^)#]+\.md)\)", re.M)

OUTSIDE = re.compile(r"(?<!!)\[([^]]+)\]\(((?:\.\./)+[^)#]+|[^)#]+\.py)(#[^)]*)?\)")

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").exists())

MORE = {"index": ["examples/index"]}
"""Pages that no Markdown holds: sphinx-gallery writes them."""


def api(match: re.Match[str]) -> str:
    """Write the reference of the names in a block `{api} MODULE`."""
    module, names = match.groups()
    lines = [directive(module, name) for name in names.split()]
    return "```{eval-rst}\n" + "\n".join(lines) + "\n```"


def directive(module: str, name: str) -> str:
    """Choose the directive that documents one name."""
    thing = getattr(importlib.import_module(module), name)
    if inspect.isclass(thing):
        return f".. autoclass:: {module}.{name}\n"
    if callable(thing) and hasattr(thing, "__code__"):
        return f".. autofunction:: {module}.{name}\n"
    return f".. autodata:: {module}.{name}\n   :no-value:\n"


def contents(page: str, text: str) -> str:
    """Write a hidden table of contents from the lists of links of an index page."""
    folder = PurePosixPath(page).parent
    pages = [str(folder / link).removesuffix(".md") for link in LINK.findall(text)]
    pages += MORE.get(page, [])
    listed = "".join(f"/{name}\n" for name in pages)
    return f"\n\n```{{toctree}}\n:hidden:\n\n{listed}```\n"


def without_outside(page: str, text: str) -> str:
    """Name what lies in the repository and not on the site, instead of linking to it."""

    def named(match: re.Match[str]) -> str:
        words, link, _ = match.groups()
        file = (ROOT / "docs" / page).parent.joinpath(link).resolve()
        inside = file.is_relative_to(ROOT / "docs") and file.is_file() and file.suffix != ".py"
        if inside or not file.exists():
            return match[0]
        path = f"`{file.relative_to(ROOT)}`"
        return path if words.strip("`") == Path(link).name else f"{words} ({path})"

    return OUTSIDE.sub(named, text)


def read(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = API.sub(api, without_outside(page, source[0]))
    if PurePosixPath(page).name == "index" and not page.startswith("examples"):
        source[0] += contents(page, source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", read)
    return {"parallel_read_safe": True}
