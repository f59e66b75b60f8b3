"""The gallery: every figure of `genprior figure --list`, with its command and what it costs."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from genprior.figures.registry import Drawing

BLOCK = re.compile(r"(<!-- figures -->\n).*?(<!-- end -->)", re.S)

DOCS = Path(__file__).parent

CHAPTERS = {
    "vae": "Autoencoders",
    "inverse": "Inverse problems in latent space",
    "flow_map": "Inverse problems in latent space",
    "densities": "Flows",
    "flows": "Flows",
    "gan": "GANs",
    "shares": "GANs",
}
"""By the module that draws a figure."""


def chapter(drawing: Drawing) -> str:
    part = drawing.draw.__module__.removeprefix("genprior.figures.").partition(".")[0]
    return CHAPTERS[part]


def gallery(
    text: str, figures: Mapping[str, Drawing], pictures: Mapping[str, Path], seconds: Path
) -> str:
    """Return the page with its figures as the registry has them.

    Args:
        text: What the page says; figures stand between two comments.
        figures: By name, in their order.
        pictures: Where each lies, as seen from the page.
        seconds: CSV of a core's seconds for each.
    """
    with seconds.open(newline="") as file:
        cost = {row["figure"]: float(row["seconds"]) for row in csv.DictReader(file)}
    parts: list[str] = []
    for title in dict.fromkeys(map(chapter, figures.values())):
        parts.append(f"## {title}")
        for name, drawing in figures.items():
            if chapter(drawing) == title:
                parts.append(_entry(name, drawing, cost.get(name)))
                if (DOCS / pictures[name]).is_file():
                    parts.append(f"![{name}]({pictures[name].as_posix()})")
    return BLOCK.sub(lambda m: f"{m[1]}\n" + "\n\n".join(parts) + f"\n\n{m[2]}", text)


def _entry(name: str, drawing: Drawing, seconds: float | None) -> str:
    needs = drawing.about.partition("needs --data ")[2]
    data = f" --data {needs.partition(' ')[0].strip(')')}" if needs else ""
    about = re.sub(r"[;,]? ?\(?needs --data [^)]*\)?", "", drawing.about).strip()
    about += ")" if about.count("(") > about.count(")") else ""
    extra = " It needs scikit-learn (`[figures]`)." if "scikit-learn" in needs else ""
    longer = ", with `--full` far longer" if drawing.long else ""
    takes = f" takes {seconds:.0f} s of one core{longer}" if seconds is not None else ""
    command = f"`genprior figure {name}{data}`{takes}.{extra}"
    return f"### {name}\n\n{about[0].upper()}{about[1:]}.\n\n{command}"
