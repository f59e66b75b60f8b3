"""How good `--sigma auto` is: noise of known strength on photos, estimated.

    python benchmarks/details/noise_estimate.py [--photos FOLDER]

takes photos of scikit-image, or a folder's, at 256x256 pixels of 8 bits, with noise cut off at
black and white as a camera does. Beside it stands the estimate from the finest wavelet details
everywhere, which scikit-image's estimate_sigma gives too.
"""

from __future__ import annotations

import argparse
import io
import warnings
from collections.abc import Iterator

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor

from genprior.data import from_array, images
from genprior.restoration.noise_estimate import _from_details, estimated_noise

SIGMAS = (2, 5, 10, 25)
SIDE = 256
NAMES = ("chelsea", "astronaut", "coffee", "rocket", "camera")


def photos(folder: str | None) -> Iterator[Tensor]:
    if folder is not None:
        yield from images(folder, size=SIDE, channels=3)
        return
    for name in NAMES:
        yield from_array(getattr(skimage.data, name)(), size=SIDE)[0]


def compressed(y: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    pixels = (y * 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels.squeeze()).save(buffer, "JPEG", quality=quality)
    array = np.atleast_3d(np.array(Image.open(buffer)))
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # that JPEG noise is not white is the point here
    generator = torch.Generator().manual_seed(1)
    print("ratio of estimate to truth, median and root mean square error over photos")
    for quality in (None, 90):
        print("PNG" if quality is None else f"JPEG of quality {quality}")
        for sigma in SIGMAS:
            found, details = [], []
            for x in photos(options.photos):
                noise = torch.randn(x.shape, generator=generator)
                y = ((x + sigma / 255 * noise).clamp(0, 1) * 255).round() / 255
                y = y if quality is None else compressed(y, quality)
                everywhere = torch.ones(y.shape[1:], dtype=torch.bool)
                found.append(estimated_noise(y) * 255 / sigma)
                details.append(_from_details(y.double(), everywhere) * 255 / sigma)
            columns = [
                f"{name} {np.median(v):.3f} (rms {np.sqrt(np.mean((np.array(v) - 1) ** 2)):.3f})"
                for name, v in (("auto", found), ("details alone", details))
            ]
            print(f"  sigma {sigma:2d}/255:", ", ".join(columns), flush=True)


if __name__ == "__main__":
    main()
