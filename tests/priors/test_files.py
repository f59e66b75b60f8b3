"""Weights files: what is written comes back, what is damaged is noticed."""

import contextlib
import hashlib
import json
import os
import pickle

import pytest
import torch
from cases import SMALL_COLOUR as COLOUR
from cases import gaussian, mixture
from safetensors import safe_open
from safetensors.torch import save_file
from tools import identical, pose, randn, seeded

import genprior
from genprior.operators import Inpainting, masks
from genprior.pretrained import available, card
from genprior.priors import VAE, Gaussian, Model, Prior, StationaryGaussian
from genprior.priors import files as files_module
from genprior.priors.files import FORMAT, read_header, write_weights


def saved(tmp_path, **options):
    path = tmp_path / "prior.safetensors"
    gaussian().save(path, card={"data": "none", "images": 3}, **options)
    return path


def test_header_says_what_the_file_is(tmp_path):
    """Would catch a card or config that does not reach the file."""
    header = read_header(saved(tmp_path))
    assert header["format"] == FORMAT
    assert header["family"] == "Gaussian"
    assert header["config"] == {"image_shape": list(COLOUR), "rank": 5}
    assert header["card"] == {"data": "none", "images": 3}


def test_half_precision_on_disk_float32_in_memory(tmp_path):
    """Would catch weights left in half precision, or scalars that lost theirs."""
    prior = Prior.load(saved(tmp_path, dtype=torch.float16))
    assert prior.factors.dtype == torch.float32
    assert float(prior.residual) == pytest.approx(0.05, rel=1e-7)
    torch.testing.assert_close(prior.factors.double(), gaussian().factors, rtol=1e-3, atol=1e-6)


def test_overflow_is_refused(tmp_path):
    """Would catch infinities written in silence."""
    big = Gaussian(torch.full((1, 2, 2), 1e6), torch.zeros(0, 1, 2, 2))
    with pytest.raises(ValueError, match=r"'mean' overflows torch\.float16"):
        big.save(tmp_path / "big.safetensors", dtype=torch.float16)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -1])
def test_truncated_file(tmp_path, keep):
    """Would catch a half-copied file read as if it were whole."""
    path = saved(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"prior\.safetensors: not a whole safetensors file"):
        Prior.load(path)


@pytest.mark.parametrize("where", ["weights", "config", "card"])
def test_altered_file(tmp_path, where):
    """Would catch one bit turned in the weights, or a header edited by hand."""
    path = saved(tmp_path)
    content = bytearray(path.read_bytes())
    if where == "weights":
        content[-3] ^= 1
    else:
        old = b'\\"rank\\": 5' if where == "config" else b'\\"images\\": 3'
        at = content.index(old)
        content[at : at + len(old)] = old[:-1] + b"4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="altered"):
        Prior.load(path)


def test_foreign_safetensors(tmp_path):
    """Would catch a KeyError shown to the user."""
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="without genprior's header"):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"hello, I am text"])
def test_other_kinds_of_file(tmp_path, content):
    """Would catch a traceback where a sentence is due."""
    path = tmp_path / "prior.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"not a whole safetensors file .* fetch it again"):
        Prior.load(path)


@pytest.mark.parametrize("suffix", ["ckpt", "pt", "pkl"])
@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}, None])
def test_pickles_are_named_and_never_opened(tmp_path, suffix, how):
    """Would catch an attempt to unpickle, and advice to fetch such a file again."""
    path = tmp_path / f"model.{suffix}"
    if how is None:
        path.write_bytes(pickle.dumps({"a": 1}))
    else:
        torch.save({"a": torch.zeros(1)}, path, **how)
    with pytest.raises(ValueError, match=r"is a pickle, .* may run any code.* diffusers"):
        genprior.load(path)


def test_missing_file(tmp_path):
    """Would catch a traceback where a sentence is due."""
    with pytest.raises(ValueError, match="no such weights file"):
        Prior.load(tmp_path / "none.safetensors")


def test_newer_format(tmp_path):
    """Would catch a future file misread."""
    path = tmp_path / "new.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"genprior": json.dumps({"format": 99})})
    with pytest.raises(ValueError, match="format 99"):
        read_header(path)


