"""Photos, masks and small priors on disk, restored as a user does it."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from genprior.cli import main
from genprior.data import write_image
from genprior.priors import Diffusion, Gaussian
from genprior.priors.diffusion.unet import UNet

SIDE = 16


def smooth_gaussian(channels: int = 3, side: int = SIDE) -> Gaussian:
    """A prior of smooth images about mid-grey: 12 cosine waves, std about 0.1."""
    t = (torch.arange(side, dtype=torch.float64) + 0.5) * torch.pi / side
    waves = [torch.outer(torch.cos(i * t), torch.cos(j * t)) for i in range(4) for j in range(3)]
    colours = torch.linspace(0.6, 1.0, channels, dtype=torch.float64)
    factors = 0.04 * torch.stack(waves)[:, None] * colours[:, None, None]
    return Gaussian(torch.full((channels, side, side), 0.5), factors.float(), residual=0.01)


class Place(NamedTuple):
    """Paths of a prior (3x16x16), of a photo drawn from it, of a mask; and where to write."""

    prior: Path
    photo: Path
    mask: Path
    out: Path


def make_place(folder: Path) -> Place:
    place = Place(
        folder / "waves.safetensors", folder / "photo.png", folder / "mask.png", folder / "out"
    )
    prior = smooth_gaussian()
    prior.save(place.prior)
    drawn = prior.sample(1, generator=torch.Generator().manual_seed(3))[0]
    write_image(place.photo, drawn, bits=16)
    mask = np.full((SIDE, SIDE), 255, np.uint8)
    mask[4:10, 4:10] = 0
    Image.fromarray(mask).save(place.mask)
    return place


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


def save_priors():
    """Write a prior for colour photos of any size, and an exact one, into the folder we are in."""
    Diffusion(tiny_network(), (3, None, None), data_std=0.25).save("any.safetensors")
    smooth_gaussian().save("exact.safetensors")


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
