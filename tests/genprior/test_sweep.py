"""Every option of every command, given what nobody should give it."""

import functools
import inspect
import itertools
import os
import re
from collections import Counter

import pytest
import torch
from photos import photo, save_priors, smooth_gaussian

from genprior import cli
from genprior.data import write_image
from genprior.figures import canvas, registry
from genprior.priors import Diffusion, Gaussian, GaussianMixture, StationaryGaussian
from genprior.priors.diffusion.parametrisations import KINDS
from genprior.priors.diffusion.unet import UNet
from genprior.priors.flows.conditioners import Convolutions, Transformer
from genprior.priors.flows.vectors import VectorFlow
from genprior.priors.gan import networks
from genprior.priors.gan.losses import AdversarialOptions
from genprior.priors.vae.coders import convolutional, perceptron
from genprior.priors.vae.pixels import BernoulliPixels, GaussianPixels
from genprior.priors.vae.variational import BoundOptions

MISSING = "(nothing)"
TRIED = (
    *(MISSING, "text", "-1", "0", "nan", ".nan", "inf", ".inf", "1e9", "1000000000"),
    *("folder", "file.txt", "/dev/null", ""),
)

PATHS = {"text", "-1", "0", "nan", ".nan", "inf", ".inf", "1e9", "1000000000"}
"""Good names for what is to be written."""

LEGAL = {
    # option: what of TRIED means something
    "out": PATHS | {"folder"},
    "seed": {"0", "1000000000"},
    "port": {"0"},
    "sigma": {"0"},
    "residual": {"0"},
    "warmup": {"0"},
    "cooldown": {"0"},
    "workers": {"0"},
    "grid": {"0"},
    "whole": {"0"},
    "data_mean": {"0"},
    "out of sample": set(),
    "out of evaluate": PATHS,
    "workers of restore": set(),  # one photo
    "data": {"folder"},
}

LEGAL_INSIDE = {
    "seed": {"-1", "0", "1000000000"},
    "log_mean": {"-1", "0"},
    "free_bits": {"0"},
    **{key: {"0"} for key in ("r1", "r2", "gradient_penalty", "augment", "mixing")},
    "clip": {""},
    "warm_up": {"0", "1000000000"},
    "betas": {""},  # none of its own
    **{f"kind: dcgan, {key}": {"0"} for key in ("mapping", "hidden")},  # none
}
"""The same inside mappings."""

INSIDE = (
    r"(s|beta)_range|log_(mean|std)|closed_kl|free_bits|kl_weight|(flow|scaled)_[a-z]+|warm_up"
    r"|critic_[a-z]+|gradient_penalty|batch_norm"
)
"""Names in mappings, where they are typed as they are."""

DATA = ("--data", "folder", "--out", "new")
DENOISE = ("--task", "denoise", "--sigma", "0.1")
INPAINT = ("--task", "inpaint", "--mask", "random:0.5")
BLUR = ("--task", "deblur", "--kernel", "uniform:3", "--sigma", "0.1")
SHORT = {
    "restore": ("photo.png", "--prior", "exact.safetensors", "--out", "new"),
    "train mixture": (*DATA, "--components", "2"),
    "train texture": ("--image", "photo.png", "--out", "new"),
    "train autoencoder": (*DATA, "--latent-size", "2"),
    "sample": ("exact.safetensors", "--out", "new.png"),
    "priors": (),
    "solvers": (),
    "evaluate": ("--data", "folder", "--prior", "exact.safetensors", "--out", "new.csv"),
    "figure": ("codes", "--data", "folder", "--out", "new"),
    "demo": ("--out", "new"),
    "app": ("--port", "0", "--prior", "exact.safetensors"),
}
"""A command line that works, but for the task; DATA for the rest."""

TASKS = {
    **dict.fromkeys(("mask", "invert_mask", "mask_threshold", "keep"), INPAINT),
    **dict.fromkeys(("kernel", "boundary"), BLUR),
    "factor": ("--task", "superres", "--factor", "2", "--sigma", "0.1"),
    "sigma": ("--task", "denoise"),
    "peak": ("--task", "denoise"),
    "size of restore": (*DENOISE, "--fit", "crop", "--prior", "any.safetensors"),
    "steps": (*DENOISE, "--prior", "any.safetensors"),
}
"""What an option needs beside it."""


class Worked(BaseException):
    """Raised where work begins."""


