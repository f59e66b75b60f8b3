"""Pictures, read back: what is drawn where, and in which grey levels."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tools import seeded

from genprior import plots
from genprior.data import read_image
from genprior.operators import (
    CompressedSensing,
    Downsampling,
    GaussianNoise,
    Identity,
    Inpainting,
    Problem,
    masks,
)
from genprior.priors import Gaussian
from genprior.solvers import Result


def result(shape, samples=4, *, seed=0):
    """A Result of random images (B, C, H, W)."""
    drawn = torch.rand((shape[0], samples, *shape[1:]), generator=seeded(seed))
    return Result(
        samples=drawn,
        mean=drawn.mean(1),
        std=drawn.std(1) if samples > 1 else None,
        point_estimate=samples == 1,
        converged=torch.ones(shape[0], dtype=torch.bool),
        forwards=0.0,
        vjps=0.0,
        seconds=0.0,
    )


def test_figures_show_themselves():
    """Catches figures that a notebook shows as words, unless a magic word was said before."""
    problem = Problem(torch.zeros(1, 1, 8, 8), Identity((1, 8, 8)), GaussianNoise(0.1))
    picture = plots.show(result((1, 1, 8, 8)), problem)
    assert picture._repr_png_().startswith(b"\x89PNG")


def test_one_line_says_what_it_is():
    """Catches a result or a prior printed as pages of numbers, and one that says no sizes."""
    noise = GaussianNoise(torch.tensor([0.1, 0.2]))
    problem = Problem(torch.zeros(2, 1, 8, 8), Identity((1, 8, 8)), noise)
    prior = Gaussian(torch.zeros(1, 8, 8), torch.zeros(2, 1, 8, 8))
    for thing, says in (
        (result((2, 1, 8, 8)), "2 x 4 samples of (1, 8, 8)"),
        (problem, "Identity (B, 1, 8, 8) -> (2, 1, 8, 8), GaussianNoise(sigma=2 values)"),
        (prior, "Gaussian(1 x 8 x 8"),
    ):
        assert says in repr(thing)
        assert "\n" not in repr(thing)


def test_large_images_are_averaged_to_be_drawn(tmp_path):
    """Catches panels of twelve million pixels each, or every fourth pixel shown instead."""
    stripes = (torch.arange(4100) % 2).float().expand(1, 1, 8, 4100)
    drawn = result((1, 1, 8, 4100))
    drawn = replace(drawn, mean=stripes)
    problem = Problem(stripes, Identity((1, 8, 4100)), GaussianNoise(0.1))
    mean = shown(plots.show(drawn, problem))["posterior mean"]
    assert mean.shape[:2] == (2, 1025)
    assert abs(mean - 0.5).max() < 1e-6


def shown(figure, row=0):
    """The titles of the first row and the arrays drawn in a row, by title."""
    panels = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    titles = [axis.get_title() for axis in panels if axis.get_title()]
    line = panels[row * len(titles) : (row + 1) * len(titles)]
    return {
        t: np.asarray(axis.images[0].get_array())
        for t, axis in zip(titles, line, strict=True)
        if axis.images
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_show_draws_what_it_says(channels, tmp_path):
    """Would catch panels exchanged, rows mixed up, grey stretched to its own range, and global
    plotting state."""
    shape = (2, channels, 16, 12)
    x = torch.rand(shape, generator=seeded(1)) * 0.5
    mask = masks.random((16, 12), missing=0.5, generator=seeded())
    problem = Problem.simulate(x, Inpainting(mask), GaussianNoise(0.1), generator=seeded(2))
    found = result(shape)
    figure = plots.show(found, problem, x, path=tmp_path / "a.png")
    titles = ["truth", "measurement", "posterior mean", "spread"]
    titles += [f"sample {i}" for i in range(1, 5)]
    for row in (0, 1):
        drawn = shown(figure, row)
        assert list(drawn) == titles

        def as_drawn(image):
            image = image.clamp(0, 1)
            return image[0].numpy() if channels == 1 else image.permute(1, 2, 0).numpy()

        np.testing.assert_allclose(drawn["truth"], as_drawn(x[row]))
        np.testing.assert_allclose(drawn["posterior mean"], as_drawn(found.mean[row]))
        np.testing.assert_allclose(drawn["sample 3"], as_drawn(found.samples[row, 2]))
        spread = found.std[row].square().mean(0).sqrt()
        np.testing.assert_allclose(drawn["spread"], spread, rtol=1e-6)
        missing = ~mask[0].numpy()
        np.testing.assert_allclose(
            drawn["measurement"][missing], np.tile(plots.MISSING, (missing.sum(), 1)), rtol=1e-6
        )
        seen = problem.y[row].clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(drawn["measurement"][~missing], seen[~missing])
    for axis in figure.axes:
        if axis.get_title() == "truth" and channels == 1:
            assert axis.images[0].get_clim() == (0, 1)
    assert read_image(tmp_path / "a.png").shape[0] == 3
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_show_without_truth_or_spread():
    """Would catch a PSNR against nothing, and a spread drawn for a point estimate."""
    shape = (1, 1, 8, 8)
    problem = Problem(
        torch.rand(shape, generator=seeded()), Identity(shape[1:]), GaussianNoise(0.1)
    )
    assert list(shown(plots.show(result(shape, 1), problem))) == ["measurement", "estimate"]
    assert "truth" not in shown(plots.show(result(shape), problem))


def test_measurements_that_are_no_image_of_that_size():
    """Would catch a small photo stretched into the image's grid, or a vector drawn as noise."""
    x = torch.rand((1, 3, 8, 8), generator=seeded())
    problem = Problem.simulate(x, Downsampling(4, (3, 8, 8)), GaussianNoise(0.0))
    picture, note = plots.measurement(problem)
    assert picture.shape == (3, 2, 2)
    assert note == ""
    sensing = CompressedSensing((3, 8, 8), 192, generator=seeded())
    picture, note = plots.measurement(Problem.simulate(x, sensing, GaussianNoise(0.0)))
    torch.testing.assert_close(picture, x[0], atol=1e-3, rtol=0)
    assert note == "pseudo-inverse"


