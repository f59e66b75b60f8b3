"""What the training commands of all families share: length, place, and what the file keeps."""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from genprior.commands.outputs import refuse_existing, refuse_unwritable
from genprior.commands.source import Source
from genprior.pretrained import card, load
from genprior.priors.base import Model
from genprior.priors.diffusion.unet import extends
from genprior.priors.files import read_header
from genprior.priors.training import Trainable
from genprior.training import TrainingOptions, train
from genprior.training.options import Length

_NOT_NETWORK = ("bound", "objective", "data_mean", "data_std")
"""What a model's configuration says of its training and data."""


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        out: Folder for prior.safetensors, checkpoints, sample grids and the loss curve.
        steps: Updates; 20,000 if neither steps nor seconds are given.
        seconds: Time to train for, instead of steps.
        batch_size: Images in each update, over all devices together.
        start: Name or file of a trained model of the same network to begin with, if any.
        half: Store the weights in half precision at the end.
        card: Plain data on the weights, kept in the file: data, licence, ...
        force: Replace a prior.safetensors in the folder that is not this run's.
    """

    out: str
    steps: int | None = None
    seconds: float | None = None
    batch_size: int = 64
    start: str | None = None
    half: bool = False
    card: dict[str, Any] | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.steps is not None or self.seconds is not None:
            Length(self.steps, self.seconds)

    def train(
        self,
        family: type[Trainable],
        source: Source,
        options: TrainingOptions,
        *,
        given: dict[str, Any],
        left: set[str],
    ) -> Model:
        """Train a model of `family` on images; the same run again resumes.

        Args:
            family: The class.
            source: The images.
            options: Learning rate, precision, devices, checkpoints and the rest.
            given: The family's options.
            left: Names of those that were left out, which are `start`'s where there is one.
        """
        refuse_unwritable(Path(self.out))
        weights = Path(self.out) / "prior.safetensors"
        refuse_existing([weights], force=True)  # the run knows its own
        data = source.open()
        about: dict[str, Any] = {"data": source.data, "images": len(data)}
        start = None
        if self.start is not None:
            known, start = itemgetter("config", "sha256")(card(self.start))
            given = {**given, **{k: known[k] for k in left & (known.keys() - {*_NOT_NETWORK})}}
            about["start"] = self.start
        model = family.from_images(data, **given)
        if None in model.image_shape and (options.augment is None or options.augment.crop is None):
            raise ValueError("--any-size needs crops to train on: --augment '{crop: 64}'")
        if self.start is not None:
            begin_with(model, self.start)
        trained = train(
            model,
            data,
            out=self.out,
            steps=20_000 if self.steps is None and self.seconds is None else self.steps,
            seconds=self.seconds,
            batch_size=self.batch_size,
            options=options,
            card={**about, **(self.card or {})},
            start=start,
            force=self.force,
        )
        if self.half:
            path = f"{self.out}/prior.safetensors"
            trained.save(path, card=read_header(path)["card"], dtype=torch.float16)
        return trained


def begin_with(model: Model, start: str) -> None:
    """Copy the weights of a trained model of the same family and network.

    A diffusion prior's network may be deeper than the trained one (`unet.extends`): the layers
    that it has more begin as nothing, so both are the same function before training. A VAE may
    have a flow that the trained one has not: it begins as a rotation of the latent.

    Raises:
        ValueError: Family or network differ.
    """
    trained = load(start)
    ours, theirs = (
        {key: value for key, value in m.config.items() if key not in _NOT_NETWORK}
        for m in (model, trained)
    )
    if type(trained) is not type(model) or not _can_begin(ours, theirs):
        raise ValueError(
            f"training cannot start from {start}, a {type(trained).__name__} with {theirs}: "
            f"its options must be those of the {type(model).__name__} to train, {ours}"
        )
    model.load_state_dict({**model.state_dict(), **trained.state_dict()})


def _can_begin(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    if theirs.get("flow", False) is None:
        theirs = {**theirs, "flow": ours["flow"]}
    networks = ours.get("network", {}), theirs.get("network", {})
    return {**theirs, "network": networks[0]} == {**ours, "network": networks[0]} and extends(
        *networks
    )
