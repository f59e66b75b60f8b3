"""What a photo's file says beside its pixels reaches the restoration and its files."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from photos import DENOISE, photo, restore, run
from PIL import Image
from tools import seeded

from genprior.cli import main
from genprior.data import read_photo, write_image
from genprior.priors import Gaussian


def test_depth_and_resolution_come_back(photo_place):
    """Would catch 16 bits cut to 8, and a scan that has forgotten its resolution."""
    write_image("photo.png", photo(16, 16), bits=16, dpi=(300, 300), force=True)
    restore(*DENOISE)
    written = read_photo("out/mean.png")
    assert (written.depth, round(written.dpi[0])) == (16, 300)
    photo(16, 16, name="photo.jpg")
    restore(*DENOISE, "--force", name="photo.jpg")
    assert read_photo("out/mean.png").depth == 8
    restore(*DENOISE, "--force", "--bits", "16", name="photo.jpg")
    assert read_photo("out/mean.png").depth == 16


def test_value_range(photo_place, capsys):
    """Would catch 12 bits in a file of 16 restored as a black photo."""
    values = np.random.default_rng(0).integers(1800, 2200, (16, 16, 3))
    np.save("photo.npy", (values / 65535).astype(np.float32))
    tifffile.imwrite("photo.tif", values.astype(np.uint16), photometric="rgb")
    restore(*DENOISE, "--value-range", "0,4095", name="photo.tif")
    mean = read_photo("out/mean.png").pixels.mean()
    assert mean == pytest.approx(values.mean() / 4095, abs=0.03)
    words = ["restore", "photo.tif", *DENOISE, "--out", "other", "--value-range"]
    for wrong in ("7", "a,b", "5,5", "9,1", "nan,1"):
        assert main([*words, wrong]) == 2
        assert "--value-range" in capsys.readouterr().err
    assert not Path("other").exists()


def test_five_channels(photo_place):
    """Would catch all the work done, and then a refusal of PNG to hold five channels."""
    factors = torch.randn(3, 5, 16, 16, generator=seeded())
    Gaussian(torch.full((5, 16, 16), 0.5), 0.05 * factors, residual=0.05).save("five.safetensors")
    stack = 0.5 + 0.1 * torch.randn(5, 16, 16, generator=seeded(1))
    write_image("photo.tif", stack.clamp(0, 1), bits=16)
    words = ["restore", "photo.tif", "--prior", "five.safetensors", *DENOISE, "--out", "out"]
    assert main([*words, "--samples", "2"]) == 0
    for name in ("mean", "std", "sample_1", "sample_2"):
        assert read_photo(f"out/{name}.tif").pixels.shape == (5, 16, 16)
    assert main([*words, "--samples", "1", "--force", "--simulate"]) == 0
    assert not Path("out/sample_2.tif").exists(), "of another run"
    assert read_photo("out/measurement.tif").pixels.shape == (5, 16, 16)


@pytest.mark.parametrize("fit", [(), ("--fit", "crop", "--size", "[91,83]")], ids=["whole", "cut"])
def test_noise_of_a_jpeg(photo_place, capsys, fit):
    """Would catch noise of 5/255 read as .4/255, by which the photo comes back unchanged.

    A cut moves the blocks of 8x8 that were rounded, so it is to be measured before.
    """
    x = photo(128, 128)
    noisy = x + 5 / 255 * torch.randn(x.shape, generator=seeded())
    write_image("photo.png", noisy, force=True)
    Image.open("photo.png").save("photo.jpg", quality=85)
    report = restore("--task", "denoise", *fit, name="photo.jpg")
    assert 0.5 < report["sigma"] / (5 / 255) < 2
    assert "JPEG" in capsys.readouterr().err


def test_noise_of_a_jpeg_that_is_shrunk(photo_place, capsys):
    """Would catch noise that shrinking has averaged away taken for what the file had."""
    x = photo(128, 128)
    write_image("photo.png", x + 0.04 * torch.randn(x.shape, generator=seeded()), force=True)
    Image.open("photo.png").save("photo.jpg", quality=85)
    whole = restore("--task", "denoise", name="photo.jpg")["sigma"]
    words = ("--task", "denoise", "--fit", "resize", "--size", "64", "--force")
    assert restore(*words, name="photo.jpg")["sigma"] == pytest.approx(whole / 2, rel=1e-4)


def test_only_a_prior_that_was_not_named_is_the_default(photo_place, capsys, monkeypatch):
    """Would catch the words '(the default)' beside a prior that was named by hand."""
    monkeypatch.setattr("genprior.restoration.settings.PRIOR", "any.safetensors")
    photo(8, 8)
    assert run(*DENOISE) == 0
    assert "the default)" not in capsys.readouterr().out
    words = ["restore", "photo.png", *DENOISE, "--steps", "2", "--out", "other"]
    assert main(words) == 0
    assert "any.safetensors (the default)" in capsys.readouterr().out
    assert (
        "--prior any.safetensors" in json.loads(Path("other/result.json").read_text())["command"]
    )
