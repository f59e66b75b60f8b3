"""Photos as a camera takes them: borders, grey, noise of unknown strength, holes in large ones."""

import hashlib
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import DENOISE, SIDE, photo, refused, restore, run, smooth_gaussian, tiny_network
from PIL import Image
from tools import identical

from genprior.cli import main
from genprior.data import read_image, write_image
from genprior.operators import Blur, GaussianNoise, PoissonNoise, Problem
from genprior.pretrained import load
from genprior.priors import Diffusion, Gaussian
from genprior.restoration.degradation import Degradation
from genprior.restoration.kernel_estimate import candidates, exact_evidence, find_kernel
from genprior.restoration.posing import pose
from genprior.restoration.settings import Solving
from genprior.restoration.windows import windows_round_holes

INPAINT = ("--task", "inpaint", "--mask", "mask.png")


def paint(height, width, *holes):
    """Write a mask with boxes (rows, columns) missing."""
    mask = np.full((height, width), 255, np.uint8)
    for hole in holes:
        mask[hole] = 0
    Image.fromarray(mask).save("mask.png")
    return torch.from_numpy(mask == 0)


# Borders


def test_camera_blur_is_solved_beyond_the_borders_and_cut_back(photo_place):
    """Would catch wrap-around taken for a camera's, a result larger than the photo, or one cut at
    the wrong place: a kernel that is one off-centre pixel leaves the photo as it is."""
    kernel = np.zeros((4, 5))
    kernel[2, 2] = 1
    np.save("kernel.npy", kernel)
    drawn = load("exact.safetensors").sample(1, generator=torch.Generator().manual_seed(3))[0]
    given = drawn[:, : SIDE - 3, : SIDE - 4]
    write_image("photo.png", given, bits=16)
    words = ("--task", "deblur", "--kernel", "kernel.npy", "--sigma", "1e-3", "--bits", "16")
    report = restore(*words, exact=True)
    assert report["boundary"] == "valid"
    for name in ("mean", "sample_1"):
        assert (read_image(f"out/{name}.png") - given).abs().max() < 0.01
    assert report["residual_in_sigma"] == pytest.approx(1, abs=0.35)
    picture = read_image("out/comparison.png")
    assert picture.shape[1] < picture.shape[2]


def test_a_kernel_file_shows_one_bright_pixel(photo_place):
    """Would catch a kernel that is correlated with, or read upside down: a photo of one bright
    pixel is blurred into the kernel file's own picture."""
    kernel = torch.zeros(5, 5)
    kernel[0, 1:4], kernel[1:4, 3] = 0.5, 0.25
    write_image("kernel.png", kernel, bits=16)
    x = torch.zeros(3, 15, 15)
    x[:, 7, 7] = 1
    write_image("photo.png", x, bits=16)
    words = ("--task", "deblur", "--kernel", "kernel.png", "--sigma", "0", "--bits", "16")
    restore(*words, "--simulate")
    seen = read_image("out/measurement.png")[0, 5:10, 5:10]
    assert (seen - kernel / kernel.sum()).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["gaussian:1.5", "disk:2", "motion:5,45"])
def test_kernel_of_the_exact_evidence(name):
    """Would catch evidence without its determinant, or of the wrong kernel: over many draws of
    the prior the kernel that blurred them has the most, in sum."""
    prior = smooth_gaussian()
    prior = Gaussian(prior.mean, prior.factors, residual=0.1)
    totals = {}
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x = prior.sample(1, generator=generator)
        operator = Blur(candidates()[name], (3, SIDE, SIDE))
        y = Problem.simulate(x, operator, GaussianNoise(0.005), generator=generator).y[0]
        for other, nats in exact_evidence(y, prior, 0.005).items():
            totals[other] = totals.get(other, 0.0) + nats
    assert max(totals, key=totals.get) == name


