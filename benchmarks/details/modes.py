"""How many of 25 Gaussians each loss's GAN finds.

    python benchmarks/details/modes.py --out gan/ [--losses WORD ...] [--steps 10000]

Three seeds of each loss, 10,000 samples each; modes.csv has a line for each, controls first, and
what stands there is not trained again; modes.png shows the
first seed's samples. A mode counts from a quarter of its share of the samples
within 3 std.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from genprior.figures.gan.plane import (
    CONTENDERS,
    POINTS,
    PlaneGANs,
    counted,
    draw_modes,
    fit,
    gaussians,
    uniform_noise,
)

SAMPLES = 10_000

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
        if all(table.has(name, seed) for seed in seeds):
            continue
        loss, training = CONTENDERS[name]
        begin = time.process_time()
        x = gaussians(POINTS, seeds[0])
        gans = fit(loss, x, seeds=seeds, steps=steps, **training)
        seconds = round((time.process_time() - begin) / len(seeds))
        gans.save(weights(table.path, name))
        for seed, drawn in zip(seeds, gans.samples(SAMPLES, seeds[0]), strict=True):
            about = {"loss": name, "settings": described(loss, training), "seed": seed}
            table.add({**about, **counted(drawn), "seconds": seconds})


def weights(table: Path, name: str) -> Path:
    """Where a loss's GANs are kept for the picture."""
    return table.with_name(f"{name.replace(' ', '-').replace(',', '')}.safetensors")


def picture(table: Table, seed: int) -> None:
    """Draw samples of the first seed's GAN of each loss that was trained here."""
    gans = {name: weights(table.path, name) for name in CONTENDERS}
    kept = {n: PlaneGANs.load(path).samples(SAMPLES, seed)[0] for n, path in gans.items()
            if path.exists()}  # fmt: skip
    draw_modes(kept).savefig(table.path.with_suffix(".png"), dpi=150)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gan"))
    parser.add_argument("--losses", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=10_000)
    given = parser.parse_args(words)
    given.out.mkdir(parents=True, exist_ok=True)
    table = Table(given.out / "modes.csv")
    points(table, given.losses, given.seeds, given.steps)
    picture(table, given.seeds[0])


if __name__ == "__main__":
    main()
