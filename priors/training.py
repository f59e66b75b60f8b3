"""What a family must offer to be trained by gradients: the objective that the loop minimises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from genprior.operators.random import Generators
from genprior.priors.base import Prior


class Objective(ABC):
    """The training of one prior; the loop knows no more of a family than this.

    Attributes:
        prior: What is trained, and what training returns.
        networks: Everything with weights, the prior and its helpers (a GAN's critic).
        turns: (group, repeats) in order: one step of training draws `repeats` batches for each
            group in turn and updates that group's parameters, which have their own optimiser.
    """

    turns: ClassVar[Sequence[tuple[str, int]]] = (("all", 1),)

    def __init__(self, prior: Prior, networks: nn.Module | None = None) -> None:
        self.prior = prior
        self.networks = networks if networks is not None else prior

    def parameters(self, group: str) -> Iterable[nn.Parameter]:
        """Return what the group's optimiser updates; by default everything."""
        return self.networks.parameters()

    def optimizer(
        self, group: str, learning_rate: float, parameters: Iterable[nn.Parameter]
    ) -> torch.optim.Optimizer:
        """Build the group's optimiser; the loop sets its learning rate at every step."""
        return torch.optim.AdamW(
            parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        )

    @abstractmethod
    def loss(
        self, group: str, batch: Tensor, generator: Generators
    ) -> tuple[Tensor, dict[str, float]]:
        """Compute what `group` minimises.

        Args:
            group: Whose turn it is.
            batch: Images, (B, C, H, W), pixels in [0, 1].
            generator: One generator for each image, so that the loss does not depend on how a
                batch is split among devices.
        Returns:
            The mean loss over the batch, and figures to log.
        """


class TrainablePrior(Prior):
    """Is trained by `genprior.train`."""

    @abstractmethod
    def objective(self) -> Objective:
        """Return what training minimises."""
