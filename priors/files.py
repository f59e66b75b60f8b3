"""The file format of weights: safetensors, and a JSON header that says what they are.

The header's field "genprior" holds format, family (the class name), config (what its `from_config`
takes), card (plain data on the weights), quantised (names stored as int8) and sha256 (of all the
rest and of every tensor). Nothing is pickled. A quantised tensor F of k factors is stored as

    q = round(F_k / s_k),  s_k = max |F_k| / 127

with s beside it, as NAME.scale: no entry is off by more than s_k / 2.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from genprior.operators.files import write_atomically

FORMAT = 2
"""Version of the file format. Readers take this one and those before it."""

LEVELS = 127
"""Largest int8 on disk; -128 is left out, so that the steps are symmetric."""

_FIELDS = {"family": str, "config": dict, "card": dict}

_CALLS = 100
"""Calls of torch allowed for each tensor of a file: building one takes three to six."""

_NONSENSE = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a constructor raises on a config that was not made by a prior."""


def digest_of(header: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Hash the header (without its own sha256) and every tensor: name, type, shape, bytes."""
    rest = {key: value for key, value in header.items() if key != "sha256"}
    found = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _on_disk(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy to be written. Vectors and scalars keep their precision: they weigh nothing."""
    stored = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    if dtype is None or not stored.is_floating_point() or stored.ndim < 2:
        return stored
    if not torch.equal(stored.to(dtype).isfinite(), stored.isfinite()):
        raise ValueError(f"weight {name!r} overflows {dtype}: save it in a wider type")
    return stored.to(dtype)


def _quantise(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Tensor (k, ...) as int8, and the step of each of its k entries."""
    stored = tensor.detach().cpu()
    scale = (stored.flatten(1).abs().amax(1) / LEVELS).float()
    if not bool(scale.isfinite().all()):
        raise ValueError(f"weight {name!r} has entries that are not finite: nothing was saved")
    step = scale.to(stored.dtype).reshape(-1, *[1] * (stored.ndim - 1))
    levels = torch.where(step > 0, stored / step, 0.0).round().clamp(-LEVELS, LEVELS)
    return {name: levels.to(torch.int8).contiguous(), f"{name}.scale": scale}


def write_weights(
    path: str | Path,
    header: dict[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    quantisable: Collection[str] = (),
) -> None:
    """Write weights to one file, which is replaced whole or not at all.

    Args:
        path: Where; by habit NAME.safetensors.
        header: family, config and card.
        tensors: Weights by name.
        dtype: Floating-point type on disk of tensors with two axes or more; theirs if None.
            torch.int8 stores those named in `quantisable` so, all others as they are.
        quantisable: Names of tensors whose first axis counts factors.
    Raises:
        ValueError: A weight overflows `dtype`, or no weight can be stored so.
        TypeError: The header is not plain data.
    """
    quantised = sorted(quantisable) if dtype == torch.int8 else []
    if dtype == torch.int8 and not quantised:
        raise ValueError(
            f"{header['family']} has no weights that int8 serves: take torch.float16 instead"
        )
    if dtype is not None and not quantised and not dtype.is_floating_point:
        raise ValueError(f"weights are stored as a floating-point type or int8, not {dtype}")
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name in quantised:
            stored |= _quantise(name, tensor)
        else:
            stored[name] = _on_disk(name, tensor, None if quantised else dtype)
    header = {"format": FORMAT, **header, "quantised": quantised}
    header = json.loads(json.dumps(header))  # tuples become lists, as a reader will see them
    header["sha256"] = digest_of(header, stored)
    content = to_bytes(stored, metadata={"genprior": json.dumps(header)})
    write_atomically(path, content)


def read_header(path: str | Path) -> dict[str, Any]:
    """Read what a weights file says of itself: format, family, config, card, sha256.

    Raises:
        ValueError: The file is truncated, no safetensors file, not genprior's, or newer.
    """
    return _read(Path(path), weights=False)[0]


def read_weights(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read header and tensors, quantised ones as float32.

    Raises:
        ValueError: The file is truncated, altered, not genprior's, or newer.
    """
    header, tensors = _read(Path(path), weights=True)
    if digest_of(header, tensors) != header.get("sha256"):
        raise ValueError(f"{path}: altered, its contents do not have the sha256 that it states")
    for name in header.get("quantised", []):
        nothing = torch.empty(())
        levels, scale = tensors.get(name, nothing), tensors.pop(f"{name}.scale", nothing)
        kinds = levels.dtype == torch.int8 and scale.is_floating_point()
        if not kinds or levels.ndim == 0 or scale.shape != levels.shape[:1]:
            raise ValueError(f"{path}: {name!r} is not int8 with one scale for each factor")
        step = scale.float().reshape(-1, *[1] * (levels.ndim - 1))
        tensors[name] = levels * step
        if not bool(tensors[name].isfinite().all()):
            raise ValueError(f"{path}: the scales of {name!r} are not finite")
    return header, tensors


def _read(path: Path, *, weights: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise ValueError(f"{path}: no such weights file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys() if weights else []
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: not a whole safetensors file ({error}). {_kind(path)}"
        ) from error
    try:
        header = json.loads(metadata["genprior"])
        version = int(header["format"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: safetensors, but without genprior's header; only files written by "
            "prior.save are read, and the folders of diffusers' pipelines"
        ) from error
    if version > FORMAT:
        raise ValueError(f"{path}: format {version}; this version reads up to {FORMAT}: update it")
    for key, kind in _FIELDS.items():
        if not isinstance(header.get(key), kind):
            raise ValueError(f"{path}: its header has no {key} that is a {kind.__name__}")
    return header, tensors


def _kind(path: Path) -> str:
    """Say of what kind a file is that holds no weights, and what to do."""
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK" or (start[:1] == b"\x80" and start[1:] in (b"\2", b"\3", b"\4", b"\5")):
        return (
            "It is a pickle, as PyTorch writes .ckpt, .pt and .pkl: reading one may run any code, "
            "and it does not say of what network it is. Give the folder of a diffusers pipeline, "
            "or wrap the network in Python (genprior.priors.from_deepinv)"
        )
    return "It is truncated or of another kind: fetch it again"


class _Weightless(TorchFunctionMode):
    """What is built within, by at most so many calls of torch, has shapes and no memory."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **{**kwargs, "device": "meta"} if kwargs.get("device") else kwargs)
        # only of what gives tensors: the end of a no_grad comes by here too, and must not fail
        self.calls -= isinstance(result, Tensor)
        if self.calls < 0 and isinstance(result, Tensor):
            raise ValueError("it asks for far more tensors than the file holds")
        return result


def check_fit(
    path: str | Path, tensors: Mapping[str, Tensor], build: Callable[[], nn.Module]
) -> None:
    """Raise unless what `build` makes of a file's config has just its tensors' names and shapes.

    It is built without memory first: 300 bytes can ask for any size. A class that looks at
    tensors' values while it is built cannot be, and is built in full.

    Raises:
        ValueError: It cannot be built, or has other tensors.
    """
    try:
        try:
            # stopped within a no_grad, it would leave gradients off for everybody
            gradients = torch.set_grad_enabled(torch.is_grad_enabled())
            calls = _CALLS * (len(tensors) + 100)
            with gradients, torch.device("meta"), _Weightless(calls):
                wanted = build().state_dict()
        except RuntimeError as error:
            if "meta" not in str(error):
                raise
            wanted = build().state_dict()
    except _NONSENSE as error:
        raise ValueError(f"{path}: nothing can be built from its config: {error}") from error
    faults = [f"{name} is missing" for name in wanted.keys() - tensors.keys()]
    faults += [f"{name} is not asked for" for name in tensors.keys() - wanted.keys()]
    for name in wanted.keys() & tensors.keys():
        has, asked = tensors[name], wanted[name]
        if (has.shape, has.is_floating_point()) != (asked.shape, asked.is_floating_point()):
            shapes = tuple(has.shape), tuple(asked.shape)
            faults.append(f"{name} is {has.dtype} {shapes[0]} for {asked.dtype} {shapes[1]}")
    if faults:
        more = f", and {len(faults) - 3} faults more" if len(faults) > 3 else ""
        raise ValueError(
            f"{path}: its weights do not fit its config: {', '.join(sorted(faults)[:3])}{more}"
        )
