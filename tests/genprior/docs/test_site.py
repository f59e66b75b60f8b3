"""The site: all public names in the reference, links that lead somewhere, docstrings as text."""

import importlib
import re
import sys
from pathlib import Path

import pytest
from make import PAGES

pytest.importorskip("sphinx")
ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "docs" / "site"))
from docstrings import as_rest  # noqa: E402
from pages import API, OUTSIDE, contents, without_outside  # noqa: E402

MODULES = [
    "genprior",
    "genprior.operators",
    "genprior.operators.masks",
    "genprior.operators.kernels",
    "genprior.priors",
    "genprior.priors.samplers",
    "genprior.solvers",
    "genprior.pretrained",
    "genprior.data",
    "genprior.training",
    "genprior.plots",
    "genprior.metrics",
]


def public(module):
    """Names that a module offers, modules aside: its `__all__`, else what it defines."""
    known = importlib.import_module(module)
    names = getattr(known, "__all__", None) or [
        name
        for name, value in vars(known).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module
    ]
    return {name for name in names if not isinstance(getattr(known, name), type(sys))}


def referred():
    """The things that the reference documents, whatever the module they are named by."""
    found = []
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        for module, names in API.findall(page.read_text()):
            known = importlib.import_module(module)
            found += [(f"{module}.{name}", getattr(known, name)) for name in names.split()]
    return found


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_reference(module):
    """Catches a class that is exported and never documented."""
    shown = [thing for _, thing in referred()]
    known = importlib.import_module(module)
    missing = [n for n in public(module) if not any(getattr(known, n) is t for t in shown)]
    assert not missing


def test_what_the_reference_shows_says_something():
    """Catches a public name without a docstring, and one that is documented twice."""
    names = [name for name, _ in referred()]
    assert len(set(names)) == len(names)
    said = {n: t.__doc__ for n, t in referred() if isinstance(t, type) or hasattr(t, "__code__")}
    silent = [name for name, text in said.items() if not text]
    assert not silent


LINK = re.compile(r"(?<!!)\[[^]]+\]\(([^)\s]+)\)|!\[[^]]*\]\(([^)\s]+)\)")


def anchors(page):
    """The anchors of a page's headings, as code hosts and Sphinx make them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    heads = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Catches a page that was moved, a heading that was renamed, a picture that was dropped."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for link in (a or b for a, b in LINK.findall(text)):
        if not link.startswith("http"):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_every_page_is_reached():
    """Catches a page that no list of contents names."""
    reached, waiting = set(), ["index"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        text = (ROOT / "docs" / f"{page}.md").read_text()
        if page.endswith("index"):
            listed = re.findall(r"^/(\S+)$", contents(page, text), flags=re.M)
            inside = (ROOT / "docs").resolve()
            waiting += [
                str((inside / name).resolve().relative_to(inside))
                for name in listed
                if not name.startswith("examples")
            ]
    docs = ROOT / "docs"
    assert reached == {str(p.relative_to(docs))[:-3] for p in docs.rglob("*.md")}


def test_links_out_of_the_site_become_names():
    """Catches a link to a file of the repository that the site does not hold."""
    text = without_outside("guides/gan", "see [NOTICE](../../pretrained/NOTICE.md#a), [m](gan.md)")
    assert text == "see NOTICE (`pretrained/NOTICE.md`), [m](gan.md)"
    broken = "[NOTICE](../../pretrained/NONE.md)"
    assert OUTSIDE.search(broken)
    assert without_outside("guides/gan", broken) == broken


def test_docstrings_keep_formulas_and_sections():
    """Catches a formula read as a quotation, |r| as a substitution, and a section as a formula."""
    lines = [
        "Say |r|^2 and `x_0 |z|` of *this* y_ only.",
        "",
        "    y = A x + n,  n ~ N(0, |s|^2)",
        "",
        "Args:",
        "    x: Images, |x| at most 1.",
        "Source: A paper.",
    ]
    assert as_rest(lines) == [
        r"Say \|r\|^2 and `x_0 |z|` of \*this\* y\_ only.",
        "",
        "::",
        "",
        "    y = A x + n,  n ~ N(0, |s|^2)",
        "",
        "Args:",
        r"    x: Images, \|x\| at most 1.",
        "",
        "Source: A paper.",
    ]


TO_READ = [page for page in PAGES if page.parent.name in ("guides", "tutorials")]


@pytest.mark.parametrize("page", TO_READ, ids=lambda page: page.stem)
def test_paragraphs_are_short(page):
    """Catches a laboratory note in a guide: what was tried belongs to the results."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", page.read_text(), flags=re.S)
    paragraphs = [part for part in re.split(r"\n\n|\n(?=- )", text) if part[:1] not in "|# "]
    assert not [part for part in paragraphs if len(part.split()) > 90]
