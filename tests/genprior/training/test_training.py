"""The training loop: exact resume, what a step computes, and everything that can go wrong."""

import errno
import inspect
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tools import identical
from torch import nn

from genprior import cli
from genprior.commands import train as commands
from genprior.data import write_image
from genprior.pretrained import load
from genprior.priors import (
    VAE,
    Autoencoder,
    Diffusion,
    Gaussian,
    HierarchicalVAE,
    Prior,
    Turn,
)
from genprior.priors.diffusion.unet import UNet
from genprior.priors.files import read_header
from genprior.priors.training import Objective, Trainable
from genprior.training import TrainingOptions, checkpoints, train
from genprior.training.augmentation import Augmentation

QUIET = TrainingOptions(
    warmup=2, checkpoint_every=4, grid=0, progress=False, precision="fp32", accelerator="cpu"
)


def options(**changes):
    return TrainingOptions(**{**QUIET.__dict__, **changes})


def data(count=20, size=6):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, size, size, generator=generator)


def tiny(width=8):
    return Diffusion(UNet(1, widths=(width,), blocks=(1,)), (1, 6, 6), data_std=0.3)


def weights(prior):
    return {k: v.clone() for k, v in prior.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(identical(a[k], b[k]) for k in a)


class Line(Trainable, Prior):
    """One weight per group, SGD: what a step does can be computed by hand.

    Every group's loss depends on every weight, as a GAN's do.
    """

    def __init__(self, groups=(("all", 1),), slope=1.0, fail_at=None):
        super().__init__()
        self.image_shape = (1, 6, 6)
        self.weights = nn.ParameterDict({name: torch.zeros(()) for name, _ in groups})
        self.groups, self.slope, self.fail_at = groups, slope, fail_at
        self.seen, self.turns, self.free = [], [], []

    def __deepcopy__(self, memo):
        other = Line(self.groups, self.slope, self.fail_at)
        other.load_state_dict(self.state_dict())
        # Shared, so that the test sees what training drew.
        other.seen, other.turns, other.free = self.seen, self.turns, self.free
        return other

    def sample(self, n, *, size=None, generator=None):
        return torch.zeros(n, 1, 6, 6)

    def objective(self):
        return LineObjective(self)


class LineObjective(Objective):
    def __init__(self, model):
        super().__init__(model)
        self.turns = model.groups

    def parameters(self, group):
        return [self.model.weights[group]]

    def optimizer(self, group, learning_rate, parameters):
        return torch.optim.SGD(parameters, lr=learning_rate)

    def loss(self, turn, batch, generator):
        noise = torch.stack([torch.rand((), generator=g) for g in generator])
        model = self.model
        model.seen.append((turn.group, batch.detach().clone(), noise))
        model.turns.append(turn)
        model.free.append([name for name, w in model.weights.items() if w.requires_grad])
        factor = model.slope * (noise + batch.flatten(1).mean(1)).mean()
        if model.fail_at is not None and len(model.seen) >= model.fail_at:
            factor = factor * float("nan")
        return -factor * sum(model.weights.values()), {}


def command(folder, out):
    """A tiny training from the shell on a folder of JPEGs."""
    words = f"train diffusion --data {folder} --size 8 --steps 40 --batch-size 4 --out {out}"
    words += " --checkpoint-every 4 --grid 4 --warmup 2 --accelerator cpu --precision fp32"
    return [*words.split(), "--network", "{widths: [8], blocks: [1]}"]


def test_a_shipped_prior_is_trained_on(tmp_path):
    """Would catch fine-tuning that begins from nothing, or with another network."""
    folder, out = tmp_path / "photos", tmp_path / "run"
    folder.mkdir()
    for i, x in enumerate(torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))):
        write_image(folder / f"{i}.png", x)
    words = f"train diffusion --data {folder} --out {out} --start photos-diffusion --any-size"
    words += " --augment.crop 8 --steps 1 --batch-size 2 --learning-rate 1e-9 --grid 0"
    assert cli.main(words.split()) == 0
    before, after = load("photos-diffusion"), load(out / "prior.safetensors")
    for a, b in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert before.data_mean.flatten().tolist() != after.data_mean.flatten().tolist()
    assert read_header(out / "prior.safetensors")["card"]["start"] == "photos-diffusion"
    words = words.replace(str(out), str(tmp_path / "other")) + " --network.widths [8]"
    assert cli.main([*words.split(), "--network.blocks", "[1]"]) == 2


