"""GANs of points in the plane: how many of 25 modes each loss finds.

A mode counts from a quarter of its share of the samples within three standard deviations of it. By
a looser rule, a tenth of its share, even uniform noise finds them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genprior.figures.canvas import Measured, canvas
from genprior.priors.gan.gan import GAN
from genprior.priors.gan.networks import SLOPE
from genprior.training import TrainingOptions, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 5
STD = 0.075
"""Of each mode; their means are 1 apart."""

NETWORK = {"kind": "perceptron", "hidden": [128, 128, 128], "bounded": False}
LATENT = 8
POINTS = 50_000
"""In the training set."""

RELATIVISTIC = {"kind": "relativistic", "r1": 0.1, "r2": 0.1}

FALLING = {"learning_rate": 3e-3, "cooldown": 0.5, "half_life": 100.0}
"""A training chosen with the relativistic loss, on seeds 100 to 102."""

CONTENDERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "minimax": ({"kind": "minimax"}, {}),
    "non-saturating": ({"kind": "non-saturating"}, {}),
    "hinge": ({"kind": "hinge"}, {}),
    "least squares": ({"kind": "least-squares"}, {}),
    "Wasserstein, clip": ({"kind": "wasserstein", "clip": 0.1}, {}),
    "Wasserstein, penalty": ({"kind": "wasserstein", "gradient_penalty": 0.1}, {}),
    "non-saturating, R1 + R2": ({"kind": "non-saturating", "r1": 0.1, "r2": 0.1}, {}),
    "relativistic, R1 + R2": (RELATIVISTIC, {}),
    "non-saturating, falling rate": ({"kind": "non-saturating"}, FALLING),
    "relativistic, R1 + R2, falling rate": (RELATIVISTIC, FALLING),
}
"""Options of each loss and, where it is not that of all, of its training."""

Row = dict[str, Any]


def means() -> Tensor:
    """Return the 25 means, (25, 2): a square grid about 0."""
    side = torch.arange(SIDE) - (SIDE - 1) / 2
    return torch.cartesian_prod(side, side)


def gaussians(count: int, seed: int) -> Tensor:
    """Draw points of the mixture, in equal shares, as images (count, 1, 1, 2)."""
    generator = torch.Generator().manual_seed(seed)
    mode = torch.randint(SIDE**2, (count,), generator=generator)
    x = means()[mode] + STD * torch.randn(count, 2, generator=generator)
    return x.view(count, 1, 1, 2)


def uniform_noise(count: int, seed: int) -> Tensor:
    """Draw points all over the square that holds the mixture, (count, 1, 1, 2)."""
    half = (SIDE - 1) / 2 + 2 * STD
    u = torch.rand(count, 1, 1, 2, generator=torch.Generator().manual_seed(seed))
    return half * (2 * u - 1)


def counted(x: Tensor) -> Row:
    """Count the modes among samples (n, 1, 1, 2).

    Returns:
        `modes` by the rule, and `loose` by a tenth of a share; `within`, the share of samples
        within 3 std of a mean; `kl`, of these over the modes from equal shares, in nats.
    """
    away, nearest = torch.cdist(x.flatten(1), means()).min(1)
    inside = nearest[away < 3 * STD]
    share = torch.bincount(inside, minlength=SIDE**2) / len(x)
    fair = 1 / SIDE**2
    q = share / share.sum().clamp(min=1e-12)
    return {
        "modes": int((share >= 0.25 * fair).sum()),
        "loose": int((share >= 0.1 * fair).sum()),
        "within": len(inside) / len(x),
        "kl": float((q * (q / fair).clamp(min=1e-12).log()).sum()) if len(inside) else math.inf,
    }


class SideBySide(nn.Module):
    """Perceptrons of equal widths as one: each takes its own equal share of the rows.

    Small networks cost the calls, not the arithmetic: three trained so cost little more than one.

    Args:
        networks: Linear layers with leaky rectifiers between them.
        shape: Of an image or a score that they make.
    """

    def __init__(self, networks: Sequence[nn.Module], shape: tuple[int, ...]) -> None:
        super().__init__()
        layers = [[m for m in n.modules() if isinstance(m, nn.Linear)] for n in networks]
        each = list(zip(*layers, strict=True))
        self.weights = nn.ParameterList([torch.stack([m.weight.T for m in ms]) for ms in each])
        self.biases = nn.ParameterList([torch.stack([m.bias[None] for m in ms]) for ms in each])
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        count, inputs, _ = self.weights[0].shape
        h = x.view(count, -1, inputs)
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, F.leaky_relu(h, SLOPE) if place else h, weight)
        return h.view(len(x), *self.shape)


class PlaneGANs(GAN):
    """GANs of points, started by several seeds, that train side by side.

    Args:
        seeds: Of the starting weights, one for each GAN.
        loss: Options of `AdversarialOptions`.
    """

    def __init__(self, seeds: Sequence[int] = (0,), loss: dict[str, Any] | None = None) -> None:
        self.seeds = tuple(seeds)
        super().__init__((1, 1, 2), LATENT, network=NETWORK, loss=loss)

    def _pair(self) -> tuple[nn.Module, nn.Module]:
        single = [GAN((1, 1, 2), LATENT, network=NETWORK, seed=seed) for seed in self.seeds]
        generators = SideBySide([gan.generator for gan in single], (1, 1, 2))
        return generators, SideBySide([gan.critic() for gan in single], ())

    def measure_decoder_std(self, images: Tensor, **_: Any) -> float:
        """Measure nothing: rows are of several generators."""
        return math.nan

    def samples(self, count: int, seed: int) -> Tensor:
        """Draw for each GAN, (seeds, count, 1, 1, 2)."""
        generator = torch.Generator().manual_seed(seed)
        return self.sample(len(self.seeds) * count, generator=generator).unflatten(0, (-1, count))


def fit(
    loss: dict[str, Any],
    x: Tensor,
    *,
    seeds: Sequence[int] = (0,),
    steps: int = 10_000,
    learning_rate: float = 1e-3,
    cooldown: float = 0.0,
    half_life: float = 10.0,
    batch_size: int = 256,
) -> PlaneGANs:
    """Train GANs of points with one loss, each on batches of its own.

    Args:
        loss: Options of `AdversarialOptions`.
        x: Points, (n, 1, 1, 2).
        seeds: Of the starting weights; the first seeds order and noise.
        steps: Updates of the generator.
        learning_rate, cooldown: As in `TrainingOptions`.
        half_life: Updates after which the average of the weights has forgotten half.
        batch_size: Points of each GAN in an update.
    """
    options = TrainingOptions(
        learning_rate=learning_rate,
        warmup=0,
        cooldown=cooldown,
        clip=None,
        precision="fp32",
        accelerator="cpu",
        ema_half_life=half_life * batch_size * len(seeds),
        seed=seeds[0],
        progress=False,
    )
    whole = batch_size * len(seeds)
    return train(PlaneGANs(seeds, loss), x, steps=steps, batch_size=whole, options=options)


def modes(data: str | None, seed: int, full: bool) -> Measured:
    """Train a GAN with each loss and draw its samples."""
    found, rows = {}, []
    for name, (loss, training) in CONTENDERS.items():
        gan = fit(loss, gaussians(POINTS, seed), seeds=[seed], steps=10_000 if full else 1000,
                  **training)  # fmt: skip
        found[name] = gan.samples(10_000, seed)[0]
        rows.append({"loss": name, **counted(found[name])})
        print(rows[-1], flush=True)
    return Measured(draw_modes(found), rows)


def draw_modes(found: Mapping[str, Tensor]) -> Figure:
    """Draw 2,000 samples of each loss over the means, with what `counted` says of them all."""
    from matplotlib.patches import Circle

    columns = min(3, len(found))
    lines = math.ceil(len(found) / columns)
    figure = canvas(3 * columns, 3.2 * lines)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, (name, x) in zip(axes, found.items(), strict=False):
        said = counted(x)
        axis.axis("on")
        for mean in means().tolist():
            axis.add_patch(Circle(mean, 3 * STD, fill=False, color="0.6", lw=0.6))
        axis.scatter(*x[:2000].flatten(1).T, s=1.5, color="C0", alpha=0.5, lw=0)
        axis.set(xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[], aspect="equal")
        told = f"{said['modes']} modes, {said['within']:.2f} within 3 std, KL {said['kl']:.3f}"
        axis.set_title(f"{name}\n{told}", fontsize=9)
    return figure
