"""Kill training runs at chosen points, resume them, and count what was lost.

    python benchmarks/details/kills.py [KILLS] [--family diffusion|gan]

A run of 24 steps keeps a checkpoint every 4. Each part of it but the last is ended by SIGKILL: in
the n-th loss, half through the n-th file that is written, before or after the n-th file is moved
to its place (checkpoint, weights, loss curve in turn), before or after an old checkpoint is
dropped. A kill loses work if the next part begins before the last checkpoint that was in place;
a run is ruined if its weights, or anything that its last checkpoint holds (a GAN's critic, both
optimisers), differ in any bit from those of a run that was never stopped.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from genprior.priors import GAN, Diffusion, Trainable
from genprior.priors.diffusion.unet import UNet
from genprior.training import TrainingOptions, checkpoints, train

STEPS, EVERY, PARTS = 24, 4, 4
OPTIONS = TrainingOptions(
    warmup=2,
    checkpoint_every=EVERY,
    grid=0,
    progress=False,
    precision="fp32",
    accelerator="cpu",
)
POINTS = ("loss", "half", "before move", "after move", "before drop", "after drop")
NUMBERS = (1, 2, 3, 4, 5, 7, 9)
"""Which of its kind is hit; a seventh and six kinds meet in every pair before one repeats."""


def diffusion() -> Trainable:
    return Diffusion(UNet(1, widths=(8,), blocks=(1,)), (1, 6, 6), data_std=0.3)


def gan() -> Trainable:
    loss = {"r1": 0.1, "lazy": 2, "critic_steps": 2}
    return GAN(
        (1, 6, 6),
        3,
        network={"kind": "dcgan", "widths": [8], "mapping": 2, "styles": 4, "hidden": 8},
        loss=loss,
    )


FAMILIES: dict[str, Callable[[], Trainable]] = {"diffusion": diffusion, "gan": gan}


def train_part(out: Path, family: str) -> None:
    images = torch.rand(20, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    train(FAMILIES[family](), images, out=out, steps=STEPS, batch_size=4, options=OPTIONS)


def kill_at(point: str, number: int, log: Path, family: str) -> None:
    """Let this process die there, and note the checkpoints that come into place before."""
    count = itertools.count(1)
    watched: Any = type(FAMILIES[family]().objective())
    sync, loss = os.fsync, watched.loss

    def hit(kind: str, *, file: int | None = None) -> None:
        if kind == point and next(count) == number:
            if file is not None:
                os.ftruncate(file, os.fstat(file).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def around(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> None:
            hit(f"before {kind}")
            function(*args)
            if kind == "move" and str(args[1]).endswith(".pt"):
                log.write_text(Path(args[1]).name)
            hit(f"after {kind}")

        return wrapped

    def fsync(file: int) -> None:
        hit("half", file=file)
        sync(file)

    def watched_loss(*args: Any) -> Any:
        hit("loss")
        return loss(*args)

    os.replace, os.fsync = around("move", os.replace), fsync
    Path.unlink = around("drop", Path.unlink)
    watched.loss = watched_loss


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a process of its own, and return the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            if status:
                traceback.print_exc()
            os._exit(status)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def part(out: Path, point: str, number: int, family: str) -> str:
    """Run one part that is killed; say where it stood and what is left."""
    log = out / "log"

    def work() -> None:
        kill_at(point, number, log, family)
        train_part(out, family)

    ended = in_child(work)
    in_place = log.read_text() if log.exists() else "nothing"
    newest = checkpoints.newest(out / "checkpoints")
    left = f"step-{newest['step']:09d}.pt" if newest else "nothing"
    if ended == 0:
        return "not reached"
    verdict = "kept" if ended == signal.SIGKILL and left == in_place else "LOST"
    return f"{verdict}: {in_place} was in place, {left} is found"


def plan() -> Iterator[tuple[str, int]]:
    for place in itertools.count():
        yield POINTS[place % len(POINTS)], NUMBERS[place % len(NUMBERS)]


def alike(a: Any, b: Any) -> bool:
    """Whether two nests of tensors and plain data are the same, bit for bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    return a == b


TRAINED = ("networks", "average", "optimizers")


def same_end(one: Path, other: Path) -> bool:
    weights = [load_file(out / "prior.safetensors") for out in (one, other)]
    last = [checkpoints.newest(out / "checkpoints") or {} for out in (one, other)]
    return alike(*weights) and all(alike(last[0][k], last[1][k]) for k in TRAINED)


def main(kills: int, family: str) -> bool:
    """Print a line for each kill and one for all; return whether nothing was lost."""
    points, done, lost, runs, ruined = plan(), 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        in_child(lambda: train_part(whole, family))
        while done < kills:
            out = Path(folder) / f"run{runs}"
            out.mkdir()
            for _ in range(min(PARTS, kills - done)):
                point, number = next(points)
                said = part(out, point, number, family)
                if said == "not reached":  # the run is done
                    break
                done, lost = done + 1, lost + said.startswith("LOST")
                print(f"kill {done}, run {runs}, {point} {number}: {said}", flush=True)
            ended = in_child(lambda out=out: train_part(out, family))
            runs, ruined = runs + 1, ruined + (ended != 0 or not same_end(whole, out))
    print(
        f"{done} kills, {lost} lost work; {runs} runs, {ruined} end otherwise than one not stopped"
    )
    return lost == ruined == 0


if __name__ == "__main__":
    for slow in ("lightning_fabric.strategies.ddp", "matplotlib.backends.backend_agg"):
        importlib.import_module(slow)  # here, so that no part has to
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", nargs="?", type=int, default=100)
    parser.add_argument("--family", choices=FAMILIES, default="diffusion")
    options = parser.parse_args()
    sys.exit(not main(options.kills, options.family))
