"""Own photos of any size, restored as a user does it, with a tiny network."""

import json
import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from shell import SIDE, smooth_gaussian

from genprior.cli import main
from genprior.data import read_image, write_image
from genprior.image_files import image_size
from genprior.operators import GaussianNoise, Identity, Inpainting, Problem
from genprior.pretrained import load
from genprior.priors import Diffusion, tiles
from genprior.priors.tiles import in_tiles
from genprior.priors.unet import UNet
from genprior.shell import memory
from genprior.shell.noise_estimate import estimated_noise
from genprior.solvers import MMPS

DENOISE = ("--task", "denoise", "--sigma", "0.1")


def tiny_network(channels=3):
    """An untrained U-Net whose output is made to matter: without training it ends in zeros."""
    network = UNet(channels, widths=(8, 8), blocks=(1, 1))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith(("second.weight", "exit.weight")):
                weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))
    return network


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a prior for colour photos of any size; file names are taken in it."""
    monkeypatch.chdir(tmp_path)
    Diffusion(tiny_network(), (3, None, None), data_std=0.25).save("any.safetensors")
    smooth_gaussian().save("exact.safetensors")
    return tmp_path


def photo(height, width, channels=3, name="photo.png"):
    """Write a smooth photo and return it."""
    rows = torch.linspace(0, 3, height).view(1, -1, 1)
    columns = torch.linspace(0, 2, width).view(1, 1, -1)
    phases = torch.arange(channels).view(-1, 1, 1)
    x = 0.5 + 0.3 * torch.sin(rows + phases) * torch.cos(columns + phases)
    write_image(name, x, bits=16 if name.endswith("png") else 8, force=True)
    return x


def run(*words, name="photo.png", exact=False):
    prior = ("--prior", "exact.safetensors" if exact else "any.safetensors")
    common = ("--out", "out", "--samples", "2", *(() if exact else ("--steps", "2")))
    return main(["restore", name, *prior, *common, *map(str, words)])


def restore(*words, name="photo.png", exact=False):
    assert run(*words, name=name, exact=exact) == 0
    return json.loads(open("out/result.json").read())


def refused(capsys, folder, *words, name="photo.png"):
    before = set(folder.rglob("*"))
    status = run(*words, name=name)
    said = capsys.readouterr().err
    assert status == 2, said
    assert said.startswith("genprior: error: ")
    assert said.count("\n") == 1
    assert set(folder.rglob("*")) == before, "something was written"
    return said


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
            (3, 9),
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("bits", ["8", "16"])
def test_photos_of_one_line(place, size, task, restored, bits):
    """Would catch an axis of length one squeezed away: 1xN colour was written as Nx3 grey."""
    photo(*size)
    restore(*task, "--bits", bits)
    for name in ("mean", "sample_1", "sample_2", "std"):
        assert read_image(f"out/{name}.png").shape == (3, *restored)


def test_exif_orientation_and_mask(place):
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
def test_kinds_of_files(place, kind):
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


def test_grey_photo_and_colour_prior(place, capsys):
    """Would catch a refusal that does not say what to type, and what it says not working."""
    photo(9, 9, channels=1)
    assert "--channels 3" in refused(capsys, place, *DENOISE)
    restore(*DENOISE, "--channels", "3")


@pytest.mark.parametrize(
    ("fit", "size", "shape"),
    [
        ("crop", "[8,12]", (3, 8, 12)),
        ("resize", "[20,30]", (3, 20, 30)),
        ("resize", "7", (3, 7, 7)),
    ],
)
def test_size(place, fit, size, shape):
    """Would catch a size that is read and forgotten, or a mask left at the photo's size."""
    photo(16, 24)
    mask = np.full((16, 24), 255, np.uint8)
    mask[7:9, 10:14] = 0
    Image.fromarray(mask).save("mask.png")
    restore("--task", "inpaint", "--mask", "mask.png", "--fit", fit, "--size", size)
    assert read_image("out/mean.png").shape == shape