def begin(*_, **__):
    raise Worked


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with images and priors, where every command stops as its work begins."""
    monkeypatch.chdir(tmp_path)
    save_priors()
    photo(16, 16)
    (tmp_path / "folder").mkdir()
    for i, x in enumerate(smooth_gaussian().sample(4, generator=torch.Generator())):
        write_image(f"folder/{i}.png", x)
    (tmp_path / "file.txt").write_text("no image, no weights, no options\n")
    for kind in (Gaussian, GaussianMixture, StationaryGaussian):
        monkeypatch.setattr(kind, "fit", begin)
    for kind in (Gaussian, Diffusion):
        monkeypatch.setattr(kind, "sample", begin)
    for work in ("commands.run.train", "restoration.settings.solve", "commands.demo.restore"):
        monkeypatch.setattr(f"genprior.{work}", begin)
    monkeypatch.setattr("genprior.commands.listing.capabilities", begin)
    monkeypatch.setattr("genprior.app.server.serve", begin)
    monkeypatch.setattr(cli, "_parser", functools.cache(cli._parser))
    draw = registry.Drawing("", lambda data, seed: begin(canvas.digits(data, "test", 1)))
    monkeypatch.setattr(registry, "FIGURES", {"codes": draw})
    return tmp_path


def options():
    """Every command with each of its options, and whether that is a flag."""
    for name, command in cli.COMMANDS.items():
        parser, _, flags, _ = cli._parser(name, cli._load(command), command.positional)
        for action in parser._actions:
            typed = [o for o in action.option_strings if o.startswith("--")]
            if typed and typed[0] not in ("--help", "--print_config", "--augment.help"):
                yield name, action.dest, action.dest in flags


def tries():
    """Every option with each value; options that families of priors share with the first family
    in full, with the others by turns."""
    before = Counter()
    for name, option, flag in list(options()):  # a parser that has parsed has one more
        family = name.startswith("train ")
        values = TRIED[before[option] % 3 :: 3] if family and before[option] else TRIED
        before[option] += family
        yield from itertools.product([name], [option], [flag], values)


def hyphened(option):
    return f"--{option.replace('_', '-')}"


def line(name, option, flag, value):
    """The words of a command line that works but for one option."""
    words = [*name.split(), *SHORT.get(name, DATA)]
    if name in ("restore", "evaluate"):
        words += TASKS.get(f"{option} of {name}", TASKS.get(option, DENOISE))
    typed = hyphened(option)
    if value is MISSING:
        return [*words, typed]
    return [*words, *([f"{typed}={value}"] if flag else [typed, value])]


def nested():
    """Every option inside a mapping: the command, the words before it, its name, what is legal."""
    families = {
        "train diffusion": [
            ("network", "", UNet),
            *(("objective", f"kind: {kind}, ", taker) for kind, taker in KINDS.items()),
        ],
        "train vae": [
            ("network", "", perceptron),
            ("network", "kind: convolutional, ", convolutional),
            ("pixels", "", GaussianPixels),
            ("pixels", "kind: bernoulli, ", BernoulliPixels),
            ("bound", "", BoundOptions),
            ("flow", "", VectorFlow),
        ],
        "train glow": [
            ("network", "", Convolutions),
            ("network", "kind: transformer, ", Transformer),
        ],
        "train gan": [
            *(("network", f"kind: {kind}, ", taker) for kind, taker in networks.KINDS.items()),
            ("loss", "", AdversarialOptions),
        ],
    }
    for name, mappings in families.items():
        for option, before, taker in mappings:
            for key, parameter in inspect.signature(taker).parameters.items():
                if parameter.default is not parameter.empty:
                    yield name, option, before, key
            yield name, option, before, "nonesuch"


def files(folder):
    """All that lies in a folder; `rglob` takes ten times as long."""
    return [(where, sorted(inner), sorted(names)) for where, inner, names in os.walk(folder)]


def fault(words, named, place, capsys):
    """What is wrong with the refusal of a command line: nothing, or one line."""
    before = files(place)
    try:
        status = cli.main(words)
    except Worked:
        status = "work began"
    out, said = capsys.readouterr()
    said = said.replace(str(place), "")
    spoken = re.sub(INSIDE, "", said)
    plain = not re.search(
        r"Union|ubtypes|<class|typing\.|Parser key|Traceback|[a-z]_[a-z]", spoken
    )
    same = files(place) == before
    good = status == 2 and said.count("\n") == 1 and not out and named in said and plain and same
    wrote = "" if same else ", and something was written"
    return [] if good else [f"{' '.join(words)}: {status}, {out}{said.strip()}{wrote}"]


def test_sweep(place, capsys):
    """Would catch a number without a bound, a refusal that speaks of the parser's types or does
    not say which option is meant, work before a refusal, and anything written by it."""
    short, tried = [], 0
    for name, option, flag, value in tries():
        legal = LEGAL.get(f"{option} of {name}", LEGAL.get(option, set()))
        words = line(name, option, flag, value)
        if value in legal:
            with pytest.raises(Worked):
                cli.main(words)
            capsys.readouterr()
        elif value is not MISSING or not flag:
            tried += 1
            short += fault(words, hyphened(option), place, capsys)
    for (name, option, before, key), value in itertools.product(nested(), TRIED[1:]):
        if value not in LEGAL_INSIDE.get(before + key, LEGAL_INSIDE.get(key, set())):
            tried += 1
            inside = f"{{{before}{key}: {value}}}"
            short += fault(line(name, option, False, inside), f"--{option}", place, capsys)
    for value in TRIED[1:]:
        tried += 1
        short += fault(["--import", value, "priors"], "--import", place, capsys)
        for name in ("restore", "sample", "figure"):
            words = [name, value, *SHORT[name][1:], *(DENOISE if name == "restore" else ())]
            if (name, value) != ("restore", "folder"):  # a folder of photos is restored
                short += fault(words, value, place, capsys)
    short += fault(["--import"], "--import", place, capsys)
    assert tried > 3000
    assert not short, f"{len(short)} of {tried} fall short:\n" + "\n".join(short)
