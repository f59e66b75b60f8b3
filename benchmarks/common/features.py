"""Feature networks for Frechet distances, read from a folder that the user has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d, relu

FILES = {
    "lenet": ("mnist_lenet", "lenet.pth"),
    "alexnet": ("lpips", "lpips_alexnet_fp16.safetensors"),
    "mobilenet": ("mobilenet_v2", "mobilenet_v2-b0353104.pth"),
    "vgg16": ("vgg16_conv", "vgg16_conv_hed_finetuned_fp16.npz"),
}


class LeNet(nn.Module):
    """LeNet-5 for digits, 1x32x32 in; other sizes are resized. Features are its 84 last units."""

    def __init__(self) -> None:
        super().__init__()
        widths = {"c1": (1, 6), "c3": (6, 16), "c5": (16, 120)}
        self.convnet = nn.ModuleDict({k: nn.Conv2d(i, o, 5) for k, (i, o) in widths.items()})
        self.fc = nn.ModuleDict({"f6": nn.Linear(120, 84), "f7": nn.Linear(84, 10)})

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 1, H, W) in [0, 1] to features (B, 84)."""
        if x.shape[1] != 1:
            raise ValueError(f"the LeNet takes grey images, {x.shape[1]} channels came")
        if x.shape[-2:] != (32, 32):
            x = interpolate(x, (32, 32), mode="bilinear", antialias=True)
        x = max_pool2d(relu(self.convnet["c1"](x)), 2)
        x = max_pool2d(relu(self.convnet["c3"](x)), 2)
        return relu(self.fc["f6"](relu(self.convnet["c5"](x)).flatten(1)))

    def probabilities(self, x: Tensor) -> Tensor:
        """Map images (B, 1, H, W) in [0, 1] to the probabilities of the ten digits, (B, 10)."""
        return self.fc["f7"](self(x)).softmax(1)


class MobileNet(nn.Module):
    """The 1280 pooled features of torchvision's MobileNetV2, images resized to 224x224."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        import torchvision

        self.network = torchvision.models.mobilenet_v2(weights=None)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 1 or 3, H, W) in [0, 1] to features (B, 1280)."""
        x = interpolate(x.expand(-1, 3, -1, -1), (224, 224), mode="bicubic", antialias=True)
        return self.network.features((x - self.mean) / self.std).mean((2, 3))


class AlexNet(nn.Module):
    """AlexNet's five convolutions as LPIPS reads them; a feature is a layer's mean, 1152 in all.

    Source: Zhang et al. 2018, arXiv:1801.03924, version 0.1. Differs: no heads, and means over
        pixels instead of distances at each.
    """

    mean: Tensor
    std: Tensor
    plan = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1),
            (256, 256, 3, 1, 1))  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        for i, (inputs, out, side, stride, padding) in enumerate(self.plan):
            self.add_module(f"conv{i}", nn.Conv2d(inputs, out, side, stride, padding))
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 1 or 3, H, W) in [0, 1], 32x32 or larger, to features (B, 1152)."""
        x = (2 * x.expand(-1, 3, -1, -1) - 1 - self.mean) / self.std
        means = []
        for i in range(len(self.plan)):
            if i in (1, 2):
                x = max_pool2d(x, 3, 2)
            x = relu(self.get_submodule(f"conv{i}")(x))
            means.append(x.mean((2, 3)))
        return torch.cat(means, 1)


class VGG16(nn.Module):
    """The convolutions of VGG-16; a feature is a layer's mean activation, 4224 in all.

    The shipped weights were fine-tuned for edges: distances on them are not LPIPS.
    """

    mean: Tensor
    blocks = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))

    def __init__(self) -> None:
        super().__init__()
        self.layers, width = nn.ModuleDict(), 3
        for b, (repeats, out) in enumerate(self.blocks):
            for r in range(repeats):
                self.layers[f"conv{b + 1}_{r + 1}"] = nn.Conv2d(width, out, 3, padding=1)
                width = out
        self.register_buffer("mean", torch.tensor([104.007, 116.669, 122.679]).view(3, 1, 1))

    def activations(self, x: Tensor) -> list[Tensor]:
        """Return the 13 rectified maps for images (B, 1 or 3, H, W) in [0, 1]."""
        x = x.expand(-1, 3, -1, -1).flip(1) * 255 - self.mean  # trained on BGR in 0 ... 255
        maps = []
        for name, layer in self.layers.items():
            if name.endswith("_1") and maps:
                x = max_pool2d(x, 2)
            maps.append(x := relu(layer(x)))
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 1 or 3, H, W) in [0, 1], 16x16 or larger, to features (B, 4224)."""
        return torch.cat([a.mean((2, 3)) for a in self.activations(x)], 1)

    def distance(self, x: Tensor, truth: Tensor) -> Tensor:
        """Return a perceptual distance (B,): per layer, the mean squared difference of
        activations scaled to length 1 over channels; summed over layers, unweighted."""
        total = x.new_zeros(len(x))
        for a, b in zip(self.activations(x), self.activations(truth), strict=True):
            unit_a, unit_b = (t / (t.norm(dim=1, keepdim=True) + 1e-10) for t in (a, b))
            total = total + (unit_a - unit_b).square().sum(1).mean((1, 2))
        return total


Features = LeNet | AlexNet | MobileNet | VGG16


def _state(name: str, path: Path) -> dict[str, Tensor]:
    if name == "vgg16":
        with np.load(path, allow_pickle=False) as arrays:
            kinds = {"w": "weight", "b": "bias"}
            return {
                f"layers.{key[:-2]}.{kinds[key[-1]]}": torch.from_numpy(arrays[key]).float()
                for key in arrays.files
            }
    if name == "alexnet":
        read = load_file(path)
        return {k: v.float() for k, v in read.items() if k.startswith("conv")}
    state = torch.load(path, weights_only=True, map_location="cpu")
    return {f"network.{k}": v for k, v in state.items()} if name == "mobilenet" else state


def load_features(name: str, folder: str | Path) -> Features:
    """Load a feature network: a module that maps images (B, C, H, W) to features (B, k).

    Args:
        name: "lenet" (digits), "alexnet" (LPIPS's), "mobilenet" (colour, ImageNet) or "vgg16".
        folder: Holds the weights, in the sub-folders and under the names of `FILES`.
    Raises:
        ValueError: Unknown name, missing file, or weights of another network.
    """
    networks: dict[str, Callable[[], Features]] = {
        "lenet": LeNet,
        "alexnet": AlexNet,
        "mobilenet": MobileNet,
        "vgg16": VGG16,
    }
    if name not in networks:
        raise ValueError(f"unknown network {name!r}: there are {', '.join(networks)}")
    path = Path(folder, *FILES[name])
    if not path.is_file():
        raise ValueError(f"no weights at {path}")
    with torch.random.fork_rng(devices=[]):  # building draws initial weights
        network = networks[name]()
    missing, unexpected = network.load_state_dict(_state(name, path), strict=False)
    if unexpected or not set(missing) <= {"mean", "std"}:
        raise ValueError(f"{path} holds the weights of another network than {name}")
    return network.eval().requires_grad_(False)


@torch.no_grad()
def extract(network: nn.Module, images: Tensor, *, batch_size: int = 250) -> Tensor:
    """Return the features of images (N, C, H, W), (N, k), a batch at a time."""
    return torch.cat([network(part) for part in images.split(batch_size)])
