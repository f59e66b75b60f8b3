"""Likelihood of VAEs on binarised digits: importance-sampled -log p and the bound.

python benchmarks/details/priors/vae_likelihood.py --data FOLDER_OF_MNIST --priors mnist-binary-vae

The digits are every fourth of the test set, each pixel drawn once as black or white with its grey
level as the probability of white (seed 0).
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import genprior
from genprior.data import images
from genprior.priors.vae.pixels import BernoulliPixels
from genprior.priors.vae.variational import ACTIVE, VariationalPrior


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with MNIST's idx files")
    parser.add_argument("--priors", nargs="+", default=["mnist-binary-vae"])
    parser.add_argument("--samples", type=int, default=200, help="importance samples a digit")
    options = parser.parse_args()
    grey = images(options.data, split="test")
    x = BernoulliPixels(binarize=True).observe(
        grey.batch(range(0, len(grey), 4)), generator=torch.Generator().manual_seed(0)
    )
    print(f"{len(x)} digits, {options.samples} importance samples each; nats, standard errors")
    first: tuple[Tensor, Tensor] | None = None
    for name in options.priors:
        prior = genprior.load(name)
        assert isinstance(prior, VariationalPrior)
        log_prob, elbo, means = measure(prior, x, options.samples)
        active = int((means.var(0) > ACTIVE).sum())
        print(
            f"{name}: -log p {said(-log_prob)}, -ELBO {said(-elbo)}, "
            f"{active} active units of {prior.latent_shape[0]}"
        )
        first = first or (log_prob, elbo)
        gains = [said(now - then) for now, then in zip((log_prob, elbo), first, strict=True)]
        print(f"    above the first prior's: log p {gains[0]}, ELBO {gains[1]}, digits paired")


def measure(prior: VariationalPrior, x: Tensor, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p(x) and the ELBO, (B,), and the posterior means (B, units)."""
    generator = torch.Generator().manual_seed(1)
    parts = [
        (
            prior.log_prob_estimate(part, samples=samples, generator=generator),
            prior.elbo(part, samples=10, generator=generator),
            prior.terms(part, generator=generator).means,
        )
        for part in x.split(50)
    ]
    log_prob, elbo, means = (torch.cat(column) for column in zip(*parts, strict=True))
    return log_prob, elbo, means


def said(values: Tensor) -> str:
    """Write a mean over digits and its standard error."""
    return f"{values.mean():.2f} +- {values.std() / len(values) ** 0.5:.2f}"


if __name__ == "__main__":
    main()