def test_killed_run_ends_like_one_that_was_not(tmp_path):
    """Would catch anything that a checkpoint forgets: moments, average, place in the data.

    From the shell, as a user does: JPEGs, SIGKILL, the same command again, samples, a photo.
    """
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(data(20, 10)):
        pixels = (255 * image[0]).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert cli.main(command(folder, whole)) == 0
    process = subprocess.Popen([sys.executable, "-m", "genprior.cli", *command(folder, killed)])
    checkpoint_folder = killed / "checkpoints"
    deadline = time.monotonic() + 200
    while not list(checkpoint_folder.glob("step-*.pt")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # However far it came, the run that resumes goes back to a checkpoint.
    for path in sorted(checkpoint_folder.glob("step-*.pt"))[1:]:
        path.unlink()
    assert checkpoints.newest(checkpoint_folder)["step"] < 40
    assert cli.main(command(folder, killed)) == 0
    trained = [Diffusion.load(run / "prior.safetensors") for run in (whole, killed)]
    assert same(*map(weights, trained))
    # The same noise, so the same pictures.
    pictures = [(run / "samples-000000040.png").read_bytes() for run in (whole, killed)]
    assert pictures[0] == pictures[1]
    assert (killed / "loss.png").stat().st_size > 0
    prior = str(killed / "prior.safetensors")
    assert cli.main(["sample", prior, "--number", "2", "--out", str(tmp_path / "s.png")]) == 0
    restore = f"restore {whole / 'photo.png'} --task denoise --sigma 0.1 --samples 1 --steps 4"
    write_image(whole / "photo.png", data(1, 8)[0])
    out = ["--out", str(tmp_path / "restored"), "--prior", prior]
    assert cli.main([*restore.split(), *out]) == 0
    assert (tmp_path / "restored" / "mean.png").exists()


def test_truncated_checkpoint_falls_back(tmp_path):
    """Would catch a crash on a damaged file, and silence about it."""
    whole = train(tiny(), data(), out=tmp_path, steps=12, batch_size=4, options=QUIET)
    files = sorted((tmp_path / "checkpoints").glob("*"))
    assert [f.name for f in files] == ["step-000000008.pt", "step-000000012.pt"]
    files[1].write_bytes(files[1].read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"step-000000012.*damaged"):
        again = train(tiny(), data(), out=tmp_path, steps=12, batch_size=4, options=QUIET)
    assert same(weights(again), weights(whole))
    for file in files:
        file.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(ValueError, match="every checkpoint"),
    ):
        train(tiny(), data(), out=tmp_path, steps=12, batch_size=4, options=QUIET)


def test_another_run_is_refused(tmp_path):
    """Would catch a resume that mixes architectures, data or settings."""
    train(tiny(), data(), out=tmp_path, steps=8, batch_size=4, options=QUIET)

    def resume(prior=None, images=None, **changes):
        chosen = {"steps": 8, "batch_size": 4, **changes}
        settings = chosen.pop("options", QUIET)
        train(prior or tiny(), images if images is not None else data(), out=tmp_path,
              options=settings, **chosen)  # fmt: skip

    resume()
    with pytest.raises(ValueError, match=r"prior.network.widths: \[8\] before, \[16\] now"):
        resume(tiny(16))
    with pytest.raises(ValueError, match=r"data\.digest"):
        resume(images=1 - data())
    with pytest.raises(ValueError, match=r"data\.images: 20 before, 21 now"):
        resume(images=data(21))
    with pytest.raises(ValueError, match=r"settings.learning_rate: 0.001 before, 0.1 now"):
        resume(options=options(learning_rate=0.1))
    with pytest.raises(ValueError, match="steps: 8 before, 100 now"):
        resume(steps=100)


