"""The page's server: what the shell makes, whoever asks, however odd, and nothing on the disk."""

import base64
import getpass
import io
import json
import os
import shlex
import socket
import struct
import sys
import tempfile
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from photos import SIDE, photo
from PIL import Image
from tools import identical

from genprior import plots
from genprior.cli import main
from genprior.data import read_image
from genprior.data.files import photo_of
from genprior.operators.files.deep import png
from genprior.restoration.settings import Solving

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from genprior.app import server, work
from genprior.app.asked import file_name

EXACT, ANY = "exact.safetensors", "any.safetensors"


class Client:
    """Speaks to a server as the page does."""

    def __init__(self, address):
        self.address = address

    def ask(self, method, path, body=None, **headers):
        """Status, headers and body of one answer."""
        connection = HTTPConnection(*self.address, timeout=30)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, answer.headers, content

    def error(self, path, body, status=400, **headers):
        """Post what is refused, and return why."""
        got, _, content = self.ask("POST", path, body, **headers)
        assert got == status, content
        said = json.loads(content)["error"]
        assert "Traceback" not in said
        assert "\n" not in said
        return said

    def restore(self, **asked):
        """Post a restoration; return its lines."""
        status, _, content = self.ask("POST", "/restore", json.dumps(asked))
        assert status == 200, content
        return [json.loads(line) for line in content.splitlines()]

    def follow(self, **asked):
        """Post a restoration; return the socket, and a file of what comes."""
        body = json.dumps(asked).encode()
        sock = socket.create_connection(self.address, timeout=30)
        head = f"POST /restore HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        return sock, sock.makefile("rb")


@pytest.fixture
def page(photo_place, tmp_path_factory, monkeypatch, capsys):
    """A server in a thread. At its end nothing is left on the disk, and no fault was shown."""
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    photo(SIDE, SIDE)
    listener = socket.create_server(("127.0.0.1", 0))
    limits = server.Limits(file=200_000, pixels=100_000, jobs=24)
    serving = server.server(listener, Solving(prior=EXACT, device="cpu"), limits)
    serving.page.offered.append(ANY)
    thread = threading.Thread(target=serving.run, kwargs={"sockets": [listener]})
    thread.start()
    while not serving.started:
        time.sleep(0.01)
    client = Client(listener.getsockname())
    client.line = serving.page.line
    yield client
    assert client.ask("GET", "/")[0] == 200, "the server is alive"
    serving.should_exit = True
    thread.join(10)
    assert not thread.is_alive()
    assert {path.name for path in temporary.iterdir()} <= {f"torchinductor_{getpass.getuser()}"}
    assert "Traceback" not in capsys.readouterr().err


def encoded(data):
    return base64.b64encode(data).decode()


def file(name="photo.png"):
    return encoded(Path(name).read_bytes())


def painted(height=SIDE, width=SIDE):
    """Write a mask with a hole, as the page paints it."""
    pixels = np.full((height, width, 4), 255, np.uint8)
    pixels[4:10, 4:10, :3] = 0
    Image.fromarray(pixels).save("mask.png")
    return file("mask.png")


def denoising(**changes):
    asked = {"photo": file(), "name": "photo.png", "task": "denoise", "sigma": "0.1"}
    return {**asked, "prior": EXACT, "samples": 2, **changes}


def slow(**changes):
    """A restoration of many seconds."""
    return denoising(prior=ANY, steps=1000, samples=8, **changes)


# The same as the shell


