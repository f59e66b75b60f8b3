"""One file a prior: safetensors weights, and a JSON header that says what they are.

The header's field "genprior" holds format, family (the class name), config (what its `from_config`
takes), card (plain data on the weights) and sha256 (of everything else). Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from genprior.operators.files import write_atomically
from genprior.priors.base import Prior

FORMAT = 1
"""Version of the file format. Readers take this one and those before it."""


def _digest(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """Hash the header (without its own sha256) and every tensor: name, type, shape, bytes."""
    rest = {key: value for key, value in header.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _on_disk(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy to be written. Vectors and scalars keep their precision: they weigh nothing."""
    stored = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    if dtype is None or not stored.is_floating_point() or stored.ndim < 2:
        return stored
    if not torch.equal(stored.to(dtype).isfinite(), stored.isfinite()):
        raise ValueError(f"weight {name!r} overflows {dtype}: save it in a wider type")
    return stored.to(dtype)


def write_prior(
    prior: Prior,
    path: str | Path,
    *,
    card: dict[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a prior to one file, which is replaced whole or not at all.

    Args:
        prior: Any prior whose `config` is plain data.
        path: Where; by habit NAME.safetensors.
        card: Plain data on the weights.
        dtype: Floating-point type on disk of tensors with two axes or more; theirs if None.
    Raises:
        ValueError: A weight overflows `dtype`.
        TypeError: Config or card is not plain data.
    """
    path = Path(path)
    tensors = {name: _on_disk(name, t, dtype) for name, t in prior.state_dict().items()}
    header: dict[str, Any] = {
        "format": FORMAT,
        "family": type(prior).__name__,
        "config": prior.config,
        "card": card or {},
    }
    header = json.loads(json.dumps(header))  # tuples become lists, as a reader will see them
    header["sha256"] = _digest(header, tensors)
    content = to_bytes(tensors, metadata={"genprior": json.dumps(header)})
    write_atomically(path, content)


def read_header(path: str | Path) -> dict[str, Any]:
    """Read what a weights file says of itself: format, family, config, card, sha256.

    Raises:
        ValueError: The file is truncated, no safetensors file, not genprior's, or newer.
    """
    return _read(Path(path), weights=False)[0]


def _read(path: Path, *, weights: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys() if weights else []
            tensors = {name: file.get_tensor(name) for name in names}
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such weights file") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: not a whole safetensors file ({error}). It is truncated or of another "
            "kind: fetch it again"
        ) from error
    try:
        header = json.loads(metadata["genprior"])
        version = int(header["format"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: safetensors, but without genprior's header; only files written by "
            "prior.save are read"
        ) from error
    if version > FORMAT:
        raise ValueError(f"{path}: format {version}; this version reads up to {FORMAT}: update it")
    return header, tensors


def read_prior(path: str | Path, *, dtype: torch.dtype = torch.float32) -> Prior:
    """Rebuild the prior that a file holds, on the CPU.

    Args:
        path: A file written by `Prior.save`.
        dtype: Floating-point type of the weights in memory.
    Raises:
        ValueError: The file is truncated, altered, of an unknown family, or newer.
    """
    header, tensors = _read(Path(path), weights=True)
    if _digest(header, tensors) != header.get("sha256"):
        raise ValueError(f"{path}: altered, its contents do not have the sha256 that it states")
    family = Prior.families.get(header["family"])
    if family is None:
        raise ValueError(
            f"{path}: a prior of the family {header['family']!r}, which is not defined here: "
            "import the module that defines it"
        )
    prior = family.from_config(header["config"]).to(dtype)
    try:
        prior.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: its weights do not fit {header['family']} as this version builds it: {error}"
        ) from error
    return prior
