"""Runs that are stopped, killed, repeated or met by another: nothing is lost, nothing replaced."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tools import identical

from genprior import cli
from genprior.data import write_image
from genprior.priors import Autoencoder
from genprior.training import TrainingOptions, checkpoints, lock, train

ROOT = Path(__file__).parents[3]
QUIET = TrainingOptions(
    warmup=2, checkpoint_every=4, grid=0, progress=False, precision="fp32", accelerator="cpu"
)


def data(count=20):
    return torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def model(seed=0):
    return Autoencoder((1, 6, 6), latent_size=2, network={"hidden": [4], "seed": seed})


def run(out, images=None, *, start=None, start_hash=None, **changes):
    """Train a tiny model for 12 steps."""
    images = data() if images is None else images
    settings = {"steps": 12, "batch_size": 4, "options": QUIET, "start": start_hash, **changes}
    return train(start or model(), images, out=out, **settings)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(identical(a[k], b[k]) for k in a)


def signal_at(monkeypatch, family, step, number):
    """Send this process a signal in the loss of step number `step`, once."""
    objective, count = family.objective, iter(range(1000))

    def signalled(self):
        found = objective(self)
        loss = found.loss

        def noted(*args):
            if next(count) == step:
                signal.raise_signal(number)
            return loss(*args)

        found.loss = noted
        return found

    monkeypatch.setattr(family, "objective", signalled)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_ends_the_run_with_a_checkpoint(number, error, tmp_path, monkeypatch, capsys):
    """Would catch steps lost to Ctrl-C or a scheduler, before the first regular checkpoint."""
    whole = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        signal_at(patch, Autoencoder, 1, number)
        handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        with pytest.raises(error) as raised:
            run(tmp_path / "stopped")
        assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    assert error is KeyboardInterrupt or raised.value.code == 143
    assert "stopped after step 2" in (said := capsys.readouterr().err)
    assert "same command again resumes" in said
    assert checkpoints.newest(tmp_path / "stopped" / "checkpoints")["step"] == 2
    assert same(run(tmp_path / "stopped"), whole)


def test_a_signal_to_a_run_without_a_folder(monkeypatch):
    """Would catch a run that cannot be stopped, or a promise to resume."""
    signal_at(monkeypatch, Autoencoder, 1, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(None)


def words(folder, out, *more):
    text = f"train autoencoder --data {folder} --out {out} --steps 6 --batch-size 2 --grid 0"
    text += " --network.hidden [4] --latent-size 2 --accelerator cpu --precision fp32"
    return [*text.split(), *more]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, x in enumerate(data(4)):
        write_image(folder / f"{i}.png", x)
    return folder


def test_status_of_a_stopped_command(photos, tmp_path, monkeypatch):
    """Would catch a stopped run that a script takes for a finished one."""
    with monkeypatch.context() as patch:
        signal_at(patch, Autoencoder, 2, signal.SIGINT)
        assert cli.main(words(photos, tmp_path / "o")) == 130
    with monkeypatch.context() as patch:
        signal_at(patch, Autoencoder, 1, signal.SIGTERM)
        with pytest.raises(SystemExit) as raised:
            cli.main(words(photos, tmp_path / "o"))
    assert raised.value.code == 143
    assert checkpoints.newest(tmp_path / "o" / "checkpoints")["step"] == 5
    assert cli.main(words(photos, tmp_path / "o")) == 0
    Autoencoder.load(tmp_path / "o" / "prior.safetensors")


def test_killed_at_any_point(tmp_path):
    """Would catch a checkpoint that is dropped before its successor is in place, and the like."""
    script = [sys.executable, str(ROOT / "benchmarks" / "details" / "kills.py")]
    script += ["4", "--family", "gan"]  # which has two networks and two optimisers
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kills, 0 lost work" in done.stdout


def test_a_picture_of_others_is_not_replaced(photos, tmp_path, capsys):
    """Would catch a loss.png in a folder without a run, drawn over."""
    (tmp_path / "loss.png").write_bytes(b"a picture")
    assert cli.main(words(photos, tmp_path)) == 2
    assert "loss.png is not of this run" in capsys.readouterr().err
    assert (tmp_path / "loss.png").read_bytes() == b"a picture"
    assert cli.main([*words(photos, tmp_path), "--force"]) == 0


def test_weights_of_others_are_not_replaced(photos, tmp_path, capsys):
    """Would catch a prior of another run, or made by hand, that training overwrites."""
    ours, hand = tmp_path / "ours", tmp_path / "hand"
    assert cli.main(words(photos, ours)) == 0
    path = ours / "prior.safetensors"
    for old in (ours / "checkpoints").iterdir():
        old.unlink()
    assert cli.main(words(photos, ours)) == 0  # its own, though no checkpoint says so
    hand.mkdir()
    for content in (path.read_bytes(), b"not weights"):
        (hand / "prior.safetensors").write_bytes(content)
        assert cli.main(words(photos, hand, "--seed", "1")) == 2
        assert "is not of this run" in (said := capsys.readouterr().err)
        assert "--force" in said
        assert (hand / "prior.safetensors").read_bytes() == content
        assert [f.name for f in hand.iterdir()] == ["prior.safetensors"]
    assert cli.main(words(photos, hand, "--seed", "1", "--force")) == 0
    assert (hand / "prior.safetensors").read_bytes() != content


def test_a_finished_run_gives_lost_weights_again(photos, tmp_path):
    """Would catch a run that was killed before its weights were written, said to be done."""
    out = tmp_path / "o"
    assert cli.main(words(photos, out)) == 0
    path = out / "prior.safetensors"
    done = Autoencoder.load(path)
    path.unlink()
    assert cli.main(words(photos, out)) == 0
    assert same(Autoencoder.load(path), done)


def test_two_runs_in_one_folder(tmp_path):
    """Would catch two runs that write each other's checkpoints, and a lock that stays behind."""
    other = f"""if True:
        import os, runpy, sys
        from pathlib import Path
        sole_use = runpy.run_path({lock.__file__!r})["sole_use"]
        with sole_use(Path({str(tmp_path)!r})):
            if os.fork() == 0:  # as a reader of images, which may live on for a while
                sys.stdout.close()
                sys.stdin.read()
                os._exit(0)
            print("held", flush=True)
            sys.stdin.read()
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", other], **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match=r"in use by another run.*folder"):
            run(tmp_path)
        assert not list(tmp_path.iterdir())
        holder.kill()
        holder.wait()
        run(tmp_path)
    run(tmp_path)


def test_a_refused_run_lets_go_of_its_folder(tmp_path):
    """Would catch a folder that stays locked after an error, as in a notebook."""
    run(tmp_path)
    with pytest.raises(ValueError, match="another run") as kept:
        run(tmp_path, data(21))
    run(tmp_path)
    assert kept.traceback


def test_halves_of_files_are_removed(tmp_path):
    """Would catch a disk that fills with what killed runs left, or a sweep of others' files."""
    run(tmp_path)
    stays = {f.name for f in tmp_path.rglob("*")} | {".step-notes", "mine"}
    for name in (".step-000000016.pt.abc", ".step-notes"):
        (tmp_path / "checkpoints" / name).write_bytes(b"x")
    for name in (".prior.safetensors.abc", "mine"):
        (tmp_path / name).write_bytes(b"x")
    run(tmp_path)
    assert {f.name for f in tmp_path.rglob("*")} == stays