@pytest.mark.parametrize(
    "asked",
    [
        {"task": "inpaint", "fit": "crop"},
        {"task": "inpaint", "fit": "resize", "samples": 4, "seed": 7},
        {"task": "inpaint", "prior": ANY, "steps": 2},
        {"task": "inpaint", "prior": ANY, "steps": 2, "longest": 12, "simulate": True},
        {"task": "denoise", "sigma": "25/255", "fit": "resize", "samples": 1},
        {"task": "deblur", "kernel": "motion:3,45", "sigma": "0.05", "fit": "crop"},
        {"task": "superres", "factor": 2, "sigma": ".1", "fit": "resize", "simulate": True},
        {"task": "deblur", "kernel": "auto", "sigma": "0.1", "prior": ANY, "steps": 2},
    ],
    ids=str,
)
def test_page_equals_the_shell(page, asked, capsys, monkeypatch):
    """Would catch a mask inverted or moved, an option that the command leaves out, another seed,
    depth, or a warning that only the shell shows."""
    monkeypatch.setattr(plots, "show", lambda *_, **__: None)  # takes most of the time
    photo(20, 18)
    mask = painted(20, 18) if asked["task"] == "inpaint" else None
    asked = {"prior": EXACT, "samples": 2, **asked, "mask": mask}
    *lines, last = page.restore(photo=file(), name="a/photo.png", **asked)
    pictures = {line["picture"]: line["png"] for line in lines if "picture" in line}
    about = last["about"]
    capsys.readouterr()
    words = shlex.split(about["command"])
    for option in ("seed", "steps", "sigma", "kernel", "factor", "fit", "prior"):
        assert option not in asked or words[words.index(f"--{option}") + 1] == str(asked[option])
    assert main(words[1:]) == 0
    warned = capsys.readouterr().err
    for name, picture in pictures.items():
        if name != "measurement" or asked.get("simulate"):
            there = read_image(f"results/{name}.png")
            assert identical(photo_of(base64.b64decode(picture), name).pixels, there), name
    assert {f"{name}.png" for name in pictures} - {"measurement.png"} == {
        path.name for path in Path("results").glob("[ms]*.png") if path.stem != "measurement"
    }
    report = json.loads(Path("results/result.json").read_text())
    assert about["residual_in_sigma"] == report["residual_in_sigma"]
    assert [note for note in about["notes"] if note not in warned] == []
    assert warned.count("warning") == len(about["notes"])


def test_view_shows_the_photo(page):
    """Would catch a photo shown on its side, at another size, or with its notes dropped."""
    tags = Image.Exif()
    tags[0x0112] = 6  # turn by 90 degrees to show
    Image.new("RGB", (200, 100), (200, 10, 10)).save("photo.jpg", exif=tags)
    seen = json.loads(page.ask("POST", "/photo", Path("photo.jpg").read_bytes())[2])
    assert (seen["height"], seen["width"], seen["channels"]) == (200, 100, 3)
    assert Image.open(io.BytesIO(base64.b64decode(seen["view"]))).size == (100, 200)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save("clear.png")
    seen = json.loads(page.ask("POST", "/photo", Path("clear.png").read_bytes())[2])
    assert seen["notes"] == ["its transparent pixels are laid on white"]


# Hostile uploads


