"""Folders of photos: each as if it were alone, once, whatever is killed on the way."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import DENOISE, SIDE, smooth_gaussian
from PIL import Image

from genprior import plots
from genprior.cli import main
from genprior.data import write_image
from genprior.restoration.degradation import Degradation
from genprior.restoration.many.folder import TRIES, _Loop
from genprior.restoration.many.photos import Entry
from genprior.restoration.many.record import Outcome, Record
from genprior.restoration.many.work import Work, Worker
from genprior.restoration.settings import Solving

WORDS = (*DENOISE, "--prior", "exact.safetensors", "--samples", "2")


def save_photos(*names):
    drawn = smooth_gaussian().sample(len(names), generator=torch.Generator().manual_seed(2))
    for name, x in zip(names, drawn, strict=True):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        write_image(f"photos/{name}", x, force=True)


@pytest.fixture
def quick(photo_place, monkeypatch):
    """The folder of `photo_place`, where no time is lost on drawing comparisons."""
    monkeypatch.setattr(plots, "show", lambda *_, path: Path(path).write_bytes(b""))
    return photo_place


def restore(*words, out="out"):
    return main(["restore", "photos", "--out", out, *WORDS, *words])


def summary(out="out"):
    with open(f"{out}/summary.csv") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def results(folder):
    """Every file of a result but for the times and the place that result.json holds."""
    found = {p.name: p.read_bytes() for p in Path(folder).iterdir() if p.suffix == ".png"}
    report = json.loads(Path(folder, "result.json").read_text())
    report.pop("warnings", None)
    return found, {k: v for k, v in report.items() if k not in ("seconds", "command")}


def test_each_photo_as_if_alone(quick, capsys):
    """Would catch seeds that run on from photo to photo, two photos of one stem in one folder, a
    sub-folder that is passed over, and files left out or failed without a word."""
    names = ["a.png", "a.bmp", "deep/er/a.png"]
    save_photos(*names)
    Path("photos/notes.txt").write_text("no photo")
    Path("photos/broken.jpg").write_text("no photo either")
    assert restore() == 1
    said = capsys.readouterr().out
    assert "left out  1 no images: notes.txt" in said
    assert said.count("FAILED") == 2
    rows = summary()
    assert set(rows) == {*names, "notes.txt", "broken.jpg"}
    assert rows["notes.txt"]["status"] == "no image"
    assert rows["broken.jpg"]["status"] == "failed"
    assert "holds text" in rows["broken.jpg"]["message"]
    for name in names:
        assert main(["restore", f"photos/{name}", "--out", "alone", "--force", *WORDS]) == 0
        assert results(f"out/{name}") == results("alone")
        report = json.loads(Path(f"out/{name}/result.json").read_text())
        again = report["command"].split()
        assert Path(again[2]) == quick / "photos" / name
        assert Path(again[again.index("--out") + 1]) == quick / "out" / name
        assert rows[name]["status"] == "done"
        assert float(rows[name]["residual"]) == report["residual_in_sigma"]
    assert sorted(os.listdir("out")) == ["a.bmp", "a.png", "deep", "run.json", "summary.csv"]


def test_resumed(quick, capsys, monkeypatch):
    """Would catch photos restored twice, one that changed since and keeps its old result, and
    results of two commands in one folder."""
    save_photos("a.png", "b.png", "c.png")
    assert restore() == 0
    begun = []
    do = Worker.do
    monkeypatch.setattr(Worker, "do", lambda self, e: begun.append(e.name) or do(self, e))
    assert restore() == 0
    assert "3 of 3 photos are done already" in capsys.readouterr().out
    shutil.copy("photos/a.png", "photos/b.png")
    Path("out/c.png/result.json").write_text("{")
    save_before = summary()
    assert restore("--device", "cpu") == 0
    assert begun == ["b.png", "c.png"]
    assert results("out/b.png") == results("out/a.png")
    assert summary().keys() == save_before.keys()
    capsys.readouterr()
    before = {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()}
    for words in (("--seed", "1"), ("--bits", "16"), ("--fit", "crop"), ("--sigma", ".2")):
        assert restore(*words) == 2
        said = capsys.readouterr().err
        assert words[0][2:] in said
        assert "another command" in said
    assert before == {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--workers", "0"), "--workers must be at least 1"),
        (("--force",), "--force is for one photo"),
        (("--solver", "nonesuch"), "nonesuch"),
        (("--prior", "nonesuch"), "nonesuch"),
        (("--out", "."), "holds the photos themselves"),
        (("--out", "full"), "not empty"),
        (("--mask", "masks"), "--mask is for --task inpaint"),
    ],
    ids=" ".join,
)
def test_refused_before_any_work(quick, capsys, words, says):
    """Would catch a folder begun that cannot be ended, or one of somebody else written to."""
    save_photos("a.png")
    Path("full").mkdir()
    Path("full/letter.txt").write_text("mine")
    before = sorted(Path().rglob("*"))
    assert restore(*words) == 2
    assert says in capsys.readouterr().err
    assert sorted(Path().rglob("*")) == before


def test_folder_options_are_for_folders(quick, capsys):
    """Would catch --workers taken and not heeded, and an empty folder that counts as done."""
    save_photos("a.png")
    Path("empty").mkdir()
    for option in ("--workers", "--cluster"):
        assert main(["restore", "photos/a.png", "--out", "out", *WORDS, option, "2"]) == 2
        assert f"{option} is for a folder" in capsys.readouterr().err
    assert main(["restore", "empty", "--out", "out", *WORDS]) == 2
    assert "no photos" in capsys.readouterr().err
    assert not Path("out").exists()


def test_odd_names(quick, capfdbinary):
    """Would catch one name that stops a whole folder: bytes that are no UTF-8, a comma, a quote,
    a line's end, and the name of a file of ours."""
    odd = [b"\xff.png", b'a, "b"\n.png', b"-c.png", b"summary.csv/d.png"]
    save_photos("a.png")
    for name in odd:
        Path("photos", os.fsdecode(name)).parent.mkdir(exist_ok=True)
        shutil.copy("photos/a.png", os.path.join(b"photos", name))
    assert restore() == 1
    with open("out/summary.csv", errors="surrogateescape") as file:
        rows = {os.fsencode(row["name"]): row["status"] for row in csv.DictReader(file)}
    assert rows == dict.fromkeys([b"a.png", *odd[:3]], "done") | {odd[3]: "failed"}


