"""The hub, spoken by a server of this machine: pushed, loaded, offline, refused."""

import base64
import hashlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from photos import DENOISE, photo, smooth_gaussian
from tools import identical

import genprior
from genprior import plots
from genprior.cli import main
from genprior.operators.files.hub import WEIGHTS, Reference, model_card

hub = pytest.importorskip("huggingface_hub", reason="the extra [hub]")
constants = pytest.importorskip("huggingface_hub.constants")


class Hub(BaseHTTPRequestHandler):
    """The few calls that are made of a hub; `server.repositories` is what it holds."""

    def log_message(self, *_):
        pass

    def _answer(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, content):
        self._answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def _refuse(self, status, code):
        self._answer(status, X_Error_Code=code, X_Error_Message=code)

    def do_POST(self):
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        held = self.server.repositories
        if "Bearer right" not in self.headers.get("Authorization", ""):
            return self._answer(401, b'{"error": "Invalid username or password."}')
        if self.path == "/api/repos/create":
            wanted = json.loads(sent)
            name = f"{wanted['organization']}/{wanted['name']}"
            private = wanted.get("private") or wanted.get("visibility") == "private"
            held.setdefault(name, {"private": private, "files": {}})
            return self._json({"url": f"{self.server.url}/{name}"})
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        name, call = re.fullmatch(r"/api/models/(\w+/\w+)/(\w+)/main", self.path).groups()
        if call == "preupload":
            files = json.loads(sent)["files"]
            told = {"uploadMode": "regular", "shouldIgnore": False}
            return self._json({"files": [{"path": f["path"], **told} for f in files]})
        for line in sent.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                value = entry["value"]
                held[name]["files"][value["path"]] = base64.b64decode(value["content"])
        url = f"{self.server.url}/{name}/commit/{'0' * 40}"
        return self._json({"commitUrl": url, "commitOid": "0" * 40})

    def do_GET(self):
        self.server.asked.append(self.path)
        if about := re.fullmatch(r"/api/models/(\w+/\w+)", self.path):
            private = self.server.repositories[about[1]]["private"]
            return self._json({"id": about[1], "private": private})
        found = re.fullmatch(r"/(\w+/\w+)/resolve/(\w+)/(.*)", self.path)
        repository = self.server.repositories.get(found[1]) if found else None
        refused = repository and repository["private"] and "Authorization" not in self.headers
        if repository is None or refused:
            return self._refuse(401, "RepoNotFound")
        if found[2] not in ("main", "v1", "0" * 40):
            return self._refuse(404, "RevisionNotFound")
        content = repository["files"].get(found[3])
        if content is None:
            return self._refuse(404, "EntryNotFound")
        etag = hashlib.sha256(content).hexdigest()
        return self._answer(200, content, ETag=f'"{etag}"', X_Repo_Commit="0" * 40)

    do_HEAD = do_GET


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A hub, and an empty cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.repositories, server.asked = {}, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "right")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)  # read once, at the first import
    files = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    yield server
    server.shutdown()
    server.server_close()


CARD = {"data": "waves", "licence": "cc0-1.0", "training": {"steps": 7}}


def push(served, name="me/waves", **options):
    prior = smooth_gaussian(side=8)
    assert prior.push_to_hub(name, card=CARD, **options).endswith("0" * 40)
    return prior


def test_pushed_and_loaded(served, monkeypatch, tmp_path):
    """Would catch weights altered on the way, a card that says something else, a second fetch of
    what the cache holds, and a cache that is of no use without a network."""
    prior = push(served, private=True)
    held = served.repositories["me/waves"]
    assert held["private"] is True
    assert set(held["files"]) == {WEIGHTS, "README.md"}
    found = genprior.load("hf://me/waves")
    assert identical(found.factors, prior.factors)
    assert genprior.pretrained.card("hf://me/waves@v1")["card"] == CARD
    gets = len(served.asked)
    genprior.load(f"hf://me/waves@main/{WEIGHTS}")
    assert len(served.asked) == gets + 1  # is it still the same
    found.push_to_hub("me/again")
    with pytest.raises(ValueError, match="public: nothing was sent"):
        smooth_gaussian().push_to_hub("me/again", private=True)
    assert served.repositories["me/again"]["files"][WEIGHTS] == held["files"][WEIGHTS]
    served.shutdown()
    served.server_close()
    assert identical(genprior.load("hf://me/waves").factors, prior.factors)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert identical(genprior.load("hf://me/waves").factors, prior.factors)
    with pytest.raises(ValueError, match="cannot be reached, and the cache has no copy"):
        genprior.load("hf://me/other")