def test_a_run_may_be_lengthened_early(tmp_path):
    """Would catch a schedule that depends on the length before its cool-down."""
    keep = options(cooldown=0.25)
    train(tiny(), data(), out=tmp_path / "a", steps=8, batch_size=4, options=keep)
    (tmp_path / "a" / "checkpoints" / "step-000000008.pt").unlink()
    longer = train(tiny(), data(), out=tmp_path / "a", steps=16, batch_size=4, options=keep)
    whole = train(tiny(), data(), out=tmp_path / "b", steps=16, batch_size=4, options=keep)
    assert same(weights(longer), weights(whole))


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    """Would catch a checkpoint, an average or a prior file full of NaN."""
    prior = Line(fail_at=7)
    with pytest.raises(ArithmeticError, match=r"before step 8.*half the learning rate"):
        train(prior, data(), out=tmp_path, steps=20, batch_size=4, options=QUIET)
    kept = checkpoints.newest(tmp_path / "checkpoints")
    assert kept["step"] == 4
    assert kept["networks"]["weights.all"].isfinite().all()
    assert read_line(tmp_path).isfinite().all()


def read_line(folder):
    from safetensors.torch import load_file

    return load_file(folder / "prior.safetensors")["weights.all"]


def test_full_disk(tmp_path, monkeypatch):
    """Would catch a half-written checkpoint, or one removed before its successor is safe."""
    train(tiny(), data(), out=tmp_path, steps=8, batch_size=4, options=QUIET)
    before = checkpoints.newest(tmp_path / "checkpoints")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"disk is full.*step-000000008\.pt is the last.*resume"):
        checkpoints.write(tmp_path / "checkpoints", 12, {"networks": before["networks"]})
    assert checkpoints.newest(tmp_path / "checkpoints")["step"] == before["step"] == 8
    assert not list((tmp_path / "checkpoints").glob("*.partial"))


def test_every_image_is_seen_once_an_epoch_and_differently_each(tmp_path):
    """Would catch images left out, seen twice, or an order that repeats."""
    images = torch.arange(12.0)[:, None, None, None].expand(12, 1, 6, 6) / 12
    prior = Line()
    train(prior, images, out=tmp_path, steps=9, batch_size=4, options=QUIET)
    seen = torch.cat([batch[:, 0, 0, 0] for _, batch, _ in prior.seen]) * 12
    epochs = seen.round().long().reshape(3, 12)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(12))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3
    noise = torch.cat([noise for _, _, noise in prior.seen])
    assert len(noise.unique()) == len(noise)


@pytest.mark.parametrize("changes", [{"accumulate": 4}, {"accumulate": 2, "workers": 1}], ids=str)
def test_accumulation_changes_nothing(tmp_path, changes):
    """Would catch gradients that are summed instead of averaged, or drawn in another order."""
    one = train(Line(), data(), out=tmp_path / "1", steps=8, batch_size=4, options=QUIET)
    parts = train(
        Line(), data(), out=tmp_path / "2", steps=8, batch_size=4, options=options(**changes)
    )
    assert one.weights["all"].abs() > 0
    assert torch.allclose(one.weights["all"], parts.weights["all"], rtol=1e-5)


def test_two_processes_are_one_with_the_doubled_batch(tmp_path):
    """Would catch ranks that see the same images, or gradients scaled by their number."""
    one = train(Line(), data(), out=tmp_path / "1", steps=4, batch_size=4, options=QUIET)
    script = tmp_path / "two.py"
    script.write_text(
        f"import sys; sys.path[:0] = {[str(Path(__file__).parents[n]) for n in (0, 2)]!r}\n"
        "from test_training import *\n"
        "prior = Line()\n"
        f"train(prior, data(), out={str(tmp_path / '2')!r}, steps=4, batch_size=4,\n"
        "      options=options(devices=2))\n"
        "assert all(len(batch) == 2 for _, batch, _ in prior.seen)\n"
    )
    subprocess.run([sys.executable, str(script)], check=True, timeout=200, capture_output=True)
    assert torch.allclose(read_line(tmp_path / "2"), one.weights["all"], rtol=1e-5)