def test_results_within_the_photos(quick):
    """Would catch results that are taken for photos when the folder is resumed."""
    save_photos("a.png")
    assert restore(out="photos/results") == 0
    save_photos("a.png", "b.png")
    assert restore(out="photos/results") == 0
    assert list(summary("photos/results")) == ["a.png", "b.png"]


def test_machines_that_see_other_folders(quick, monkeypatch):
    """Would catch a machine of a cluster whose results go to a disk of its own."""
    solving = Solving(prior="exact.safetensors")
    work = Work(lambda: None, Degradation("denoise"), solving, quick / "out", quick)
    assert "must share it" in Worker(work).load()
    (quick / "out").mkdir()
    (quick / "out" / "run.json").write_text("{}")
    (quick / "deeper").mkdir()
    monkeypatch.chdir("deeper")
    assert Worker(work).load() is None  # the prior's name is one of the driver's folder


# Masks


INPAINT = ("--task", "inpaint", "--prior", "exact.safetensors", "--samples", "2", "--sigma", "0")


def save_mask(name, row):
    mask = np.full((SIDE, SIDE), 255, np.uint8)
    mask[row : row + 2] = 0
    Path("masks", name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(f"masks/{name}")


def inpaint(*words):
    return main(["restore", "photos", "--out", "out", "--mask", "masks", *INPAINT, *words])


def test_each_photo_has_its_mask(quick, capsys):
    """Would catch masks paired by their order, or a photo restored with another's."""
    names = ["a.png", "deep/a.bmp", "b.png"]
    save_photos(*names)
    for row, name in enumerate(["a.png", "b.png", "deep/a.png", "spare.png"]):
        save_mask(name, 3 * row)
    assert inpaint() == 0
    assert "1 masks of no photo: spare.png" in capsys.readouterr().out
    for row, name in ((0, "a.png"), (3, "b.png"), (6, "deep/a.bmp")):
        x, given = (np.asarray(Image.open(p)) for p in (f"out/{name}/mean.png", f"photos/{name}"))
        changed = (x != given).any(axis=(1, 2)).nonzero()[0]
        assert {*changed} == {row, row + 1}
    save_mask("b.png", 12)
    assert inpaint() == 0
    assert "2 of 3 photos are done already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("photos", "masks", "named"),
    [
        (["a.png", "b.png", "c.png"], ["a.png"], "2 of 3 photos: b.png, c.png"),
        (["a.png", "a.bmp"], ["a.png"], "1 of 2 photos: a.bmp"),
        (["a.png"], ["a.bmp", "a.tif"], "1 of 1 photos: a.png"),
    ],
    ids=str,
)
def test_missing_masks(quick, capsys, photos, masks, named):
    """Would catch a photo without a mask left out, or a mask that might be another's."""
    save_photos(*photos)
    for name in masks:
        save_mask(name, 3)
    assert inpaint() == 2
    assert named in capsys.readouterr().err
    assert not Path("out").exists()


