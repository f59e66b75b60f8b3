"""The shell, run as a user runs it."""

import contextlib
import csv
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from photos import SIDE, make_place, smooth_gaussian
from PIL import Image
from tools import identical

from genprior import plots
from genprior.cli import main
from genprior.commands import demo
from genprior.data import read_image, write_image
from genprior.operators import GaussianNoise, Inpainting, Problem
from genprior.pretrained import load
from genprior.priors import GAN, RealNVP


@pytest.fixture
def place(tmp_path):
    return make_place(tmp_path)


def restore(place, *words, prior=None):
    """Run `genprior restore` on the photo; return its report."""
    arguments = ["restore", str(place.photo), "--prior", str(prior or place.prior)]
    arguments += ["--out", str(place.out), *words]
    assert main([str(word) for word in arguments]) == 0
    return json.loads((place.out / "result.json").read_text())


def test_restore_equals_the_library(place):
    """Would catch a mask read the wrong way round, sigma in other units, or the photo degraded
    although it is the measurement."""
    words = ("--mask", place.mask, "--sigma", "5/255", "--keep", "false")
    report = restore(place, "--task", "inpaint", *words)
    y = read_image(place.photo)[None]
    mask = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    mask[:, 4:10, 4:10] = False
    problem = Problem(y, Inpainting(mask), GaussianNoise(5 / 255))
    posterior = load(place.prior).posterior(problem)
    for name, image, scale in (("mean", posterior.mean, 1), ("std", posterior.std, 2)):
        written = read_image(place.out / f"{name}.png")
        assert (written - scale * image[0]).abs().max() < 0.51 / 255
    assert {path.name for path in place.out.iterdir()} == {
        *(f"sample_{i}.png" for i in range(1, 5)),
        *("mean.png", "std.png", "comparison.png", "result.json"),
    }
    assert report["sigma"] == pytest.approx(5 / 255, rel=1e-5)
    assert report["solver"] == "ExactPosterior()"
    assert not {"psnr_mean", "coverage_90"} & set(report), "scored without a truth"


@pytest.mark.parametrize(
    "task",
    [
        ("inpaint", "--mask", "random:0.5"),
        ("inpaint", "--mask", "half:left"),
        ("denoise", "--sigma", "0.05"),
        ("deblur", "--kernel", "gaussian:1.2", "--sigma", "0.02"),
        ("deblur", "--kernel", "motion:5,30", "--sigma", "0.02", "--boundary", "valid"),
        ("superres", "--factor", "2", "--sigma", "0.02"),
    ],
    ids=lambda task: "-".join(task[::2]),
)
def test_simulated_tasks(place, task):
    """Would catch a task that solves another problem than it simulates: the residual of samples
    is sigma only if both are one, and the mean beats 25 dB on a photo that the prior knows."""
    report = restore(place, "--simulate", "--samples", "8", "--task", *task)
    entries = 3 * SIDE**2 / 8
    assert abs(report["residual_in_sigma"] - 1) < 5 / np.sqrt(2 * entries)
    assert report["psnr_mean"] > 25
    assert report["coverage_90"] > 0.6


def test_chains_too_short_are_reported(place, capsys):
    """Would catch a doubtful result that is not called one, or without the R-hat that says why."""
    words = ("--solver", "LatentSampler", "--steps", "4", "--task", "denoise", "--sigma", "0.1")
    report = restore(place, *words)
    assert report["r_hat"] > 1.05
    assert not report["converged"]
    out = capsys.readouterr().out
    assert f"R-hat     {report['r_hat']:.2f}" in out
    assert "NOT CONVERGED" in out


def test_measured_photo_of_another_size(place):
    """Would catch superres that shrinks the photo once more: it is the small image."""
    small = read_image(place.photo).reshape(3, 8, 2, 8, 2).mean((2, 4))
    write_image(place.photo, small, bits=16, force=True)
    restore(place, "--task", "superres", "--factor", "2", "--sigma", "0.005")
    mean = read_image(place.out / "mean.png")
    assert mean.shape == (3, SIDE, SIDE)
    pooled = mean.reshape(3, 8, 2, 8, 2).mean((2, 4))
    assert (pooled - small).abs().max() < 0.03


