"""Weights files: what is written comes back, what is damaged is noticed."""

import json
import os

import pytest
import torch
from cases import SMALL_COLOUR as COLOUR
from cases import gaussian, mixture
from safetensors.torch import save_file

from genprior.priors import Gaussian, Prior
from genprior.priors.files import FORMAT, read_header


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


@pytest.mark.parametrize("content", [b"", b"hello, I am text", b"\x80\x04K\x01."])
def test_other_kinds_of_file(tmp_path, content):
    """Would catch an attempt to unpickle."""
    path = tmp_path / "prior.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        Prior.load(path)


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
    monkeypatch.setattr(Prior, "families", {})
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