def test_crop_takes_the_middle(place):
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
        ((*DENOISE, "--size", "0", "--fit", "crop"), "positive"),
        ((*DENOISE, "--size", "99", "--fit", "crop"), "--fit resize"),
        (("--task", "deblur", "--kernel", "uniform:99", "--sigma", ".1"), "99"),
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
def test_refusals(place, capsys, words, says):
    """Would catch work begun on what cannot end well, or an error that names no option."""
    photo(16, 24)
    assert says in refused(capsys, place, *words)


# Masks


def test_mask_with_everything_measured(place, capsys):
    """Would catch a mask painted the wrong way round that passes as an inpainting."""
    photo(8, 8)
    Image.new("L", (8, 8), 255).save("mask.png")
    words = ("--task", "inpaint", "--mask", "mask.png")
    assert "--invert-mask" in refused(capsys, place, *words)


def test_mask_threshold(place, capsys):
    """Would catch advice (a threshold) that the shell does not take, or one applied upside down:
    the soft edge at 100 counts as missing from .5 on, as measured from .3 on."""
    photo(8, 8)
    mask = np.full((8, 8), 255, np.uint8)
    mask[3] = 0
    mask[4] = 100
    Image.fromarray(mask).save("mask.png")
    words = ("--task", "inpaint", "--mask", "mask.png")
    assert "--mask-threshold" in refused(capsys, place, *words)
    for threshold, share in (("0.5", "75.0%"), ("0.3", "87.5%")):
        restore(*words, "--mask-threshold", threshold, "--force")
        assert f"measured  {share}" in capsys.readouterr().out


def test_width_of_strokes(place, capsys):
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


def test_force_leaves_no_samples_of_another_run(place, capsys):
    """Would catch sample_2.png of an earlier run beside a mean that it has no part in; files that
    are not ours stay."""
    photo(8, 8)
    restore(*DENOISE)
    (place / "out" / "sample_of_mine.png").write_bytes(b"precious")
    for name in ("mean.png", "comparison.png", "result.json", "std.png", "sample_1.png"):
        (place / "out" / name).unlink()
    assert "--force" in refused(capsys, place, *DENOISE, "--samples", "1")
    restore(*DENOISE, "--samples", "1", "--force")
    assert {path.name for path in (place / "out").iterdir()} == {
        *("sample_1.png", "mean.png", "comparison.png", "result.json", "sample_of_mine.png")
    }


def test_batch_size_changes_nothing(place):
    """Would catch samples that depend on how many are drawn at once."""
    photo(12, 10)
    restore(*DENOISE, "--bits", "16")
    whole = read_image("out/sample_2.png")
    restore(*DENOISE, "--bits", "16", "--batch-size", "1", "--force")
    assert (read_image("out/sample_2.png") - whole).abs().max() < 1e-4


# Memory


