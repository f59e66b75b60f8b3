"""The scripts for a lent GPU, run on the CPU with made-up data, so that they do not rot."""

import io
import json
import subprocess
import tarfile

import numpy as np
import pytest
import torch
from common import features
from gpu import lease, measure, prepare, train
from PIL import Image
from safetensors.torch import save_file

import genprior
from genprior.priors.files import read_header


def git(folder, *words):
    who = ("-c", "user.name=x", "-c", "user.email=x@x")
    subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A tree with two files of weights, all that the scripts carry gathered in it."""
    root = tmp_path_factory.mktemp("tree")
    stored, draw = root / "stored", np.random.default_rng(0)
    (root / "pretrained").mkdir()
    for name in ("a", "b"):
        (root / "pretrained" / f"{name}.safetensors").write_bytes(bytes(100))
    (root / ".gitignore").write_text("/.carry/\n/stored/\n")
    (stored / "cats64").mkdir(parents=True)
    with tarfile.open(stored / "cats64" / "x_train.tar", "w") as archive:
        for i in range(16):
            buffer = io.BytesIO()
            Image.fromarray(draw.integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "png")
            entry = tarfile.TarInfo(f"{i}.png")
            entry.size = buffer.tell()
            archive.addfile(entry, io.BytesIO(buffer.getvalue()))
    test = draw.integers(0, 256, (8, 64, 64, 3), np.uint8)
    np.savez(stored / "cats64" / "x_test.npz", images=test)
    with torch.device("meta"):
        network = features.AlexNet()
    flat = {k: torch.full(v.shape, 0.1).half() for k, v in network.state_dict().items()}
    path = stored.joinpath(*features.FILES["alexnet"])
    path.parent.mkdir()
    save_file({k: v for k, v in flat.items() if "conv" in k}, path)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "all")
    return root


def prepared(tree, *more):
    stored = str(tree / "stored")
    prepare.main(["--tree", str(tree), "--data", stored, "--models", stored, "--dry-run", *more])


def test_only_kept_weights_travel_and_all_come_back(tree, capsys, monkeypatch):
    """Would catch weights that travel unasked, or are lost; a size that is not what travels."""
    prepared(tree, "--keep", "b")
    said = capsys.readouterr().out
    assert [p.stem for p in (tree / "pretrained").iterdir()] == ["b"]
    carried = [p for p in (tree / ".carry").rglob("*") if p.is_file()]
    assert sorted(p.name for p in carried) == [
        "lpips_alexnet_fp16.safetensors", "x_test.npz", "x_train.tar",
    ]  # fmt: skip
    kept = [*carried, tree / ".gitignore", tree / "pretrained" / "b.safetensors"]
    total = sum(p.stat().st_size for p in kept)
    assert f"{total / 2**20:.2f} MiB  of 64, 5 files" in said
    with pytest.raises(SystemExit, match="--keep c: there are a, b"):
        prepared(tree, "--keep", "c")
    monkeypatch.setattr(prepare, "LIMIT", total - 1)
    with pytest.raises(SystemExit, match="too much travels"):
        prepared(tree, "--keep", "b")
    prepare.main(["--tree", str(tree), "--back"])
    assert {p.stem for p in (tree / "pretrained").iterdir()} == {"a", "b"}


def test_training_comes_back_and_goes_on(tree, tmp_path, monkeypatch):
    """Would catch a lease that ends without weights, figures or curve, or cannot be continued."""
    prepared(tree)
    words = ["cats64-diffusion", "--carry", str(tree / ".carry"), "--dry-run"]
    first, second = tmp_path / "first", tmp_path / "second"
    # Tested elsewhere, and slow with 1152 features.
    monkeypatch.setattr(train.metrics, "frechet_distance", lambda a, b: (a - b).square().mean())
    train.main([*words, "--out", str(first), "--run", str(tmp_path / "run"), "--probe", "0.01"])
    weights = first / "cats64-diffusion.safetensors"
    assert read_header(weights)["card"]["training"]["steps"] == 20
    figures = json.loads((first / "figures.json").read_text())
    assert len(figures["probe"]) == 2
    assert figures["frechet"]["alexnet"].keys() >= {"test", "test floor", "train", "train floor"}
    assert "no weights at" in figures["frechet"]["mobilenet"]
    assert (first / "log.csv").read_text().splitlines()[-1].startswith("20,")
    assert Image.open(first / "samples.png").size[0] > 64
    monkeypatch.setattr(train, "frechet", lambda *_: {})  # which was seen to work
    train.main([*words, "--out", str(second), "--run", str(tmp_path / "more"), "--probe", "0",
                "--start", str(weights)])  # fmt: skip
    begun = genprior.load(weights).state_dict()
    done = genprior.load(second / weights.name).state_dict()
    steps = [float((done[k] - begun[k]).abs().max()) for k in begun]
    assert 0 < max(steps) < 0.1, "a start from other weights ends far from these"


def test_a_flow_comes_back_with_its_bits(tree, tmp_path, monkeypatch):
    """Would catch a lease whose flow is judged by samples alone, or between levels."""
    prepared(tree, "--name", "cats64-diffusion", "cats32-glow")
    monkeypatch.setattr(train, "frechet", lambda *_: {})
    words = ["cats32-glow", "--carry", str(tree / ".carry"), "--dry-run"]
    train.main([*words, "--out", str(tmp_path), "--run", str(tmp_path / "run")])
    bits = json.loads((tmp_path / "figures.json").read_text())["bits"]
    assert 6 < bits["mean"] < 8  # white noise has 8, shrunk it has less
    assert 0 < bits["standard error"] < 1
    assert genprior.load(tmp_path / "cats32-glow.safetensors").image_shape == (3, 32, 32)


def test_measures_are_taken(tree, tmp_path, monkeypatch):
    """Would catch a part that fails only on the lent machine, or is skipped without a word."""

    def run(words, *, cwd, stdout, stderr):
        stdout.write("1 passed\n")
        return subprocess.CompletedProcess(words, 0)

    prepared(tree)
    monkeypatch.setattr(measure.subprocess, "run", run)
    words = ["--out", str(tmp_path), "--carry", str(tree / ".carry"), "--dry-run"]
    measure.main(words)
    report = json.loads((tmp_path / "measure.json").read_text())
    assert [row["solver"] for row in report["restoration"]] == ["MMPS", "DPS", "PiGDM"]
    assert all(row["ratio"] > 0 for row in report["solver_overhead"])
    assert report["training"][0]["share"] > 0
    assert report["tests"] == {"exit": 0, "summary": "1 passed"}
    measure.main([*words, "--seconds", "-1"])
    late = json.loads((tmp_path / "measure.json").read_text())["skipped"]
    assert late == ["restoration", "training", "solver_overhead", "tests"]


def test_a_part_that_fails_leaves_the_others_their_time(tree, tmp_path, monkeypatch):
    """Would catch a lease that ends with its first error, or an error that is passed over."""

    def broken(_):
        raise RuntimeError("out of memory")

    prepared(tree)
    monkeypatch.setattr(measure, "restoration", broken)
    for part in ("training", "solver_overhead", "tests"):
        monkeypatch.setattr(measure, part, lambda _: [])
    with pytest.raises(SystemExit, match="failed: restoration"):
        measure.main(["--out", str(tmp_path), "--carry", str(tree / ".carry"), "--dry-run"])
    report = json.loads((tmp_path / "measure.json").read_text())
    assert "out of memory" in report["restoration"]
    assert report["tests"] == []


def test_device_tests_are_marked(device, request):
    """Would catch `pytest -m cuda` that selects nothing on the lent machine."""
    assert request.node.get_closest_marker(device.type) is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_training_without_a_gpu_is_refused(tmp_path):
    """Would catch minutes of a lease spent on the machine's processor."""
    with pytest.raises(SystemExit, match="no CUDA device is here"):
        train.main(["cats64-diffusion", "--out", str(tmp_path)])


def test_the_recipe_is_the_network_that_is_named():
    """Would catch weights too large to come back: 16 MiB in half precision."""
    recipe = lease.Recipe("cats64-diffusion")
    model = recipe.build([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))])
    count = sum(p.numel() for p in model.parameters())
    assert 8.2e6 < count < 8.3e6
    assert 2 * count < lease.LARGEST
    assert recipe.options().learning_rate == 0.001