def test_other_data_and_other_weights_to_begin_with(tmp_path):
    """Would catch a resume on data of which only the middle changed, or from another start."""
    images = data(120)
    run(tmp_path, images)
    reordered = images.clone()
    reordered[20:40] = images[20:40].flip(0)
    one_pixel = images.clone()
    one_pixel[77, 0, 3, 2] += 1e-3
    for other in (reordered, one_pixel):
        with pytest.raises(ValueError, match=r"data\.digest"):
            run(tmp_path, other)
    run(tmp_path, images)
    began = tmp_path / "began"
    run(began, start=model(1), start_hash="a1")
    with pytest.raises(ValueError, match="start: a1 before, b2 now"):
        run(began, start=model(2), start_hash="b2")


def test_another_start_from_the_shell(photos, tmp_path, capsys):
    """Would catch `--start` that is ignored when a run resumes."""
    for scale in (1, 2):
        began = Autoencoder((1, 6, 6), latent_size=2, network={"hidden": [4]})
        began.load_state_dict({k: scale * v for k, v in began.state_dict().items()})
        began.save(tmp_path / f"{scale}.safetensors")
    first, second = (("--start", str(tmp_path / f"{s}.safetensors")) for s in (1, 2))
    assert cli.main(words(photos, tmp_path / "o", *first)) == 0
    assert cli.main(words(photos, tmp_path / "o", *second)) == 2
    assert "start: " in capsys.readouterr().err
    assert cli.main(words(photos, tmp_path / "o", *first)) == 0


def flipped(content, step):
    """The content, once for each `step`-th bit, with that bit the other way."""
    for bit in range(0, 8 * len(content), step):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def test_a_flipped_bit_of_a_checkpoint_is_noticed(tmp_path):
    """Would catch a run that resumes from weights or moments that the disk has altered."""
    whole = run(tmp_path)
    *_, before, newest = sorted((tmp_path / "checkpoints").iterdir())
    content = newest.read_bytes()
    expected = checkpoints.newest(tmp_path / "checkpoints")["step"] - 4
    for changed in flipped(content, 8 * len(content) // 60 | 1):
        newest.write_bytes(changed)
        with pytest.warns(UserWarning, match=f"{newest.name} is damaged.*the one before"):
            assert checkpoints.newest(tmp_path / "checkpoints")["step"] == expected
    with pytest.warns(UserWarning, match="damaged"):
        assert same(run(tmp_path), whole)
    assert newest.read_bytes() != changed
    assert before.exists()
