"""Masks and blur kernels."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from tools import identical, seeded

from genprior.operators import kernels, masks


def painted(path, values, mode="L"):
    Image.fromarray(np.asarray(values, dtype=np.uint8)).convert(mode).save(path)
    return path


# --- masks


def test_box_is_missing_where_it_is_put():
    """Catches rows and columns swapped, an inverted mask, an off-centre default."""
    mask = masks.box((4, 6), size=(2, 3), position=(1, 2))
    expected = torch.ones(1, 4, 6, dtype=torch.bool)
    expected[0, 1:3, 2:5] = False
    assert identical(mask, expected)
    assert not masks.box((5, 7), size=3)[0, 1:4, 2:5].any()


def test_random_boxes_reach_every_place_and_differ():
    """Catches one position for the whole batch, and an off-by-one at the far border."""
    boxes = masks.box((5, 6), size=(2, 3), count=500, generator=seeded())
    assert boxes.shape == (500, 1, 5, 6)
    assert ((~boxes).flatten(1).sum(1) == 6).all()
    missing = (~boxes).sum(0)[0]
    assert (missing > 0).all()
    assert len({tuple(b.flatten().tolist()) for b in boxes}) == 16


@pytest.mark.parametrize("missing", [0.0, 0.5, 0.92])
def test_random_share_is_exact(missing):
    """Catches a Bernoulli count, which can leave nothing measured, and equal masks."""
    drawn = masks.random((10, 10), missing=missing, count=4, generator=seeded())
    assert (drawn.flatten(1).sum(1) == round(100 * (1 - missing))).all()
    assert missing == 0 or not identical(drawn[0], drawn[1])


@pytest.mark.parametrize(
    "make",
    [
        lambda g: masks.random((8, 9), missing=0.6, count=3, generator=g),
        lambda g: masks.box((8, 9), size=3, count=3, generator=g),
        lambda g: masks.strokes((8, 9), number=1, count=3, generator=g),
    ],
    ids=["random", "box", "strokes"],
)
def test_one_generator_for_each_mask(make):
    """Catches a mask that depends on its neighbours in the batch."""
    seeds = [seeded(5), seeded(6), seeded(5)]
    drawn = make(seeds)
    assert identical(drawn[0], drawn[2])
    assert not identical(drawn[0], drawn[1])


def test_half_and_stripes():
    """Catches the wrong half, a lost middle line, and rows taken for columns."""
    assert masks.half((1, 5), missing="left")[0, 0].tolist() == [False] * 2 + [True] * 3
    assert masks.half((1, 5), missing="right")[0, 0].tolist() == [True] * 3 + [False] * 2
    assert masks.half((3, 1), missing="top")[0, :, 0].tolist() == [False, True, True]
    assert masks.half((3, 1), missing="bottom")[0, :, 0].tolist() == [True, True, False]
    stripes = masks.stripes((5, 2), measured=1, missing=2)
    assert stripes[0, :, 1].tolist() == [True, False, False, True, False]
    upright = masks.stripes((2, 5), measured=2, missing=1, vertical=True)
    assert upright[0, 1].tolist() == [True, True, False, True, True]


def test_strokes_are_lines_of_their_width():
    """Catches strokes outside the image, a wrong width, or none at all."""
    drawn = masks.strokes((64, 64), number=1, width=5, count=50, generator=seeded())
    area = (~drawn).flatten(1).sum(1).double()
    # Length is 0.4 to 1 of the side, its part outside the image and round caps aside.
    assert (area > 0).all()
    assert area.max() <= 1.05 * (64 * 5 + np.pi * 2.5**2)
    assert area.max() >= 0.4 * 64 * 5


def test_painted_masks(tmp_path):
    """Catches black taken as measured; `invert` and `threshold` do what they say."""
    path = painted(tmp_path / "mask.png", [[255, 0], [0, 255]])
    assert masks.from_file(path, shape=(2, 2)).tolist() == [[[True, False], [False, True]]]
    assert masks.from_file(path, invert=True).tolist() == [[[False, True], [True, False]]]
    for mode in ("RGB", "P", "1"):
        other = painted(tmp_path / f"{mode}.png", [[255, 0], [0, 255]], mode)
        assert identical(masks.from_file(other), masks.from_file(path))
    grey = painted(tmp_path / "grey.png", [[255, 100], [200, 0]])
    assert masks.from_file(grey, threshold=0.5).tolist() == [[[True, False], [True, False]]]


def test_bad_masks_are_refused(tmp_path):
    """Catches a mask of another size, with grey, measuring nothing, or damaged, that is used."""
    grey = painted(tmp_path / "grey.png", [[255, 100], [200, 0]])
    with pytest.raises(ValueError, match="2 grey pixels"):
        masks.from_file(grey)
    with pytest.raises(ValueError, match=r"2 x 2 pixels .* must be 4 x 4"):
        masks.from_file(grey, shape=(4, 4))
    black = painted(tmp_path / "black.png", np.zeros((2, 2)))
    with pytest.raises(ValueError, match="measures nothing"):
        masks.from_file(black)
    assert masks.from_file(black, invert=True).all()
    text = tmp_path / "text.png"
    text.write_text("not an image")
    with pytest.raises(ValueError, match=r"text\.png cannot be read"):
        masks.from_file(text)
    whole = painted(
        tmp_path / "whole.png", 255 * np.random.default_rng(0).integers(0, 2, (64, 64))
    )
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read"):
        masks.from_file(cut)
    clear = np.zeros((2, 2, 4), np.uint8)
    Image.fromarray(clear, "RGBA").save(tmp_path / "clear.png")
    with pytest.raises(ValueError, match="transparent"):
        masks.from_file(tmp_path / "clear.png")
    with pytest.raises(FileNotFoundError):
        masks.from_file(tmp_path / "none.png")


@pytest.mark.parametrize(
    "build",
    [
        lambda: masks.box((4, 4), size=5),
        lambda: masks.box((4, 4), size=4),
        lambda: masks.box((4, 4), size=2, position=(3, 0)),
        lambda: masks.random((4, 4), missing=1.0),
        lambda: masks.random((4, 4), missing=0.99),
        lambda: masks.half((4, 4), missing="middle"),
        lambda: masks.stripes((4, 4), measured=0),
        lambda: masks.strokes((4, 4), number=0),
        lambda: masks.strokes((4, 4), number=10**9, generator=seeded()),
        lambda: masks.strokes((4, 4), width=40, generator=seeded()),
        lambda: masks.half((4, 4, 4)),
    ],
)
def test_masks_that_cannot_be_are_refused(build):
    """Catches a mask that measures nothing, takes all memory or was not asked for."""
    with pytest.raises(ValueError, match=r"\w"):
        build()


# --- kernels


def moments(kernel):
    """Mean and covariance of a kernel about its centre (h // 2, w // 2), rows first."""
    h, w = kernel.shape
    y = (torch.arange(h, dtype=torch.float64) - h // 2)[:, None].expand(h, w)
    x = (torch.arange(w, dtype=torch.float64) - w // 2).expand(h, w)
    position = torch.stack([y, x], dim=-1).reshape(-1, 2)
    weight = kernel.reshape(-1, 1)
    mean = (weight * position).sum(0)
    centred = position - mean
    return mean, centred.mT @ (weight * centred)


def test_gaussian_has_its_std():
    """Catches a variance for a std, or a support that cuts the kernel off."""
    mean, covariance = moments(kernels.gaussian(1.7))
    torch.testing.assert_close(mean, torch.zeros_like(mean))
    expected = 1.7**2 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(covariance, expected, atol=5e-3, rtol=0)


@pytest.mark.parametrize("radius", [1.0, 2.5, 6.0])
def test_disk_has_its_area(radius):
    """Catches a radius for a diameter, and a jagged edge: whole pixels weigh 1 / (pi r^2)."""
    kernel = kernels.disk(radius)
    mean, _ = moments(kernel)
    torch.testing.assert_close(mean, torch.zeros_like(mean))
    assert abs(float(1 / kernel.max()) / (np.pi * radius**2) - 1) < 0.01
    # An antialiased edge takes several values, a jagged one takes two.
    assert kernel.unique().numel() > 2


@pytest.mark.parametrize(("angle", "direction"), [(0, (0, 1)), (90, (-1, 0)), (30, (-0.5, 0.866))])
def test_motion_has_its_length_and_angle(angle, direction):
    """Catches degrees for radians, clockwise for counter-clockwise, rows for columns."""
    mean, covariance = moments(kernels.motion(12, angle))
    values, vectors = torch.linalg.eigh(covariance)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-9, rtol=0)
    # A line of length L has variance L^2 / 12; bilinear spreading adds at most 1/4.
    assert 144 / 12 <= float(values[1]) + 0.05 <= 144 / 12 + 0.5
    along = torch.tensor(direction, dtype=torch.float64)
    assert abs(float(vectors[:, 1] @ along)) > 0.999


def test_random_motion_depends_on_its_generator_alone():
    """Catches a path from the global generator."""
    first, again = (kernels.motion(15, generator=seeded(3)) for _ in range(2))
    assert identical(first, again)
    assert not identical(first, kernels.motion(15, generator=seeded(4)))


@pytest.mark.parametrize(
    "kernel",
    [
        kernels.gaussian(0.3),
        kernels.uniform(4),
        kernels.disk(3),
        kernels.motion(7, 20),
        kernels.motion(9, generator=seeded()),
    ],
)
def test_kernels_sum_to_one(kernel):
    """Catches a kernel that brightens or darkens, or has negative weights."""
    assert abs(float(kernel.sum()) - 1) < 1e-12
    assert (kernel >= 0).all()


def test_kernels_from_files(tmp_path):
    """Catches a kernel left unscaled, scaled in silence, or warned about without reason."""
    np.save(tmp_path / "k.npy", np.array([[1.0, 2.0], [3.0, 2.0]]))
    with pytest.warns(UserWarning, match="sums to 8"):
        kernel = kernels.from_file(tmp_path / "k.npy")
    assert kernel.tolist() == [[0.125, 0.25], [0.375, 0.25]]
    np.save(tmp_path / "one.npy", kernel.numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert identical(kernels.from_file(tmp_path / "one.npy"), kernel)
    path = painted(tmp_path / "k.png", [[0, 255], [255, 0]])
    with pytest.warns(UserWarning, match="sums to 2"):
        assert kernels.from_file(path).tolist() == [[0, 0.5], [0.5, 0]]
    np.save(tmp_path / "zero.npy", np.zeros((2, 2)))
    with pytest.raises(ValueError, match="positive sum"):
        kernels.from_file(tmp_path / "zero.npy")


@pytest.mark.parametrize(
    "build",
    [
        lambda: kernels.gaussian(0),
        lambda: kernels.disk(-1),
        lambda: kernels.uniform(0),
        lambda: kernels.motion(5),
        lambda: kernels.motion(5, 3, generator=seeded()),
        lambda: kernels.motion(float("nan"), 3),
        lambda: kernels.gaussian(1e9),
        lambda: kernels.disk(1e5),
        lambda: kernels.uniform(10**9),
        lambda: kernels.motion(1e9, 3),
    ],
)
def test_kernels_that_cannot_be_are_refused(build):
    """Catches a kernel of NaN, one that takes all memory, and a generator that is ignored."""
    with pytest.raises(ValueError, match=r"\w"):
        build()