@pytest.mark.parametrize("name", ["gaussian:2", "disk:3", "motion:9,30"])
def test_kernel_of_a_photo_is_estimated(photo_place, capsys, name):
    """Would catch a spectrum read without the noise or the fading, and a curve that is lost: for
    an image with the spectrum of photos the estimate is the kernel itself."""
    frequency = torch.hypot(torch.fft.fftfreq(160)[:, None], torch.fft.rfftfreq(160))
    white = torch.randn(160, 160, generator=torch.Generator().manual_seed(1))
    waves = torch.fft.irfft2(torch.fft.rfft2(white) / frequency.clamp(min=1 / 160) ** 1.1)
    x = (0.5 + 0.1 * waves / waves.std()).expand(1, 3, -1, -1)
    operator = Blur(candidates()[name], (3, 160, 160), boundary="valid")
    noise = GaussianNoise(0.005)
    generator = torch.Generator().manual_seed(2)
    y = Problem.simulate(x, operator, noise, generator=generator).y[0]
    found, _, exact = find_kernel(y, smooth_gaussian(), 0.005, circular=False)
    assert found == name
    assert not exact
    write_image("photo.png", y[:, 50:90, 50:90], bits=16)
    report = restore("--task", "deblur", "--kernel", "auto", "--sigma", "0.005")
    assert report["kernel"] == max(report["kernel_evidence"], key=report["kernel_evidence"].get)
    assert "an estimate" in capsys.readouterr().out
    words = ("--task", "deblur", "--kernel", "auto", "--sigma", ".1", "--simulate", "--force")
    assert "--simulate" in refused(capsys, photo_place, *words)


def test_a_photo_that_no_kernel_fits_is_refused_before_the_search(
    photo_place, capsys, monkeypatch
):
    """Would catch a search that ends in its size or its colours refused, and a size refused that
    some kernel serves."""

    class Searched(Exception):
        pass

    def search(*arguments, **keywords):
        raise Searched

    def said(*more):
        assert (
            run("--task", "deblur", "--kernel", "auto", "--sigma", ".01", *more, exact=True) == 2
        )
        return capsys.readouterr().err

    monkeypatch.setattr("genprior.restoration.restored.find_kernel", search)
    assert run("--task", "deblur", "--sigma", ".01", exact=True) == 2
    assert "--kernel; auto finds one" in capsys.readouterr().err
    photo(SIDE, SIDE)
    assert f"must be {SIDE - 4}x{SIDE - 4}" in said()
    photo(1, 9)
    assert "too small" in said("--fit", "crop")
    photo(SIDE - 2, SIDE - 2)
    assert "must be" in said("--boundary", "circular")
    for side, boundary in ((SIDE - 2, "valid"), (SIDE, "circular")):
        photo(side, side)
        with pytest.raises(Searched):
            said("--boundary", boundary)


@pytest.mark.parametrize(
    ("words", "boundary"),
    [((), "valid"), (("--simulate",), "circular"), (("--boundary", "circular"), "circular")],
)
def test_boundary_is_a_cameras_unless_simulated(photo_place, words, boundary):
    """Would catch a simulation changed along with the camera, or an option overruled."""
    photo(20, 24)
    report = restore("--task", "deblur", "--kernel", "disk:2", "--sigma", ".05", *words)
    assert report["boundary"] == boundary
    assert report["size"] == [20, 24]
    assert read_image("out/mean.png").shape == (3, 20, 24)


def test_fixed_size_and_camera_blur_says_what_happens(photo_place, capsys):
    """Would catch a size asked for that nobody can derive from prior and photo."""
    photo(SIDE, SIDE)
    assert run("--task", "deblur", "--kernel", "disk:1", "--sigma", ".1", exact=True) == 2
    said = capsys.readouterr().err
    assert "14x14" in said
    assert "--boundary circular" in said


# Masks


@pytest.mark.parametrize(("mask", "missing"), [("box:10", 100), ("random:0.8", 205)])
@pytest.mark.parametrize("fit", ["resize", "crop"])
def test_drawn_masks_are_drawn_at_the_size_worked_on(photo_place, capsys, mask, missing, fit):
    """Would catch a box drawn on the large photo and shrunk with it, or pixels all merged."""
    photo(64, 48)
    restore("--task", "inpaint", "--mask", mask, "--fit", fit, "--sigma", ".1", exact=True)
    assert f"measured  {1 - missing / SIDE**2:.1%}" in capsys.readouterr().out


def test_a_mask_that_looks_inverted(photo_place, capsys):
    """Would catch a white hole restored from itself in silence, and a warning where most is
    missing for good reasons: scattered pixels, or lines."""
    photo(48, 48)
    paint(48, 48)
    mask = np.zeros((48, 48), np.uint8)
    mask[20:28, 20:30] = 255
    scattered = np.random.default_rng(0).random((48, 48)) > 0.8
    lines = np.zeros((48, 48), bool)
    lines[::4] = True
    for kind, warns in ((mask > 0, True), (scattered, False), (lines, False), (mask == 0, False)):
        Image.fromarray((255 * kind).astype(np.uint8)).save("mask.png")
        restore(*INPAINT, "--sigma", ".1", "--force")
        assert capsys.readouterr().err.count("--invert-mask") == warns
    photo(SIDE, SIDE)  # on which nothing lies far from the hole
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[4:10, 5:11] = 255
    Image.fromarray(mask).save("mask.png")
    restore(*INPAINT, "--sigma", ".1", "--force")
    assert "--invert-mask" in capsys.readouterr().err