def test_seed_fixes_everything(place):
    """Would catch a seed that misses the mask, the noise or the samples."""
    options = ("--task", "inpaint", "--mask", "strokes:3", "--simulate", "--force")
    images = []
    for seed in ("1", "1", "2"):
        restore(place, *options, "--seed", seed)
        images.append(read_image(place.out / "sample_2.png"))
    assert identical(images[0], images[1])
    assert not identical(images[0], images[2])


@pytest.mark.parametrize("fit", ["crop", "resize"])
def test_fit_treats_the_mask_alike(place, fit):
    """Would catch a mask left behind when the photo is cropped or resized."""
    photo, mask = read_image(place.photo), read_image(place.mask)
    if fit == "crop":
        photo, mask = (torch.nn.functional.pad(t, (3, 4, 7, 8), value=1.0) for t in (photo, mask))
    else:
        photo, mask = (t.repeat_interleave(2, 1).repeat_interleave(2, 2) for t in (photo, mask))
    write_image(place.photo, photo, bits=16, force=True)
    Image.fromarray((mask[0] * 255).numpy().astype(np.uint8)).save(place.mask)
    restore(place, "--task", "inpaint", "--mask", place.mask, "--fit", fit)
    std = read_image(place.out / "std.png").mean(0)
    hole = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    hole[4:10, 4:10] = True
    assert std[hole].min() > std[:3].max()


def test_invert_mask_and_channels(place):
    """Would catch an option that is read and forgotten."""
    mask = 255 - np.asarray(Image.open(place.mask))
    Image.fromarray(mask).save(place.mask)
    grey = place.prior.with_name("grey.safetensors")
    smooth_gaussian(1).save(grey)
    options = ("--mask", place.mask, "--invert-mask", "--channels", "1", "--bits", "16")
    restore(place, "--task", "inpaint", *options, prior=grey)
    assert read_image(place.out / "mean.png").shape == (1, SIDE, SIDE)
    std = read_image(place.out / "std.png")[0]
    assert std[7, 7] > std[0, 0]


def test_sigma_auto(tmp_path):
    """Would catch sigma estimated in 0 ... 255 units."""
    place = make_place(tmp_path)
    prior = place.prior.with_name("large.safetensors")
    smooth_gaussian(3, 64).save(prior)
    x = load(prior).sample(1, generator=torch.Generator().manual_seed(0))[0]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    write_image(place.photo, x + 0.1 * noise, bits=16, force=True)
    report = restore(place, "--task", "denoise", "--sigma", "auto", prior=prior)
    assert report["sigma"] == pytest.approx(0.1, rel=0.1)


def folder_of_photos(tmp_path, count=7):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, x in enumerate(smooth_gaussian().sample(count, generator=torch.Generator())):
        write_image(folder / f"{i}.png", x, bits=16)
    return folder


def test_evaluate(place, tmp_path, capsys):
    """Would catch scores that depend on batching, one mask for all, and a wrong summary."""
    folder = folder_of_photos(tmp_path)
    tables = []
    for at_once in (7, 2):
        out = tmp_path / f"{at_once}.csv"
        words = ["evaluate", "--data", folder, "--prior", place.prior, "--task", "inpaint"]
        words += ["--mask", "random:0.6", "--out", out, "--at-once", at_once]
        assert main([str(word) for word in words]) == 0
        with open(out) as file:
            tables.append(list(csv.DictReader(file)))
    names = [row["image"] for row in tables[0]]
    assert names == [*(f"{i}.png" for i in range(7)), "mean", "standard error"]
    for one, other in zip(*tables, strict=True):
        for key in ("psnr_mean", "crps", "coverage_90", "residual_in_sigma"):
            assert float(one[key]) == pytest.approx(float(other[key]), rel=1e-3)
    values = np.array([float(row["psnr_mean"]) for row in tables[0][:7]])
    assert float(tables[0][7]["psnr_mean"]) == pytest.approx(values.mean(), rel=1e-4)
    error = values.std(ddof=1) / np.sqrt(7)
    assert float(tables[0][8]["psnr_mean"]) == pytest.approx(error, rel=1e-2)
    captured = capsys.readouterr()
    assert "7 images" in captured.out
    assert captured.out.count("--samples 19 shows it") == 2, "four samples hide a narrow spread"
    assert captured.err == "", "a progress bar in a pipe"


