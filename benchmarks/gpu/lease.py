"""What the scripts for a machine with a GPU share: data that was carried, recipes, timing."""

from __future__ import annotations

import csv
import json
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from common.loops import bare, ours
from torch import Tensor

from genprior import data
from genprior.priors import Diffusion, Model, Prior, Trainable
from genprior.training import Augmentation, TrainingOptions

ROOT = Path(__file__).parents[2]
CARRY = ".carry"
LARGEST = 16 * 2**20
"""Bytes of a file that comes back."""

NOT_FAMILY = {"size", "channels", "steps", "seconds", "batch_size", "half", "card"}


def device(*, dry: bool) -> str:
    """Return "cuda", or "cpu" for a dry run.

    Raises:
        SystemExit: There is no CUDA device.
    """
    if not dry and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is here: --dry-run tries everything on the CPU")
    torch.backends.cudnn.benchmark = not dry  # shapes stay the same, so that a search pays
    print("dry run on the CPU" if dry else torch.cuda.get_device_name(), flush=True)
    return "cpu" if dry else "cuda"


@dataclass(frozen=True)
class Recipe:
    """A recipe of pretrained/recipes, by name; for a dry run its network and batch are tiny.

    Attributes:
        name: DATA-FAMILY or DATA-FAMILY-MORE.
        dry: For a dry run.
    """

    name: str
    dry: bool = False

    @property
    def written(self) -> dict[str, Any]:
        text = (ROOT / "pretrained" / "recipes" / f"{self.name}.yaml").read_text()
        written = yaml.safe_load(text)
        if not self.dry:
            return written
        unet = {"widths": [8, 8, 8], "blocks": [1, 1, 1], "unshuffle": 4}
        tiny = {"network": unet} if self.family is Diffusion else {"depth": 1, "couplings": 1}
        few = {k: v for k, v in tiny.items() if k in written}
        return {**written, **few, "batch_size": 8, "workers": 0}

    @property
    def family(self) -> type[Trainable]:
        named = {name.lower(): family for name, family in Model.families.items()}
        family = named[self.name.split("-")[1]]
        assert issubclass(family, Trainable)
        return family

    def images(self, carry: Path, split: str) -> data.ArrayImages:
        """Decode the carried images of a split."""
        size, channels = self.written.get("size"), self.written.get("channels")
        folder = carry / "data" / source(self.name)
        found = data.images(folder, size=size, channels=channels, split=split)
        assert isinstance(found, data.ArrayImages)
        return found

    def build(self, images: Iterable[Tensor], **network: Any) -> Trainable:
        """Build the untrained model; `network` replaces options of its network."""
        kept = NOT_FAMILY | {f.name for f in fields(TrainingOptions)}
        plan = {k: v for k, v in self.written.items() if k not in kept}
        return self.family.from_images(
            images, **{**plan, "network": {**plan["network"], **network}}
        )

    def options(self, **changes: Any) -> TrainingOptions:
        named = {f.name for f in fields(TrainingOptions)}
        given = {k: v for k, v in self.written.items() if k in named}
        given |= {"accelerator": "cpu" if self.dry else "cuda", "progress": False, "grid": 0}
        if "augment" in given:
            given["augment"] = Augmentation(**given["augment"])
        return TrainingOptions(**{**given, **changes})


def source(name: str) -> str:
    """Name the folder of data that NAME = DATA-FAMILY is made from: cats32 is cats64, shrunk."""
    return {"cats32": "cats64", "fashion": "fashion_mnist"}.get(*[name.split("-")[0]] * 2)


def calls_per_second(call: Callable[[], object], seconds: float) -> float:
    """Time calls that may queue up on the device, for about so many seconds, warm-up included."""
    call()
    synchronise()
    begin, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - begin < seconds / 3:
        call()
        synchronise()
        count += 1
    count = max(1, round(count / (time.perf_counter() - begin) * seconds / 2))
    begin = time.perf_counter()
    for _ in range(count):
        call()
    synchronise()
    return count / (time.perf_counter() - begin)


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def loop_rates(
    recipe: Recipe,
    images: data.ArrayImages,
    *,
    widths: Sequence[Sequence[int]],
    batches: Sequence[int],
    seconds: float,
) -> list[dict[str, Any]]:
    """Measure images per second of `genprior.train` beside a bare loop, `seconds` in all."""
    where = "cpu" if recipe.dry else "cuda"
    each = seconds / (2 * len(widths) * len(batches))
    rows = []
    for plan in widths:
        model = recipe.build(images, widths=list(plan))
        for batch in batches:
            few = images.batch([i % len(images) for i in range(4 * batch)])
            own = ours(model, images, batch_size=batch, options=recipe.options())
            rates = [
                batch * calls_per_second(step, each)
                for step in (bare(model, few, batch_size=batch, device=where), own)
            ]
            rows.append(
                {
                    "widths": list(plan),
                    "batch": batch,
                    "bare images/s": round(rates[0]),
                    "genprior.train images/s": round(rates[1]),
                    "share": round(rates[1] / rates[0], 3),
                }
            )
            print(rows[-1], flush=True)
    return rows


def drawn(prior: Prior, count: int, *, steps: int, device: str, part: int = 500) -> Tensor:
    """Draw images in [0, 1], (count, C, H, W), on the CPU."""
    generator = torch.Generator(device).manual_seed(0)
    sample = partial(prior.sample, steps=steps) if isinstance(prior, Diffusion) else prior.sample
    parts = [min(part, count - done) for done in range(0, count, part)]
    samples = [sample(n, generator=generator) for n in parts]
    return torch.cat([x.clamp(0, 1).cpu() for x in samples])


def attempt(report: dict[str, Any], name: str, part: Callable[[], Any]) -> None:
    """Note what a part finds, or how it failed: the parts after it still have the machine."""
    try:
        report[name] = part()
    except (RuntimeError, TypeError, ValueError) as error:
        traceback.print_exc()
        report[name] = f"failed: {error!r}"
        report["failed"] = [*report.get("failed", []), name]


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write plain data as JSON, whole, after every part that ends; tables as CSV too."""
    path.write_text(json.dumps(report, indent=1))
    for name, rows in report.items():
        if isinstance(rows, list) and rows and isinstance(rows[0], dict):
            with (path.parent / f"{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
