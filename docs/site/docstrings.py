"""Docstrings for Sphinx: Google's sections stay, the text around them is read as Markdown.

`name`         a name of ours, linked where it has a page
|r|^2, x_*     as they stand
four spaces    a formula or code, as it stands
Source: ...    a paragraph of its own
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.domains.python import PyObject
from sphinx.util.nodes import make_refnode

if TYPE_CHECKING:
    from sphinx.application import Sphinx

SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$")
CODE = re.compile(r"(`+[^`]+`+)")
MARKUP = re.compile(r"([\\*|])|(?<=\w)_(?!\w)")


def as_rest(lines: list[str]) -> list[str]:
    """Return the lines of a docstring as reStructuredText with Google's sections."""
    done: list[str] = []
    section = literal = False
    for line in lines:
        indented = line.startswith("    ")
        if line.strip() and not indented:
            section, literal = bool(SECTION.match(line)), False
        if indented and not section and not literal and not (done and done[-1].strip()):
            done += ["::", ""]
            literal = True
        if line.startswith(("Source:", "Differs:")) and done and done[-1].strip():
            done.append("")
        done.append(line if literal else _escaped(line))
    return done


def _escaped(line: str) -> str:
    """Escape what reStructuredText would take for markup, outside of code."""
    parts = CODE.split(line)
    return "".join(part if i % 2 else MARKUP.sub(r"\\\g<0>", part) for i, part in enumerate(parts))


def process(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rest(lines)


def named(
    name: str, rawtext: str, text: str, lineno: int, inliner: Any, *_: Any, **__: Any
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """Set `text` as code, to be linked where it is the name of something with a page."""
    code = nodes.literal(rawtext, text)
    if not re.fullmatch(r"[A-Za-z_][\w.]*(\(\))?", text):
        return [code], []
    environment = inliner.document.settings.env
    reference = pending_xref(
        "",
        code,
        reftype="named",
        reftarget=text.removesuffix("()"),
        refdoc=environment.docname,
        owner=environment.ref_context.get("py:class"),
    )
    return [reference], []


def resolved(app: Sphinx, environment: Any, node: Any, content: Any) -> Any:
    """Link a name in code: a member of the class at hand, else what alone is called so."""
    if node["reftype"] != "named":
        return None
    target, owner = node["reftarget"], node["owner"]
    known = {
        name: entry
        for name, entry in environment.domains["py"].objects.items()
        if name.endswith(f".{target}") and not entry.aliased
    }
    found = [name for name in known if owner and name.endswith(f".{owner}.{target}")]
    if not found and (target[0].isupper() or "." in target or target.startswith("check_")):
        found = list(known)
    if len(found) != 1:
        return nodes.literal("", content.astext())
    entry = known[found[0]]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_role("named", named)
    app.connect("autodoc-process-docstring", process, priority=400)
    app.connect("missing-reference", resolved)
    app.config["default_role"] = "named"
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"  # as our docstrings call them
    return {"parallel_read_safe": True}