def test_turns_of_two_groups(tmp_path):
    """Would catch a GAN whose critic and generator share a batch, a turn or a gradient."""
    prior = Line(groups=(("critic", 2), ("generator", 1)))
    settings = options(learning_rate=0.5, warmup=0, cooldown=0.0, clip=None, ema_half_life=1e-9)
    trained = train(prior, data(), out=tmp_path, steps=3, batch_size=4, options=settings)
    assert [group for group, _, _ in prior.seen] == ["critic", "critic", "generator"] * 3
    batches = torch.stack([batch.flatten() for _, batch, _ in prior.seen])
    assert len(batches.unique(dim=0)) == 9
    for name, weight in trained.weights.items():
        factors = [n + b.flatten(1).mean(1) for group, b, n in prior.seen if group == name]
        expected = 0.5 * sum(factor.mean().item() for factor in factors)
        assert weight.item() == pytest.approx(expected, rel=1e-5)


def test_rate_and_average_by_hand(tmp_path):
    """Would catch a schedule off by one step, and an average with another half-life."""
    settings = options(learning_rate=0.5, warmup=2, cooldown=0.5, clip=None, ema_half_life=2.0)
    prior = Line()
    trained = train(prior, data(), out=tmp_path, steps=10, batch_size=4, options=settings)
    weight = average = 0.0
    rates = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    for step, (_, batch, noise) in enumerate(prior.seen):
        weight += 0.5 * rates[step] * (noise + batch.flatten(1).mean(1)).mean().item()
        half_life = min(2.0, 0.1 * 4 * (step + 1))
        average += (1 - 0.5 ** (4 / half_life)) * (weight - average)
    assert trained.weights["all"].item() == pytest.approx(average, rel=1e-5)


def test_bad_settings(tmp_path):
    """Would catch an error from deep inside, or none, for what a user may well ask."""
    gaussian = Gaussian(torch.zeros(1, 6, 6), torch.zeros(0, 1, 6, 6))
    with pytest.raises(TypeError, match=r"not trained by gradients: use Gaussian\.fit"):
        train(gaussian, data(), out=tmp_path, steps=1)
    with pytest.raises(ValueError, match="9 devices were asked for"):
        train(
            tiny(), data(), out=tmp_path, steps=1, options=options(devices=9, accelerator="auto")
        )
    with pytest.raises(ValueError, match="divisible by devices x nodes x accumulate = 3"):
        train(tiny(), data(), out=tmp_path, steps=1, batch_size=4, options=options(accumulate=3))
    with pytest.raises(ValueError, match=r"images of shape \(1, 7, 7\)"):
        train(tiny(), data(size=7), out=tmp_path, steps=1, batch_size=4, options=QUIET)
    crop = options(augment=Augmentation(crop=8))
    anysize = Diffusion(UNet(1, widths=(8,), blocks=(1,)), (1, None, None))
    with pytest.raises(ValueError, match="no 8x8 crop"):
        train(anysize, data(), out=tmp_path, steps=1, batch_size=4, options=crop)
    assert not list(tmp_path.iterdir())


def test_out_of_memory_says_what_to_try(tmp_path, monkeypatch):
    """Would catch a bare allocator message."""

    def fail(self, turn, batch, generator):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(LineObjective, "loss", fail)
    with pytest.raises(MemoryError, match=r"batches of 8 images: try accumulate=2.*batch_size=4"):
        train(Line(), data(), out=tmp_path, steps=1, batch_size=8, options=QUIET)


def test_prior_that_came_is_unchanged(tmp_path):
    """Would catch training in place."""
    prior = tiny()
    before = weights(prior)
    train(prior, data(), out=tmp_path, steps=4, batch_size=4, options=QUIET)
    assert same(weights(prior), before)


