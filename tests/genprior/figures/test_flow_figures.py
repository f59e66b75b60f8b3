"""The figures of flows: their densities, masks, temperatures, paths, and what they restore."""

import math

import pytest
import torch
import torch.nn.functional as F
from tools import seeded

from genprior import cli
from genprior.data import write_image
from genprior.figures import flow_map
from genprior.figures.densities import (
    WALL,
    energies,
    fit,
    log_density,
    log_normalisers,
    square,
)
from genprior.figures.flow_map import best_weight, denoising, sensing
from genprior.figures.flows import DONE, MOVES, between, coupling_masks, dequantised, tempered
from genprior.figures.inverse import lasso, pose
from genprior.metrics import psnr
from genprior.priors import VAE, Glow, RealNVP
from genprior.priors.flows.coupling import AffineCoupling
from genprior.solvers import FlowMAP, LatentMAP


def stirred(flow, by=0.1):
    """No weight at the value that makes a layer the identity."""
    generator = seeded()
    with torch.no_grad():
        for p in flow.parameters():
            p += by * torch.randn(p.shape, generator=generator)
    return flow.requires_grad_(False)


def small_glow(side=8):
    return stirred(Glow((1, side, side), levels=1, depth=1, network={"width": 4}), 0.02)


def test_four_densities_have_their_ridges_and_volumes():
    """Catches a sign or a width of the source's table, a normaliser of another square."""
    ridges = ([2.0, 0.0], [1.0, 1.0]), ([1.0, 1.0], [-3.0, 1.0]), ([1.0, 1.0], [1.0, -2.0])
    ridges = (*ridges, ([3.0, -1.0], [3.0, -1.0 - 3 / (1 + math.exp(-2 / 0.3))]))
    both = energies(torch.tensor(ridges))
    assert both[0, 0, 0].abs() < 1e-5
    assert (both.diagonal()[:, 1:].abs() < 1e-3).all()
    width = math.sqrt(2 * math.pi)  # the second is a normal across a wave, between two walls
    exact = math.log(0.4 * width * (8 + WALL * width))
    assert abs(log_normalisers()[1] - exact) < 1e-3


@pytest.mark.parametrize("kind", ["planar", "radial"])
def test_gap_is_that_of_the_density_drawn(kind):
    """Catches a log-determinant of the wrong sign, and a flow drawn under another's title."""
    half, cells = 9.0, 200
    points, area = square(half, cells), (2 * half / cells) ** 2
    for target, (flow, gap) in enumerate(fit(kind, 2, steps=8, starts=2)):
        log_q = log_density(flow, points)
        q = log_q.exp() * area
        assert abs(float(q.sum()) - 1) < 2e-3
        each = log_q + energies(points)[target] + log_normalisers()[target]
        mean = float((q * each).sum())
        error = math.sqrt(float((q * (each - mean) ** 2).sum()) / 20_000)
        assert abs(gap - mean) < 5 * error + 1e-3


def test_fit_comes_nearer():
    """Catches a descent that goes up, or on another density."""
    early, late = (fit("planar", 3, steps=n, starts=1) for n in (2, 60))
    assert all(b < 0.75 * a for (_, a), (_, b) in zip(early, late, strict=True))


def test_masks_are_what_the_couplings_move():
    """Catches a mask turned round, of another scale, or put back in the wrong pixels."""
    flow = stirred(RealNVP((1, 8, 8), levels=2, couplings=2, network={"width": 4}))
    moved = []
    for module in flow.modules():
        if isinstance(module, AffineCoupling):
            module.register_forward_hook(lambda _, x, z: moved.append(x[0] != z[0]))
    x = torch.rand(1, 1, 8, 8, generator=seeded())
    flow.encode(x)
    shown = [mask[None] for scale in coupling_masks(flow, x) for _, mask in scale]
    assert len(shown) == len(moved) == 9
    for mask, changed in zip(shown, moved, strict=True):
        while mask.shape[1:] != changed.shape[1:]:
            mask = F.pixel_unshuffle(mask, 2)
            if mask.shape[1:] != changed.shape[1:]:  # half goes on to the next scale
                assert (mask[:, 2:] == DONE).all()
                mask = mask[:, :2]
        assert ((mask == MOVES) == changed).all()


def test_rows_of_the_temperatures_are_samples_at_them():
    """Catches a temperature that scales images, or rows of other draws."""
    flow = small_glow()
    found = tempered(flow, 3, seed=5)
    torch.testing.assert_close(found[0], flow.decode(torch.zeros(3, 64)))
    for row, temperature in ((1, 0.25), (6, 1.0)):
        samples = flow.sample(3, generator=seeded(5), temperature=temperature)
        torch.testing.assert_close(found[row], samples)