def test_unknown_family(tmp_path, monkeypatch):
    """Would catch an obscure failure for a third party's prior that was not imported."""
    path = saved(tmp_path)
    monkeypatch.setattr(Model, "families", {})
    with pytest.raises(ValueError, match="'Gaussian', which is not defined here: import"):
        Prior.load(path)


def test_writing_is_atomic(tmp_path, monkeypatch):
    """Would catch a good file destroyed by a crash while its successor is written."""
    path = saved(tmp_path)
    before = path.read_bytes()

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="disk full"):
        mixture().save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_mixture_with_unlike_ranks(tmp_path):
    """Would catch components rebuilt with one rank for all."""
    parts = [gaussian(rank=2), gaussian(rank=5)]
    prior = type(mixture()).from_components(torch.ones(2).double(), parts)
    prior.save(tmp_path / "m.safetensors")
    found = Prior.load(tmp_path / "m.safetensors", dtype=torch.float64)
    x = prior.sample(2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.log_prob(x), prior.log_prob(x))


def quantised(tmp_path, prior):
    """`prior` as int8, its file's tensors, and what comes back from them."""
    path = tmp_path / "int8.safetensors"
    prior.save(path, dtype=torch.int8)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors, Prior.load(path, dtype=torch.float64)


@pytest.mark.parametrize("make", [gaussian, mixture, lambda: gaussian(rank=0)])
def test_int8_is_off_by_half_a_step(tmp_path, make):
    """Would catch one scale for all factors, a step lost or doubled, or other weights rounded.

    q = round(f / s) is off by 1/2 at most, so q s is by s / 2, s = max |f| / 127.
    """
    prior = make()
    stored, found = quantised(tmp_path, prior)
    for name, before in prior.state_dict().items():
        after = found.state_dict()[name]
        if name.endswith("factors"):
            assert stored[name].dtype == torch.int8
            step = before.flatten(1).abs().amax(1) / 127
            torch.testing.assert_close(stored[f"{name}.scale"].double(), step, rtol=1e-7, atol=0)
            error = (after - before).flatten(1).abs().amax(1)
            assert bool((error <= 0.5001 * step).all())
        else:
            assert identical(before, after), name
    assert found.config == prior.config


def test_int8_factor_of_zeros(tmp_path):
    """Would catch 0 / 0: a factor without variance that comes back as NaN."""
    factors = torch.stack([torch.zeros(COLOUR), torch.full(COLOUR, -0.3)])
    _, found = quantised(tmp_path, Gaussian(torch.zeros(COLOUR), factors, residual=0.1))
    torch.testing.assert_close(found.factors.float(), factors)


def test_int8_moves_the_density_by_less_than_its_bound(tmp_path):
    """Would catch factors that come back in another order, or with another's scale.

    Covariances S = F F^T + r^2 I and S + D, D = F E^T + E F^T + E E^T with |E| <= e, its
    Frobenius norm. |S^-1/2 F| <= 1 and |S^-1/2 E| <= e / r, so the 2 k eigenvalues of
    S^-1/2 D S^-1/2 are at most t = 2 e / r + (e / r)^2, and log p moves by at most
    k log(1 / (1 - t)) + t / (1 - t) q / 2, q = (x - m)^T S^-1 (x - m).
    """
    true = gaussian(residual=0.5)
    prior = Gaussian.fit(true.sample(200, generator=seeded()).float(), rank=5).double()
    _, found = quantised(tmp_path, prior)
    steps = prior.factors.flatten(1).abs().amax(1) / 127
    rank, d = len(steps), prior.mean.numel()
    e = float((d * steps.square() / 4).sum().sqrt() / prior.residual)
    t = torch.tensor(2 * e + e**2)
    assert t < 0.3
    x = prior.sample(20, generator=seeded(1))
    q = prior.encode(x).flatten(1).square().sum(1)
    bound = -rank * (1 - t).log() + t / (1 - t) * q / 2
    assert bool(((found.log_prob(x) - prior.log_prob(x)).abs() < bound).all())


def test_int8_keeps_posterior_means(tmp_path):
    """Would catch factors that are right one by one and wrong together: means move by less than
    a tenth of the posterior std."""
    prior = gaussian()
    _, found = quantised(tmp_path, prior)
    mask = masks.random(COLOUR[1:], missing=0.5, generator=seeded())
    problem = pose(Inpainting(mask, image_shape=COLOUR), COLOUR)
    before, after = prior.posterior(problem), found.posterior(problem)
    assert bool(((after.mean - before.mean).abs() < 0.1 * before.std).all())