@pytest.mark.parametrize("kind", ["edm", "ddpm", "flow_matching"])
def test_training_finds_the_denoiser(tmp_path, kind):
    """Would catch a loop whose steps do not minimise: white images have a known denoiser."""
    generator = torch.Generator().manual_seed(0)
    images = 0.4 + 0.1 * torch.randn(4000, 1, 6, 6, generator=generator)
    prior = Diffusion.from_images(
        images, network={"widths": (16,), "blocks": (1,), "unshuffle": 1}, objective={"kind": kind}
    )
    trained = train(
        prior, images, out=tmp_path, steps=300, batch_size=64,
        options=options(learning_rate=5e-3, checkpoint_every=300),
    )  # fmt: skip
    x = images[:200] + 0.1 * torch.randn(200, 1, 6, 6, generator=generator)
    got = trained.denoise(x, 0.1)
    exact = 0.4 + 0.5 * (x - 0.4)
    # The error of doing nothing is .1^2, of the best .1^2 / 2; of what training missed, little.
    assert (got - exact).square().mean() < 0.1 * 0.1**2 / 2


def test_views_are_what_they_say():
    """Would catch crops off by a pixel, flips of the wrong axis, a scale that shifts."""
    rows, columns = np.mgrid[:20, :30].astype(np.float32) / 100
    ramp = np.stack([rows, columns])
    view = Augmentation(crop=6, scales=(1.0, 3.0))
    slopes = set()
    for seed in range(40):
        cut = view(ramp, torch.Generator().manual_seed(seed))
        assert cut.shape == (2, 6, 6)
        down, right = cut[0].diff(dim=0)[1:-1], cut[1].diff(dim=1)[:, 1:-1]
        scale = 100 * down[1, 1].item()
        # Away from the border a ramp shrunk by s has slope s, and its middle stays put.
        assert torch.allclose(down[1:-1], down[1, 1], atol=2e-3)
        assert torch.allclose(right[:, 1:-1], right[1, 1], atol=2e-3)
        assert 0.9 < scale < 3.4
        slopes.add(round(scale, 1))
    assert len(slopes) > 5
    turned = [
        Augmentation(flip=True, turn=True)(ramp[:, :6, :6], torch.Generator().manual_seed(s))
        for s in range(100)
    ]
    assert len(torch.stack(turned).unique(dim=0)) == 8
    mirrored = Augmentation(flip=True)
    both = {mirrored(ramp, torch.Generator().manual_seed(s))[1, 0, 0].item() for s in range(20)}
    assert both == {ramp[1, 0, 0].item(), ramp[1, 0, -1].item()}


def test_turns_say_when_and_freeze_the_others(tmp_path):
    """Would catch a step or image count that a loss cannot trust, or gradients that reach others.

    A run that resumes goes on counting.
    """
    model = Line(groups=(("critic", 2), ("generator", 1)))
    keep = options(checkpoint_every=2, cooldown=0.0)
    for steps in (2, 3):
        train(model, data(), out=tmp_path, steps=steps, batch_size=4, options=keep)
    assert model.turns == [
        Turn(group, step, images_seen=4 * (3 * step + place))
        for step in range(3)
        for place, group in enumerate(("critic", "critic", "generator"))
    ]
    assert model.free == [["critic"], ["critic"], ["generator"]] * 3


def test_without_a_folder():
    """Would catch figures that need a loop of their own: same weights, curve by callback."""
    points = []
    settings = {"steps": 100, "batch_size": 4, "options": options(checkpoint_every=1000)}
    a, b = (
        train(Line(), data(), callback=lambda *point: points.append(point), **settings)
        for _ in range(2)
    )
    assert same(weights(a), weights(b))
    assert a.weights["all"] > 0
    assert [step for step, _ in points] == [50, 100, 50, 100]
    assert points[0][1].keys() == {"all"}


