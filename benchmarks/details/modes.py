"""How many of 25 Gaussians each loss's GAN finds.

    python benchmarks/details/modes.py --out gan/ [--losses WORD ...] [--steps 10000]

Three seeds of each loss, 10,000 samples each; modes.csv has a line for each, controls first, and
what stands there is not trained again. A mode counts from a quarter of its share of the samples
within 3 std.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genprior.figures.gan.plane import POINTS, counted, fit, gaussians, uniform_noise

SAMPLES = 10_000

RELATIVISTIC = {"kind": "relativistic", "r1": 0.1, "r2": 0.1}

SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "minimax": ({"kind": "minimax"}, {}),
    "non-saturating": ({"kind": "non-saturating"}, {}),
    "hinge": ({"kind": "hinge"}, {}),
    "least squares": ({"kind": "least-squares"}, {}),
    "Wasserstein, clip": ({"kind": "wasserstein", "clip": 0.1}, {}),
    "Wasserstein, penalty": ({"kind": "wasserstein", "gradient_penalty": 0.1}, {}),
    "non-saturating, R1 + R2": ({"kind": "non-saturating", "r1": 0.1, "r2": 0.1}, {}),
    "relativistic, R1 + R2": (RELATIVISTIC, {}),
}
"""The loss and, where it is not that of all, the training. One update of the critic for each of
the generator."""

Row = dict[str, Any]


class Table:
    """A CSV that grows line by line, and knows what it has."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, []
        if path.exists():
            with path.open(newline="") as file:
                self.rows: list[Row] = list(csv.DictReader(file))

    def has(self, loss: str, seed: object) -> bool:
        return any((row["loss"], row["seed"]) == (loss, str(seed)) for row in self.rows)

    def add(self, row: Row) -> None:
        written = {k: f"{v:.3f}" if isinstance(v, float) else str(v) for k, v in row.items()}
        print(*written.values(), sep="\t", flush=True)
        self.rows.append(written)
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(written), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)


def described(loss: dict[str, Any], training: dict[str, Any]) -> str:
    """What a line was trained with, but for the kind of its loss."""
    return " ".join(f"{k}={v}" for k, v in {**loss, **training}.items() if k != "kind")


def points(table: Table, losses: Sequence[str], seeds: Sequence[int], steps: int) -> None:
    """Fit points of the plane with each loss, the controls first."""
    for name, x in {
        "uniform noise": uniform_noise(SAMPLES, 0),
        "the data": gaussians(SAMPLES, 0),
    }.items():
        if not table.has(name, ""):
            table.add({"loss": name, "settings": "", "seed": "", **counted(x), "seconds": ""})
    for name in losses:
        left = [seed for seed in seeds if not table.has(name, seed)]
        if not left:
            continue
        loss, training = SETTINGS[name]
        begin = time.process_time()
        x = gaussians(POINTS, left[0])
        gans = fit(loss, x, seeds=left, steps=steps, **training)
        seconds = round((time.process_time() - begin) / len(left))
        for seed, drawn in zip(left, gans.samples(SAMPLES, left[0]), strict=True):
            about = {"loss": name, "settings": described(loss, training), "seed": seed}
            table.add({**about, **counted(drawn), "seconds": seconds})


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gan"))
    parser.add_argument("--losses", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=10_000)
    given = parser.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    points(Table(given.out / "modes.csv"), given.losses, given.seeds, given.steps)


if __name__ == "__main__":
    main()
