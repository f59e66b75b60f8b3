"""A distribution that a VAE's latents follow, learned in place of N(0, I)."""

from __future__ import annotations

from typing import Any

import torch

from genprior.priors.base import check_counts
from genprior.priors.flows.bijection import Bijection, Chain, Flatten
from genprior.priors.flows.conditioners import conditioner
from genprior.priors.flows.coupling import AffineCoupling, Channels
from genprior.priors.flows.layers import ChannelMix


class LatentFlow(Chain):
    """z = f^-1(e), e ~ N(0, I): matrices and affine couplings of perceptrons in turn.

        log p(z) = log N(f(z); 0, I) + log |det df/dz|

    f takes z as images (B, k, 1, 1) and starts as a rotation, with which p(z) = N(0, I).

    Args:
        size: k, at least 2.
        couplings: Of the layers.
        hidden: Widths of a coupling's hidden layers.
        seed: Of the starting weights.
    Raises:
        ValueError: z is one number, which has no halves, or an option is out of range.

    Source: Chen et al. 2017, arXiv:1611.02731, section 3.2 (a flow as the prior of a VAE);
        Kingma, Dhariwal 2018, arXiv:1807.03039 (its layers). Differs: no actnorm.
    """

    def __init__(
        self, size: int, *, couplings: int = 6, hidden: tuple[int, ...] = (256,), seed: int = 0
    ) -> None:
        check_counts("couplings", couplings)
        if size < 2:
            raise ValueError(f"a flow takes latents of 2 numbers or more, not {size}")
        network = conditioner({"kind": "perceptron", "hidden": hidden}, (1, 1))
        generator = torch.Generator().manual_seed(seed)
        layers: list[Bijection] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for _ in range(couplings):
                layers.append(ChannelMix(size, generator))
                layers.append(AffineCoupling(size, Channels(), network))
        super().__init__([*layers, Flatten((size, 1, 1))])
        self.config: dict[str, Any] = {
            "couplings": couplings,
            "hidden": list(hidden),
            "seed": seed,
        }