def test_by_time(tmp_path, monkeypatch):
    """Would catch a run that forgets the time spent, or a rate that does not end at zero.

    The clock is a counter: every reading takes one second.
    """
    ticks = itertools.count()
    monkeypatch.setattr("genprior.training.report.time.perf_counter", lambda: float(next(ticks)))
    rates = []
    rate = TrainingOptions.rate

    def noted(self, step, share):
        rates.append((share, rate(self, step, share)))
        return rates[-1][1]

    monkeypatch.setattr(TrainingOptions, "rate", noted)
    quiet = options(warmup=0, cooldown=0.5)
    train(Line(), data(), out=tmp_path, seconds=400, batch_size=4, options=quiet)
    shares = [share for share, _ in rates]
    assert shares == sorted(shares)
    assert shares[0] < 0.02
    assert 0.98 < shares[-1] < 1
    assert rates == [(s, pytest.approx(min(1, (1 - s) / 0.5))) for s in shares]
    kept = checkpoints.newest(tmp_path / "checkpoints")
    assert 400 <= kept["seconds"] < 420
    assert len(read_header(tmp_path / "prior.safetensors")["card"]["training"]) == 3
    with pytest.raises(ValueError, match="was to last 400 seconds, now 5 steps"):
        train(Line(), data(), out=tmp_path, steps=5, batch_size=4, options=quiet)
    with pytest.raises(ValueError, match="seconds: 400 before, 900 now"):
        train(Line(), data(), out=tmp_path, seconds=900, batch_size=4, options=quiet)
    newest = sorted((tmp_path / "checkpoints").glob("*.pt"))
    for path in newest[1:]:
        path.unlink()
    before = checkpoints.newest(tmp_path / "checkpoints")
    assert 300 < before["seconds"] < 400
    rates.clear()
    train(Line(), data(), out=tmp_path, seconds=400, batch_size=4, options=quiet)
    assert rates[0][0] == pytest.approx(before["seconds"] / 400, abs=0.02)


class Normalised(Line):
    """Says that its rows see each other."""

    couples_rows = True


def test_batch_statistics_are_not_cut_in_parts():
    """Would catch a batch norm that sees parts of a batch and trains another model in silence."""
    with pytest.raises(ValueError, match=r"Normalised couples the rows.*accumulate must be 1"):
        train(Normalised(), data(), steps=1, batch_size=4, options=options(accumulate=2))
    with pytest.raises(ValueError, match=r"only CUDA devices can share.*devices=1"):
        train(Normalised(), data(), steps=1, batch_size=4, options=options(devices=2))
    train(Normalised(), data(), steps=1, batch_size=4, options=QUIET)


class Impatient(Line):
    """A family with defaults of its own."""

    training_defaults = MappingProxyType(
        {"precision": "fp32", "clip": None, "warmup": 0, "progress": False}
    )


def test_a_family_states_its_own_defaults(monkeypatch):
    """Would catch defaults that reach Python but not the shell, or the other way round."""
    seen = []
    monkeypatch.setattr(TrainingOptions, "rate", lambda self, *_: seen.append(self) or 1.0)
    train(Impatient(), data(), steps=1, batch_size=4)
    parser, *_ = cli._parser("train", commands.trainer(Impatient), ())
    values = parser.get_defaults().as_dict()
    for name, value in Impatient.training_defaults.items():
        assert getattr(seen[0], name) == value == values[name]
    assert values["learning_rate"] == TrainingOptions().learning_rate
    for family in (Diffusion, VAE, HierarchicalVAE, Autoencoder):
        TrainingOptions(**family.training_defaults)


RUINOUS = [
    ("accumulate", "-1"), ("accumulate", "0"), ("clip", "-1"), ("clip", "0"), ("clip", ".nan"),
    ("warmup", "-1"), ("cooldown", "-0.1"), ("cooldown", "1.5"), ("checkpoint-every", "-1"),
    ("checkpoint-every", "0"), ("learning-rate", "0"), ("learning-rate", "-1"),
    ("learning-rate", ".inf"), ("ema-half-life", "0"), ("grid", "-1"), ("workers", "-1"),
    ("devices", "0"), ("nodes", "0"), ("precision", "fp8"), ("batch-size", "0"), ("steps", "0"),
    ("steps", "-3"), ("seconds", "0"), ("seconds", ".inf"), ("channels", "2"), ("channels", "4"),
    ("size", "0"), ("augment.crop", "0"), ("network", "{widths: [8], blocks: [-1]}"),
    ("network", "{widths: [0], blocks: [1]}"), ("network", "{widths: [8], blocks: [0]}"),
    ("network", "{widths: [8.5], blocks: [1]}"), ("network", "{unshuffle: 0}"),
    ("network", "{attention: maybe}"), ("objective", "{kind: ddpm, schedule: steep}"),
    ("objective", "{kind: ddpm, target: blur}"), ("objective", "{kind: ddpm, steps: 0}"),
    ("objective", "{kind: ddpm, beta_range: [0.1, 0.01]}"), ("objective", "{log_std: 0}"),
    ("objective", "{s_range: [0, 1]}"), ("objective", "{kind: vp}"),
]  # fmt: skip


@pytest.mark.parametrize(("option", "value"), RUINOUS, ids=str)
def test_options_that_ruin_a_run_are_refused(option, value, tmp_path, capsys):
    """Would catch a run that saves untrained weights, or fails late, for a slip of the hand."""
    write_image(tmp_path / "a.png", torch.rand(1, 6, 6, generator=torch.Generator()))
    words = ["train", "diffusion", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert cli.main([*words, f"--{option}", value, "--accelerator", "cpu"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    named = re.search(r"\{(?:kind: ddpm, )?(?:widths: \[8\], )?(\w+)", value)
    names = [option.replace("-", "[-_]"), named[1] if named else option]
    assert any(re.search(name, said) for name in names), said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("vae --network.hidden [0]", "hidden"),
        ("vae --network {kind: convolutional, widths: [0]}", "widths"),
        ("vae --latent-size 0", "latent_size"),
        ("hvae --widths [0,4,4]", "widths"),
        ("hvae --groups [-1,1,1]", "groups"),
        ("hvae --latent-channels 0", "latent_channels"),
        ("autoencoder --network.hidden [-3]", "hidden"),
    ],
)
def test_sizes_that_no_network_has_are_refused(words, says, tmp_path, capsys):
    """Would catch layers of width zero in the other families."""
    write_image(tmp_path / "a.png", torch.rand(1, 8, 8, generator=torch.Generator()))
    family, option, value = words.split(" ", 2)
    place = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert cli.main(["train", family, option, value, *place]) == 2
    assert says.replace("_", "-") in capsys.readouterr().err.replace("_", "-")
    assert not (tmp_path / "out").exists()


def test_a_warm_up_longer_than_the_run_is_said():
    """Would catch a run whose learning rate never comes up, in silence."""
    with pytest.warns(UserWarning, match="50% of its peak only: .* 8 steps, and the run has 4"):
        train(Line(), data(), steps=4, batch_size=4, options=options(warmup=8))


def test_recipes_are_read_as_they_were(monkeypatch):
    """Would catch an option of a shipped recipe that a command no longer knows or passes on."""
    passed = {}

    def note(self, family, source, options, *, given, left):
        passed.update(given, family=family.__name__, options=options, run=self)

    monkeypatch.setattr("genprior.commands.run.Run.train", note)
    for path in sorted((Path(__file__).parents[3] / "pretrained" / "recipes").glob("*.yaml")):
        command = re.search(r"genprior train (\w+)", path.read_text())[1]
        if command in ("gaussian", "mixture"):
            continue
        passed.clear()
        words = ["train", command, "--config", str(path), "--data", "x", "--out", "y"]
        assert cli.main(words) == 0
        asked = yaml.safe_load(path.read_text())
        family = cli.COMMANDS[f"train {command}"].function.split(":")[1]
        offered = inspect.signature(getattr(commands, family)).parameters
        defaults = {name: p.default for name, p in offered.items()}
        settings = {**defaults, **vars(passed["options"]), **vars(passed["run"]), **passed}
        for name in asked.keys() - {"size", "channels", "augment"}:
            assert settings[name] == asked[name], (path.name, name)
        for name, value in asked.get("augment", {}).items():
            found = getattr(passed["options"].augment, name)
            assert found == (tuple(value) if isinstance(value, list) else value)


def test_a_finished_run_that_lost_its_prior_gives_it_again(tmp_path):
    """Would catch a run killed between its last checkpoint and its weights, said to be done."""
    settings = {"out": tmp_path, "steps": 4, "batch_size": 4, "options": QUIET}
    done = train(Line(), data(), **settings)
    (tmp_path / "prior.safetensors").unlink()
    train(Line(), data(), **settings)
    assert read_line(tmp_path) == done.weights["all"] != 0


def test_a_weight_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    """Would catch a checkpoint after a step whose loss was finite and whose slope was not."""
    whole = LineObjective.loss

    def loss(self, turn, batch, generator):
        value, logs = whole(self, turn, batch, generator)
        steep = (0 * self.model.weights["all"]).sqrt()  # 0, with a slope that is not finite
        return value + steep if turn.step == 5 else value, logs

    monkeypatch.setattr(LineObjective, "loss", loss)
    often = {"out": tmp_path, "steps": 6, "options": options(checkpoint_every=3)}
    with pytest.raises(ArithmeticError, match="a weight became NaN or infinite before step 6"):
        train(Line(), data(), batch_size=4, **often)
    assert checkpoints.newest(tmp_path / "checkpoints")["step"] == 3


class Measured(Line):
    """Has its weight replaced by the mean of what it was shown in the end."""

    def objective(self):
        objective = super().objective()
        objective.finish = lambda model, images, generator: self.replace(model, images)
        return objective

    def __deepcopy__(self, memo):
        other = Measured(self.groups)
        other.seen = self.seen
        return other

    def replace(self, model, images):
        self.seen.append(("finish", images, model.weights["all"].clone()))
        model.weights["all"].fill_(images.mean())


def test_what_a_family_measures_in_the_end_is_kept(tmp_path):
    """Would catch weights saved before it, the trained weights in place of the average, images
    that training did not see, and a run that was killed in between and never measures."""
    settings = {"out": tmp_path, "steps": 4, "batch_size": 4, "options": QUIET}
    plain = train(Line(), data(), **{**settings, "out": None})
    model = Measured()
    done = train(model, data(), **settings)
    (_, first, _), (_, images, average) = model.seen[0], model.seen[-1]
    assert [n for n, *_ in model.seen] == ["all"] * 4 + ["finish"]
    assert identical(images, first)
    assert identical(average, plain.weights["all"])
    assert read_line(tmp_path) == done.weights["all"] == images.mean()
    (tmp_path / "prior.safetensors").unlink()
    train(model, data(), **settings)
    assert read_line(tmp_path) == images.mean()


@pytest.mark.parametrize(
    ("option", "value", "settings"),
    [
        ("steps", 10**9, {"steps": 10**9}),
        ("seconds", 1e9, {"seconds": 1e9}),
        ("batch-size", 10**9, {"steps": 1, "batch_size": 10**9}),
        ("accumulate", 10**9, {"steps": 1, "options": {"accumulate": 10**9}}),
        ("augment.crop", 10**9, {"steps": 1, "options": {"augment": {"crop": 10**9}}}),
        ("augment.scales", [1, 1e9], {"options": {"augment": {"crop": 4, "scales": (1, 1e9)}}}),
    ],
)
def test_what_no_run_can_be_is_refused_before_work(option, value, settings, monkeypatch, capsys):
    """Would catch a slip of the finger that takes all memory, or bounds of the shell's alone."""
    images = data()
    monkeypatch.setattr("genprior.training.loop.as_images", None)  # work would begin with it
    name = option.replace("-", "_")
    says = re.escape(f"{name} must be at most ") + r"[0-9.e+]+, not 1[0-9.e+]+"

    def run(options=None, **settings):
        asked = dict(options or {})
        if "augment" in asked:
            asked["augment"] = Augmentation(**asked["augment"])
        train(tiny(), images, options=TrainingOptions(**asked), **settings)

    with pytest.raises(ValueError, match=says) as refused:
        run(**settings)
    words = ["train", "diffusion", "--data", "none", "--out", "none", f"--{option}", str(value)]
    assert cli.main([*words, *(["--augment.crop", "4"] if "scales" in option else [])]) == 2
    said = capsys.readouterr().err
    assert str(refused.value) in said.replace(f"--{option}", name), said
    assert said.count("\n") == 1
