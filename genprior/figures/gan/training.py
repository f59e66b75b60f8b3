"""How GANs of digits train: by the optimiser, epoch after epoch; and all losses at equal cost."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genprior.data import Images
from genprior.figures.canvas import Measured, canvas, digits, tiles
from genprior.metrics import frechet_distance
from genprior.priors import GAN
from genprior.training import TrainingOptions, train

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 100

NETWORK = {"kind": "dcgan", "widths": [32, 16]}
"""Of `epochs`: small, so that ten epochs take half a minute for each optimiser."""

EPOCHS = (1, 2, 3, 10)

DIRECTIONS = 40
"""Principal components of digits in which Frechet distances are measured."""

OPTIMIZERS = {
    "Adam, rate 2e-4": ("adam", 2e-4),
    "SGD, rate 2e-4": ("sgd", 2e-4),
    "SGD, rate 2e-2": ("sgd", 2e-2),
    "normalised SGD, rate 2e-2": ("normalised", 2e-2),
}

Row = dict[str, Any]


class Yardstick:
    """Frechet distance and spread of samples against test digits.

    Args:
        x: Digits that give the principal components, (n, C, H, W).
        test: Digits to be near to.
    """

    def __init__(self, x: Tensor, test: Tensor) -> None:
        flat = x.flatten(1)
        self.middle = flat.mean(0)
        # In float32 it fails to converge where many pixels are always black.
        vectors = torch.linalg.eigh(flat.double().T.cov()).eigenvectors
        self.directions = vectors[:, -DIRECTIONS:].to(flat)
        self.test = test
        self.floor = self.distance(x[: len(test)])

    def features(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - self.middle) @ self.directions

    def distance(self, x: Tensor) -> float:
        return float(frechet_distance(self.features(x), self.features(self.test)))

    def spread(self, x: Tensor) -> float:
        own, theirs = (torch.pdist(t[:1000].flatten(1)).mean() for t in (x, self.test))
        return float(own / theirs)


def options(rate: float, *, batch: int, seed: int) -> TrainingOptions:
    """At a constant rate; the average forgets half in ten updates, so it is the network itself."""
    return TrainingOptions(
        **{**GAN.training_defaults, "learning_rate": rate},
        ema_half_life=10 * batch,
        seed=seed,
        grid=0,
        progress=False,
    )


def fit(
    gan: GAN, x: Tensor, rate: float, *, steps: int, batch: int, seed: int, cooldown: float = 0.0
) -> GAN:
    """Train a GAN on images; its average forgets half in fifty updates."""
    chosen = TrainingOptions(
        **{**GAN.training_defaults, "learning_rate": rate, "cooldown": cooldown},
        ema_half_life=50 * batch,
        seed=seed,
        grid=0,
        progress=False,
    )
    return train(gan, x, steps=steps, batch_size=batch, options=chosen)


def stages(
    gan: GAN, x: Images | Tensor, epochs: Sequence[int], rate: float, *, seed: int
) -> list[GAN]:
    """Train for each number of epochs in turn; the next goes on where the one before ended."""
    with tempfile.TemporaryDirectory() as out:
        return [
            train(
                gan,
                x,
                out=out,
                steps=max(1, epoch * len(x) // BATCH),
                batch_size=BATCH,
                options=options(rate, batch=BATCH, seed=seed),
            )
            for epoch in epochs
        ]


def epochs(data: str | None, seed: int, full: bool) -> Measured:
    """Draw samples after some epochs of training by Adam, SGD, and SGD with unit gradients."""
    x, test = digits(data, "train", None if full else 10_000), digits(data, "test", 1000)
    marks = (*EPOCHS, 100) if full else EPOCHS
    yardstick = Yardstick(x, test)
    figure = canvas(2.3 * len(marks), 9.6)
    axes = figure.subplots(len(OPTIMIZERS), len(marks))
    rows: list[Row] = []
    for line, (name, (optimizer, rate)) in zip(axes, OPTIMIZERS.items(), strict=True):
        loss = {"optimizer": optimizer}
        gan = GAN((1, 28, 28), 64, network=NETWORK, loss=loss, seed=seed)
        for axis, mark, trained in zip(
            line, marks, stages(gan, x, marks, rate, seed=seed), strict=True
        ):
            samples = trained.sample(1000, generator=torch.Generator().manual_seed(seed))
            row = {
                "optimizer": name,
                "epoch": mark,
                "frechet": yardstick.distance(samples),
                "spread": yardstick.spread(samples),
            }
            rows.append(row)
            print(row, flush=True)
            said = f"epoch {mark}: Fréchet {row['frechet']:.1f}, spread {row['spread']:.2f}"
            tiles(axis, samples[:25], 5)
            axis.set_title(said, fontsize=7)
        line[0].set_ylabel(name, fontsize=10)
    figure.suptitle(
        f"a small DCGAN trained on {len(x):,} digits, the same draws of z; Fréchet of test digits "
        f"{yardstick.floor:.1f}",
        fontsize=10,
    )
    return Measured(figure, rows)


def _penalised(generator: torch.Generator) -> dict[str, Any]:
    gamma = _between(1e-3, 1.0, generator)
    return {"kind": "relativistic", "r1": gamma, "r2": gamma}


CONTENDERS: dict[str, Callable[[torch.Generator], dict[str, Any]]] = {
    "minimax": lambda _: {"kind": "minimax"},
    "non-saturating": lambda _: {"kind": "non-saturating"},
    "hinge": lambda _: {"kind": "hinge"},
    "least-squares": lambda _: {"kind": "least-squares"},
    "wasserstein, clip": lambda g: {"kind": "wasserstein", "clip": _between(3e-3, 0.3, g)},
    "wasserstein, penalty": lambda g: {
        "kind": "wasserstein",
        "gradient_penalty": _between(0.1, 30.0, g),
    },
    "relativistic, R1 + R2": _penalised,
}
"""The losses, and how a trial draws what is special to each."""


def _between(low: float, high: float, generator: torch.Generator) -> float:
    """Draw a number whose logarithm is uniform."""
    u = float(torch.rand((), generator=generator, dtype=torch.float64))
    return low * (high / low) ** u


def compare(
    x: Tensor, yardstick: Yardstick, *, trials: int, seeds: int, steps: int, seed: int = 0
) -> list[Row]:
    """Give each loss as many trials of random settings, and the best of them more seeds.

    Args:
        x: Training images.
        yardstick: Measures 1,000 samples.
        trials: Settings of each loss; chosen by their distance with one seed.
        seeds: Further runs of the best settings, whose seeds chose nothing.
        steps: Updates of each run.
        seed: Of settings and starts.
    """
    rows: list[Row] = []
    for place, (name, draw) in enumerate(CONTENDERS.items()):
        generator = torch.Generator().manual_seed(1000 * seed + place)
        settings = [
            (
                _between(1e-4, 1e-2, generator),
                {**draw(generator), "critic_rate": _between(0.3, 3.0, generator)},
            )
            for _ in range(trials)
        ]

        def run(rate: float, loss: dict[str, Any], start: int) -> float:
            gan = GAN(
                (1, 14, 14),
                32,
                network={"kind": "perceptron", "hidden": [128, 256]},
                loss=loss,
                seed=start,
            )
            done = train(
                gan, x, steps=steps, batch_size=64, options=options(rate, batch=64, seed=start)
            )
            draws = done.sample(1000, generator=torch.Generator().manual_seed(start))
            return yardstick.distance(draws) if bool(draws.isfinite().all()) else float("inf")

        found = [run(*chosen, seed) for chosen in settings]
        best = min(range(trials), key=found.__getitem__)
        rows += [{"loss": name, "run": "trial", "frechet": value} for value in found]
        for start in range(seed + 1, seed + 1 + seeds):
            value = run(*settings[best], start)
            rows.append({"loss": name, "run": "best again", "frechet": value})
        print(name, *(f"{row['frechet']:.1f}" for row in rows if row["loss"] == name), flush=True)
    return rows


def budget(data: str | None, seed: int, full: bool) -> Measured:
    """Compare losses with equal trials and updates on digits shrunk to 14x14."""
    x, test = (F.avg_pool2d(digits(data, s, n), 2) for s, n in (("train", 10_000), ("test", 1000)))
    yardstick = Yardstick(x, test)
    chosen = {"trials": 12, "seeds": 8, "steps": 5000} if full else TRIED
    rows = compare(x, yardstick, **chosen, seed=seed)
    return Measured(draw_budget(rows, yardstick.floor, **chosen), rows)


TRIED = {"trials": 4, "seeds": 3, "steps": 400}
"""Of `budget` where time is short."""


def draw_budget(rows: list[Row], floor: float, *, trials: int, seeds: int, steps: int) -> Figure:
    """Plot each loss's trials and the further runs of its best settings."""
    figure = canvas(7, 4)
    axis = figure.subplots()
    names = list(dict.fromkeys(row["loss"] for row in rows))
    styles = {"trial": ("0.6", "x", -0.12), "best again": ("C0", "o", 0.12)}
    for run, (colour, marker, aside) in styles.items():
        mine = [row for row in rows if row["run"] == run]
        at = [names.index(row["loss"]) + aside for row in mine]
        label = {
            "trial": f"{trials} random settings",
            "best again": f"the best, {seeds} new seeds",
        }
        axis.scatter([row["frechet"] for row in mine], at, color=colour, marker=marker,
                     label=label[run])  # fmt: skip
    axis.axvline(floor, color="0.5", ls=":", label="training digits")
    axis.set(xscale="log", xlabel=f"Fréchet distance after {steps} updates")
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure
