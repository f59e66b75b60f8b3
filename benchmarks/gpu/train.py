"""Train a recipe on a machine with a GPU that is lent for minutes.

    PYTHONPATH=.:benchmarks python -m gpu.train cats64-diffusion --seconds 480 --out OUT

A probe (images per second beside a bare loop), training with a checkpoint a minute, 64 samples,
and the Frechet distance of 2,000 beside its floor. OUT gets figures.json, log.csv, samples.png and
NAME.safetensors in half precision, the last two of them a minute old at most if the run is killed.
`--start` continues from weights of an earlier lease; `--dry-run` takes 20 steps of a tiny network.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common.features import extract, load_features
from gpu import lease
from torch import Tensor

import genprior
from genprior import metrics, plots
from genprior.commands.run import begin_with
from genprior.data import ArrayImages
from genprior.pretrained import card
from genprior.priors import Flow, Model

WIDTHS = ((64, 128, 192), (96, 192, 288), (128, 256, 384))


class Keeper:
    """Writes the curve, and the newest weights in a form that comes back."""

    def __init__(self, run: Path, out: Path, name: str, batch_size: int) -> None:
        self.weights, self.out, self.name = run / "prior.safetensors", out, name
        self.batch_size, self.began, self.seen = batch_size, time.perf_counter(), 0.0
        self.log = (out / "log.csv").open("w")
        self.log.write("step,seconds,images/s,loss\n")

    def __call__(self, step: int, means: dict[str, float]) -> None:
        """Note a point of the curve; halve the weights if a checkpoint came since the last."""
        seconds = time.perf_counter() - self.began
        loss = next(iter(means.values()))
        self.log.write(f"{step},{seconds:.1f},{step * self.batch_size / seconds:.0f},{loss:.5g}\n")
        self.log.flush()
        if self.weights.exists() and self.weights.stat().st_mtime != self.seen:
            self.seen = self.weights.stat().st_mtime
            self.keep(genprior.load(self.weights))

    def keep(self, model: Model) -> Path:
        path = self.out / f"{self.name}.safetensors"
        model.save(path, card=card(self.weights)["card"], dtype=torch.float16)
        if path.stat().st_size > lease.LARGEST:
            print(f"{path} has {path.stat().st_size / 2**20:.2f} MiB: too large to come back")
        return path


def frechet(
    samples: Tensor, train: ArrayImages, test: ArrayImages, carry: Path, device: str
) -> dict[str, Any]:
    """Measure Frechet distances on each feature network that was carried.

    The distance to test images is biased upwards by their small number, and so is its floor, train
    against test images, as many of each; the second pair compares `samples` with as many training
    images, and these with as many others.
    """
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))
    count, few = min(len(samples), len(train) // 2), min(len(samples), len(test))
    fed = {
        "samples": samples[:count],
        "train": train.batch(order[:count]),
        "others": train.batch(order[count : 2 * count]),
        "test": test.batch(range(few)),
    }
    found: dict[str, Any] = {"images": {"train": count, "test": few}}
    for name in ("alexnet", "mobilenet") if samples.shape[1] == 3 else ("lenet",):
        try:
            network = load_features(name, carry / "models").to(device)
        except ValueError as error:
            found[name] = str(error)
            continue
        f = {k: extract(network, x.to(device)).cpu() for k, x in fed.items()}
        pairs = {
            "test": (f["samples"][:few], f["test"]),
            "test floor": (f["train"][:few], f["test"]),
            "train": (f["samples"], f["train"]),
            "train floor": (f["others"], f["train"]),
        }
        found[name] = {k: round(float(metrics.frechet_distance(*p)), 3) for k, p in pairs.items()}
    return found


def bits(
    flow: Flow, test: ArrayImages, device: str, *, draws: int, part: int = 250
) -> dict[str, float]:
    """Measure bits per dimension of the test images, rounded to 8 bits where they were shrunk."""
    generator = torch.Generator(device).manual_seed(0)
    found = []
    with torch.no_grad():
        for first in range(0, len(test), part):
            x = test.batch(range(first, min(first + part, len(test))))
            x = (255 * x).round().to(device) / 255
            found.append(flow.bits_per_dimension(x, draws=draws, generator=generator).cpu())
    each = torch.cat(found).double()
    error = float(each.std() / len(each) ** 0.5)
    return {"mean": float(each.mean()), "standard error": error, "draws": draws}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train a recipe on a lent GPU.")
    parser.add_argument("name", help="a recipe, DATA-FAMILY")
    parser.add_argument("--seconds", type=float, default=480.0, help="of training")
    parser.add_argument("--out", type=Path, required=True, help="what comes back")
    parser.add_argument("--run", type=Path, default=Path("/tmp/run"), help="checkpoints")
    parser.add_argument("--carry", type=Path, default=Path(lease.CARRY))
    parser.add_argument("--start", help="weights to begin with")
    parser.add_argument("--probe", type=float, default=25.0, help="seconds, 0 for none")
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args(words)
    dry = given.dry_run
    device, recipe = lease.device(dry=dry), lease.Recipe(given.name, dry)
    given.out.mkdir(parents=True, exist_ok=True)
    train, test = (recipe.images(given.carry, split) for split in ("train", "test"))
    test = ArrayImages(test.array[:32]) if dry else test
    figures: dict[str, Any] = {"device": device, "train": len(train), "test": len(test)}
    if given.probe > 0 and given.name.endswith("diffusion"):
        widths, batches = (WIDTHS, (256, 512)) if not dry else (((8, 8, 8), (16, 8, 8)), (8,))
        rates = partial(lease.loop_rates, recipe, train, widths=widths, batches=batches)
        lease.attempt(figures, "probe", partial(rates, seconds=given.probe))
    model, batch_size = recipe.build(train), recipe.written["batch_size"]
    if given.start is not None:
        begin_with(model, given.start)
    keeper = Keeper(given.run, given.out, given.name, batch_size)
    trained = genprior.train(
        model,
        train,
        out=given.run,
        batch_size=batch_size,
        options=recipe.options(),
        card={**recipe.written.get("card", {}), "start": given.start},
        callback=keeper,
        steps=20 if dry else None,
        seconds=None if dry else given.seconds,
    )
    path = keeper.keep(trained)
    figures |= {"training": card(path)["card"]["training"], "MiB": path.stat().st_size / 2**20}
    lease.write_report(given.out / "figures.json", figures)  # should the rest fail
    trained = genprior.load(path, device=device)  # as it comes back, in half precision
    steps, count = (18, 2000) if not dry else (3, 32)
    samples = lease.drawn(trained, count, steps=steps, device=device)
    plots.grid(samples[:64], path=given.out / "samples.png")
    distances = partial(frechet, samples, train, test, given.carry, device)
    lease.attempt(figures, "frechet", distances)
    if isinstance(trained, Flow):
        lease.attempt(figures, "bits", partial(bits, trained, test, device, draws=2 if dry else 8))
    lease.write_report(given.out / "figures.json", figures)
    print(figures)
    if "failed" in figures:
        raise SystemExit(f"failed: {', '.join(figures['failed'])}")


if __name__ == "__main__":
    main()
