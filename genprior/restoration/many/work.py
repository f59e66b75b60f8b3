"""What every worker does, in this process, another one, or on another machine."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from genprior.priors import Prior
from genprior.restoration import memory
from genprior.restoration.degradation import Degradation
from genprior.restoration.many.photos import Entry
from genprior.restoration.many.record import PARTIAL, Outcome, outcome_of
from genprior.restoration.settings import Solving, find_device


@dataclass(frozen=True)
class Work:
    """How the photos are restored: all alike, each as if it were the only one.

    Attributes:
        restore: restore(photo, degradation, prior=, folder=, out=) restores one file, and writes
            results and result.json into `folder`, which will be `out`.
        degradation: Settled; with the mask of each photo where they have their own.
        solving: With what.
        out: Folder of the results, absolute.
        here: Folder from which the files that are named are found, on every machine.
    """

    restore: Callable[..., object]
    degradation: Degradation
    solving: Solving
    out: Path
    here: Path


class Worker:
    """Restores one photo after another with a prior that is loaded once.

    Args:
        work: What to do.
        threads: Of torch; None leaves them as they are.
        beside: How many workers share the machine's memory, this one included.
    """

    def __init__(self, work: Work, *, threads: int | None = None, beside: int = 1) -> None:
        self._work, self._threads, self._beside = work, threads, beside
        self._prior: Prior | None = None

    def load(self) -> str | None:
        """Load the prior; say why not, if it cannot be, or if results would go elsewhere."""
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        try:
            os.chdir(self._work.here)
            if not (self._work.out / "run.json").is_file():
                return (
                    f"{self._work.out} is not there on {platform.node()}: machines must share it"
                )
            self._prior = self._work.solving.load_prior()
            free = memory.available(find_device(self._work.solving.device))
        except Exception as error:
            return _said(error)
        if free is not None and self._beside > 1:
            memory.keep_within(free // self._beside)
        return None

    def do(self, entry: Entry) -> Outcome:
        """Restore a photo; its folder is there whole, or not at all."""
        assert self._prior is not None
        work = self._work
        degradation = work.degradation
        if entry.mask is not None:
            degradation = replace(degradation, mask=str(entry.mask))
        target, partial = work.out / entry.name, None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(dir=work.out, prefix=PARTIAL))
            partial.chmod(0o755)  # mkdtemp makes it private
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                work.restore(
                    str(entry.path), degradation, prior=self._prior, folder=partial, out=target
                )
            path = partial / "result.json"
            report = json.loads(path.read_text())
            report["warnings"] = [str(w.message) for w in caught if w.category is UserWarning]
            path.write_text(json.dumps(report, indent=2) + "\n")
            if target.exists():  # of a photo that has changed since
                os.rename(target, tempfile.mkdtemp(dir=work.out, prefix=PARTIAL))
            os.rename(partial, target)
            return outcome_of(entry.name, report)
        except Exception as error:
            return Outcome(entry.name, "failed", message=_said(error))
        finally:
            if partial is not None:
                shutil.rmtree(partial, ignore_errors=True)


def _said(error: Exception) -> str:
    """Say an error in one line; of what no input should raise, its kind too."""
    text = " ".join(str(error).split())
    foreseen = isinstance(error, (ValueError, TypeError, OSError, MemoryError, ArithmeticError))
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return text if foreseen and text else f"{type(error).__name__}: {text}"