@pytest.mark.parametrize(("samples", "independent"), [("19", 19), ("20", 10)])
def test_evaluate_warns_of_too_few_independent_samples(
    place, tmp_path, capsys, samples, independent
):
    """Would catch a paired sample counted as one more."""
    folder, out = folder_of_photos(tmp_path, 1), tmp_path / "scores.csv"
    words = ["evaluate", "--data", folder, "--prior", place.prior, "--task", "inpaint"]
    words += ["--mask", "random:0.6", "--solver", "MMPS", "--steps", "2", "--samples", samples]
    assert main([str(word) for word in [*words, "--out", out]]) == 0
    with open(out) as file:
        assert float(next(csv.DictReader(file))["independent_samples"]) == independent
    assert ("--samples 19 shows it" in capsys.readouterr().out) == (independent < 19)


@pytest.mark.parametrize(
    ("family", "stored", "kind"),
    [("gaussian", "half", "F16"), ("gaussian", "int8", "I8"), ("mixture", "int8", "I8")],
)
def test_train_then_sample_then_restore(place, tmp_path, family, stored, kind):
    """Would catch weights that the other commands do not read, and a recipe not applied."""
    folder = folder_of_photos(tmp_path, 40)
    recipe = tmp_path / "recipe.yaml"
    more = "components: 2\n" if family == "mixture" else ""
    recipe.write_text(f"size: 8\nrank: 3\n{stored}: true\ncard: {{licence: CC0}}\n{more}")
    out = tmp_path / "run" / "small.safetensors"
    words = ["train", family, "--config", recipe, "--data", folder, "--out", out]
    assert main([str(word) for word in words]) == 0
    assert load(out).image_shape == (3, 8, 8)
    assert f'"dtype":"{kind}"'.encode() in out.read_bytes()
    picture = tmp_path / "grid.png"
    assert main(["sample", str(out), "--number", "3", "--out", str(picture)]) == 0
    assert read_image(picture).shape[0] == 3
    report = restore(place, "--task", "denoise", "--sigma", "0.1", "--fit", "resize", prior=out)
    assert report["prior"] == str(out)


def test_train_texture(tmp_path):
    """Would catch a texture that can only be sampled at the size of its image."""
    image = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "wall.png")
    out = tmp_path / "wall.safetensors"
    words = ["train", "texture", "--image", str(tmp_path / "wall.png"), "--out", str(out)]
    assert main(words) == 0
    picture = tmp_path / "large.png"
    words = ["sample", str(out), "--number", "1", "--size", "[24, 30]", "--out", str(picture)]
    assert main(words) == 0
    height, width = read_image(picture).shape[1:]
    assert height / width == pytest.approx(24 / 30)


def test_samples_of_a_gan_truncated(tmp_path):
    """Would catch a truncation that is read and not applied, or another by default."""
    gan = GAN((1, 4, 4), 2, network={"kind": "perceptron", "hidden": [4]})
    weights, drawn = tmp_path / "gan.safetensors", {}
    gan.save(weights)
    for truncation in ("1", "0.5", "0.001"):
        out = tmp_path / f"{truncation}.png"
        words = ["sample", str(weights), "--truncation", truncation, "--out", str(out)]
        assert main([*words, "--number", "4"]) == 0
        drawn[truncation] = read_image(out)
    plain = tmp_path / "plain.png"
    assert main(["sample", str(weights), "--number", "4", "--out", str(plain)]) == 0
    assert identical(read_image(plain), drawn["1"])
    assert len({float(x.std()) for x in drawn.values()}) == 3
    for truncation, x in drawn.items():
        again = gan.sample(
            4, generator=torch.Generator().manual_seed(0), truncation=float(truncation)
        )
        plots.grid(again, path=plain)
        assert identical(read_image(plain), x)


