"""Tables and figures of the pages, rendered from the CSV that each names.

A table stands between two comments. The first says in YAML what it is made of:

    <!-- table
    file: images/cats32.csv                 # beside the page
    where: {part: main, sigma: 0.05}        # the rows of it that are taken
    without: [REDDiff]                      # lines left out
    rows: solver                            # a line for each value of this column, or of several
    names: {exact: exact samples}           # lines in this order, so called; others follow
    columns: {forwards, at most: "{most forwards:.0f}"}
    across: task                            # then a column for each value of this one
    cell: "{PSNR of mean:.1f} / {CRPS*1000:.1f}"
    best: CRPS                              # whose least value in a column is bold
    -->
    | ...
    <!-- end -->

A figure in a sentence is followed by its own: `27.4 dB<!--= demo.csv | prior: cats32-vae |
{psnr:.1f} dB -->`. `render` writes both anew; `python docs/make.py` does so to all pages, and a
test holds that it changes nothing.
"""

from __future__ import annotations

import csv
import math
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

Row = dict[str, str]

TABLE = re.compile(r"(<!-- table\n(.*?)-->\n)(.*?)(<!-- end -->)", re.S)
QUOTE = re.compile(r"<!--= ([^|>]+) \|([^|>]*)\| (.+?) -->", re.S)
FIELD = re.compile(r"\{(?:(most) )?([^{}:*]+)(?:\*([\d.]+))?(?::([^{}]+))?\}")
CODE = re.compile(r"([A-Z]\w+(?:\.\w+)?(?:\([^)]*\))?)(, .*)?")
"""A solver's name, set as code, and what is said of it."""


def render(page: Path, text: str) -> str:
    """Return the text of a page with its tables and figures as their CSVs have them.

    Args:
        page: Where it lies: CSVs are named from there.
        text: What it says.
    Raises:
        ValueError: A CSV has no such row, or no figure of its form stands before a comment.
    """
    text = TABLE.sub(lambda m: f"{m[1]}\n{_table(yaml.safe_load(m[2]), page)}\n{m[4]}", text)
    done, last = "", 0
    for match in QUOTE.finditer(text):
        file, where, form = match.groups()
        value = _cell(form, _rows(page.parent / file, yaml.safe_load(f"{{{where}}}")))
        done, last = done + text[last : match.start()], match.end()
        stands = re.search(_pattern(form) + r"\Z", done)
        if stands is None:
            raise ValueError(f"{page.name}: no {form!r} stands before {match[0]!r}")
        done = done[: stands.start()] + value + match[0]
    return done + text[last:]


def _pattern(form: str) -> str:
    """The form as a regular expression, any number in place of each field."""
    return r"-?[\d.]*\d(?: to -?[\d.]*\d)?".join(map(re.escape, FIELD.sub("\0", form).split("\0")))


def _rows(path: Path, where: dict[str, Any]) -> list[Row]:
    """Rows of a CSV whose columns have the values named, or one of several."""

    def kept(row: Row) -> bool:
        return all(
            any(_same(row[column], value) for value in (v if isinstance(v, list) else [v]))
            for column, v in where.items()
        )

    with path.open(newline="") as file:
        found = [row for row in csv.DictReader(file) if kept(row)]
    if not found:
        raise ValueError(f"{path.name} has no row where {where}")
    return found


def _same(cell: str, value: object) -> bool:
    try:
        return float(cell) == float(str(value))
    except ValueError:
        return cell == str(value)


def _number(row: Row, field: re.Match[str]) -> str:
    """Write one column of a row as its field says; .5 for 0.5, - for none."""
    _, name, factor, form = field.groups()
    if form is None:
        return row[name]
    value = float(row[name] or "nan") * float(factor or 1)
    text = format(Decimal(format(value, form)), "f") if math.isfinite(value) else "-"
    return re.sub(r"^(-?)0\.", r"\1.", text)


def _cell(form: str, rows: list[Row], best: dict[str, str] | None = None) -> str:
    """Fill in a form; where the rows differ, from the least value to the greatest."""

    def filled(field: re.Match[str]) -> str:
        texts = list(dict.fromkeys(_number(row, field) for row in rows))
        if field[1]:
            return max((text for text in texts if text != "-"), key=float, default="")
        if len(texts) > 1:
            return f"{min(texts, key=float)} to {max(texts, key=float)}"
        return f"**{texts[0]}**" if texts[0] == (best or {}).get(field[2]) else texts[0]

    return FIELD.sub(filled, form)


def _table(spec: dict[str, Any], page: Path) -> str:
    found = _rows(page.parent / spec["file"], spec.get("where", {}))
    keys = [spec["rows"]] if isinstance(spec["rows"], str) else spec["rows"]
    names, columns, across = spec.get("names", {}), spec.get("columns", {}), spec.get("across")
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in found:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    order = {name: place for place, name in enumerate(names)}
    groups = {key: g for key, g in groups.items() if not {*key} & {*spec.get("without", [])}}
    keyed = sorted(groups.items(), key=lambda g: [order.get(part, len(order)) for part in g[0]])
    heads = list(dict.fromkeys(row[across] for row in found)) if across else []
    lines = [[*keys, *columns, *(names.get(head, head) for head in heads)]]
    lines[0] = [spec.get("titles", {}).get(title, title) for title in lines[0]]
    lines += [["---"] * len(lines[0])]
    for key, rows in keyed:
        line = [_shown(names.get(part, part)) for part in key]
        line += [_cell(form, rows) for form in columns.values()]
        for head in heads:
            mine = [row for row in rows if row[across] == head]
            whole = [row for row in found if row[across] == head]
            line.append(_cell(spec["cell"], mine, _best(spec, whole)) if mine else "")
        lines.append(line)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("| --- ", "|---")


def _best(spec: dict[str, Any], rows: list[Row]) -> dict[str, str]:
    """The least value of the column that is best when least, as its field writes it."""
    for field in FIELD.finditer(spec["cell"]):
        if field[2] == spec.get("best"):
            texts = [_number(row, field) for row in rows]
            return {field[2]: min((t for t in texts if t != "-"), key=float)}
    return {}


def _shown(label: str) -> str:
    return re.sub(rf"\A{CODE.pattern}\Z", r"`\1`\2", label)
