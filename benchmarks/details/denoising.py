"""Denoising of colour photos at sigma = 25/255: photos-diffusion against TV and BM3D.

    python benchmarks/details/denoising.py --data KODAK [--prior photos-diffusion]

The prior denoises in one evaluation, the whole image in one piece. TV is scikit-image's, its
weight chosen on these very images (so its row is optimistic); BM3D is the `bm3d` package where it
is installed. Nothing is clipped before the denoisers, everything after.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from skimage.restoration import denoise_tv_chambolle
from torch import Tensor

import genprior
from genprior import metrics
from genprior.data import images
from genprior.priors import DenoisingPrior

SIGMA = 25 / 255


def channels_last(y: Tensor) -> np.ndarray:
    return y[0].permute(1, 2, 0).double().numpy()


def to_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))).float()[None]


def tv(weight: float) -> Callable[[Tensor], Tensor]:
    return lambda y: to_tensor(
        denoise_tv_chambolle(channels_last(y), weight=weight, channel_axis=-1)
    )


def methods(prior: DenoisingPrior, name: str) -> dict[str, Callable[[Tensor], Tensor]]:
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "noisy": lambda y: y,
        name: lambda y: prior.denoise(y, SIGMA),
        **{f"TV, weight {weight}": tv(weight) for weight in (0.05, 0.06, 0.07, 0.08)},
    }
    try:
        import bm3d  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("BM3D is not installed (pip install bm3d): its row is left out")
    else:
        found["BM3D"] = lambda y: to_tensor(bm3d.bm3d_rgb(channels_last(y), SIGMA))
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder of the test photos")
    parser.add_argument("--prior", default="photos-diffusion")
    parser.add_argument("--count", type=int, default=None)
    options = parser.parse_args()
    prior = genprior.load(options.prior)
    assert isinstance(prior, DenoisingPrior)
    data = images(options.data, channels=3)
    truths = [x[None] for x in data][: options.count]
    generator = torch.Generator().manual_seed(0)
    noisy = [x + SIGMA * torch.randn(x.shape, generator=generator) for x in truths]
    for method, denoise in methods(prior, options.prior).items():
        start = time.perf_counter()
        restored = [denoise(y).clamp(0, 1) for y in noisy]
        seconds = (time.perf_counter() - start) / len(noisy)
        pairs = list(zip(restored, truths, strict=True))
        psnr = sum(float(metrics.psnr(a, b)) for a, b in pairs) / len(pairs)
        ssim = sum(float(metrics.ssim(a, b)) for a, b in pairs) / len(pairs)
        print(f"{method:20} PSNR {psnr:.2f} dB  SSIM {ssim:.3f}  {seconds:.2f} s an image")


if __name__ == "__main__":
    main()