def test_int8_is_refused_where_it_would_harm(tmp_path):
    """Would catch networks rounded to 8 bits, other integers, or NaN stored as a number."""
    path = tmp_path / "x.safetensors"
    with pytest.raises(ValueError, match="VAE has no weights that int8 serves"):
        VAE((1, 4, 4), 2).save(path, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"not torch\.int32"):
        gaussian().save(path, dtype=torch.int32)
    bad = gaussian()
    bad.factors[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        bad.save(path, dtype=torch.int8)
    assert not path.exists()


def test_first_format(tmp_path):
    """Would catch files of before that no longer load: half precision, nothing quantised."""
    tensors = {name: t.half() for name, t in gaussian().state_dict().items()}
    header = {
        "format": 1,
        "family": "Gaussian",
        "config": {"image_shape": list(COLOUR), "rank": 5},
        "card": {},
    }
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} torch.float16 {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    header["sha256"] = digest.hexdigest()
    path = tmp_path / "old.safetensors"
    save_file(tensors, path, metadata={"genprior": json.dumps(header)})
    found = Prior.load(path)
    for name, tensor in found.state_dict().items():
        assert identical(tensor, tensors[name].float()), name


def test_every_flipped_bit_is_noticed(tmp_path):
    """Would catch bytes that no checksum covers: one bit of each byte, one at a time."""
    path = tmp_path / "int8.safetensors"
    Gaussian(torch.zeros(1, 2, 2), torch.ones(2, 1, 2, 2), residual=0.5).save(
        path, dtype=torch.int8
    )
    content = path.read_bytes()
    for at in range(len(content)):
        turned = bytearray(content)
        turned[at] ^= 1 << at % 8
        path.write_bytes(turned)
        with pytest.raises(ValueError, match=r"int8\.safetensors: "):
            Prior.load(path)


MANY = 10**7
"""A side so long that an image of it fits no memory."""

HOSTILE = {
    "rank": ("Gaussian", {"image_shape": [1, MANY, MANY], "rank": 1000}),
    "ranks": ("GaussianMixture", {"image_shape": [1, MANY, MANY], "ranks": [9]}),
    "spot": ("StationaryGaussian", {"image_shape": [3, MANY, MANY], "residual": 0.0}),
    "hidden": (
        "VAE",
        {"image_shape": [1, 4, 4], "latent_size": 2, "network": {"hidden": [10**6, 10**6]}},
    ),
    "widths": (
        "HierarchicalVAE",
        {"image_shape": [1, 4, 4], "widths": [10**6], "groups": [1], "latent_channels": 1},
    ),
    "channels": (
        "Diffusion",
        {
            "image_shape": [1, 4, 4],
            "network": {"channels": 10**6, "widths": [10**6], "blocks": [1]},
            "objective": {},
        },
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_small_file_cannot_ask_for_much_memory(tmp_path, name):
    """Would catch petabytes allocated before shapes are compared: the allocator's words differ."""
    family, config = HOSTILE[name]
    path = tmp_path / "hostile.safetensors"
    write_weights(path, {"family": family, "config": config, "card": {}}, {"mean": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"do not fit its config: .* (missing|not asked for)"):
        Prior.load(path)


def test_a_small_file_cannot_ask_for_endless_layers(tmp_path):
    """Would catch a billion modules built one by one."""
    network = {"channels": 1, "widths": [8], "blocks": [10**6]}
    config = {"image_shape": [1, 4, 4], "network": network, "objective": {}}
    path = tmp_path / "hostile.safetensors"
    write_weights(path, {"family": "Diffusion", "config": config, "card": {}}, {})
    with pytest.raises(ValueError, match="far more tensors than the file holds"):
        Prior.load(path)


@pytest.mark.parametrize("name", ["cats32-hvae", "mnist-diffusion", "mnist-vae"])
def test_a_refusal_leaves_gradients_on(name):
    """Would catch a refusal inside a no_grad block that it keeps from ending."""
    family, config = Prior.families[card(name)["family"]], card(name)["config"]
    for calls in range(0, 300, 29):
        weightless = files_module._Weightless(calls)
        with contextlib.suppress(ValueError), torch.device("meta"), weightless:
            family.from_config(config)
        assert torch.is_grad_enabled(), calls


@pytest.mark.parametrize("name", available())
def test_shipped_weights_are_checked_without_memory(name):
    """Would catch a class that cannot be built so, whose files would go unchecked."""
    family = Prior.families[card(name)["family"]]
    with torch.device("meta"), files_module._Weightless(10_000):
        prior = family.from_config(card(name)["config"])
    assert all(tensor.is_meta for tensor in prior.state_dict().values())


def test_a_class_that_looks_at_its_tensors_loads(tmp_path):
    """Would catch a third party's prior refused because it cannot be built without memory."""

    class Looking(StationaryGaussian):
        def __init__(self, mean, spot, *, residual=0.0):
            super().__init__(mean, spot, residual=float(torch.tensor(residual)))

    try:
        Looking(torch.zeros(1), randn(1, 4, 4)).save(tmp_path / "x.safetensors")
        assert isinstance(Prior.load(tmp_path / "x.safetensors"), Looking)
    finally:
        del Prior.families["Looking"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"residual": None}, "residual is missing"),
        ({"extra": torch.zeros(1)}, "extra is not asked for"),
        ({"mean": torch.zeros(3, 1, 1)}, r"mean is torch.float32 \(3, 1, 1\) for"),
        ({"mean": torch.zeros(COLOUR, dtype=torch.int64)}, "mean is torch.int64"),
        ({"factors": torch.zeros(5, *COLOUR)}, "'factors' is not int8 with one scale"),
        ({"factors": torch.tensor(1, dtype=torch.int8)}, "'factors' is not int8 with one scale"),
        ({"factors.scale": None}, "'factors' is not int8 with one scale"),
        ({"factors.scale": torch.ones(4)}, "'factors' is not int8 with one scale"),
        ({"factors.scale": torch.ones(5, dtype=torch.int32)}, "'factors' is not int8"),
        ({"factors.scale": torch.full((5,), torch.inf)}, "scales of 'factors' are not finite"),
        ({"factors.scale": torch.full((5,), torch.nan)}, "scales of 'factors' are not finite"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, monkeypatch, change, message):
    """Would catch tensors dropped, broadcast, made up or cast without a word."""
    prior = gaussian().float()
    stored, _ = quantised(tmp_path, prior)
    tensors = {name: t for name, t in {**stored, **change}.items() if t is not None}
    monkeypatch.setattr(files_module, "_quantise", lambda name, tensor: {name: tensor})
    header = {"family": "Gaussian", "config": prior.config, "card": {}}
    path = tmp_path / "forged.safetensors"
    write_weights(path, header, tensors, dtype=torch.int8, quantisable=["factors"])
    with pytest.raises(ValueError, match=message):
        Prior.load(path)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"image_shape": list(COLOUR)},
        {"image_shape": None, "rank": 5},
        {"image_shape": list(COLOUR), "rank": -1},
        {"image_shape": list(COLOUR), "rank": "5"},
        {"image_shape": list(COLOUR), "rank": 10**400},
    ],
)
def test_configs_of_which_nothing_can_be_built(tmp_path, config):
    """Would catch a KeyError or TypeError shown for a file made elsewhere."""
    path = tmp_path / "odd.safetensors"
    state = gaussian().state_dict()
    write_weights(path, {"family": "Gaussian", "config": config, "card": {}}, state)
    with pytest.raises(ValueError, match=r"odd\.safetensors: nothing can be built"):
        Prior.load(path)


@pytest.mark.parametrize("field", ["family", "config", "card"])
@pytest.mark.parametrize("value", [None, ["Gaussian"], 3])
def test_headers_with_other_fields(tmp_path, field, value):
    """Would catch a header whose fields are of another kind than every reader expects."""
    header = {"family": "Gaussian", "config": {}, "card": {}, field: value}
    write_weights(tmp_path / "odd.safetensors", header, {})
    with pytest.raises(ValueError, match=f"its header has no {field}"):
        read_header(tmp_path / "odd.safetensors")


def test_a_file_of_another_family(tmp_path):
    """Would catch a mixture handed out where a Gaussian was asked for."""
    mixture().save(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="a GaussianMixture, not a Gaussian"):
        Gaussian.load(tmp_path / "m.safetensors")
