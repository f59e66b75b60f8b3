"""A prior behind deepinv's denoiser interface; imported only where deepinv is used."""

from __future__ import annotations

from typing import Any

import torch
from deepinv.models import Denoiser
from torch import Tensor

from genprior.priors.base import DenoisingPrior


class PriorDenoiser(Denoiser):
    """Takes sigma in every form that deepinv's algorithms pass: a number, numpy, (B, 1, 1, 1)."""

    def __init__(self, prior: DenoisingPrior) -> None:
        super().__init__(device=str(prior.data_mean.device))
        self.prior = prior

    def forward(self, x: Tensor, sigma: Any, **kwargs: Any) -> Tensor:
        """Denoise x (B, C, H, W); deepinv's further arguments mean nothing to a prior."""
        levels = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1)
        if len(levels) not in (1, len(x)):
            raise ValueError(f"{len(levels)} noise levels came for {len(x)} images")
        return self.prior.denoise(x, levels.expand(len(x)))