def test_restored_from_the_shell(served, photo_place, monkeypatch):
    """Would catch a name that Python takes and the shell does not, or that result.json loses."""
    monkeypatch.setattr(plots, "show", lambda *_, path: path.write_bytes(b""))
    push(served)
    photo(8, 8)
    words = ["restore", "photo.png", "--prior", "hf://me/waves", "--out", "out", *DENOISE]
    assert main([*words, "--samples", "1"]) == 0
    report = json.loads(Path("out/result.json").read_text())
    assert report["prior"] == "hf://me/waves"
    assert report["weights_sha256"] == genprior.pretrained.card("hf://me/waves")["sha256"]
    assert "--prior hf://me/waves" in report["command"]


def test_refused_in_one_line(served, monkeypatch, photo_place, capsys):
    """Would catch a traceback, a pickle that is fetched, and damage that is loaded."""
    push(served)
    push(served, "me/secret", private=True)
    files = served.repositories["me/waves"]["files"]
    whole = bytearray(files[WEIGHTS])
    whole[-1] ^= 1
    files["altered.safetensors"] = bytes(whole)
    files["short.safetensors"] = files[WEIGHTS][:-9]
    files["page.safetensors"] = b"<html>"
    files["pickle.ckpt"] = b"\x80\x02"
    asked = len(served.asked)
    for name in ("hf://me/waves/pickle.ckpt", "hf://me", "hf://me/waves/../x.safetensors"):
        with pytest.raises(ValueError, match=r"only \.safetensors|write hf://OWNER/NAME"):
            genprior.load(name)
    assert len(served.asked) == asked
    monkeypatch.delenv("HF_TOKEN")
    refusals = {
        "hf://me/nothing": "no such repository, or a private one",
        "hf://me/secret": "no such repository, or a private one",
        "hf://me/waves@v9": "no such revision",
        "hf://me/waves/other.safetensors": "no such file",
        "hf://me/waves/altered.safetensors": "altered",
        "hf://me/waves/short.safetensors": "not a whole safetensors file",
        "hf://me/waves/page.safetensors": "not a whole safetensors file",
    }
    photo(8, 8)
    for name, says in refusals.items():
        assert main(["restore", "photo.png", "--prior", name, "--out", "out", *DENOISE]) == 2
        said = capsys.readouterr().err
        assert said.startswith("genprior: error: ")
        assert says in said
        assert said.count("\n") == 1
    with pytest.raises(ValueError, match="access is refused: log in"):  # no token
        smooth_gaussian().push_to_hub("me/waves")
    with pytest.raises(ValueError, match="write OWNER/NAME"):
        smooth_gaussian().push_to_hub("me/waves/deeper.safetensors")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r'pip install "genprior\[hub\]"'):
        genprior.load("hf://me/waves")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hf://a/b", ("a/b", None, WEIGHTS)),
        ("hf://a/b.c@v1.0", ("a/b.c", "v1.0", WEIGHTS)),
        ("hf://a/b@refs/pr/1/x.safetensors", ("a/b", "refs/pr/1", "x.safetensors")),
        ("hf://a/b/sub/x.safetensors", ("a/b", None, "sub/x.safetensors")),
    ],
)
def test_names(name, parts):
    """Would catch a revision taken for a part of the file's name."""
    assert Reference.parse(name) == parts


def test_model_card():
    """Would catch front matter that is no YAML, or a card that leaves a figure out."""
    header = {"family": "Gaussian", "config": {"image_shape": [1, None, None]}, "card": CARD}
    front, text = model_card("me/waves", header).split("---\n")[1:]
    said = hub.ModelCardData(**yaml.safe_load(front)).to_dict()
    assert said["license"] == "cc0-1.0"
    assert said["library_name"] == "genprior"
    assert "gaussian" in said["tags"]
    for word in ("hf://me/waves", "1 x any x any", "data: waves", "steps: 7", "licence: cc0-1.0"):
        assert word in text
    header["card"] = {"licence": "(c) somebody: ask first"}
    front = model_card("me/waves", header).split("---\n")[1]
    said = yaml.safe_load(front)
    assert (said["license"], said["license_name"]) == ("other", "(c) somebody: ask first")
