"""The loop over a folder: who restores which photo, and what is said of it."""

from __future__ import annotations

import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genprior.restoration.many.crews import Alone, Crew, Processes
from genprior.restoration.many.photos import Entry, find_photos, pair_masks
from genprior.restoration.many.record import Outcome, Record
from genprior.restoration.many.work import Work
from genprior.restoration.progress import duration

TRIES = 3
"""How often a photo is begun whose worker dies, as one does that is killed or lacks memory."""


@dataclass(frozen=True)
class Where:
    """Where the work is done.

    Attributes:
        workers: Processes; one for each CPU or GPU of a cluster if None, else this process.
        cluster: Address of a Ray cluster, `auto` for the one that this machine is part of, or
            `local` for one that is started here; None for this machine without Ray.
    """

    workers: int | None = None
    cluster: str | None = None

    def crew(self, work: Work) -> Crew:
        if self.cluster is not None:
            from genprior.restoration.many.cluster import Cluster

            return Cluster(work, self.cluster, self.workers)
        return Alone(work) if self.workers in (None, 1) else Processes(work, self.workers)


def restore_folder(
    folder: Path, work: Work, run: Mapping[str, Any], *, where: Where, say: Callable[[str], object]
) -> int:
    """Restore every photo of a folder that is not done yet; return how many failed.

    Each photo's results lie in a folder of its name, beside summary.csv, which has a line for
    each file found.

    Args:
        folder: Photos lie in it and below.
        work: What is done with each.
        run: All that decides the results, plain data.
        where: In how many processes, and on which machines.
        say: Is told what happens, a line at a time.
    Raises:
        ValueError: There are no photos, a mask is missing, or the prior cannot be loaded.
        OSError: The folder of results is another run's, or in use.
    """
    entries, others = find_photos(folder, out=work.out)
    unused: list[str] = []
    if work.degradation.mask is not None and Path(work.degradation.mask).is_dir():
        entries, unused = pair_masks(entries, Path(work.degradation.mask).resolve())
    record, crew = Record(work.out, run), where.crew(work)
    with record.held():
        for line, names in (("no images", others), ("masks of no photo", unused)):
            if names:
                say(f"left out  {len(names)} {line}: {', '.join(names)}")
        todo, lines = [], []
        for entry in entries:
            mask = work.degradation.mask if entry.mask is None else str(entry.mask)
            done = record.finished(entry, mask)
            lines.append(done or Outcome(entry.name))
            if done is None:
                todo.append(entry)
        record.begin(lines + [Outcome(name, "no image") for name in others])
        if len(todo) < len(entries):
            say(f"resumed   {len(entries) - len(todo)} of {len(entries)} photos are done already")
        outcomes = _Loop(todo, record, say).run(crew) if todo else []
    return _told(outcomes, work.out, say)


class _Loop:
    """Gives out photos until every one is done or failed."""

    def __init__(self, todo: list[Entry], record: Record, say: Callable[[str], object]) -> None:
        self._waiting = deque(todo)
        self._total, self._record, self._say = len(todo), record, say
        self._begun: Counter[str] = Counter()
        self._outcomes: list[Outcome] = []
        self._start = time.monotonic()

    def run(self, crew: Crew) -> list[Outcome]:
        busy: dict[int, Entry] = {}
        lost = Counter[int]()
        with crew:
            while len(self._outcomes) < self._total:
                for member, event in crew.wait():
                    entry = busy.pop(member, None)
                    if isinstance(event, Outcome):
                        self._end(event)
                    elif event == "died" and entry is not None:
                        self._again(entry)
                    elif event == "died":
                        lost[member] += 1
                        _refuse_to_start(lost[member])
                    if event != "died" and self._waiting:
                        busy[member] = self._waiting.popleft()
                        crew.give(member, busy[member])
        return self._outcomes

    def _again(self, entry: Entry) -> None:
        self._begun[entry.name] += 1
        if self._begun[entry.name] < TRIES:
            self._say(f"lost      the worker of {entry.name} died: it is begun again")
            self._waiting.append(entry)
            return
        said = f"its worker died {TRIES} times, as it does where memory runs out"
        self._end(Outcome(entry.name, "failed", message=said))

    def _end(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self._record.put(outcome)
        count, gone = len(self._outcomes), time.monotonic() - self._start
        line = f"{count:>4}/{self._total:<5}{outcome.name}  {_summary(outcome)}"
        if count < self._total:
            line += f", about {duration(gone / count * (self._total - count))} left"
        self._say(line)
        if outcome.status == "done" and outcome.message:
            warnings.warn(f"{outcome.name}: {outcome.message}", stacklevel=2)


def _refuse_to_start(deaths: int) -> None:
    if deaths >= TRIES:
        raise ChildProcessError(
            "workers die while they load the prior, as they do where memory runs out: try fewer "
            "--workers"
        )


def _summary(outcome: Outcome) -> str:
    if outcome.status == "failed":
        return f"FAILED: {outcome.message}"
    parts = [] if outcome.psnr is None else [f"{outcome.psnr:.2f} dB"]
    parts += [] if outcome.residual is None else [f"residual {outcome.residual:.3f} sigma"]
    parts += [f"{outcome.seconds:.1f} s", *["NOT CONVERGED"] * (not outcome.converged)]
    return ", ".join(parts)


def _told(outcomes: list[Outcome], out: Path, say: Callable[[str], object]) -> int:
    """Say how it ended; return how many failed."""
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    doubtful = [o for o in outcomes if o.status == "done" and not o.converged]
    say(f"done      {len(outcomes) - len(failed)} photos")
    if doubtful:
        say(f"NOT CONVERGED, do not trust: {', '.join(o.name for o in doubtful)}")
    for outcome in failed:
        say(f"FAILED    {outcome.name}: {outcome.message}")
    if failed:
        say("          the same command tries the failed ones again")
    say(f"wrote     {out}, {out / 'summary.csv'}")
    return len(failed)
