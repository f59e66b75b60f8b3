"""The picture of the page: a cat whose eye was painted over, restored in a real browser.

    python docs/site/screenshot.py --chromium /usr/bin/chromium --out OUT

Writes OUT/app.png. Takes a minute or two.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
from pathlib import Path

import skimage.data
from PIL import Image
from playwright.sync_api import Page, sync_playwright

SERVE = "import sys; from genprior.cli import main; sys.exit(main())"
WORDS = ("app", "--port", "0", "--prior", "cats64-diffusion", "--device", "cpu")


def photo() -> bytes:
    """A cat's face, as PNG."""
    content = io.BytesIO()
    Image.fromarray(skimage.data.chelsea()[:, 95:395]).save(content, "PNG")
    return content.getvalue()


def at(page: Page, selector: str, x: float, y: float) -> tuple[float, float]:
    """Where on the screen a share of an element's width and height lies."""
    page.locator(selector).scroll_into_view_if_needed()
    box = page.locator(selector).bounding_box()
    assert box is not None
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def restore(page: Page, url: str) -> None:
    """Paint over an eye, restore it, and point at a pixel there."""
    page.goto(url)
    file = {"name": "cat.png", "mimeType": "image/png", "buffer": photo()}
    page.set_input_files("#file", [file])
    page.wait_for_selector("#painting:not([hidden])")
    page.evaluate("document.querySelector('#brush').value = 55")
    page.mouse.move(*at(page, "#mask", 0.30, 0.42))
    page.mouse.down()
    page.mouse.move(*at(page, "#mask", 0.40, 0.45), steps=6)
    page.mouse.up()
    page.click("#start")
    page.wait_for_selector("#found:not([hidden])", timeout=600_000)
    page.check("#overlay")
    page.mouse.move(*at(page, "#spread", 0.36, 0.43))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chromium", required=True, help="the browser")
    parser.add_argument("--out", required=True, type=Path, help="folder for app.png")
    options = parser.parse_args()
    command = [sys.executable, "-c", SERVE, *WORDS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            found = re.search(r"http://\S+", server.stdout.readline())
            assert found, "the server did not start"
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=options.chromium, args=["--no-sandbox"]
                )
                page = browser.new_page(viewport={"width": 1100, "height": 800})
                restore(page, found[0])
                page.screenshot(path=options.out / "app.png", full_page=True)
                browser.close()
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