# Killed


class Dying:
    """A crew of two whose workers die as often as a photo's name says."""

    size = 2

    def __init__(self):
        self.news = [(0, "ready"), (1, "ready")]
        self.given = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def give(self, member, entry):
        self.given.append(entry.name)
        deaths = int(entry.name) - self.given.count(entry.name) + 1
        event = "died" if deaths > 0 else Outcome(entry.name, "done", residual=1.0, seconds=1.0)
        self.news.append((member, event))
        if event == "died":
            self.news.append((member, "ready"))

    def wait(self):
        return [self.news.pop(0)]


def test_photos_of_dead_workers(tmp_path):
    """Would catch a photo lost with its worker, one that is entered twice, and one that kills
    every worker and is begun for ever."""
    names = ["0", "2", str(TRIES), "1"]
    entries = [Entry(name, tmp_path / name) for name in names]
    record, crew = Record(tmp_path, {}), Dying()
    found = {o.name: o.status for o in _Loop(entries, record, lambda line: None).run(crew)}
    assert found == {"0": "done", "1": "done", "2": "done", str(TRIES): "failed"}
    assert {n: crew.given.count(n) for n in names} == {"0": 1, "1": 2, "2": 3, str(TRIES): TRIES}
    crew = Dying()
    crew.news = [(0, "died")] * TRIES
    with pytest.raises(ChildProcessError, match="--workers"):
        _Loop(entries, record, lambda line: None).run(crew)


def wait_until(true, seconds=300.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.002)


def done(out="out"):
    return {p.parent.name for p in Path(out).glob("*/result.json") if p.parent.name[0] != "."}


def check_whole(names):
    """Every photo once in the summary, its results whole, and nothing else in the folder."""
    rows = [line.split(",")[0] for line in Path("out/summary.csv").read_text().splitlines()[1:]]
    assert sorted(rows) == sorted(names)
    assert {row["status"] for row in summary().values()} == {"done"}
    assert {*os.listdir("out")} == {*names, "run.json", "summary.csv"}
    pictures = {"mean.png", "std.png", "sample_1.png", "sample_2.png", "comparison.png"}
    for name in names:
        assert {*os.listdir(f"out/{name}")} == pictures | {"result.json"}


def test_killed_in_the_middle(quick, monkeypatch, capfd):
    """Would catch a half-written folder that counts as done, and a photo done twice: the process
    is killed between two files of a photo."""
    names = [f"{i}.png" for i in range(6)]
    save_photos(*names)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # a fork has none of the others
        show = plots.show

        def slow(*given, path):
            show(*given, path=path)
            time.sleep(60 * (len(done()) == 3))

        monkeypatch.setattr(plots, "show", slow)
        restore()
        os._exit(1)
    wait_until(
        lambda: len(done()) == 3 and list(Path("out").glob(".partial-*/.partial*/mean.png"))
    )
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    before = done()
    begun = []
    do = Worker.do
    monkeypatch.setattr(Worker, "do", lambda self, e: begun.append(e.name) or do(self, e))
    assert restore() == 0
    assert "3 of 6 photos are done already" in capfd.readouterr().out
    assert sorted([*before, *begun]) == names
    check_whole(names)