# Noise


@pytest.mark.parametrize("command", ["restore", "evaluate"])
@pytest.mark.parametrize("sigma", ["25", "256", "1e30", "1.01", "300/255"])
def test_sigma_in_grey_levels(photo_place, capsys, command, sigma):
    """Would catch 25 grey levels taken for 25 times the range from black to white."""
    photo(8, 8)
    words = ["--task", "denoise", "--sigma", sigma, "--prior", "any.safetensors"]
    source = ["photo.png"] if command == "restore" else ["--data", "."]
    assert main([command, *source, *words, "--out", "new"]) == 2
    assert "25/255" in capsys.readouterr().err


@pytest.mark.parametrize("sigma", ["25/", "/255", "25/0", "25/255/2", "a/b", "nan"])
def test_malformed_fractions(photo_place, capsys, sigma):
    """Would catch half a fraction read as a number."""
    photo(8, 8)
    said = refused(capsys, photo_place, "--task", "denoise", "--sigma", sigma)
    assert "a fraction as 25/255" in said


def test_sigma_of_a_photo_is_estimated(photo_place, capsys):
    """Would catch a fixed sigma for photos that show theirs, and an estimate where there is
    nothing to see: a flat photo, inpainted, takes the usual one and says so."""
    x = torch.full((3, 64, 64), 0.5)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    write_image("photo.png", x + 0.05 * noise, bits=16)
    paint(64, 64, np.s_[30:36, 20:28])
    report = restore(*INPAINT)
    assert report["sigma"] == pytest.approx(0.05, rel=0.1)
    assert report["noise_from"] == "estimated from the photo"
    write_image("photo.png", x, bits=16, force=True)
    report = restore(*INPAINT, "--force")
    assert report["sigma"] == 0.01
    assert "does not show" in report["noise_from"]
    assert "does not show" in capsys.readouterr().out


def test_photon_noise(photo_place, capsys):
    """Would catch a peak that is read and forgotten, or taken for a sigma."""
    prior = load("exact.safetensors")
    x = torch.full((3, SIDE, SIDE), 0.5)
    degradation = Degradation(task="denoise", peak=40.0).settled(simulate=True)
    solving = Solving(prior="exact.safetensors")
    posed = pose(x, degradation, prior, solving=solving, simulate=True, fit=None)
    assert isinstance(posed.measured.noise, PoissonNoise)
    counts = posed.measured.y * 40
    assert (counts - counts.round()).abs().max() < 1e-4
    photo(8, 8)
    report = restore("--task", "denoise", "--peak", "40")
    assert report["peak"] == 40
    assert report["sigma"] is None
    said = refused(capsys, photo_place, *DENOISE, "--peak", "40", "--force")
    assert "--sigma" in said
    assert "at least" in refused(capsys, photo_place, "--task", "denoise", "--peak", "0")


# Grey photos


@pytest.mark.parametrize("peak", [None, 50.0])
def test_a_grey_photo_is_one_measurement(photo_place, peak):
    """Would catch one draw of noise counted three times: of grey images the posed likelihood says
    what the grey measurement says."""
    g = photo(SIDE, SIDE, channels=1)
    sigma = None if peak else "0.1"
    degradation = Degradation(task="denoise", sigma=sigma, peak=peak).settled(simulate=False)
    solving = Solving(prior="exact.safetensors")
    prior = load("exact.safetensors")
    posed = pose(g, degradation, prior, solving=solving, simulate=False, fit=None)
    one, other = g[None], (0.8 * g + 0.1)[None]
    grey = posed.measured.log_likelihood(one) - posed.measured.log_likelihood(other)
    three = [posed.problem.log_likelihood(x.expand(-1, 3, -1, -1)) for x in (one, other)]
    assert torch.allclose(three[0] - three[1], grey, rtol=1e-4)


@pytest.mark.parametrize("simulate", [True, False])
def test_grey_photos_come_back_grey(photo_place, simulate):
    """Would catch coloured speckle, a file turned RGB, or a refusal; and noise simulated in
    colour on a grey photo."""
    x = photo(24, 24, channels=1)
    words = ("--simulate",) if simulate else ()
    report = restore(*DENOISE, *words)
    assert report["grey"]
    for name in ("mean", "sample_2", "std"):
        assert read_image(f"out/{name}.png").shape == (1, 24, 24)
    mean = read_image("out/mean.png")
    write_image("photo.png", x.repeat(3, 1, 1), bits=16, force=True)
    restore(*DENOISE, *words, "--force")
    again = read_image("out/mean.png")
    assert again.shape == (3, 24, 24)
    assert (again - mean).abs().max() < 1.5 / 255


