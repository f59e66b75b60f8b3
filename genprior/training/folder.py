"""The folder of a run: whose it is, what it is resumed from, and what is written there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from genprior.priors.base import Model
from genprior.priors.files import read_header
from genprior.training import checkpoints
from genprior.training.lock import sole_use
from genprior.training.options import Length, TrainingOptions, check_length

_NOT_OURS = (
    "is not of this run and would be replaced: name another folder (--out), or pass force=True "
    "(--force)"
)


class Folder:
    """Where a run keeps its checkpoints and its weights; None keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._run: dict[str, Any] = {}

    @contextmanager
    def held(self, fabric: Any) -> Iterator[None]:
        """Hold the folder on behalf of all devices.

        Raises:
            BlockingIOError: Another run is at work in it.
        """
        refusal = None
        with ExitStack() as lock:
            if self.path is not None and fabric.is_global_zero:
                try:
                    lock.enter_context(sole_use(self.path))
                    checkpoints.sweep(self.path)
                except BlockingIOError as error:
                    refusal = str(error)
            if self.path is not None and (refusal := fabric.broadcast(refusal)):
                raise BlockingIOError(refusal)
            yield

    def resumed(
        self, run: dict[str, Any], length: Length, options: TrainingOptions, *, force: bool
    ) -> dict[str, Any] | None:
        """Return the newest checkpoint, if there is one, after which `run` writes here.

        Raises:
            ValueError: It is another run's.
            FileExistsError: Weights or a picture would be replaced that another run wrote, or a
                hand put there.
        """
        self._run = run
        if self.path is None:
            return None
        saved = checkpoints.newest(self.path / "checkpoints")
        if saved is not None:
            if found := checkpoints.differences(saved["fingerprint"], run):
                raise ValueError(
                    f"{self.path} holds checkpoints of another run, so it cannot be resumed:\n  "
                    + "\n  ".join(found)
                    + ".\nName another folder, or train with what was there before"
                )
            check_length(saved, length, options)
        weights, curve = self.path / "prior.safetensors", self.path / "loss.png"
        self._check_weights(weights, force)
        if saved is None and curve.exists() and not (weights.exists() or force):
            raise FileExistsError(f"{curve} {_NOT_OURS}")
        return saved

    def _check_weights(self, path: Path, force: bool) -> None:
        if not path.exists() or (force and path.is_file()):
            return
        try:
            card = read_header(path)["card"]
        except ValueError:  # no weights, or no file
            card = {}
        if card.get("run") != self._name:
            raise FileExistsError(f"{path} {_NOT_OURS}")

    @property
    def _name(self) -> str:
        """A short name of the run, by which it knows the weights that it wrote."""
        return hashlib.sha256(json.dumps(self._run, sort_keys=True).encode()).hexdigest()[:16]

    def write(self, step: int, length: Length, state: dict[str, Any]) -> None:
        """Write a checkpoint.

        Raises:
            OSError: The disk is full; the checkpoints before are intact.
        """
        assert self.path is not None
        state = {"length": asdict(length), "fingerprint": self._run, **state}
        checkpoints.write(self.path / "checkpoints", step, state)

    def write_weights(self, model: Model, card: dict[str, Any]) -> None:
        assert self.path is not None
        model.save(self.path / "prior.safetensors", card={**card, "run": self._name})
