"""The code and the shell lines in the documentation run."""

import ast
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from photos import photo, tiny_network
from PIL import Image

from genprior.cli import main
from genprior.commands import run
from genprior.pretrained import loader
from genprior.priors import Diffusion, Model
from genprior.restoration import settings
from genprior.solvers import choice

ROOT = Path(__file__).parent.parent.parent
PAGES = ["docs/guides/write-your-own.md", "docs/guides/write-a-guidance.md", "README.md"]


def blocks_on(page):
    """The Python of a page."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.S))


@pytest.fixture
def registries(monkeypatch):
    """What a page defines would be listed among the shipped ones in the tests that follow."""
    monkeypatch.setattr(choice, "REGISTRY", dict(choice.REGISTRY))
    monkeypatch.setattr(Model, "families", dict(Model.families))


@pytest.mark.parametrize("page", PAGES)
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
    solvers two, and the two diffusion priors that are named are small ones.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    save_stand_ins(monkeypatch)
    monkeypatch.setattr(run, "train", shortened(run.train))
    monkeypatch.setattr(settings, "default_solver", hurried(settings.default_solver))
    defined = [n for n in ast.parse(blocks_on(page)).body if isinstance(n, DEFINITIONS)]
    Path("my_module.py").write_text(ast.unparse(ast.Module(defined, [])))
    for line in shell_lines(page):
        program, *words = shlex.split(line)
        if program == "python":
            assert words[0] == "-c"
            exec(words[1], {})
        else:
            assert main(words) == 0, f"{line}\n{capsys.readouterr().err}"
    sys.modules.pop("my_module", None)
