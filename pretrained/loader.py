"""From a name or a path to a prior."""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from typing import Any

import torch

from genprior.operators.files import hub
from genprior.priors import Diffusion, Model, Prior
from genprior.priors.files import read_header

_FOLDER = Path(__file__).parent


def available() -> list[str]:
    """Name the priors whose weights are installed, DATA-FAMILY."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def _find(name_or_path: str | Path) -> Path:
    if str(name_or_path).startswith(hub.SCHEME):
        return hub.fetch(str(name_or_path))
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = _FOLDER / f"{name_or_path}.safetensors"
    if path.name == str(name_or_path) and shipped.is_file():
        return shipped
    if path.is_dir():
        trained = path / "prior.safetensors"
        return trained if trained.is_file() else path
    if path.suffix or len(path.parts) > 1:
        raise ValueError(f"{name_or_path}: no such weights file")
    near = difflib.get_close_matches(str(name_or_path), available(), n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(available())}."
    raise ValueError(f"unknown prior {str(name_or_path)!r}. {hint}")


def find_recipe(name: str) -> str:
    """Return the path of a shipped recipe of that name, else the name, which may be a file's."""
    shipped = _FOLDER / "recipes" / f"{name}.yaml"
    return str(shipped) if not Path(name).exists() and shipped.is_file() else name


def load(
    name_or_path: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Prior:
    """Load a prior, ready for use: evaluation mode, no gradients to weights.

    A file of a model that is no prior, such as an autoencoder, gives that model.

    Args:
        name_or_path: A shipped prior's name (`available()` lists them), a weights file, a
            folder that `genprior.train` wrote, one of a diffusers pipeline, or a file on the
            Hugging Face hub, hf://OWNER/NAME[@REVISION][/FILE], with the extra [hub].
        device: Where to put it; the CPU if None.
        dtype: Floating-point type of the weights; float32 if None.
    Raises:
        ValueError: Unknown name (the nearest are offered), no such file, here or on the hub, or
            a file that is truncated, altered or of another format.
    """
    path = _find(name_or_path)
    model: Any
    if path.is_dir():
        model = Diffusion.from_diffusers(path).to(dtype or torch.float32)
    else:
        model = Model.load(path, dtype=dtype or torch.float32)
    return model.to(device).eval().requires_grad_(False)


def card(name_or_path: str | Path) -> dict[str, Any]:
    """Read what a weights file says of itself: family, config, data, licence, figures.

    Of a folder of diffusers, the family and the hash of its weights.
    """
    path = _find(name_or_path)
    if not path.is_dir():
        return read_header(path)
    digest = hashlib.sha256()
    for part in sorted(path.rglob("*.safetensors")):
        digest.update(part.read_bytes())
    return {"family": "Diffusion", "config": {}, "card": {}, "sha256": digest.hexdigest()}
