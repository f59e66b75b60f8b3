"""A trainable family of one's own is one class; the shell trains, samples and restores with it."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from genprior import cli, load
from genprior.data import write_image
from genprior.priors import LatentPrior, Model, SingleLoss, Trainable, testing


class Plane(Trainable, LatentPrior):
    """x = mean + W z + s n, z ~ N(0, I), trained by maximum likelihood (Tipping, Bishop 1999)."""

    def __init__(self, image_shape, *, latent_size: int = 2, std: float = 0.2):
        super().__init__()
        self.image_shape, self.latent_shape, self.std = tuple(image_shape), (latent_size,), std
        d, generator = torch.Size(image_shape).numel(), torch.Generator().manual_seed(0)
        self.mean = nn.Parameter(torch.full((d,), 0.5))
        self.weight = nn.Parameter(0.1 * torch.randn(d, latent_size, generator=generator))

    def decode(self, z):
        return (self.mean + z @ self.weight.T).unflatten(1, self.image_shape)

    def objective(self):
        return SingleLoss(self, self.loss)

    def loss(self, x, generator):
        spread = self.std**2 * torch.ones_like(self.mean)
        law = torch.distributions.LowRankMultivariateNormal(self.mean, self.weight, spread)
        return -law.log_prob(x.flatten(1)).mean() / self.mean.numel()


def bars(folder):
    """Grey images of one random brightness each, .4 or .6: their mean is known."""
    folder.mkdir()
    for i in range(8):
        write_image(folder / f"{i}.png", torch.full((1, 4, 4), 0.4 if i % 2 else 0.6))
    return folder


def words(folder, out, family):
    text = f"train {family} --data {folder} --out {out} --latent-size 1 --steps 400 --std 0.05"
    return f"{text} --batch-size 8 --learning-rate 0.02 --precision fp32 --grid 4".split()


def test_the_contract():
    """Catches a record of arguments from which the class is not rebuilt."""
    prior = Plane((1, 2, 3), latent_size=3)
    assert prior.config == {"image_shape": [1, 2, 3], "latent_size": 3, "std": 0.2}
    testing.check_prior(prior)


def test_shell(tmp_path, capsys):
    """Catches an option that does not reach the class, and a command that refuses the family."""
    photos, out = bars(tmp_path / "photos"), tmp_path / "run"
    assert cli.main(words(photos, out, "Plane")) == 0
    prior = load(out / "prior.safetensors")
    assert isinstance(prior, Plane)
    assert (prior.latent_shape, prior.std) == ((1,), 0.05)
    assert prior.mean.detach().numpy() == pytest.approx(0.5, abs=0.01)
    # The likeliest W W^T is the covariance, .01 between all pixels, less s^2 along it (over 16).
    variance = prior.weight.square().mean().item()
    assert variance == pytest.approx(0.01 - 0.05**2 / 16, rel=0.05)
    assert list(out.glob("samples-*.png"))
    path = str(out / "prior.safetensors")
    assert cli.main(["sample", path, "--out", str(tmp_path / "s.png")]) == 0
    restore = f"restore {photos / '0.png'} --task denoise --sigma 0.1 --samples 2 --prior {path}"
    assert cli.main([*restore.split(), "--out", str(tmp_path / "restored")]) == 0
    assert json.loads((tmp_path / "restored" / "result.json").read_text())["prior"] == path
    assert cli.main(["train", "Plane", "--help"]) == 0
    assert "--latent-size" in capsys.readouterr().out


def test_a_module_in_this_folder_is_found(tmp_path, capsys, monkeypatch):
    """Catches MODULE:CLASS, or --import, that only works where the class is known already."""
    photos, out = bars(tmp_path / "photos"), tmp_path / "run"
    code = "from test_toy_family import Plane\n\nclass Mine(Plane):\n    pass\n"
    (tmp_path / "mine_of_test.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    monkeypatch.setattr(Model, "families", dict(Model.families))
    train = words(photos, out, "mine_of_test:Mine")
    assert cli.main([*train, "--steps", "1"]) == 0
    sample = ["sample", str(out / "prior.safetensors"), "--out", "s.png"]
    for forgotten in ("mine_of_test", "test_toy_family"):
        sys.modules.pop(forgotten)
    Model.families.pop("Mine")
    assert cli.main(sample) == 2
    assert "import the module that defines it" in capsys.readouterr().err
    assert cli.main(["--import", "mine_of_test", *sample]) == 0
    for forgotten in ("mine_of_test", "test_toy_family"):
        sys.modules.pop(forgotten)


@pytest.mark.parametrize(
    ("family", "says"),
    [
        ("none:A", "no module 'none'"),
        ("Nothing", "no family"),
        ("Gaussian", "no family"),
    ],
)
def test_other_names_are_refused(family, says, capsys, tmp_path):
    """Catches a traceback for a class that is not there or is not trained."""
    assert cli.main(words(tmp_path, tmp_path / "out", family)) == 2
    assert says in capsys.readouterr().err


def test_what_no_file_describes_is_said():
    """Catches weights that are saved and cannot be read again."""

    class Wrapped(Model):
        def __init__(self, network):
            super().__init__()
            self.network = network

    with pytest.raises(TypeError, match=r"Wrapped was built with network of type Identity"):
        _ = Wrapped(nn.Identity()).config
    del Model.families["Wrapped"]


def test_options_for_a_data_set_are_never_dropped():
    """Catches an option that `for_images` overrules, and one that nobody knows."""
    images = torch.zeros(2, 1, 4, 4)
    prior = Plane.from_images(images, image_shape=(1, 2, 2), latent_size=1)
    assert prior.config == {"image_shape": [1, 2, 2], "latent_size": 1, "std": 0.2}
    with pytest.raises(TypeError, match="latents"):
        Plane.from_images(images, latents=1)
