"""Likelihood of VAEs on binarised digits: importance-sampled -log p and the bound.

python benchmarks/details/vae_likelihood.py --data FOLDER_OF_MNIST --priors mnist-binary-vae

The digits are every fourth of the test set, each pixel drawn once as black or white with its grey
level as the probability of white (seed 0).
"""

from __future__ import annotations

import argparse

import torch

import genprior
from genprior.data import images
from genprior.priors.vae.pixels import BernoulliPixels
from genprior.priors.vae.variational import ACTIVE, VariationalPrior


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
    for name in options.priors:
        prior = genprior.load(name)
        assert isinstance(prior, VariationalPrior)
        generator = torch.Generator().manual_seed(1)
        parts = [
            (
                prior.log_prob_estimate(part, samples=options.samples, generator=generator),
                prior.elbo(part, samples=10, generator=generator),
            )
            for part in x.split(50)
        ]
        log_prob, elbo = (torch.cat(column) for column in zip(*parts, strict=True))
        active = int((prior.encode(x).var(0) > ACTIVE).sum())
        print(
            f"{name}: -log p {-log_prob.mean():.2f} +- {log_prob.std() / len(x) ** 0.5:.2f}, "
            f"-ELBO {-elbo.mean():.2f}, {active} active units of {prior.latent_shape[0]}"
        )


if __name__ == "__main__":
    main()