def test_grid_places_images(tmp_path):
    """Would catch images transposed, out of order, blurred by enlarging, or not separated."""
    images = torch.rand((5, 3, 8, 6), generator=seeded())
    picture = plots.grid(images, path=tmp_path / "g.png", columns=3)
    scale = 12
    assert picture.shape == (3, 2 * (8 * scale + 2) - 2, 3 * (6 * scale + 2) - 2)
    corner = picture[:, 8 * scale + 2 :, 6 * scale + 2 :]  # row 1, column 1: image 4
    torch.testing.assert_close(
        corner[:, scale // 2 :: scale, scale // 2 :: scale][:, :8, :6], images[4]
    )
    assert (picture[:, 8 * scale : 8 * scale + 2] == 1).all()
    assert (picture[:, 8 * scale + 2 :, 2 * (6 * scale + 2) :] == 1).all()
    torch.testing.assert_close(read_image(tmp_path / "g.png"), picture, atol=0.51 / 255, rtol=0)
    with pytest.raises(ValueError, match=r"\(5, 8, 6\)"):
        plots.grid(torch.rand((5, 8, 6), generator=seeded()))


def test_five_channels_are_drawn(tmp_path):
    """Would catch a training that dies in drawing its grid, or a result lost in its picture."""
    x = torch.rand((2, 5, 16, 12), generator=seeded(1))
    picture = plots.grid(x, path=tmp_path / "g.png")
    assert picture.shape[0] == 1
    mean = x[0].mean(0).repeat_interleave(6, 0).repeat_interleave(6, 1)
    torch.testing.assert_close(picture[0, : 16 * 6, : 12 * 6], mean)
    problem = Problem(x, Inpainting(torch.ones(1, 16, 12, dtype=torch.bool)), GaussianNoise(0.1))
    figure = plots.show(result((2, 5, 16, 12)), problem, x, path=tmp_path / "a.png")
    assert "the mean of 5 channels" in figure.get_suptitle()
    assert set(shown(figure)) >= {"truth", "measurement", "posterior mean"}


def test_a_point_estimate_stands_under_the_mean():
    """Catches rows of samples cut to one where a point estimate stands beside them, or one that
    is shown as if it were a sample."""
    x = torch.rand(1, 1, 8, 8, generator=seeded())
    problem = Problem.simulate(x, Identity((1, 8, 8)), GaussianNoise(0.1), generator=seeded(1))
    drawn = x.expand(3, 1, 8, 8)
    lines = [
        plots.Row(problem=problem, mean=x[0], std=0.1 * x[0], samples=drawn, truth=x[0]),
        plots.Row(problem=problem, mean=x[0], std=None, samples=x, truth=x[0], label="flow"),
    ]
    figure = plots.draw(lines)
    columns = 4 + 3
    shown = [bool(axis.images) for axis in figure.axes[: 2 * columns]]
    assert shown == [True] * columns + [True] * 3 + [False] * 4
    assert figure.axes[columns + 2].get_xlabel() == "inf dB, estimate"
