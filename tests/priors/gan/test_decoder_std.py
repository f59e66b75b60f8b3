"""How far images lie from a generator's range: against a linear one, and through files."""

import math

import pytest
import torch
from tools import seeded

import genprior
from genprior.priors import GAN
from genprior.priors.gan.inversion import spread_about
from genprior.training import TrainingOptions

SMALL = {"kind": "perceptron", "hidden": [16]}


@pytest.mark.parametrize(("latents", "scale", "rel"), [(6, 0.6, 0.14), (10, 0.05, 0.2)])
def test_a_linear_generator_gives_back_the_spread(latents, scale, rel):
    """Catches pixels that z took up counted as if they told of s (s would come out .16), and a
    search that stops early. Where z moves images no more than s does, catches one that has no
    prior (.14); there s comes out a tenth low, as the search counts all pixels.
    """
    generator = seeded(0)
    like = {"generator": generator, "dtype": torch.float64}
    weights = scale * torch.randn(16, latents, **like)
    z, e = (torch.randn(64, n, **like) for n in (latents, 16))
    x = (z @ weights.T + 0.2 * e).view(64, 1, 4, 4)
    found = spread_about(
        lambda z: (z @ weights.T).view(-1, 1, 4, 4), x, latents, starts=1, generator=seeded(1)
    )
    assert found == pytest.approx(0.2, rel=rel)  # 5 standard errors, and that tenth


def test_a_generator_that_reaches_every_image():
    """Catches a spread of 0, which leaves solvers no density, or a division by no pixels."""
    x = torch.rand(5, 1, 2, 2, generator=seeded(2))
    found = spread_about(lambda z: z.view(-1, 1, 2, 2), x, 4, steps=200, generator=seeded(1))
    assert 1 / 255 / math.sqrt(12) <= found < 0.004


def test_training_measures_it_and_files_keep_it(tmp_path):
    """Catches a spread of the trained weights and not of the average, or one that is lost."""
    images = torch.rand(64, 1, 8, 8, generator=seeded(5))
    quiet = {"progress": False, "grid": 0, "accelerator": "cpu"}
    options = TrainingOptions(**{**GAN.training_defaults, **quiet})
    gan = GAN((1, 8, 8), 5, network={"kind": "dcgan", "widths": [8, 4]})
    assert gan.decoder_std is None
    trained = genprior.train(gan, images, out=tmp_path, steps=3, batch_size=8, options=options)
    assert gan.decoder_std is None
    loaded = genprior.load(tmp_path)
    assert loaded.decoder_std == trained.decoder_std
    assert trained.decoder_std == pytest.approx(math.sqrt(1 / 12), rel=0.2)  # noise, all of it
    again = loaded.train().measure_decoder_std(trained.sample(16, generator=seeded(3)))
    assert again == loaded.decoder_std < 0.05
    assert loaded.training


def test_what_cannot_be_measured_is_said():
    gan, images = GAN((1, 8, 8), 5, network=SMALL), torch.zeros(4, 1, 8, 8)
    for wrong in (images[:0], images[0], images[..., :7]):
        with pytest.raises(ValueError, match=r"not \(B, \*\(1, 8, 8\)\)"):
            gan.measure_decoder_std(wrong)
    for name, value in (("starts", 0), ("steps", 0), ("starts", 257), ("steps", 1.5)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            gan.measure_decoder_std(images, **{name: value})
    assert gan.decoder_std is None
    for std in (-0.1, math.nan, "0.1", True):
        with pytest.raises(ValueError, match="decoder_std must be above 0"):
            GAN.from_config({**gan.config, "decoder_std": std})
