"""A flow of plain vectors, such as the latents of a VAE."""

from __future__ import annotations

from typing import Any

import torch

from genprior.priors.base import check_counts
from genprior.priors.flows.bijection import Bijection, Chain, Flatten
from genprior.priors.flows.conditioners import conditioner
from genprior.priors.flows.coupling import AffineCoupling, Channels
from genprior.priors.flows.layers import ChannelMix


class VectorFlow(Chain):
    """Matrices and affine couplings of perceptrons in turn; it starts as a rotation.

    It takes vectors as images (B, k, 1, 1) and gives (B, k).

    Args:
        size: k, at least 2.
        couplings: Of the layers.
        hidden: Widths of a coupling's hidden layers.
        seed: Of the starting weights.
    Raises:
        ValueError: A vector is one number, which has no halves, or an option is out of range.

    Source: Kingma, Dhariwal 2018 (Glow), arXiv:1807.03039. Differs: no actnorm, and perceptrons.
    """

    def __init__(
        self, size: int, *, couplings: int = 6, hidden: tuple[int, ...] = (256,), seed: int = 0
    ) -> None:
        check_counts("couplings", couplings)
        if size < 2:
            raise ValueError(f"a flow takes vectors of 2 numbers or more, not {size}")
        network = conditioner({"kind": "perceptron", "hidden": hidden}, (1, 1))
        generator = torch.Generator().manual_seed(seed)
        layers: list[Bijection] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for _ in range(couplings):
                layers.append(ChannelMix(size, generator))
                layers.append(AffineCoupling(size, Channels(), network))
        super().__init__([*layers, Flatten((size, 1, 1))])
        self.size = size
        self.config: dict[str, Any] = {
            "couplings": couplings,
            "hidden": list(hidden),
            "seed": seed,
        }