# Kept pixels, and windows


def test_measured_pixels_come_back_as_they_were(photo_place):
    """Would catch undamaged pixels changed by the noise that a photo is said to have."""
    photo(SIDE, SIDE)
    given, hole = read_image("photo.png"), paint(SIDE, SIDE, np.s_[4:9, 5:11])
    report = restore(*INPAINT, "--sigma", "0.05", "--bits", "16", exact=True)
    kept = {name: read_image(f"out/{name}.png") for name in ("mean", "sample_1", "std")}
    assert report["kept"]
    for name in ("mean", "sample_1"):
        assert (kept[name] - given)[:, ~hole].abs().max() < 1e-4
    assert kept["std"][:, ~hole].max() == 0
    words = ("--sigma", "0.05", "--bits", "16", "--keep", "false", "--force")
    assert not restore(*INPAINT, *words, exact=True)["kept"]
    free = read_image("out/mean.png")
    assert (free - given)[:, ~hole].abs().max() > 0.005
    assert (free - kept["mean"])[:, hole].abs().max() < 1e-4
    assert not restore(*INPAINT, "--simulate", "--force", exact=True)["kept"]
    assert restore(*INPAINT, "--simulate", "--keep", "--force", exact=True)["kept"]


def test_keep_is_for_inpainting(photo_place, capsys):
    """Would catch an option that is read and forgotten."""
    photo(8, 8)
    assert "--keep is for --task inpaint" in refused(capsys, photo_place, *DENOISE, "--keep")


def test_windows_hold_the_holes_and_what_they_depend_on():
    """Would catch a hole cut in two, a margin forgotten, or pixels that two windows restore."""
    prior = Diffusion(tiny_network(), (3, None, None))
    margin = prior.network.reach / 3
    mask = torch.ones(1, 1, 301, 403, dtype=torch.bool)
    mask[..., 40:44, 50:90] = False
    mask[..., 60:63, 95:99] = False  # its window overlaps the one above
    mask[..., 280:301, 390:403] = False
    windows = windows_round_holes(mask, prior)
    assert windows is not None
    assert len(windows) == 2
    times = torch.zeros(301, 403)
    for window in windows:
        times[window] += 1
    assert times.max() == 1
    for row, column in (~mask[0, 0]).nonzero()[::17].tolist():
        rows, columns = (slice(max(0, int(n - margin)), int(n + margin)) for n in (row, column))
        assert times[rows, columns].min() == 1
    scattered = torch.rand(1, 1, 96, 96, generator=torch.Generator().manual_seed(0)) > 0.5
    assert windows_round_holes(scattered, prior) is None
    assert windows_round_holes(mask, smooth_gaussian()) is None


def test_a_thick_hole_is_seen_with_more_around_it():
    """Would catch a hole as thick as the network's reach, solved with a rim of a third of it."""
    prior = Diffusion(tiny_network(), (3, None, None))
    reach, cell = prior.network.reach, prior.network.multiple
    mask = torch.ones(1, 1, 40 * reach, 40 * reach, dtype=torch.bool)
    middle = 20 * reach
    for thick, margin in ((1, reach / 3), (2 * reach, reach)):
        mask[..., middle : middle + thick, middle - 2 * reach : middle + 2 * reach] = False
        windows = windows_round_holes(mask, prior)
        assert windows is not None
        ((rows, _),) = windows
        assert middle - rows.start >= margin
        assert middle - rows.start <= margin + 2 * cell


def test_a_window_is_a_cropped_photo(photo_place):
    """Would catch a window pasted at the wrong place, solved with another mask or noise, or a
    residual diluted by all that was never touched."""
    photo(300, 420)
    given = read_image("photo.png")
    hole = paint(300, 420, np.s_[200:204, 300:330])
    report = restore(*INPAINT, "--sigma", ".05", "--bits", "16")
    assert len(report["windows"]) == 1
    top, bottom, left, right = report["windows"][0]
    assert (bottom - top) * (right - left) < 300 * 420 / 8
    whole = read_image("out/sample_2.png")
    assert (whole - given)[:, ~hole].abs().max() < 1e-4
    Image.open("mask.png").crop((left, top, right, bottom)).save("mask.png")
    write_image("photo.png", given[:, top:bottom, left:right], bits=16, force=True)
    alone = restore(*INPAINT, "--sigma", ".05", "--bits", "16", "--force")
    assert alone["windows"] is None or len(alone["windows"]) == 1
    cut = whole[:, top:bottom, left:right]
    assert (read_image("out/sample_2.png") - cut).abs().max() < 1e-3
    assert alone["residual_in_sigma"] == pytest.approx(report["residual_in_sigma"], rel=1e-2)


