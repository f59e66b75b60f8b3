"""`genprior evaluate`: a prior and a solver on many images, degraded by simulation."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from genprior.commands.outputs import refuse_existing
from genprior.commands.source import Source
from genprior.operators import Problem
from genprior.operators.files import write_atomically
from genprior.operators.random import spawn
from genprior.priors import Prior
from genprior.restoration.degradation import Degradation
from genprior.restoration.progress import Progress
from genprior.restoration.scores import score
from genprior.restoration.settings import Solving
from genprior.solvers.result import independent_sets

SAMPLES_OF_COVERAGE = 19
"""Their range is a 90 % interval; of an odd number none are paired."""


def evaluate(
    source: Source,
    degradation: Degradation,
    solving: Solving,
    *,
    out: str,
    limit: int | None = None,
    at_once: int = 16,
    force: bool = False,
) -> None:
    """Restore every image of a data set and write a CSV of scores.

    The last two rows are the mean over images and its standard error.

    Args:
        source: The images; size and channels default to the prior's.
        degradation: What is done to each; drawn masks differ from image to image.
        solving: With what to restore.
        out: The CSV file.
        limit: Take at most so many images.
        at_once: Images in one batch; results do not depend on it.
        force: Replace the file if it exists.
    """
    refuse_existing([Path(out)], force)
    degradation = degradation.settled(simulate=True)
    prior = solving.load_prior()
    channels, height, width = prior.image_shape
    size = None if height is None or width is None else (height, width)
    data = replace(source, size=source.size or size, channels=source.channels or channels).open(
        split="test"
    )
    count = len(data) if limit is None else min(len(data), limit)
    generators = spawn(torch.Generator().manual_seed(solving.seed), count)
    step = at_once if None not in data.image_shape else 1
    table: list[dict[str, float]] = []
    with Progress(1) as progress:
        for start in progress(range(0, count, step), "images"):
            index = list(range(start, min(start + step, count)))
            rows = [generators[i] for i in index]
            table += _restore_batch(data.batch(index), degradation, solving, prior, rows)
    _write(Path(out), [str(name) for name in data.names[:count]], table)
    if "coverage_90" in table[0] and table[0]["independent_samples"] < SAMPLES_OF_COVERAGE:
        print(
            f"coverage_90 hardly falls with so few independent samples, however narrow they are: "
            f"--samples {SAMPLES_OF_COVERAGE} shows it"
        )


def _restore_batch(
    x: Tensor,
    degradation: Degradation,
    solving: Solving,
    prior: Prior,
    generators: list[torch.Generator],
) -> list[dict[str, float]]:
    device = next((t.device for t in prior.state_dict().values()), torch.device("cpu"))
    x = x.to(device)
    channels, height, width = x.shape[1:]
    kernel = degradation.draw_kernel()
    degradation.measured_size((height, width), kernel)
    mask = degradation.draw_mask((height, width), generators, count=len(x))
    operator = degradation.operator((channels, height, width), mask=mask, kernel=kernel).to(device)
    noise, _ = degradation.noise(None)
    problem = Problem.simulate(x, operator, noise, generator=generators)
    result = solving.run(problem, prior, generator=generators)
    scores = score(result, problem, x)
    scores["converged"] = result.converged.double()
    independent = independent_sets(result.samples, result.antithetic)[0].shape[1]
    rows = [{name: values[i].item() for name, values in scores.items()} for i in range(len(x))]
    for row in rows:
        row["independent_samples"] = independent
        row |= {"forwards": result.forwards, "vjps": result.vjps}
        row["seconds"] = result.seconds / len(x)
    return rows


def _write(path: Path, names: list[str], table: list[dict[str, float]]) -> None:
    columns = list(table[0])
    values = torch.tensor([[row[c] for c in columns] for row in table], dtype=torch.float64)
    mean = values.mean(0).tolist()
    error = (values.std(0) / math.sqrt(len(table))).tolist() if len(table) > 1 else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *columns])
    for name, row in zip(names, values.tolist(), strict=True):
        writer.writerow([name, *(f"{v:.6g}" for v in row)])
    writer.writerow(["mean", *(f"{v:.6g}" for v in mean)])
    writer.writerow(["standard error", *(f"{v:.3g}" for v in error or [math.nan] * len(columns))])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode(errors="surrogateescape"))
    for i, name in enumerate(columns):
        print(f"{name:18} {mean[i]:10.4f}" + (f" +- {error[i]:.4f}" if error else ""))
    print(f"{len(table)} images; wrote {path}")