def test_lists_and_help(place, capsys):
    """Would catch a help text that shows options as nobody types them."""
    assert main(["--help"]) == 0
    assert main(["restore", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--batch-size BATCH_SIZE" in text
    assert "--force\n" in text.replace("]", "\n").replace(" (", "\n").replace("  ", "\n")
    assert main(["solvers", "--prior", str(place.prior)]) == 0
    assert "ExactPosterior" in capsys.readouterr().out
    assert main(["priors"]) == 0


def test_demo(tmp_path, capsys, monkeypatch):
    """Would catch a demo that scores one image and draws another, fails without a prior that is
    still to be trained, or serves a prior at a size that is not its own."""
    shipped = {
        "cats64-gaussian": (3, 64),
        "cats32-gaussian": (3, 32),
        "mnist-gaussian": (1, 28),
        "mnist-binary-vae": (1, 28),
        "fashion-gaussian": (1, 28),
        "mnist-realnvp": (1, 28),
    }

    def made(name):
        if "realnvp" in name:
            return RealNVP((1, 28, 28), levels=1, couplings=1, network={"width": 4}).eval()
        return smooth_gaussian(*shipped[name])

    monkeypatch.setattr(demo, "available", lambda: list(shipped))
    monkeypatch.setattr(demo, "load", made)
    assert main(["demo", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    shown = re.findall(r"(\S+) +\d+\.\d\d dB +(\d+\.\d%|-) +\d+\.\d+", said)
    assert [name for name, _ in shown] == [
        "cats64-gaussian",
        "cats32-gaussian",
        "mnist-gaussian",
        "mnist-realnvp",
    ]
    assert [held == "-" for _, held in shown] == [False] * 3 + [True]
    for picture in ("demo.png", "digit.png"):
        assert read_image(tmp_path / picture).shape[0] == 3
    x = demo.cat()
    assert x.shape == (1, 3, 64, 64)
    assert x[0, 0].mean() > x[0, 2].mean(), "the cat is ginger"
    assert demo.digit().shape == (1, 1, 28, 28)


def in_shell(line, folder, **more):
    """Run a line of sh, in which $genprior is the program."""
    env = {**os.environ, "genprior": f"{sys.executable} -m genprior.cli", **more}
    env["PYTHONPATH"] = os.pathsep.join([more.get("PYTHONPATH", ""), *sys.path])
    return subprocess.run(
        line, shell=True, cwd=folder, env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("shell", [True, False])
def test_interrupted_while_it_imports(tmp_path, shell):
    """Would catch thirty lines of traceback for Ctrl-C in the first seconds; a program that uses
    the library is to be interrupted as any."""
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    line = "$genprior priors" if shell else f"{sys.executable} -c 'import genprior'"
    done = in_shell(line, tmp_path, PYTHONPATH=str(tmp_path))
    assert ("Traceback" in done.stderr) == (not shell)
    if shell:
        assert (done.returncode, done.stderr) == (130, "genprior: interrupted\n")


@pytest.mark.parametrize(
    ("output", "status", "says"),
    [(">&- 2>&-", 0, ""), (">/dev/full", 2, "No space left"), ("| true", 0, "")],
)
def test_output_that_cannot_be_written(tmp_path, output, status, says):
    """Would catch a traceback where stdout is closed, full, or nobody reads it."""
    line = f"$genprior --help {output}"
    done = in_shell(line, tmp_path)
    assert done.returncode == status
    assert says in done.stderr
    assert done.stderr.count("\n") == (says != "")


def test_names_that_a_terminal_cannot_show(place):
    """Would catch a run whose results are thrown away as its last line is printed."""
    folder = os.fsdecode(os.fsencode(place.out) + b"-\xfc-\xc3\xa9")
    words = ["restore", str(place.photo), "--prior", str(place.prior), "--samples", "1"]
    words += ["--task", "denoise", "--sigma", "0.1", "--out", folder]
    for encoding in ("ascii", "utf-8"):
        said = place.out.with_name(encoding)
        with open(said, "w", encoding=encoding) as file, contextlib.redirect_stdout(file):
            assert main([*words, "--force"]) == 0
        assert r"\udcfc" in said.read_text(encoding=encoding)
    photos = os.fsdecode(os.fsencode(place.out) + b"s\xfc")
    os.mkdir(photos)
    write_image(os.path.join(photos, os.fsdecode(b"\xfc.png")), read_image(place.photo))
    words = ["evaluate", "--data", photos, "--prior", str(place.prior), "--task", "denoise"]
    assert main([*words, "--sigma", "0.1", "--out", str(place.out) + ".csv"]) == 0
    assert b"\xfc.png" in place.out.with_name("out.csv").read_bytes()


def test_as_a_process(place):
    """Would catch an entry point whose exit status is lost, and a traceback on a wrong input."""
    words = [sys.executable, "-m", "genprior.cli", "restore", str(place.photo)]
    words += ["--task", "denoise", "--simulate", "--prior", str(place.prior)]
    words += ["--out", str(place.out)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("genprior: error: --task denoise with simulated noise needs")
    assert done.stderr.count("\n") == 1
    assert not place.out.exists()
