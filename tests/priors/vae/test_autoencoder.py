"""The autoencoder against principal component analysis; what it cannot do."""

import pytest
import torch

from genprior import cli, solve
from genprior.operators import GaussianNoise, Identity, Problem
from genprior.priors import Autoencoder, Prior
from genprior.priors.files import read_prior
from genprior.solvers import LatentMAP, available
from genprior.training import TrainingOptions, train

SHAPE = (1, 3, 4)


def test_linear_autoencoder_finds_the_principal_subspace(tmp_path):
    """Catches a loss or network in which the best linear code is not the principal one."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.0, 0.9, 0.8] + [0.1] * 9)
    basis = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    x = (0.5 + torch.randn(200, 12, generator=generator) * scales @ basis.T).view(-1, *SHAPE)
    prior = Autoencoder(SHAPE, 3, network={"hidden": []})
    options = TrainingOptions(
        learning_rate=1e-2, precision="fp32", grid=0, progress=False, warmup=10, clip=None
    )
    trained = train(prior, x, out=tmp_path, steps=500, batch_size=100, options=options)
    with torch.no_grad():
        found = trained.decode(trained.encode(x)).flatten(1)
    centred = x.flatten(1) - x.flatten(1).mean(0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[:3]
    best = centred @ directions.T @ directions + x.flatten(1).mean(0)
    floor = (best - x.flatten(1)).square().mean()
    assert (found - x.flatten(1)).square().mean() < 1.02 * floor
    subspace = trained.decoder[0].weight
    overlap = torch.linalg.svdvals(directions @ torch.linalg.qr(subspace).Q)
    assert overlap.min() > 0.999


def test_it_is_saved_and_read_as_it_was(tmp_path):
    """Catches a configuration that does not rebuild the network."""
    prior = Autoencoder((1, 8, 8), 2, network={"kind": "convolutional", "widths": [4]})
    prior.save(tmp_path / "ae.safetensors")
    again = read_prior(tmp_path / "ae.safetensors")
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.decode(again.encode(x)), prior.decode(prior.encode(x)))


def test_it_is_no_distribution(tmp_path, capsys):
    """Catches a solver or sampler that takes codes for latents."""
    prior = Autoencoder(SHAPE, 2)
    assert not isinstance(prior, Prior)
    assert not hasattr(prior, "sample")
    path = str(tmp_path / "coder.safetensors")
    prior.save(path)
    assert cli.main(["sample", path, "--out", str(tmp_path / "s.png")]) == 2
    assert "Autoencoder is a model without a distribution" in capsys.readouterr().err
    assert available(prior) == []
    problem = Problem(torch.zeros(1, *SHAPE), Identity(SHAPE), GaussianNoise(0.1))
    with pytest.raises(TypeError, match="LatentMAP takes a Prior second, not Autoencoder"):
        LatentMAP()(problem, prior)
    with pytest.raises(TypeError, match="solve takes a Prior second, not Autoencoder"):
        solve(problem, prior)


@pytest.mark.parametrize("size", [0, 13])
def test_code_sizes_out_of_range_are_refused(size):
    """Catches a code that is empty, or larger than the image."""
    with pytest.raises(ValueError, match="latent_size"):
        Autoencoder(SHAPE, size)
