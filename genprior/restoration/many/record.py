"""What a folder of results says of itself: whose it is, what is done, and a summary."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from genprior.operators.files import sha256, write_atomically
from genprior.restoration.many.photos import Entry
from genprior.training.lock import sole_use

PARTIAL = ".partial-"
"""Begins the names of folders that are being written; a whole one is moved to its place."""

EVERY = 1.0
"""Seconds between two writings of the summary, which holds all photos each time."""


@dataclass(frozen=True)
class Outcome:
    """What became of one photo: a line of the summary.

    Attributes:
        name: Its path within the folder of photos.
        status: waiting, done, failed, or "no image".
        psnr: Of the mean, in dB, where the degradation was simulated.
        residual: Root mean square of y - A x in units of sigma, 1 where the data are met.
        converged: Whether the solver says so.
        seconds: That solving took.
        message: Why it failed, or what was warned of.
    """

    name: str
    status: str = "waiting"
    psnr: float | None = None
    residual: float | None = None
    converged: bool | None = None
    seconds: float | None = None
    message: str = ""


def outcome_of(name: str, report: Mapping[str, Any]) -> Outcome:
    """Say what became of a photo by its result.json."""
    return Outcome(
        name,
        "done",
        psnr=report.get("psnr_mean"),
        residual=report["residual_in_sigma"],
        converged=report["converged"],
        seconds=round(report["seconds"], 3),
        message="; ".join(report.get("warnings", ())),
    )


class Record:
    """The folder that results are written to.

    Args:
        folder: It is made if need be.
        run: All that decides the results, plain data: only the same is resumed here.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        self.folder = folder
        self._run = json.loads(json.dumps(run))
        self._rows: dict[str, Outcome] = {}
        self._written = 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder, swept of what a killed run left half written.

        Raises:
            BlockingIOError: Another run is at work in it.
            FileExistsError: It holds something else, or results of another command.
        """
        self._check()
        with sole_use(self.folder):
            self._check()
            write_atomically(self.folder / "run.json", json.dumps(self._run, indent=2).encode())
            self._sweep()
            try:
                yield
            finally:
                self._sweep()
                if self._rows:
                    self.write()

    def _check(self) -> None:
        path = self.folder / "run.json"
        if not path.is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise FileExistsError(
                    f"--out {self.folder} is not empty, and holds no restoration of a folder that "
                    "could be resumed: name another folder"
                )
            return
        try:
            before = json.loads(path.read_text())
        except ValueError:
            before = {}
        names = sorted(before.keys() | self._run.keys()) if isinstance(before, dict) else []
        other = [n for n in names if before.get(n) != self._run.get(n)]
        if other or not names:
            said = [f"{n} was {before.get(n)} and is {self._run.get(n)}" for n in other[:4]]
            raise FileExistsError(
                f"--out {self.folder} holds results of another command and cannot be resumed: "
                f"{', '.join(said) or 'its run.json is damaged'}. Name another folder"
            )

    def _sweep(self) -> None:
        for path in self.folder.glob(f"{PARTIAL}*"):
            shutil.rmtree(path, ignore_errors=True)

    def finished(self, entry: Entry, mask: str | None) -> Outcome | None:
        """Return what a run before has done of a photo, if photo and mask are the same still."""
        try:
            report = json.loads((self.folder / entry.name / "result.json").read_text())
            same = report["photo_sha256"] == sha256(str(entry.path))
            same = same and report["mask_sha256"] == sha256(mask)
            return outcome_of(entry.name, report) if same else None
        except (OSError, ValueError, LookupError, TypeError):  # none, or damaged: done again
            return None

    def begin(self, outcomes: list[Outcome]) -> None:
        """Write the summary's lines as they are before work."""
        self._rows = {outcome.name: outcome for outcome in outcomes}
        self.write()

    def put(self, outcome: Outcome) -> None:
        """Enter a line in the summary, in place of the photo's line before."""
        self._rows[outcome.name] = outcome
        if time.monotonic() - self._written > EVERY:
            self.write()

    def write(self) -> None:
        """Write the summary, whole."""
        text = io.StringIO()
        table = csv.DictWriter(text, [f.name for f in fields(Outcome)], lineterminator="\n")
        table.writeheader()  # names of files need be no UTF-8
        table.writerows(asdict(row) for row in self._rows.values())
        write_atomically(
            self.folder / "summary.csv", text.getvalue().encode(errors="surrogateescape")
        )
        self._written = time.monotonic()