def test_photo_too_large_for_memory(place, capsys, monkeypatch):
    """Would catch hours of work, then an out-of-memory kill; and advice that does not hold."""
    photo(96, 64)
    image, kept = 4 * 3 * 96 * 64, memory.kept_for_gradient(load("any.safetensors"))
    one = image * (memory.ROW_TENSORS + 6 + memory.WHOLE_TENSORS) + round(kept * 96 * 64)
    monkeypatch.setattr(memory, "available", lambda device: one)
    said = refused(capsys, place, *DENOISE)
    assert "96x64" in said
    assert "--batch-size 1" in said
    restore(*DENOISE, "--batch-size", "1")
    monkeypatch.setattr(memory, "available", lambda device: one // 4)
    said = refused(capsys, place, *DENOISE, "--samples", "1", "--force")
    size = re.search(r"--fit crop --size (\[\d+,\d+\])", said)
    assert size, said
    restore(*DENOISE, "--samples", "1", "--fit", "crop", "--size", size[1], "--force")
    height, width = read_image("out/mean.png").shape[1:]
    assert 96 * 64 / 8 < height * width <= 96 * 64 / 4


def test_advice_for_superres_is_in_pixels_of_the_photo(place, capsys, monkeypatch):
    """Would catch a photo refused again at the very size that was advised."""
    photo(24, 16)
    kept = memory.kept_for_gradient(load("any.safetensors"))
    room = memory.needed((3, 48, 32), kept=kept, tiled=True, rows=1, samples=1)
    monkeypatch.setattr(memory, "available", lambda device: room)
    words = ("--task", "superres", "--factor", "4", "--sigma", ".1", "--samples", "1")
    said = refused(capsys, place, *words)
    size = re.search(r"--size (\[\d+,\d+\])", said)
    assert size, said
    restore(*words, "--fit", "crop", "--size", size[1])


def test_photo_too_large_to_read(place, capsys, monkeypatch):
    """Would catch a photo decoded before anyone asked whether it fits; headers are enough."""
    Image.new("1", (9000, 3000)).save("photo.png")
    assert image_size("photo.png") == (3000, 9000)
    monkeypatch.setattr(memory, "available", lambda device: 10**8)
    monkeypatch.setattr("genprior.shell.restore.read_image", None)
    assert "3000x9000" in refused(capsys, place, *DENOISE)


def test_kept_for_gradient():
    """Would catch weights or shared storages counted: what one layer keeps is known."""

    class OneProduct(Diffusion):
        def denoise(self, x, sigma):
            return (2 * x).square()  # keeps its input alone

    prior = OneProduct(tiny_network(), (3, None, None))
    assert memory.kept_for_gradient(prior) == pytest.approx(3 * 4)
    network = Diffusion(tiny_network(), (3, None, None))
    assert memory.kept_for_gradient(network) == pytest.approx(
        memory.kept_for_gradient(network, 128), rel=0.02
    )


def test_memory_limit_of_a_container(tmp_path):
    """Would catch the machine's memory taken for the container's, or its file cache for used."""
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 250\n")
    assert memory._free_of_group(tmp_path) == 550
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._free_of_group(tmp_path) is None


# Tiles


def tiled(monkeypatch, pixels, tile):
    monkeypatch.setattr(tiles, "PIXELS", pixels)
    monkeypatch.setattr(tiles, "PIXELS_WITH_GRADIENT", pixels)
    monkeypatch.setitem(in_tiles.__kwdefaults__, "tile", tile)


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_solver_through_tiles(monkeypatch, missing):
    """Would catch seams in a whole restoration: VJPs that stop at a tile's edge, or a tile that
    is evaluated at another row's noise level."""
    prior = Diffusion(tiny_network().double(), (3, None, None), data_std=0.25)
    generator = torch.Generator().manual_seed(0)
    x = 0.5 + 0.2 * torch.randn(2, 3, 70, 90, generator=generator, dtype=torch.float64)
    operator = Identity((3, 70, 90))
    if missing:
        mask = torch.rand(1, 70, 90, generator=generator) > missing
        operator = Inpainting(mask, image_shape=(3, 70, 90))
    noise = GaussianNoise(torch.tensor([0.05, 0.2]))
    problem = Problem.simulate(x, operator, noise, generator=generator)

    def solved():
        return MMPS(steps=3)(problem, prior, generator=torch.Generator().manual_seed(1)).samples

    whole = solved()
    calls = []
    monkeypatch.setattr(
        "genprior.priors.diffusion.in_tiles", lambda *a, **k: calls.append(1) or in_tiles(*a, **k)
    )
    tiled(monkeypatch, 1000, 24)
    assert (solved() - whole).abs().max() < 1e-9
    assert calls, "nothing went in tiles"


def test_tiles_bound_memory(monkeypatch):
    """Would catch tiles whose layers are all kept for the gradient, as one piece's would be."""
    prior = Diffusion(tiny_network(), (3, None, None), data_std=0.25)
    whole = memory.kept_for_gradient(prior, 160)
    tiled(monkeypatch, 1000, 32)
    assert memory.kept_for_gradient(prior, 160) < whole / 4


# Sigma


def noisy(sigma, *, side=96, grey=False, seed=0):
    """A photo of waves and a fine weave, a third of it black, with noise cut off at [0, 1]."""
    t = torch.arange(side, dtype=torch.float64)
    waves = torch.sin(t / 9)[:, None] * torch.cos(t / 13)
    weave = 0.07 * torch.sin(t * 1.9)[:, None] * torch.sin(t * 2.3)
    x = torch.stack([0.5 + 0.25 * waves + weave * c for c in (1.0, 0.8, 0.6)])
    x[:, :, : side // 3] = 0.0
    x = x[:1] if grey else x
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    return (x + sigma * noise).clamp(0, 1).float()


@pytest.mark.parametrize("sigma", [5 / 255, 10 / 255, 25 / 255])
def test_sigma_auto_beside_texture_and_black(sigma):
    """Would catch texture taken for noise, and noise cut off at black taken for less of it:
    the finest details alone are at 1.6 times the least sigma here and at .85 of the largest."""
    assert estimated_noise(noisy(sigma)) == pytest.approx(sigma, rel=0.06)


def test_sigma_auto_leaves_holes_out():
    """Would catch black scratches taken for noise, or for its absence."""
    y = noisy(0.04)
    mask = torch.ones(1, 96, 96, dtype=torch.bool)
    mask[:, ::12] = False
    mask[:, :, 40:60:9] = False
    spoilt = torch.where(mask, y, 0.7)
    assert estimated_noise(spoilt, mask) == pytest.approx(0.04, rel=0.08)


def test_sigma_auto_of_a_grey_photo_in_three_channels():
    """Would catch two channels without noise of their own: an estimate of zero."""
    y = noisy(0.06, grey=True).expand(3, -1, -1)
    assert estimated_noise(y) == pytest.approx(0.06, rel=0.15)


def test_sigma_auto_after_jpeg(place):
    """Would catch an estimate near zero: compression takes the fine noise out of the colours."""
    y = noisy(0.06, side=128)
    write_image("photo.png", y)
    Image.open("photo.png").save("photo.jpg", quality=90)
    with pytest.warns(UserWarning, match="not white"):
        found = estimated_noise(read_image("photo.jpg"))
    assert 0.02 < found < 0.08
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimated_noise(y)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_sigma_auto_on_a_flat_photo(place, capsys, value):
    """Would catch sigma 0, or NaN, passed on in silence."""
    write_image("photo.png", torch.full((3, 40, 40), value))
    said = refused(capsys, place, "--task", "denoise", "--sigma", "auto")
    assert "no noise" in said


def test_kernel_is_normalised_and_said_once(place, capsys):
    """Would catch a correction in silence, or repeated for every use of the kernel."""
    photo(12, 12)
    np.save("kernel.npy", np.full((3, 3), 0.25))
    restore("--task", "deblur", "--kernel", "kernel.npy", "--sigma", "0.1", "--boundary", "valid")
    said = capsys.readouterr().err
    assert said.count("2.25") == 1
    assert read_image("out/mean.png").mean() == pytest.approx(0.5, abs=0.2)


# Precision


def test_precision_is_what_was_asked_for(place, monkeypatch):
    """Catches an option that is ignored, and bfloat16 on small photos, where it is slower."""
    photo(16, 16)
    monkeypatch.setattr("genprior.shell.solving.has_bfloat16", lambda device: True)
    means = {}
    for precision in ("fp32", "bf16", "auto"):
        report = restore(*DENOISE, "--precision", precision, "--force")
        assert report["precision"] == ("bf16" if precision == "bf16" else "fp32")
        means[precision] = read_image("out/mean.png")
    assert torch.equal(means["auto"], means["fp32"])
    assert (means["bf16"] - means["fp32"]).abs().max() < 0.02


def test_auto_takes_bfloat16_for_large_photos_where_there_are_units(place, monkeypatch):
    """Catches a default that leaves large photos slow, or uses bfloat16 emulated in software."""
    photo(128, 128)
    for units in (True, False):
        monkeypatch.setattr("genprior.shell.solving.has_bfloat16", lambda device, u=units: u)
        report = restore(*DENOISE, "--force")
        assert report["precision"] == ("bf16" if units else "fp32")


def test_bfloat16_for_a_prior_without_network(place, capsys):
    """Catches the option being dropped silently."""
    photo(SIDE, SIDE)
    status = run(*DENOISE, "--precision", "bf16", exact=True)
    assert status == 2
    assert "diffusion priors" in capsys.readouterr().err
