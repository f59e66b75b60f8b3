"""The page in a browser: a cat with a painted hole is restored as the shell does it.

make test-app, or pytest -m browser
"""

import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from genprior.cli import main

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("uvicorn")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

SERVE = "import sys; from genprior.cli import main; sys.exit(main())"
ROOT = Path(__file__).parents[3]


class Served:
    """A server in a process of its own, with a folder of its own for temporary files."""

    def __init__(self, folder):
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.log = folder / "stderr"
        environment = {"PATH": "", "PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary)}
        words = ("app", "--port", "0", "--prior", "cats32-diffusion", "--device", "cpu")
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *words],
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            cwd=folder,
            env={**environment, "OMP_NUM_THREADS": "1"},
        )
        self.url = re.search(r"http://\S+", self.process.stdout.readline())[0]

    def end(self, how=signal.SIGINT):
        """End it; it must have said nothing, and left nothing."""
        assert self.process.poll() is None, "the server is alive"
        self.process.send_signal(how)
        status = self.process.wait(30)
        self.process.stdout.close()
        said = self.log.read_text()
        left = [p.name for p in self.temporary.rglob("*") if "torchinductor" not in p.name]
        assert not left
        return status, said


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """One server for all tests; none of them may make it say anything."""
    served = Served(tmp_path_factory.mktemp("served"))
    yield served
    assert served.end() == (130, "genprior: interrupted\n")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def cat(tmp_path, monkeypatch):
    """A cat's face, in the folder that we are in."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(skimage.data.chelsea()[20:270, 70:320]).save("a cat.png")
    return "a cat.png"


def opened(browser, served, photo, *, width=1600, scheme="light", **context):
    """A page with a photo opened; what goes wrong in it fails the test."""
    page = browser.new_page(
        viewport={"width": width, "height": 900}, color_scheme=scheme, **context
    )
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on(
        "console", lambda said: page.faults.append(said.text) if said.type == "error" else None
    )
    page.goto(served.url)
    page.set_input_files("#file", photo)
    page.wait_for_selector("#painting:not([hidden])")
    return page


def paint(page, *points):
    """Draw with the mouse from point to point, each a share of width and height."""
    page.locator("#mask").scroll_into_view_if_needed()
    box = page.locator("#mask").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places:
        page.mouse.move(*place, steps=5)
    page.mouse.up()


def set_quick(page, steps=4, samples=2):
    page.evaluate("document.querySelector('details').open = true")
    page.fill("#steps", str(steps))
    page.fill("#samples", str(samples))


def says(page, words, where="#status"):
    sync_api.expect(page.locator(where)).to_contain_text(words, timeout=20_000)


def restored(page):
    page.click("#start")
    page.wait_for_selector("#found:not([hidden])", timeout=120_000)
    assert page.inner_text("#error") == ""


def saved(page, selector, path):
    with page.expect_download() as download:
        page.click(selector)
    assert download.value.suggested_filename == Path(path).name
    download.value.save_as(path)
    return np.asarray(Image.open(path)).astype(int)


def test_a_painted_hole_is_restored(browser, served, cat, tmp_path):
    """Would catch a mask that is shifted, soft or inverted between the screen and the prior, a
    picture that is not the shell's, and a command that does not repeat it."""
    page = opened(browser, served, cat)
    assert page.is_disabled("#start")
    page.evaluate("document.querySelector('#brush').value = 60")
    paint(page, (0.3, 0.5), (0.6, 0.4))
    set_quick(page)
    restored(page)
    mask = saved(page, "#save-mask", "mask.png")[..., 0]
    assert mask.shape == (250, 250)
    assert set(np.unique(mask)) == {0, 255}
    assert mask[112, 113] == 0
    assert mask[40, 40] == 255
    names = ("mean", "sample_1", "sample_2", "std")
    here = {n: saved(page, f"#saves a[download='{n}.png']", f"page/{n}.png") for n in names}
    command = page.inner_text("#command")
    assert main([*shlex.split(command)[1:], "--device", "cpu"]) == 0
    for name, pixels in here.items():
        there = np.asarray(Image.open(f"results/{name}.png")).astype(int)
        assert np.abs(pixels - there).max() <= 1, name
    # measured pixels are the photo's, the hole is filled with a cat's colours
    assert here["mean"].std() > 20
    assert (here["std"].max(-1) > 0).sum() > 10
    assert page.faults == []


