"""Shared fixtures: every device that is present, and the guard of the global generator."""

import signal

import pytest
import torch
from photos import save_priors
from tools import identical

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def pytest_report_header(config):
    where = "CPU and CUDA" if len(DEVICES) > 1 else "CPU only (no CUDA device is present)"
    return f"genprior: tests run on {where}"


@pytest.fixture(params=[pytest.param(d, marks=getattr(pytest.mark, d)) for d in DEVICES])
def device(request):
    """Each device that is present; `pytest -m cuda` runs these tests on the GPU alone."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def global_generator_untouched():
    """No library code may read or set torch's global generator."""
    before = torch.random.get_rng_state()
    yield
    assert identical(before, torch.random.get_rng_state()), "the global generator moved"


@pytest.fixture(autouse=True)
def interrupts_as_in_a_terminal():
    """A suite run in the background inherits an ignored SIGINT, which runs rightly leave alone."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def photo_place(tmp_path, monkeypatch):
    """A folder with priors for photos, in which file names are taken."""
    monkeypatch.chdir(tmp_path)
    save_priors()
    return tmp_path
