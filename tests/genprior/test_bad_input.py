"""Every wrong input gives one clear line, exit status 2, and leaves no file behind."""

import importlib.util
import io
import re

import numpy as np
import pytest
import torch
from photos import SIDE, make_place, smooth_gaussian
from PIL import Image

import genprior
from genprior import solvers
from genprior.cli import main
from genprior.data import write_image
from genprior.figures import inverse
from genprior.operators import (
    Blur,
    Downsampling,
    GaussianNoise,
    Identity,
    Inpainting,
    Matrix,
    Problem,
)
from genprior.training import devices


@pytest.fixture
def place(tmp_path):
    return make_place(tmp_path)


def everything(folder):
    """Every file under a folder with its content."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys, place, *words):
    """Run a command that must be refused; return what it says."""
    folder = place.photo.parent
    before = everything(folder)
    status = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert status == 2, captured
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("genprior: error: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert everything(folder) == before, "something was written"
    return captured.err


def restore(place, *words, photo=None, prior=None):
    start = ["restore", photo or place.photo, "--prior", prior or place.prior]
    return [*start, "--out", place.out, *words]


def inpaint(place):
    return ("--task", "inpaint", "--mask", place.mask)


DENOISE = ("--task", "denoise", "--sigma", "0.1")


# Masks


def test_mask_of_another_size(place, capsys):
    """Would catch a mask stretched to the photo."""
    Image.fromarray(np.full((9, 12), 255, np.uint8)).save(place.mask)
    said = refused(capsys, place, *restore(place, *inpaint(place)))
    assert "9x12" in said
    assert "16x16" in said


def test_mask_with_grey_levels(place, capsys):
    """Would catch the soft edge of a brush rounded one way or the other in silence."""
    mask = np.full((SIDE, SIDE), 255, np.uint8)
    mask[3, 4:8] = 128
    Image.fromarray(mask).save(place.mask)
    assert "grey" in refused(capsys, place, *restore(place, *inpaint(place)))


@pytest.mark.parametrize("invert", [False, True])
def test_mask_that_measures_nothing(place, capsys, invert):
    """Would catch samples of the prior sold as a restoration."""
    Image.fromarray(np.full((SIDE, SIDE), 255 if invert else 0, np.uint8)).save(place.mask)
    more = ["--invert-mask"] if invert else []
    said = refused(capsys, place, *restore(place, *inpaint(place), *more))
    assert re.search("all|nothing", said)
    with pytest.raises(ValueError, match="measures nothing"):
        Inpainting(torch.zeros(1, 4, 4, dtype=torch.bool))


# Photos


@pytest.mark.parametrize("size", [(8, 8), (16, 15), (32, 32), (1, 1)])
def test_photo_of_another_size(place, capsys, size):
    """Would catch a photo resized unasked."""
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(place.photo)
    said = refused(capsys, place, *restore(place, *DENOISE))
    assert f"{size[0]}x{size[1]}" in said
    assert "16x16" in said
    assert "--fit" in said
    if min(size) < SIDE:
        said = refused(capsys, place, *restore(place, *DENOISE, "--fit", "crop"))
        assert "--fit resize" in said


@pytest.mark.parametrize("kind", ["zero bytes", "text", "truncated", "missing"])
def test_unreadable_photo(place, capsys, kind):
    """Would catch a traceback of the image library, or half an image restored."""
    good = place.photo.read_bytes()
    content = {"zero bytes": b"", "text": b"no image\n" * 50, "truncated": good[: len(good) // 2]}
    if kind == "missing":
        place.photo.unlink()
    else:
        place.photo.write_bytes(content[kind])
    assert "photo.png" in refused(capsys, place, *restore(place, *DENOISE))


@pytest.mark.parametrize("kind", ["16-bit", "palette", "cmyk"])
def test_unusual_photos_are_converted(place, kind):
    """Would catch a refusal of what can be converted without doubt."""
    colour = Image.fromarray(np.full((SIDE, SIDE, 3), 128, np.uint8))
    if kind == "16-bit":
        write_image(place.photo, torch.full((3, SIDE, SIDE), 0.5), bits=16, force=True)
    elif kind == "palette":
        colour.convert("P").save(place.photo)
    else:
        colour.convert("CMYK").save(place.photo.with_suffix(".tif"))
    photo = place.photo.with_suffix(".tif" if kind == "cmyk" else ".png")
    assert main([str(w) for w in restore(place, *DENOISE, photo=photo)]) == 0


@pytest.mark.parametrize(
    ("fill", "says"), [(255.0, r"\[0, 1\]"), (1.2, r"to 1\.2"), (np.nan, "nan"), (-0.3, r"-0\.3")]
)
def test_photo_out_of_range(place, capsys, fill, says):
    """Would catch 0 ... 255 floats restored as if they were 0 ... 1."""
    photo = place.photo.with_suffix(".npy")
    array = np.full((SIDE, SIDE, 3), 0.5)
    array[2, 3] = fill
    np.save(photo, array)
    assert re.search(says, refused(capsys, place, *restore(place, *DENOISE, photo=photo)))


def test_rounding_outside_the_range_is_no_error(place):
    """Would catch a photo refused for the last bit of a conversion."""
    photo = place.photo.with_suffix(".npy")
    np.save(photo, np.full((SIDE, SIDE, 3), 1 + 1e-6))
    assert main([str(w) for w in restore(place, *DENOISE, photo=photo)]) == 0


def test_enormous_photo(place, capsys):
    """Would catch hours of work, or an out-of-memory kill, where a refusal was due."""
    buffer = io.BytesIO()
    Image.new("1", (20000, 10000)).save(buffer, "PNG")
    place.photo.write_bytes(buffer.getvalue())
    assert "photo.png" in refused(capsys, place, *restore(place, *DENOISE))


# y, sigma, operators, in Python


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_y_not_finite(value):
    """Would catch NaN spread over the whole restoration; unobserved entries may hold anything."""
    y = torch.full((2, 1, 4, 4), 0.5)
    y[1, 0, 2, 3] = value
    with pytest.raises(ValueError, match=r"NaN or infinite .*image\(s\) \[1\]"):
        Problem(y, Identity((1, 4, 4)), GaussianNoise(0.1))
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    mask[0, 2, 3] = False
    Problem(y, Inpainting(mask), GaussianNoise(0.1))


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf")])
def test_sigma_out_of_range(place, capsys, sigma):
    """Would catch a sign error squared away."""
    with pytest.raises(ValueError, match="sigma"):
        GaussianNoise(sigma)
    said = refused(capsys, place, *restore(place, "--task", "denoise", f"--sigma={sigma}"))
    assert str(sigma) in said


def test_sigma_of_another_batch_size():
    """Would catch a per-image sigma broadcast over the wrong axis."""
    with pytest.raises(ValueError, match=r"3.*2|2.*3"):
        Problem(torch.zeros(2, 1, 4, 4), Identity((1, 4, 4)), GaussianNoise(torch.ones(3)))


@pytest.mark.parametrize(
    "operator",
    [
        Identity((1, 4, 5)),
        Inpainting(torch.ones(3, 1, 4, 4, dtype=torch.bool)),
        Downsampling(2, (1, 4, 4)),
        Matrix(torch.ones(3, 16), (1, 4, 4)),
    ],
    ids=lambda operator: type(operator).__name__,
)
def test_y_that_does_not_fit(operator):
    """Would catch shapes that broadcast by accident."""
    with pytest.raises(ValueError, match=r"2, 1, 4, 4|2 measurements.*3"):
        Problem(torch.zeros(2, 1, 4, 4), operator, GaussianNoise(0.1))


@pytest.mark.parametrize("name", ["num_samples", "batch_size"])
def test_counts_that_no_memory_holds(name):
    """Would catch a slip of the finger in Python that only the shell refuses."""
    problem = Problem(torch.full((1, 1, 4, 4), 0.5), Identity((1, 4, 4)), GaussianNoise(0.1))
    with pytest.raises(ValueError, match=rf"{name} must be at most 10+, not 1000000000"):
        genprior.solve(problem, smooth_gaussian(1), **{name: 10**9})


def test_prior_of_another_size_or_channel_count(place, capsys):
    """Would catch a grey photo given to a colour prior, in Python and in the shell."""
    prior = smooth_gaussian()
    for shape in ((1, SIDE, SIDE), (3, 8, 8)):
        problem = Problem(torch.full((1, *shape), 0.5), Identity(shape), GaussianNoise(0.1))
        with pytest.raises(ValueError, match=re.escape(str(shape))):
            genprior.solve(problem, prior)
    grey = place.prior.with_name("grey.safetensors")
    smooth_gaussian(1).save(grey)
    said = refused(capsys, place, *restore(place, *DENOISE, prior=grey))
    assert "3 channel" in said
    assert "--channels 1" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--task", "deblur", "--kernel", "uniform:99", "--sigma", "0.1"), "99"),
        (("--task", "deblur", "--kernel", "gausian:2", "--sigma", "0.1"), "gaussian"),
        (("--task", "deblur", "--kernel", "gaussian:x", "--sigma", "0.1"), "gaussian:x"),
        (("--task", "superres", "--factor", "3", "--sigma", "0.1", "--simulate"), "16x16"),
        (("--task", "superres", "--factor", "0", "--sigma", "0.1"), "at least 1"),
        (("--task", "inpaint"), "--mask"),
        (("--task", "denoise", "--mask", "box:3", "--sigma", "0.1"), "--task inpaint"),
        (("--task", "inpaint", "--mask", "box:99"), "99"),
        (("--task", "denoise", "--sigma", "auto"), "no noise"),
        (("--task", "denoise"), "--sigma"),
        (("--task", "denoize", "--sigma", "0.1"), "denoise"),
        ((*DENOISE, "--samples", "0"), "--samples"),
        ((*DENOISE, "--smaples", "2"), "--smaples"),
        ((*DENOISE, "--solver", "exactposterio"), "ExactPosterior"),
        ((*DENOISE, "--steps", "9"), "--steps"),
        ((*DENOISE, "--device", "cuda" if not torch.cuda.is_available() else "mps"), "--device"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else "",
)
def test_options(place, capsys, words, says):
    """Would catch an option ignored, or an error that does not name it."""
    Image.fromarray(np.full((SIDE, SIDE, 3), 128, np.uint8)).save(place.photo)
    assert says in refused(capsys, place, *restore(place, *words))


def test_kernel_that_does_not_sum_to_one(place, capsys):
    """Would catch a photo restored twice as bright, and a correction made in silence."""
    kernel = place.photo.with_name("kernel.npy")
    np.save(kernel, np.full((3, 3), 0.25))
    words = ("--task", "deblur", "--kernel", kernel, "--sigma", "0.1", "--boundary", "circular")
    words = restore(place, *words)
    assert main([str(word) for word in words]) == 0
    assert re.search(r"warning: .*2\.25", capsys.readouterr().err)


def test_kernel_larger_than_the_image():
    """Would catch a kernel that wraps around onto itself."""
    with pytest.raises(ValueError, match="9"):
        Blur(torch.ones(9, 9) / 81, (1, 8, 8))


# Weights


@pytest.mark.parametrize("kind", ["truncated", "altered", "text"])
def test_damaged_weights(place, capsys, kind):
    """Would catch a restoration with weights that are not those that were trained."""
    content = bytearray(place.prior.read_bytes())
    if kind == "truncated":
        content = content[:-100]
    elif kind == "altered":
        content[-7] ^= 1
    else:
        content = bytearray(b"not weights")
    place.prior.write_bytes(content)
    assert "waves.safetensors" in refused(capsys, place, *restore(place, *DENOISE))


def test_unknown_prior(place, capsys, monkeypatch):
    """Would catch a typing error answered by a stack of file errors."""
    from genprior.pretrained import loader

    monkeypatch.setattr(loader, "available", lambda: ["cats64-gaussian", "mnist-gaussian"])
    said = refused(capsys, place, *restore(place, *DENOISE, prior="cats64-gausian"))
    assert "cats64-gaussian" in said


def test_options_of_other_priors(place, capsys):
    """Would catch samples that an option was to change, drawn as if it had not been given."""
    new = ("--out", place.photo.parent / "new.png")
    for option, whose in (("--temperature", "flows"), ("--truncation", "GANs")):
        said = refused(capsys, place, "sample", place.prior, option, "0.5", *new)
        assert f"{option} is for {whose}" in said
        assert "is a Gaussian" in said


# Output


def test_output_that_exists(place, capsys, tmp_path):
    """Would catch results overwritten, by any of the commands that write."""
    place.out.mkdir()
    (place.out / "mean.png").write_bytes(b"precious")
    assert "--force" in refused(capsys, place, *restore(place, *DENOISE))
    assert "--force" in refused(capsys, place, "sample", place.prior, "--out", place.photo)
    words = ("--prior", place.prior, *DENOISE, "--out", place.photo)
    assert "--force" in refused(capsys, place, "evaluate", "--data", tmp_path, *words)
    words = ("train", "gaussian", "--data", tmp_path, "--rank", "1", "--out", place.prior)
    assert "--force" in refused(capsys, place, *words)
    assert main([str(w) for w in restore(place, *DENOISE, "--force")]) == 0


# Data sets


@pytest.mark.parametrize("command", ["evaluate", "train gaussian"])
def test_folder_without_images(place, capsys, command):
    """Would catch a division by zero images."""
    empty = place.photo.parent / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("none here")
    words = [*command.split(), "--data", empty, "--out", place.out / "new"]
    if command == "evaluate":
        words += ["--prior", place.prior, *DENOISE]
    assert "holds no images" in refused(capsys, place, *words)


def test_one_unreadable_image(place, capsys):
    """Would catch an unnamed culprit, and --skip-bad that skips without a word."""
    folder = place.photo.parent / "many"
    folder.mkdir()
    for i in range(12):
        write_image(folder / f"{i:02d}.png", torch.full((3, SIDE, SIDE), 0.05 * i))
    (folder / "07.png").write_bytes((folder / "07.png").read_bytes()[:40])
    words = ["evaluate", "--data", folder, "--prior", place.prior, *DENOISE]
    words += ["--out", folder.parent / "scores.csv"]
    assert "07.png" in refused(capsys, place, *words)
    assert main([str(w) for w in (*words, "--skip-bad")]) == 0
    captured = capsys.readouterr()
    assert re.search(r"warning: 1 images left out:\s+.*07\.png", captured.err)
    assert "11 images" in captured.out


def test_image_smaller_than_asked(place, capsys):
    """Would catch training images blown up unasked."""
    folder = place.photo.parent / "small"
    folder.mkdir()
    write_image(folder / "tiny.png", torch.rand((3, 5, 5), generator=torch.Generator()))
    words = ["train", "gaussian", "--data", folder, "--size", "8", "--out", place.out / "new"]
    said = refused(capsys, place, *words)
    assert "tiny.png has 5x5" in said
    assert "--upscale" in said


# Memory


def test_too_little_memory(place, capsys, monkeypatch):
    """Would catch an allocator's message that leaves the user without a way out."""

    def fail(self, chunk, prior):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B")

    monkeypatch.setattr(solvers.ExactPosterior, "_solve", fail)
    said = refused(capsys, place, *restore(place, *DENOISE, "--samples", "8"))
    assert re.search(r"batch[_-]size", said)


