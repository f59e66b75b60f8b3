"""What the training commands of all families share: length, place, and what the file keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from genprior.commands.source import Source
from genprior.data import Images
from genprior.pretrained import load
from genprior.priors.base import Prior
from genprior.priors.diffusion.unet import extends
from genprior.priors.files import read_header
from genprior.priors.training import TrainablePrior
from genprior.training import TrainingOptions, train

_NOT_NETWORK = ("bound", "objective", "data_mean", "data_std")
"""What a prior's configuration says of its training and data."""


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        out: Folder for prior.safetensors, checkpoints, sample grids and the loss curve.
        steps: Updates.
        batch_size: Images in each update, over all devices together.
        start: Name or file of a trained prior of the same network to begin with, if any.
        half: Store the weights in half precision at the end.
        card: Plain data on the weights, kept in the file: data, licence, ...
    """

    out: str
    steps: int = 20_000
    batch_size: int = 64
    start: str | None = None
    half: bool = False
    card: dict[str, Any] | None = None

    def train(
        self, prior: TrainablePrior, data: Images, source: Source, options: TrainingOptions
    ) -> Prior:
        """Train `prior` on `data`, opened from `source`; the same run again resumes."""
        about: dict[str, Any] = {"data": source.data, "images": len(data)}
        if self.start is not None:
            begin_with(prior, self.start)
            about["start"] = self.start
        trained = train(
            prior,
            data,
            out=self.out,
            steps=self.steps,
            batch_size=self.batch_size,
            options=options,
            card={**about, **(self.card or {})},
        )
        if self.half:
            path = f"{self.out}/prior.safetensors"
            trained.save(path, card=read_header(path)["card"], dtype=torch.float16)
        return trained


def begin_with(prior: Prior, start: str) -> None:
    """Copy the weights of a trained prior of the same family and network.

    A diffusion prior's network may be deeper than the trained one (`unet.extends`): the layers
    that it has more begin as nothing, so both are the same function before training.

    Raises:
        ValueError: Family or network differ.
    """
    trained = load(start)
    ours, theirs = (
        {key: value for key, value in p.config.items() if key not in _NOT_NETWORK}
        for p in (prior, trained)
    )
    if type(trained) is not type(prior) or not _can_begin(ours, theirs):
        raise ValueError(
            f"training cannot start from {start}, a {type(trained).__name__} with {theirs}: "
            f"its options must be those of the {type(prior).__name__} to train, {ours}"
        )
    prior.load_state_dict({**prior.state_dict(), **trained.state_dict()})


def _can_begin(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    networks = ours.get("network", {}), theirs.get("network", {})
    return {**theirs, "network": networks[0]} == {**ours, "network": networks[0]} and extends(
        *networks
    )