# With several processes: make cluster


GENPRIOR = (sys.executable, "-c", "import sys; from genprior.cli import main; sys.exit(main())")


def children(pid):
    """Processes below one, as the system lists them."""
    listed = subprocess.run(["ps", "-ewwo", "pid=,ppid=,args="], capture_output=True, text=True)
    below, rows = {pid}, [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    found = []
    for _ in range(4):
        more = [(int(c), args) for c, p, args in rows if int(p) in below and int(c) not in below]
        found += more
        below |= {c for c, _ in more}
    return found


@pytest.fixture
def begin(photo_place):
    """Begins to restore in a process of its own, which ends with the test."""
    runs = []

    def begin(*words):
        words = ["restore", "photos", "--out", "out", *WORDS, *words]
        runs.append(subprocess.Popen([*GENPRIOR, *words], stdout=subprocess.PIPE, text=True))
        return runs[-1]

    yield begin
    for run in runs:
        if run.poll() is None:
            run.send_signal(signal.SIGINT)  # so that it ends what it has started
            time.sleep(5)
        run.kill()
        run.wait()


@pytest.mark.cluster
@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_forty_photos_and_a_kill(begin, workers):
    """Would catch photos lost or done twice when the whole run is killed and begun again."""
    names = [f"{i:02}.png" for i in range(40)]
    save_photos(*names)
    run = begin(*workers)
    wait_until(lambda: len(done()) > 12)
    below = children(run.pid)
    run.kill()
    run.wait()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid, _ in below))
    finished = len(done())
    assert finished < 40
    said, _ = begin(*workers).communicate()
    assert f"{finished} of 40 photos are done already" in said
    assert f"{40 - finished}/{40 - finished}" in said
    check_whole(names)


def kill_one(run, mark):
    """Kill one of two workers, which are at work on a photo nearly all the time."""
    wait_until(lambda: len(done()) > 2 or run.poll() is not None)
    victims = [pid for pid, args in children(run.pid) if mark in args]
    assert len(victims) >= 2, children(run.pid)
    os.kill(victims[0], signal.SIGKILL)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("where", "mark"),
    [((), "multiprocessing.spawn"), (("--cluster", "local"), "ray::Worker")],
    ids=str,
)
def test_a_worker_is_killed(begin, where, mark):
    """Would catch a photo lost with its worker, and results that depend on the number of them."""
    if where:
        pytest.importorskip("ray")
    names = [f"{i:02}.png" for i in range(24)]
    save_photos(*names)
    run = begin("--workers", "2", *where)
    kill_one(run, mark)
    said, _ = run.communicate()
    assert run.returncode == 0, said
    assert "it is begun again" in said
    check_whole(names)
    assert main(["restore", "photos/07.png", "--out", "alone", *WORDS]) == 0
    assert results("out/07.png") == results("alone")


@pytest.mark.cluster
def test_two_workers_beside_one(photo_place, capsys):
    """Would catch a network whose results depend on the process it is in; prints the time of
    both, which a calm machine of two cores halves."""
    from photos import photo

    Path("photos").mkdir()
    for i in range(8):
        photo(96, 96, name=f"photos/{i}.png")
    words = ["--prior", "any.safetensors", "--samples", "2", "--steps", "40", *DENOISE]
    seconds = []
    for workers in ("1", "2"):
        start = time.monotonic()
        main(["restore", "photos", "--out", f"out{workers}", *words, "--workers", workers])
        seconds.append(time.monotonic() - start)
    with capsys.disabled():
        print(f"\none {seconds[0]:.1f} s, two {seconds[1]:.1f} s")
    for i in range(8):
        assert results(f"out1/{i}.png") == results(f"out2/{i}.png")
