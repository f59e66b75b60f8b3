"""What notebooks show: `_repr_html_` of problems, results and priors."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import EXACT_PRIORS
from photos import tiny_network
from PIL import Image
from tools import identical, seeded

import genprior
from genprior.operators import (
    CompressedSensing,
    GaussianNoise,
    Identity,
    Inpainting,
    Problem,
    masks,
)
from genprior.operators.files.notebook import MISSING, html_card
from genprior.priors import Diffusion, Gaussian, LatentPrior, Model


def pictures(text):
    """The PNGs of a card, by what is written under them."""
    found = re.findall(r'base64,([^"]+)" alt="([^"]*)"', text)
    return {
        alt: np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) / 255 for png, alt in found
    }


def table(text):
    return dict(re.findall(r"<tr><th[^>]*>(.*?)</th><td[^>]*>(.*?)</td></tr>", text))


class Balanced(HTMLParser):
    """Counts tags that are open."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def gaussian():
    images = torch.rand((20, 3, 8, 6), generator=seeded(1))
    return Gaussian.fit(images, rank=4)


def test_problem(gaussian):
    """Catches a picture of zeros where nothing was measured, and a table of another problem."""
    x = gaussian.sample(6, generator=seeded(2))
    mask = masks.half((8, 6))
    problem = Problem.simulate(x, Inpainting(mask, image_shape=(3, 8, 6)), GaussianNoise(0.05))
    text = problem._repr_html_()
    assert table(text) == {
        "operator": "Inpainting",
        "images": "6 of 3 x 8 x 6",
        "measurements": "6 of 3 x 8 x 6",
        "observed": "50 %",
        "noise": "GaussianNoise(sigma=0.05)",
    }
    drawn = pictures(text)
    assert list(drawn) == ["y 0", "y 1", "y 2", "y 3"]
    seen = mask[0].numpy()
    for picture, y in zip(drawn.values(), problem.y, strict=False):
        wanted = y.clamp(0, 1).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(picture[seen], wanted[seen], atol=0.51 / 255)
        np.testing.assert_allclose(picture[~seen], np.tile(MISSING, (24, 1)), atol=0.51 / 255)


def test_problem_whose_measurement_is_no_picture():
    """Catches a vector drawn as an image, and one that has no picture at all refused."""
    x = torch.rand((1, 1, 4, 4), generator=seeded())
    operator = CompressedSensing((1, 4, 4), 16, generator=seeded())
    problem = Problem.simulate(x, operator, GaussianNoise(0.0))
    (picture,) = pictures(problem._repr_html_()).values()
    np.testing.assert_allclose(picture, x[0, 0], atol=0.01)
    nonlinear = problem.through(torch.nn.Identity(), latent_shape=(1, 4, 4))
    assert not pictures(nonlinear._repr_html_())
    assert table(nonlinear._repr_html_())["operator"] == "Decoded"


def test_result(gaussian):
    """Catches panels exchanged, and a spread whose scale is not said."""
    x = gaussian.sample(2, generator=seeded(2))
    problem = Problem.simulate(
        x, Inpainting(masks.half((8, 6)), image_shape=(3, 8, 6)), GaussianNoise(0.05)
    )
    result = genprior.solve(problem, gaussian, num_samples=5, generator=seeded(3))
    text = result._repr_html_()
    words = table(text)
    assert words["samples"] == "2 x 5 samples of 3 x 8 x 6"
    assert words["converged"] == "2 of 2"
    assert (
        words["evaluations"] == f"{result.forwards:g} forwards and {result.vjps:g} VJPs per sample"
    )
    assert words["std"].endswith(f"at most {result.std.max().item():.3g}")
    top = result.std.max()
    one = pictures(replace(result, mean=result.mean[:1], samples=result.samples[:1])._repr_html_())
    assert list(one) == ["mean", f"std, white: {top:.2g}", *(f"sample {i}" for i in (1, 2, 3, 4))]
    shown = [result.mean[0], result.std[0] / top, *result.samples[0, :4]]
    for picture, image in zip(one.values(), shown, strict=True):
        wanted = image.clamp(0, 1).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(picture, wanted, atol=0.51 / 255)
    alone = replace(result, std=None, point_estimate=True, samples=result.samples[:, :1])
    assert list(pictures(alone._repr_html_())) == ["estimate"]
    assert table(alone._repr_html_())["std"] == "unknown"