def test_paths_lead_from_image_to_image():
    """Catches pairs mixed up, images that are not dequantised, or in other levels."""
    x = torch.randint(256, (4, 1, 8, 8), generator=seeded()) / 255
    assert ((256 * dequantised(x, 0)).floor() == (255 * x).round()).all()
    found = between(small_glow(), x, seed=0)
    ends = torch.cat([found[:, 0], found[:, -1]])
    torch.testing.assert_close(ends, dequantised(x, 0), rtol=0, atol=1e-4)


def strokes(count):
    """Black images with one bright stroke each, (count, 1, 28, 28)."""
    x = torch.zeros(count, 1, 28, 28)
    for i in range(count):
        x[i, 0, 5 + 3 * i, 8:20] = 0.9
    return x


def test_each_method_is_scored_on_its_own_image(monkeypatch):
    """Catches scores under another's name: with all pixels measured only the VAE must fail."""
    pytest.importorskip("sklearn")
    monkeypatch.setattr(flow_map, "WEIGHTS", (0.01,))
    monkeypatch.setattr(flow_map, "LATENT_MAP", LatentMAP(restarts=1, steps=30))
    vae = VAE((1, 28, 28), 2, network={"hidden": [8], "seed": 0}, pixels={"std": 0.3})
    vae.requires_grad_(False)
    x = strokes(2)
    rows = sensing(small_glow(28), vae, x, x, measurements=(784,))
    found = {row["what"]: row["psnr"] for row in rows}
    assert found["vae decoder"] < 12 < 20 < found["vae"]
    assert found["flow"] > 25
    assert found["lasso pixels"] > 35
    assert found["lasso pixels"] > found["lasso cosines"]


def test_weight_of_lasso_is_the_best(monkeypatch):
    """Catches a weight chosen by the largest error, or for another basis."""
    pytest.importorskip("sklearn")
    monkeypatch.setattr(flow_map, "WEIGHTS", (3.0, 0.01))
    x, basis = strokes(2), torch.eye(784, dtype=torch.float64)
    problem = pose(x, 200)
    scores = {w: psnr(lasso(problem, basis, weight=w).view_as(x), x).mean() for w in (3.0, 0.01)}
    assert scores[0.01] > scores[3.0] + 3
    assert best_weight(problem, x, basis) == 0.01


def test_gamma_goes_from_the_noisy_image_to_that_of_z_zero():
    """Catches a weight that does not reach the solver, or another image scored."""
    flow, x = small_glow(), 0.2 + 0.6 * torch.rand(3, 1, 8, 8, generator=seeded())
    noisy, free, bound = denoising(flow, x, gammas=(0.0, 1e6))
    assert noisy["psnr"] == pytest.approx(20, abs=1)  # sigma .1
    assert free["psnr"] == pytest.approx(noisy["psnr"], abs=0.05)
    middle = psnr(flow.decode(torch.zeros(3, 64)), x).mean()
    assert bound["psnr"] == pytest.approx(float(middle), abs=0.01)


def test_another_flow_is_drawn_and_its_numbers_written(tmp_path, monkeypatch, capsys):
    """Catches --prior that is not read, or a table that is not the picture's."""
    monkeypatch.setattr(flow_map, "FLOW_MAP", FlowMAP(steps=2))
    monkeypatch.setattr(flow_map, "DIGITS", 2)
    (tmp_path / "digits").mkdir()
    for i, image in enumerate(strokes(2)):
        write_image(tmp_path / "digits" / f"{i}.png", image)
    small_glow(28).save(tmp_path / "glow.safetensors")
    words = ["figure", "gamma", "--data", str(tmp_path / "digits"), "--out", str(tmp_path)]
    assert cli.main([*words, "--prior", str(tmp_path / "glow.safetensors")]) == 0
    lines = (tmp_path / "gamma.csv").read_text().splitlines()
    assert lines[0] == "gamma,psnr,error"
    assert [line.split(",")[0] for line in lines[1:3]] == ["noisy", "0.0"]
    assert f"psnr {float(lines[1].split(',')[1]):.4g}" in capsys.readouterr().out
    assert (tmp_path / "gamma.png").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["temperatures", "--prior", "mnist-vae"], "is a VAE"),
        (["masks", "--prior", "mnist-vae"], "draws no shipped prior"),
        (["gamma"], "--data"),
    ],
)
def test_what_a_figure_cannot_draw_is_said(words, says, tmp_path, capsys):
    """Catches an option that is silently ignored, or a traceback."""
    assert cli.main(["figure", *words, "--out", str(tmp_path)]) == 2
    assert says in capsys.readouterr().err