def test_a_pixel_is_that_of_the_samples(browser, served, cat):
    """Would catch values of another pixel, or a spread drawn elsewhere than the picture."""
    page = opened(browser, served, cat)
    page.evaluate("document.querySelector('#brush').value = 60")
    paint(page, (0.5, 0.5))
    set_quick(page)
    restored(page)
    sample = saved(page, "#saves a[download='sample_2.png']", "sample_2.png")
    page.check("#overlay")
    spread, picture = (page.locator(s).bounding_box() for s in ("#spread", "#result"))
    assert all(abs(spread[key] - picture[key]) < 1 for key in spread)
    row, column = 16, 18
    page.locator("#spread").scroll_into_view_if_needed()
    box = page.locator("#spread").bounding_box()
    page.mouse.move(
        box["x"] + (column + 0.5) / 32 * box["width"], box["y"] + (row + 0.5) / 32 * box["height"]
    )
    assert page.inner_text("#pixel h3") == f"Row {row}, column {column}"
    values = page.locator("#pixel tr").last.inner_text().split()[1:4]
    assert values == [f"{value / 255:.3f}" for value in sample[row, column]]
    page.focus("#spread")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#pixel h3") == f"Row {row + 1}, column {column}"
    assert page.faults == []


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1600, "light")])
def test_nothing_is_cut_off(browser, served, cat, width, scheme):
    """Would catch a page wider than its window, in any state, and text too faint to read."""
    page = opened(browser, served, cat, width=width, scheme=scheme)
    wide = "document.documentElement.scrollWidth"
    for task in ("denoise", "deblur", "superres", "inpaint"):
        page.check(f"input[value={task}]")
        assert page.evaluate(wide) <= width, task
    paint(page, (0.5, 0.5))
    set_quick(page, steps=2)
    restored(page)
    assert page.evaluate(wide) <= width
    assert page.locator("#result").bounding_box()["width"] > 300


def test_a_finger_and_keys_paint(browser, served, cat):
    """Would catch painting for mice alone, and undo that leaves something."""
    page = opened(browser, served, cat, width=360, has_touch=True)
    drawn = """() => { const c = document.querySelector("#mask");
        const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        return d.filter((v, i) => i % 4 == 3 && v > 127).length }"""
    page.touchscreen.tap(*(page.locator("#mask").bounding_box()[k] + 100 for k in "xy"))
    finger = page.evaluate(drawn)
    page.focus("#mask")
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", " "):
        page.keyboard.press(key)
    assert page.evaluate(drawn) > finger > 10
    page.click("#undo")
    assert page.evaluate(drawn) == finger
    page.click("#clear")
    assert page.evaluate(drawn) == 0
    assert page.is_disabled("#start")


def test_cancel_and_a_closed_tab_free_the_line(browser, served, cat):
    """Would catch work that goes on for nobody: the next would wait for it."""
    first = opened(browser, served, cat)
    paint(first, (0.5, 0.5))
    set_quick(first, steps=1000, samples=8)
    second = opened(browser, served, cat)
    paint(second, (0.5, 0.5))
    set_quick(second)
    first.click("#start")
    says(first, "left")
    second.click("#start")
    says(second, "first")
    first.click("#cancel")
    second.wait_for_selector("#found:not([hidden])", timeout=30_000)
    assert first.is_enabled("#start")
    assert first.inner_text("#error") == ""
    first.click("#start")
    says(first, "left")
    first.close()
    second.fill("#seed", "1")
    second.click("#start")
    second.wait_for_selector("#cancel", state="visible")
    second.wait_for_selector("#cancel", state="hidden", timeout=30_000)
    assert second.inner_text("#error") == ""


def test_odd_files_are_refused_in_words(browser, served, tmp_path):
    """Would catch a refusal that the page does not show, or a name that it takes for HTML."""
    page = browser.new_page()
    page.goto(served.url)
    name = "<img src=x onerror=document.title='caught'>.png"
    for content, why in ((b"text", "no format"), (b"<svg/>", "no format"), (b"", "no format")):
        file = {"name": name, "mimeType": "image/png", "buffer": content}
        page.set_input_files("#file", file)
        says(page, why, "#error")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    file = {"name": name, "mimeType": "image/png", "buffer": (tmp_path / "red.png").read_bytes()}
    page.set_input_files("#file", file)
    page.wait_for_selector("#painting:not([hidden])")
    assert name in page.inner_text("#photo-about")
    assert page.title() == "genprior"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_during_work(browser, tmp_path, cat, how):
    """Would catch a server that waits for a page, or goes with a traceback."""
    served = Served(tmp_path)
    page = opened(browser, served, cat)
    paint(page, (0.5, 0.5))
    set_quick(page, steps=1000, samples=8)
    page.click("#start")
    says(page, "left")
    status, said = served.end(how)
    expected = (130, "genprior: interrupted\n") if how == signal.SIGINT else (-how, "")
    assert (status, said) == expected
    says(page, "the server was ended", "#error")