def any_size():
    return Diffusion(tiny_network(), (3, None, None), data_std=0.25)


SHOWN = {**EXACT_PRIORS, "any size": any_size}


@pytest.mark.parametrize("make", SHOWN.values(), ids=SHOWN)
def test_every_prior(make):
    """Catches a prior that cannot be shown, and one whose showing moves a random stream."""
    prior = make()
    before = torch.get_rng_state()
    text = prior._repr_html_()
    assert identical(torch.get_rng_state(), before)
    assert list(pictures(text)) == [f"sample {i}" for i in (1, 2, 3, 4)]
    assert table(text)["trained on"] == "not recorded"
    reader = Balanced()
    reader.feed(text)
    assert not reader.open


def test_what_a_file_says_is_shown_and_kept(gaussian, tmp_path):
    """Catches a card that is read and forgotten."""
    assert dict(Model.card) == {}
    gaussian.save(tmp_path / "a.safetensors", card={"data": "twenty <i>images</i>"})
    loaded = genprior.load(tmp_path / "a.safetensors")
    assert loaded.card == {"data": "twenty <i>images</i>"}
    assert table(loaded._repr_html_())["trained on"] == "twenty &lt;i&gt;images&lt;/i&gt;"
    assert dict(gaussian.card) == {}


def test_large_priors_are_not_sampled(monkeypatch):
    """Catches a notebook that waits minutes for a picture that nobody asked for."""
    monkeypatch.setattr(Model, "families", dict(Model.families))

    class Slow(LatentPrior):
        image_shape, latent_shape = (1, 2048, 2048), (2,)

        def decode(self, z):
            raise AssertionError

    assert not pictures(Slow()._repr_html_())


def test_texts_are_escaped():
    """Catches a class or a card that writes into the page that shows it."""
    nasty = '<script>"&'
    text = html_card(nasty, {nasty: nasty}, [[(nasty, torch.zeros(1, 2, 2))]])
    reader = Balanced()
    reader.feed(text)
    assert "script" not in reader.seen
    assert text.count("&lt;script&gt;&quot;&amp;") == 5


def test_odd_images():
    """Catches a picture of NaN, of two channels, or of megabytes."""
    x = torch.full((2, 3, 3), float("nan"))
    large = torch.rand((3, 1000, 500), generator=seeded())
    drawn = pictures(html_card("", {}, [[("a", x), ("b", large)]]))
    assert drawn["a"].shape == (3, 3)
    assert drawn["b"].shape == (256, 128, 3)


def test_a_measurement_on_the_real_line():
    """Catches pixels that wrap round where y leaves [0, 1]."""
    y = torch.tensor([-3.0, 0.5, 7.0, 1.0]).reshape(1, 1, 2, 2)
    (picture,) = pictures(
        Problem(y, Identity((1, 2, 2)), GaussianNoise(1.0))._repr_html_()
    ).values()
    np.testing.assert_allclose(picture.ravel(), [0, 0.5, 1, 1], atol=0.51 / 255)


def test_bars_are_those_of_notebooks():
    """Catches a bar of text where a notebook could draw one."""
    root = Path(__file__).parent.parent.parent
    folders = ("genprior", "operators", "priors", "solvers", "pretrained")
    lines = [
        line
        for folder in folders
        for path in (root / folder).rglob("*.py")
        for line in re.findall(r".*\bimport tqdm\b.*", path.read_text())
    ]
    assert {line.strip() for line in lines} == {"from tqdm.auto import tqdm"}
