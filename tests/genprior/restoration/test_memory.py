"""Photos that are too large: refused before work starts, or worked on in tiles."""

import re

import pytest
import torch
from photos import DENOISE, photo, refused, restore, tiny_network
from PIL import Image

from genprior.data import read_image
from genprior.data.files import image_size
from genprior.operators import GaussianNoise, Identity, Inpainting, Problem
from genprior.pretrained import load
from genprior.priors import Diffusion
from genprior.priors.diffusion import tiles
from genprior.priors.diffusion.tiles import in_tiles
from genprior.restoration import memory
from genprior.solvers import MMPS


def test_photo_too_large_for_memory(photo_place, capsys, monkeypatch):
    """Would catch hours of work, then an out-of-memory kill; and advice that does not hold."""
    photo(96, 64)
    image, kept = 4 * 3 * 96 * 64, memory.kept_for_gradient(load("any.safetensors"))
    one = image * (memory.ROW_TENSORS + 6 + memory.WHOLE_TENSORS) + round(kept * 96 * 64)
    monkeypatch.setattr(memory, "available", lambda device: one)
    said = refused(capsys, photo_place, *DENOISE)
    assert "96x64" in said
    assert "--batch-size 1" in said
    restore(*DENOISE, "--batch-size", "1")
    monkeypatch.setattr(memory, "available", lambda device: one // 4)
    said = refused(capsys, photo_place, *DENOISE, "--samples", "1", "--force")
    size = re.search(r"--fit crop --size (\[\d+,\d+\])", said)
    assert size, said
    restore(*DENOISE, "--samples", "1", "--fit", "crop", "--size", size[1], "--force")
    height, width = read_image("out/mean.png").shape[1:]
    assert 96 * 64 / 8 < height * width <= 96 * 64 / 4


def test_advice_for_superres_is_in_pixels_of_the_photo(photo_place, capsys, monkeypatch):
    """Would catch a photo refused again at the very size that was advised."""
    photo(24, 16)
    kept = memory.kept_for_gradient(load("any.safetensors"))
    room = memory.needed((3, 48, 32), kept=kept, tiled=True, rows=1, samples=1)
    monkeypatch.setattr(memory, "available", lambda device: room)
    words = ("--task", "superres", "--factor", "4", "--sigma", ".1", "--samples", "1")
    said = refused(capsys, photo_place, *words)
    size = re.search(r"--size (\[\d+,\d+\])", said)
    assert size, said
    restore(*words, "--fit", "crop", "--size", size[1])


def test_photo_too_large_to_read(photo_place, capsys, monkeypatch):
    """Would catch a photo decoded before anyone asked whether it fits; headers are enough."""
    Image.new("1", (9000, 3000)).save("photo.png")
    assert image_size("photo.png") == (3000, 9000)
    monkeypatch.setattr(memory, "available", lambda device: 10**8)
    monkeypatch.setattr("genprior.commands.restore.read_photo", None)
    assert "3000x9000" in refused(capsys, photo_place, *DENOISE)


def test_kept_for_gradient():
    """Would catch weights or shared storages counted: what one layer keeps is known."""

    class OneProduct(Diffusion):
        def denoise(self, x, sigma):
            return (2 * x).square()  # keeps its input alone

    prior = OneProduct(tiny_network(), (3, None, None))
    assert memory.kept_for_gradient(prior) == pytest.approx(3 * 4)
    network = Diffusion(tiny_network(), (3, None, None))
    assert memory.kept_for_gradient(network) == pytest.approx(
        memory.kept_for_gradient(network, 128), rel=0.02
    )


def test_memory_limit_of_a_container(tmp_path):
    """Would catch the machine's memory taken for the container's, or its file cache for used."""
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 250\n")
    assert memory._free_of_group(tmp_path) == 550
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._free_of_group(tmp_path) is None


# Tiles


def tiled(monkeypatch, pixels, tile):
    monkeypatch.setattr(tiles, "PIXELS", pixels)
    monkeypatch.setattr(tiles, "PIXELS_WITH_GRADIENT", pixels)
    monkeypatch.setitem(in_tiles.__kwdefaults__, "tile", tile)


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_solver_through_tiles(monkeypatch, missing):
    """Would catch seams in a whole restoration: VJPs that stop at a tile's edge, or a tile that
    is evaluated at another row's noise level."""
    prior = Diffusion(tiny_network().double(), (3, None, None), data_std=0.25)
    generator = torch.Generator().manual_seed(0)
    x = 0.5 + 0.2 * torch.randn(2, 3, 70, 90, generator=generator, dtype=torch.float64)
    operator = Identity((3, 70, 90))
    if missing:
        mask = torch.rand(1, 70, 90, generator=generator) > missing
        operator = Inpainting(mask, image_shape=(3, 70, 90))
    noise = GaussianNoise(torch.tensor([0.05, 0.2]))
    problem = Problem.simulate(x, operator, noise, generator=generator)

    def solved():
        return MMPS(steps=3)(problem, prior, generator=torch.Generator().manual_seed(1)).samples

    whole = solved()
    calls = []
    monkeypatch.setattr(
        "genprior.priors.diffusion.diffusion.in_tiles",
        lambda *a, **k: calls.append(1) or in_tiles(*a, **k),
    )
    tiled(monkeypatch, 1000, 24)
    assert (solved() - whole).abs().max() < 1e-9
    assert calls, "nothing went in tiles"


def test_tiles_bound_memory(monkeypatch):
    """Would catch tiles whose layers are all kept for the gradient, as one piece's would be."""
    prior = Diffusion(tiny_network(), (3, None, None), data_std=0.25)
    whole = memory.kept_for_gradient(prior, 160)
    tiled(monkeypatch, 1000, 32)
    assert memory.kept_for_gradient(prior, 160) < whole / 4
