"""The documentation: its code and shell lines run, its figures are those of their CSVs."""

import ast
import re
import shlex
import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import make
import numpy as np
import pytest
from make import COMMANDS, PAGES, pictures, place, rendered
from photos import photo, tiny_network
from PIL import Image
from tables import QUOTE, TABLE, render

from genprior.app import command
from genprior.cli import main
from genprior.commands import run
from genprior.figures.registry import FIGURES
from genprior.pretrained import loader
from genprior.priors import Diffusion, Model
from genprior.restoration import settings
from genprior.solvers import base, choice

ROOT = Path(__file__).parents[3]
WITH_CODE = ["docs/guides/write-your-own.md", "docs/guides/write-a-guidance.md", "README.md"]


def blocks_on(page):
    """The Python of a page."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.S))


@pytest.fixture
def registries(monkeypatch):
    """What a page defines would be listed among the shipped ones in the tests that follow."""
    known = dict(choice.REGISTRY)
    for module in (choice, base):
        monkeypatch.setattr(module, "REGISTRY", known)
    monkeypatch.setattr(Model, "families", dict(Model.families))


@pytest.mark.parametrize("page", WITH_CODE)
def test_code_on_the_page_runs(page, tmp_path, monkeypatch, registries):
    """Catches a page that shows names or arguments which no longer exist."""
    code = blocks_on(page)
    assert code
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page, "exec"), {"__name__": "page"})


def shell_lines(page):
    """The lines of a page that are typed into a shell, with what they continue on."""
    text = (ROOT / page).read_text().replace("\\\n", " ")
    return re.findall(r"^(?: {4})?((?:genprior|python) .*)$", text, flags=re.M)


SHELL = [
    page
    for page in ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]
    if shell_lines(page)
]


def save_stand_ins(monkeypatch):
    """Make what a user has, in the empty folder that we are in; small shipped diffusion priors."""
    photo(40, 48)
    mask = np.full((40, 48), 255, np.uint8)
    mask[10:16, 20:30] = 0
    Image.fromarray(mask).save("mask.png")
    for folder, size, channels in (("photos", 72, 3), ("cats", 64, 3), ("mnist", 28, 1)):
        Path(folder).mkdir()
        for i in range(4):
            photo(size, size + i * (folder == "photos"), channels, name=f"{folder}/{i}.png")
    shipped = Path("shipped")
    shipped.mkdir()
    (shipped / "recipes").symlink_to(ROOT / "pretrained" / "recipes")
    Diffusion(tiny_network(), (3, None, None), data_std=0.25).save(
        shipped / "photos-diffusion.safetensors"
    )
    Diffusion(tiny_network(), (3, 32, 32), data_std=0.25).save(
        shipped / "cats32-diffusion.safetensors"
    )
    monkeypatch.setattr(loader, "_FOLDER", shipped.absolute())


def shortened(train):
    """Training, for one step of two images."""

    def one_step(model, images, *, out, options, card, **length):
        options = replace(options, grid=0, progress=False, warmup=0)
        return train(model, images, out=out, steps=1, batch_size=2, options=options, card=card)

    return one_step


DEFINITIONS = (ast.Import, ast.ImportFrom, ast.ClassDef)
"""What of a page's Python goes into a module of one's own."""


def hurried(default_solver):
    """The default solver, with two steps."""
    return lambda problem, prior: replace(default_solver(problem, prior), steps=2)


@pytest.mark.parametrize("page", SHELL)
def test_shell_lines_on_the_page_run(page, tmp_path, monkeypatch, registries, capsys):
    """Catches lines that miss a file or an option, collide in one folder, or are of old names.

    They run in order from an empty folder, as they are printed; training takes one step,
    solvers two, nothing is served, and the two diffusion priors that are named are small ones.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    save_stand_ins(monkeypatch)
    monkeypatch.setattr(run, "train", shortened(run.train))
    monkeypatch.setattr(command, "_listening", lambda *_: nullcontext())
    monkeypatch.setattr("genprior.app.server.serve", lambda *_: None)
    monkeypatch.setattr(settings, "default_solver", hurried(settings.default_solver))
    defined = [n for n in ast.parse(blocks_on(page)).body if isinstance(n, DEFINITIONS)]
    Path("my_module.py").write_text(ast.unparse(ast.Module(defined, [])))
    for line in shell_lines(page):
        program, *words = shlex.split(line, comments=True)
        if program == "python":
            assert words[0] == "-c"
            exec(words[1], {})
        else:
            assert main(words) == 0, f"{line}\n{capsys.readouterr().err}"
    sys.modules.pop("my_module", None)


# Tables, figures and pictures


WITH_FIGURES = [p for p in PAGES if QUOTE.search(p.read_text()) or TABLE.search(p.read_text())]