def bomb(height, width):
    """A small PNG that declares many pixels, all of which are there."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * height, 9)
    return png({b"IHDR": header, b"IDAT": rows, b"IEND": b""})


def saved(form, size=(8, 8), mode="RGB"):
    content = io.BytesIO()
    Image.new(mode, size).save(content, form)
    return content.getvalue()


def noisy():
    content = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(content, "PNG")
    return content.getvalue()


def array():
    content = io.BytesIO()
    np.save(content, np.zeros((8, 8)))
    return content.getvalue()


HOSTILE = {
    "bomb": (lambda: bomb(10_000, 20_000), "134 million pixels"),
    "large": (lambda: bomb(1000, 1000), "1000x1000 pixels"),
    "one line": (lambda: bomb(1, 900_000), "1x900000 pixels"),
    "text": (lambda: b"no photo\n" * 40, "no format"),
    "svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "no format"),
    "empty": (lambda: b"", "no format"),
    "page": (lambda: b"<!doctype html><script>alert(1)</script>", "no format"),
    "pdf": (lambda: saved("PDF"), "no format"),
    "array": (array, "no format"),
    "dicom": (lambda: bytes(128) + b"DICM" + bytes(200), "no format"),
    "picture and dicom": (
        lambda: saved("BMP", (64, 64))[:128] + b"DICM" + bytes(20_000),
        "no format",
    ),
    "cut": (lambda: noisy()[:-1000], "cannot be read"),
    "noise": (lambda: saved("PNG")[:50] + os.urandom(500), "cannot be read"),
}


def test_hostile_uploads(page):
    """Would catch a bomb that is decoded, or a fault that is shown as a traceback."""
    for kind, (make, why) in HOSTILE.items():
        data, start = make(), time.perf_counter()
        assert len(data) < 200_000
        assert why in page.error("/photo", data), kind
        assert why in page.restore(**denoising(photo=encoded(data)))[-1]["error"], kind
        assert time.perf_counter() - start < 2, kind


def test_a_mask_is_checked_like_a_photo(page):
    """Would catch a bomb that comes as the mask, or a mask of another size that is stretched."""
    for data, why in (
        (bomb(10_000, 20_000), "134 million pixels"),
        (saved("PNG", (8, 9)), "the photo's size"),
        (saved("PNG", (SIDE, SIDE)), "measures nothing"),
        (b"text", "the photo's size"),
    ):
        asked = denoising(task="inpaint", mask=encoded(data))
        assert why in page.restore(**asked)[-1]["error"]


def test_one_pixel_is_a_photo(page):
    assert json.loads(page.ask("POST", "/photo", saved("PNG", (1, 1)))[2])["height"] == 1
    asked = denoising(photo=encoded(saved("PNG", (1, 1))), prior=ANY, steps=2)
    assert page.restore(**asked)[-1]["about"]["samples"] == 2


def test_what_is_too_large_is_not_read(page):
    """Would catch a limit that is kept only where the length is said, or is said truly."""
    assert "MB" in page.error("/photo", b"x" * 200_001, 413)
    assert "MB" in page.error("/restore", b"x" * 500_000, 413)
    assert "MB" in page.error("/photo", iter([b"x" * 150_000] * 2), 413)  # sent in parts
    assert "0.2 MB" in page.error("/restore", json.dumps(denoising(photo="A" * 280_000)))


NEVER_ASKED = [
    *({"prior": word} for word in ("/etc/passwd", "photos-diffusion/../x", "", None, 3)),
    *({"task": "deblur", "kernel": word} for word in ("photo.png", "/etc/passwd", "disk", 3)),
    {"task": "deblur", "kernel": "disk:1e9"},
    {"task": "inpaint", "mask": None},
    {"mask": "QUJD"},
    {"sigma": "/etc/passwd"},
    {"sigma": 0.1},
    {"samples": 17},
    {"samples": True},
    {"steps": 10**9},
    {"seed": -1},
    {"factor": 65, "task": "superres"},
    {"longest": 10**6},
    {"fit": "../x"},
    {"channels": 3},
    {"photo": "%%%"},
    {"task": "train"},
    {"out": "/tmp/x"},
    {"photo": ["/etc/passwd"]},
]


def test_what_the_page_never_asks(page):
    """Would catch a word that is taken for a file of the server, or a number without a bound."""
    for changes in NEVER_ASKED:
        said = page.error("/restore", json.dumps(denoising(**changes)))
        assert "root:" not in said, changes


def test_what_is_no_request(page):
    for body in ("", "[]", "3", "[" * 100_000, "{", b"\xff\xfe", '{"a": NaN}'):
        page.error("/restore", body)


# Names, paths, other sites


NAMES = {
    "../../etc/passwd": "passwd",
    r"C:\photos\cat.png": "cat.png",
    "a\0b\n.png": "ab.png",
    "": "photo.png",
    "..": "..",
    "x" * 5000 + ".png": "x" * 200,
    "<img src=x onerror=alert(1)>.png": "<img src=x onerror=alert(1)>.png",
}


def test_names_are_words_only(page):
    """Would catch a name that is a path, or that a shell would take for more than a name."""
    for said, kept in NAMES.items():
        assert file_name(said) == kept
        about = page.restore(**denoising(name=said))[-1]["about"]
        assert about["name"] == kept
        assert shlex.split(about["command"])[2] == kept
    assert sorted(os.listdir()) == [ANY, EXACT, "photo.png"]


def test_a_name_is_no_option(page):
    about = page.restore(**denoising(name="--force"))[-1]["about"]
    assert shlex.split(about["command"])[2] == "./--force"


NOT_SERVED = [
    *(
        "/../../../etc/passwd",
        "/page/../server.py",
        "/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
    ),
    *(
        "/page/",
        "/index.html/..",
        "/photo.png",
        "/server.py",
        "/..%2fserver.py",
        "/openapi.json",
    ),
]


def test_no_path_is_served(page):
    for path in NOT_SERVED:
        assert page.ask("GET", path)[0] == 404, path


def test_files_of_the_page(page):
    """Would catch a file that is not packaged, its type, and a header that is left out."""
    for name, kind in {
        "": "text/html",
        "page.js": "text/javascript",
        "style.css": "text/css",
    }.items():
        status, headers, content = page.ask("GET", f"/{name}")
        assert (status, headers.get_content_type()) == (200, kind)
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "script-src 'self'" in headers["Content-Security-Policy"]
        assert b"http" not in content.replace(b"http://www.w3.org", b""), "nothing is fetched"
    assert page.ask("POST", "/")[0] == page.ask("GET", "/restore")[0] == 405


OTHERS = [
    *({"Host": name} for name in ("evil.example", "127.0.0.1.evil.example", "", "[", "a@b")),
    *(
        {"Origin": name}
        for name in ("http://evil.example", "null", "http://127.0.0.1:1", "http://[bad")
    ),
]


def test_other_sites_are_refused(page):
    """Would catch a site that reads or posts here through a browser, under its name or ours."""
    for headers in OTHERS:
        assert page.error("/photo", b"x", 403, **headers) == "not from here", headers


def test_own_names_are_taken(page):
    port = page.address[1]
    for name in (f"localhost:{port}", f"127.0.0.1:{port}", "[::1]:80", "192.168.1.5"):
        headers = {"Host": name, "Origin": f"http://{name}"}
        assert page.ask("POST", "/photo", Path("photo.png").read_bytes(), **headers)[0] == 200


# Many at once, and those who leave


def test_twenty_at_once(page, monkeypatch):
    """Would catch two that run at once, one that is lost or mixed up, and a place not told."""
    running, most, real, all_came = [], [], work.restore_photo, threading.Event()

    def counted(*args, **options):
        assert all_came.wait(10)
        running.append(1)
        most.append(len(running))
        try:
            return real(*args, **options)
        finally:
            running.pop()

    monkeypatch.setattr(work, "restore_photo", counted)
    with ThreadPoolExecutor(20) as pool:
        asked = [denoising(seed=seed, name=f"{seed}.png") for seed in range(20)]
        found = [pool.submit(page.restore, **each) for each in asked]
        until(lambda: len(page.line._jobs) == 20)
        all_came.set()
        found = [lines.result() for lines in found]
    assert [lines[-1]["about"]["name"] for lines in found] == [a["name"] for a in asked]
    assert max(most) == 1
    assert len(most) == 20
    assert len({next(line["png"] for line in lines if line.get("picture") == "sample_1")
                for lines in found}) == 20  # fmt: skip
    assert max(line["before"] for lines in found for line in lines if "before" in line) >= 15


def until(condition):
    end = time.perf_counter() + 5
    while not condition():
        assert time.perf_counter() < end
        time.sleep(0.02)


def test_who_hangs_up_is_not_worked_for(page):
    """Would catch work that goes on for a tab that was closed, at work or waiting."""
    first, lines = page.follow(**slow())
    while b'"left"' not in lines.readline():
        pass
    second, waiting = page.follow(**slow())
    while b'"before": 1' not in waiting.readline():
        pass
    for sock, stream in ((second, waiting), (first, lines)):
        stream.close()
        sock.close()
    until(lambda: not page.line._unfinished())
    assert page.restore(**denoising())[-1]["about"]["converged"]


def test_a_tab_closed_while_it_sends(page, capsys):
    """Would catch an upload that is cut and shown as a fault of ours; `page` looks for it."""
    for path in ("/photo", "/restore"):
        with socket.create_connection(page.address) as sock:
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 90000\r\n\r\n"
            sock.sendall(head.encode() + b"x" * 1000)
            time.sleep(0.05)
    time.sleep(0.1)


def test_a_full_line_says_so(page):
    """Would catch a line without an end."""
    held = [page.follow(**slow()) for _ in range(24)]
    until(lambda: len(page.line._unfinished()) == 24)
    assert "too many" in page.error("/restore", json.dumps(denoising()), 503)
    for sock, stream in held:
        stream.close()
        sock.close()
    until(lambda: not page.line._unfinished())


def test_progress_is_told(page):
    """Would catch a share that falls or passes 1, or a time that is not told."""
    lines = page.restore(**denoising(prior=ANY, steps=60))
    done = [line["done"] for line in lines if "done" in line]
    assert done == sorted(done)
    assert 0 <= done[0] <= done[-1] <= 1
    assert any(line.get("left") for line in lines)
    assert any("expected" in said for line in lines for said in line.get("said", []))


def test_a_fault_of_ours_is_shown_in_the_terminal(page, monkeypatch, capsys):
    """Would catch a fault that ends the server, or whose inside the page shows."""
    monkeypatch.setattr(work, "decode", lambda *_, **__: 1 / 0 if False else [][0])
    assert page.restore(**denoising())[-1] == {"error": server.FAULT}
    assert "IndexError" in capsys.readouterr().err


# The command


@pytest.mark.parametrize("library", ["starlette", "uvicorn"])
def test_without_the_extra(photo_place, monkeypatch, capsys, library):
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["app", "--port", "0"]) == 2
    assert f'needs {library}: pip install "genprior[app]"' in capsys.readouterr().err


def test_a_port_in_use(photo_place, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["app", "--port", port, "--prior", EXACT]) == 2
    said = capsys.readouterr()
    assert f"--port {port}" in said.err
    assert not said.out