# What is written, and what can be repeated


def test_result_holds_what_repeats_it(photo_place):
    """Would catch a report from which nobody could say which photo, mask and weights it was."""
    photo(20, 20)
    paint(20, 20, np.s_[4:9, 5:11])
    report = restore(*INPAINT, "--seed", "5", "--keep", "false")
    for name, file in (("photo", "photo.png"), ("mask", "mask.png")):
        assert report[f"{name}_sha256"] == hashlib.sha256(Path(file).read_bytes()).hexdigest()
    assert len(report["weights_sha256"]) == 64
    assert report["size"] == [20, 20]
    first = read_image("out/sample_1.png")
    words = shlex.split(report["command"])
    assert words[:3] == ["genprior", "restore", "photo.png"]
    assert main([*words[1:], "--force"]) == 0
    assert identical(read_image("out/sample_1.png"), first)
    again = json.loads(Path("out/result.json").read_text())
    assert again["kept"] is False


def test_simulation_writes_its_measurement(photo_place):
    """Would catch a truth and a restoration without what lay between; values that a PNG cannot
    hold are in an array."""
    x = photo(20, 20) * 0 + torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1)
    write_image("photo.png", x, bits=16, force=True)
    restore("--task", "denoise", "--sigma", ".1", "--simulate")
    y = torch.from_numpy(np.load("out/measurement.npy"))
    assert y.min() < 0
    assert (y - x).std() == pytest.approx(0.1, rel=0.1)
    assert (read_image("out/measurement.png") - y.clamp(0, 1)).abs().max() < 0.51 / 255
    restore("--task", "superres", "--factor", "2", "--sigma", "0", "--simulate", "--force")
    assert not Path("out/measurement.npy").exists(), "of another run"
    assert read_image("out/measurement.png").shape == (3, 10, 10)
    restore(*DENOISE, "--force")
    assert not Path("out/measurement.png").exists(), "of another run"


def test_a_measurement_of_the_users_own_is_safe(photo_place, capsys):
    """Would catch a file removed unasked, because another run might have left it."""
    photo(8, 8)
    Path("out").mkdir()
    Path("out/measurement.png").write_bytes(b"precious")
    assert "--force" in refused(capsys, photo_place, *DENOISE)
    assert Path("out/measurement.png").read_bytes() == b"precious"


def test_what_is_no_regular_file_is_not_replaced(photo_place, capsys):
    """Would catch a device or a folder replaced by a picture, with --force or without."""
    photo(8, 8)
    Path("out/mean.png").mkdir(parents=True)
    assert "folder" in refused(capsys, photo_place, *DENOISE, "--force")
    for out in ("/dev/null", "photo.png/grid.png"):
        words = ["sample", "exact.safetensors", "--out", out, "--force"]
        assert main(words) == 2
        assert "regular file" in (said := capsys.readouterr().err) or "not a folder" in said
    words = ["evaluate", "--data", ".", "--prior", "exact.safetensors", *DENOISE, "--force"]
    assert main([*words, "--out", "/dev/null"]) == 2
    assert Path("/dev/null").is_char_device()


def test_default_prior_is_said(photo_place, capsys):
    """Would catch a prior chosen in silence."""
    photo(16, 16)
    words = ["restore", "photo.png", *DENOISE, "--samples", "1", "--steps", "2", "--out", "out"]
    assert main(words) == 0
    assert "photos-diffusion (the default)" in capsys.readouterr().out


def test_grey_noise_of_a_simulation(photo_place):
    """Would catch three draws of noise on a photo that has one channel's."""
    x = torch.full((1, 32, 32), 0.5)
    degradation = Degradation(task="denoise", sigma="0.1").settled(simulate=True)
    solving, prior = Solving(prior="any.safetensors"), load("any.safetensors")
    posed = pose(x, degradation, prior, solving=solving, simulate=True, fit=None)
    assert posed.measured.y.shape == (1, 1, 32, 32)
    assert isinstance(posed.problem.noise, GaussianNoise)
    assert posed.problem.noise.sigma == pytest.approx(0.1 * 3**0.5)
    assert (posed.problem.y == posed.measured.y).all()
