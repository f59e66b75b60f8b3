"""A small prior, a photo and a mask on disk, for the tests of the shell."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from genprior.data import write_image
from genprior.priors import Gaussian

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
