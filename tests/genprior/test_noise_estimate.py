"""--sigma auto: how much noise a photo has."""

import warnings

import pytest
import torch
from photos import refused
from PIL import Image

from genprior.data import read_image, read_photo, write_image
from genprior.restoration.noise_estimate import estimated_noise


def noisy(sigma, *, side=96, grey=False, seed=0, fine=0.07):
    """A photo of waves and a fine weave, a third of it black, with noise cut off at [0, 1]."""
    t = torch.arange(side, dtype=torch.float64)
    waves = torch.sin(t / 9)[:, None] * torch.cos(t / 13)
    weave = fine * torch.sin(t * 1.9)[:, None] * torch.sin(t * 2.3)
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


def test_sigma_auto_after_jpeg(photo_place):
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


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("quality", [50, 75, 85, 95])
@pytest.mark.parametrize("sigma", [5 / 255, 10 / 255, 25 / 255])
def test_sigma_auto_of_a_jpeg(tmp_path, sigma, quality, grey):
    """Would catch noise of 5/255 read as .4/255, which gives a photo back unchanged.

    Of colours hardly more than the noise of their brightness is left: .67 of each one's.
    """
    write_image(tmp_path / "photo.png", noisy(sigma, side=192, grey=grey, fine=0.0))
    Image.open(tmp_path / "photo.png").save(tmp_path / "photo.jpg", quality=quality)
    photo = read_photo(tmp_path / "photo.jpg")
    with pytest.warns(UserWarning, match="JPEG"):
        found = estimated_noise(photo.pixels, steps=photo.steps)
    weights = torch.tensor([1.0] if grey else [0.299, 0.587, 0.114])
    assert found == pytest.approx(sigma * weights.norm().item(), rel=0.2)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_sigma_auto_on_a_flat_photo(photo_place, capsys, value):
    """Would catch sigma 0, or NaN, passed on in silence."""
    write_image("photo.png", torch.full((3, 40, 40), value))
    said = refused(capsys, photo_place, "--task", "denoise", "--sigma", "auto")
    assert "no noise" in said
