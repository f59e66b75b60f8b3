"""Own photos of any size, restored as a user does it, with a tiny network."""

import re

import numpy as np
import pytest
import torch
from photos import DENOISE, SIDE, photo, refused, restore, run
from PIL import Image
from tools import identical

from genprior.data import read_image, write_image

# Sizes


@pytest.mark.parametrize(
    ("size", "task", "restored"),
    [
        ((1, 1), DENOISE, (1, 1)),
        ((1, 9), DENOISE, (1, 9)),
        ((9, 1), ("--task", "superres", "--factor", "3", "--sigma", ".1"), (27, 3)),
        ((1, 7), ("--task", "inpaint", "--mask", "random:.5"), (1, 7)),
        ((1, 7), ("--task", "deblur", "--kernel", "uniform:1", "--sigma", ".1"), (1, 7)),
        (
            (1, 7),
            ("--task", "deblur", "--kernel", "uniform:3", "--sigma", ".1", "--boundary", "valid"),
            (1, 7),
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("bits", ["8", "16"])
def test_photos_of_one_line(photo_place, size, task, restored, bits):
    """Would catch an axis of length one squeezed away: 1xN colour was written as Nx3 grey."""
    photo(*size)
    restore(*task, "--bits", bits)
    for name in ("mean", "sample_1", "sample_2", "std"):
        assert read_image(f"out/{name}.png").shape == (3, *restored)


def test_exif_orientation_and_mask(photo_place):
    """Would catch a mask that misses the photo by a quarter turn: both are shown upright."""
    pixels = np.full((12, 20, 3), 128, np.uint8)
    tags = Image.Exif()
    tags[0x0112] = 6  # turn by 90 degrees to show
    Image.fromarray(pixels).save("photo.jpg", exif=tags)
    mask = np.full((12, 20), 255, np.uint8)
    mask[:4] = 0
    Image.fromarray(mask).save("mask.png", exif=tags)
    report = restore("--task", "inpaint", "--mask", "mask.png", name="photo.jpg")
    assert report["task"] == "inpaint"
    assert read_image("out/mean.png").shape == (3, 20, 12)


@pytest.mark.parametrize("kind", ["alpha", "cmyk", "16-bit", "jpeg"])
def test_kinds_of_files(photo_place, kind):
    """Would catch colours inverted (CMYK), transparency shown as black, 16 bits cut to 8."""
    name, shade = f"photo.{'png' if kind in ('alpha', '16-bit') else 'jpg'}", 0.5
    if kind == "alpha":
        shade = 1.0
        Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0)).save(name)
    elif kind == "cmyk":
        Image.new("RGB", (SIDE, SIDE), (128, 128, 128)).convert("CMYK").save(name)
    elif kind == "16-bit":
        shade = 0.5 + 100 / 65535
        write_image(name, torch.full((3, SIDE, SIDE), shade), bits=16)
    else:
        Image.new("RGB", (SIDE, SIDE), (128, 128, 128)).save(name)
    # Next to no noise, and an exact solver: the photo itself comes back.
    words = ("--task", "denoise", "--sigma", "1e-5", "--bits", "16")
    restore(*words, name=name, exact=True)
    got = read_image("out/mean.png")[:, 0, 0]
    tolerance = 5e-4 if kind == "16-bit" else 0.006
    assert (got - shade).abs().max() < tolerance


@pytest.mark.parametrize(
    ("fit", "size", "shape"),
    [
        ("crop", "[8,12]", (3, 8, 12)),
        ("resize", "[20,30]", (3, 20, 30)),
        ("resize", "7", (3, 7, 7)),
    ],
)
def test_size(photo_place, fit, size, shape):
    """Would catch a size that is read and forgotten, or a mask left at the photo's size."""
    photo(16, 24)
    mask = np.full((16, 24), 255, np.uint8)
    mask[7:9, 10:14] = 0
    Image.fromarray(mask).save("mask.png")
    restore("--task", "inpaint", "--mask", "mask.png", "--fit", fit, "--size", size)
    assert read_image("out/mean.png").shape == shape


def test_crop_takes_the_middle(photo_place):
    """Would catch a corner cut out instead."""
    photo(SIDE + 8, SIDE + 12)
    given = read_image("photo.png")
    words = ("--task", "denoise", "--sigma", "1e-5", "--fit", "crop", "--bits", "16")
    restore(*words, exact=True)
    middle = given[:, 4 : 4 + SIDE, 6 : 6 + SIDE]
    assert (read_image("out/mean.png") - middle).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((*DENOISE, "--size", "8"), "--fit crop or --fit resize"),
        ((*DENOISE, "--size", "0", "--fit", "crop"), "--size must be at least 1"),
        ((*DENOISE, "--size", "99", "--fit", "crop"), "--fit resize"),
        (("--task", "deblur", "--kernel", "uniform:99", "--sigma", ".1", "--simulate"), "99"),
        (("--task", "deblur", "--kernel", "uniform:0", "--sigma", ".1"), "--kernel uniform:0"),
        (("--task", "deblur", "--kernel", "motion:9", "--sigma", ".1"), "--kernel motion:9"),
        (("--task", "superres", "--factor", "7", "--sigma", ".1", "--simulate"), "16x24"),
        (("--task", "inpaint", "--mask", "random:0"), "misses nothing"),
        (("--task", "inpaint", "--mask", "random:1"), "--mask random:1"),
        (("--task", "inpaint", "--mask", "random:.9", "--sigma", "auto"), "no noise"),
        ((*DENOISE, "--invert-mask"), "--mask"),
        ((*DENOISE[:2], "--sigma", "auto", "--simulate"), "--simulate"),
        ((*DENOISE, "--out", "photo.png"), "not a folder"),
        ((*DENOISE, "--out", "photo.png/deeper"), "not a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_refusals(photo_place, capsys, words, says):
    """Would catch work begun on what cannot end well, or an error that names no option."""
    photo(16, 24)
    assert says in refused(capsys, photo_place, *words)


# Masks


def test_mask_with_everything_measured(photo_place, capsys):
    """Would catch a mask painted the wrong way round that passes as an inpainting."""
    photo(8, 8)
    Image.new("L", (8, 8), 255).save("mask.png")
    words = ("--task", "inpaint", "--mask", "mask.png")
    assert "--invert-mask" in refused(capsys, photo_place, *words)


def test_mask_threshold(photo_place, capsys):
    """Would catch advice (a threshold) that the shell does not take, or one applied upside down:
    the soft edge at 100 counts as missing from .5 on, as measured from .3 on."""
    photo(8, 8)
    mask = np.full((8, 8), 255, np.uint8)
    mask[3] = 0
    mask[4] = 100
    Image.fromarray(mask).save("mask.png")
    words = ("--task", "inpaint", "--mask", "mask.png")
    assert "--mask-threshold" in refused(capsys, photo_place, *words)
    for threshold, share in (("0.5", "75.0%"), ("0.3", "87.5%")):
        restore(*words, "--mask-threshold", threshold, "--force")
        assert f"measured  {share}" in capsys.readouterr().out


def test_width_of_strokes(photo_place, capsys):
    """Would catch a width that is read and forgotten: scratches half as wide miss half as much."""
    photo(64, 64)
    shares = []
    for width in (2, 4):
        restore("--task", "inpaint", "--mask", f"strokes:1,{width}", "--force")
        found = re.search(r"measured  ([\d.]+)%", capsys.readouterr().out)
        assert found
        shares.append(100 - float(found[1]))
    assert shares[1] / shares[0] == pytest.approx(2, rel=0.3)


# Output


def test_force_leaves_no_samples_of_another_run(photo_place, capsys):
    """Would catch sample_2.png of an earlier run beside a mean that it has no part in; files that
    are not ours stay."""
    photo(8, 8)
    restore(*DENOISE)
    (photo_place / "out" / "sample_of_mine.png").write_bytes(b"precious")
    for name in ("mean.png", "comparison.png", "result.json", "std.png", "sample_1.png"):
        (photo_place / "out" / name).unlink()
    assert "--force" in refused(capsys, photo_place, *DENOISE, "--samples", "1")
    restore(*DENOISE, "--samples", "1", "--force")
    assert {path.name for path in (photo_place / "out").iterdir()} == {
        *("sample_1.png", "mean.png", "comparison.png", "result.json", "sample_of_mine.png")
    }


def test_batch_size_changes_nothing(photo_place):
    """Would catch samples that depend on how many are drawn at once."""
    photo(12, 10)
    restore(*DENOISE, "--bits", "16")
    whole = read_image("out/sample_2.png")
    restore(*DENOISE, "--bits", "16", "--batch-size", "1", "--force")
    assert (read_image("out/sample_2.png") - whole).abs().max() < 1e-4


def test_kernel_is_normalised_and_said_once(photo_place, capsys):
    """Would catch a correction in silence, or repeated for every use of the kernel."""
    photo(12, 12)
    np.save("kernel.npy", np.full((3, 3), 0.25))
    restore("--task", "deblur", "--kernel", "kernel.npy", "--sigma", "0.1", "--boundary", "valid")
    said = capsys.readouterr().err
    assert said.count("2.25") == 1
    assert read_image("out/mean.png").mean() == pytest.approx(0.5, abs=0.2)


# Precision


def test_precision_is_what_was_asked_for(photo_place, monkeypatch):
    """Catches an option that is ignored, and bfloat16 on small photos, where it is slower."""
    photo(16, 16)
    monkeypatch.setattr("genprior.restoration.settings.has_bfloat16", lambda device: True)
    means = {}
    for precision in ("fp32", "bf16", "auto"):
        report = restore(*DENOISE, "--precision", precision, "--force")
        assert report["precision"] == ("bf16" if precision == "bf16" else "fp32")
        means[precision] = read_image("out/mean.png")
    assert identical(means["auto"], means["fp32"])
    assert (means["bf16"] - means["fp32"]).abs().max() < 0.02


def test_auto_takes_bfloat16_for_large_photos_where_there_are_units(photo_place, monkeypatch):
    """Catches a default that leaves large photos slow, or uses bfloat16 emulated in software."""
    photo(128, 128)
    for units in (True, False):
        monkeypatch.setattr(
            "genprior.restoration.settings.has_bfloat16", lambda device, u=units: u
        )
        report = restore(*DENOISE, "--force")
        assert report["precision"] == ("bf16" if units else "fp32")


def test_bfloat16_for_a_prior_without_network(photo_place, capsys):
    """Catches the option being dropped silently."""
    photo(SIDE, SIDE)
    status = run(*DENOISE, "--precision", "bf16", exact=True)
    assert status == 2
    assert "diffusion priors" in capsys.readouterr().err