def test_unknown_command(place, capsys):
    """Would catch a bare usage text."""
    assert "did you mean restore" in refused(capsys, place, "restor")
    assert "train gaussian" in refused(capsys, place, "train")


# Extras


def test_extras_that_are_not_installed(place, capsys, monkeypatch):
    """Would catch a traceback of imports, or work that ends in one."""
    missing = ("tensorboard", "sklearn")
    find = importlib.util.find_spec
    for module in (devices, inverse):
        monkeypatch.setattr(module, "find_spec", lambda n: None if n in missing else find(n))
    folder = place.photo.parent
    words = ("--data", folder, "--channels", "3", "--latent-size", "2", "--tensorboard")
    said = refused(capsys, place, "train", "autoencoder", *words, "--out", place.out)
    assert "pip install genprior[tensorboard]" in said
    said = refused(capsys, place, "figure", "csgm", "--data", folder, "--out", place.out)
    assert "pip install genprior[figures]" in said


@pytest.mark.parametrize("network", ["{widths: [8], blocks: [1000000000]}", "{widths: [0]}"])
def test_network_that_cannot_be(place, capsys, network):
    """Would catch memory filled, layer by layer, by a slip of the finger."""
    words = ("train", "diffusion", "--data", place.photo.parent, "--channels", "3")
    said = refused(capsys, place, *words, "--out", place.out, "--network", network)
    assert "blocks" in said or "widths" in said