@pytest.mark.parametrize("page", WITH_FIGURES, ids=lambda page: page.name)
def test_figures_are_those_of_their_csv(page):
    """Would catch a table or a figure in a sentence that was edited, or a CSV measured again."""
    text = page.read_text()
    assert render(page, text) == text, "python docs/make.py --only writes them"


@pytest.fixture
def copy(tmp_path):
    """A page with a table and a figure, and its CSV."""
    (tmp_path / "lens.csv").write_text("solver,lost,crps\nDPS,0.25,12.04\nMMPS,0.01,11.26\n")
    page = tmp_path / "page.md"
    page.write_text(
        "lost 1.0 %<!--= lens.csv | solver: MMPS | {lost*100:.1f} % -->\n\n<!-- table\n"
        'file: lens.csv\nrows: solver\ncolumns: {lost: "{lost:.2f}", CRPS: "{crps:.1f}"}\n-->\n\n'
        "| solver | lost | CRPS |\n|---|---|---|\n| `DPS` | .25 | 12.0 |\n"
        "| `MMPS` | .01 | 11.3 |\n"
        "\n<!-- end -->\n"
    )
    return page


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("page.md", "lost 1.0 %", "lost 2.0 %"),
        ("page.md", "| 12.0 |", "| 12.1 |"),
        ("page.md", "| `DPS` | .25 | 12.0 |\n", ""),
        ("lens.csv", "0.01,", "0.02,"),
        ("lens.csv", "12.04", "12.14"),
    ],
)
def test_either_edited_alone_is_noticed(copy, file, old, new):
    """Would catch a check that compares a page with itself."""
    assert render(copy, copy.read_text()) == copy.read_text()
    path = copy.parent / file
    path.write_text(path.read_text().replace(old, new))
    assert render(copy, copy.read_text()) != copy.read_text()


def test_what_is_not_found_is_said(copy):
    """Would catch a comment that checks nothing: no such row, or no figure before it."""
    text = copy.read_text()
    with pytest.raises(ValueError, match=r"lens\.csv has no row"):
        render(copy, text.replace("solver: MMPS", "solver: SMC"))
    with pytest.raises(ValueError, match=r"no '\{lost"):
        render(copy, text.replace("lost 1.0 %", "lost much"))


def test_shipped_figures_mutated(tmp_path):
    """Would catch a shipped page whose table is not that of the CSV which lies beside it."""
    folder = tmp_path / "results"
    shutil.copytree(ROOT / "docs" / "results", folder)
    page = folder / "solvers.md"
    assert TABLE.search(page.read_text())
    path = folder / "lens.csv"
    path.write_text(
        path.read_text().replace("MMPS steered,32.0,65.0,0.0104", "MMPS steered,32.0,65.0,0.0204")
    )
    assert render(page, page.read_text()) != page.read_text()


def pictures_shown():
    """Pictures that pages show, and those that the docstrings of the examples do."""
    for page in PAGES:
        for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text()):
            yield (page.parent / link).resolve().relative_to(ROOT)
    for script in (ROOT / "examples").glob("*.py"):
        for link in re.findall(r"^\.\. image:: /(\S+)", script.read_text(), flags=re.M):
            yield Path("docs", link)


def test_gallery_shows_every_figure():
    """Would catch a figure that the shell lists and the gallery leaves out, or an old one."""
    page = ROOT / "docs" / "gallery.md"
    text = page.read_text()
    assert rendered(page) == text, "python docs/make.py --only writes it"
    assert sorted(re.findall(r"^### (.*)$", text, flags=re.M)) == sorted(FIGURES)
    for name, drawing in FIGURES.items():
        part = text.partition(f"### {name}\n")[2].partition("###")[0]
        data = " --data MNIST" if "--data MNIST" in drawing.about else ""
        assert f"`genprior figure {name}{data}`" in part
        assert drawing.about.split(" (")[0][1:] in part
        assert f"![{name}](" in part or not (ROOT / "docs" / pictures()[name]).is_file()


def test_seconds_are_kept_beside_each_other(tmp_path, monkeypatch):
    """Would catch a figure drawn again that takes the others' seconds with it."""
    path = tmp_path / "seconds.csv"
    path.write_text("figure,seconds\ncodes,68\nmasks,4\n")
    monkeypatch.setattr(make, "SECONDS", path)
    make.note_seconds("masks", 5.4)
    make.note_seconds("paths", 6.0)
    assert path.read_text() == "figure,seconds\ncodes,68\nmasks,5\npaths,6\n"


def test_every_picture_has_its_command():
    """Would catch a picture that no command makes again, or a command for a picture not shown."""
    made = {
        place(file, target).relative_to(ROOT)
        for command in COMMANDS.values()
        for file, target in command.makes.items()
    }
    assert {*pictures_shown()} == {path for path in made if path.suffix != ".csv"}
    assert all((ROOT / path).is_file() for path in made)
