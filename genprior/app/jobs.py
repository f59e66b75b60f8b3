"""Restorations that wait for each other: one at a time, in the order in which they came."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from genprior.restoration.progress import Progress, Stopped

T = TypeVar("T")


class Job(Generic[T]):
    """One restoration, seen from the thread that serves the page.

    Attributes:
        future: What comes of it.
        said: Lines that were said of it so far.
        progress: What follows its work while that goes on.
    """

    future: Future[T]

    def __init__(self) -> None:
        self.said: list[str] = []
        self.progress: Progress | None = None
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Take it out of the line, or end its work at the next step."""
        self._stopped.set()
        self.future.cancel()
        progress = self.progress  # the worker may forget it meanwhile
        if progress is not None:
            progress.stop()

    def check(self) -> None:
        """Raise `Stopped` once it is to stop."""
        if self._stopped.is_set():
            raise Stopped

    def follow(self, parts: int, *, expected: float | None = None) -> Progress:
        """Make what follows its work, as `restore_photo` asks for."""
        self.progress = Progress(parts, expected=expected, quiet=True)
        self.check()
        return self.progress

    def finish(self, words: str) -> None:
        """Say what is done after the work that was followed."""
        self.said.append(words)
        self.progress = None


class Line:
    """A line of jobs before one worker.

    Args:
        most: Jobs at work or waiting.
    Attributes:
        closed: No job is done any more.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="restoration")
        self._jobs: list[Job] = []
        self.closed = False

    def join(self, work: Callable[[Job[T]], T]) -> Job[T] | None:
        """Let a job wait for its turn; None where too many wait already."""
        if self.closed or len(self._unfinished()) >= self._most:
            return None
        job: Job[T] = Job()
        job.future = self._worker.submit(work, job)
        self._jobs.append(job)
        return job

    def before(self, job: Job) -> int:
        """Count the jobs that come first."""
        jobs = self._unfinished()
        return jobs.index(job) if job in jobs else 0

    def close(self) -> None:
        """Stop every job; none may join any more."""
        self.closed = True
        for job in self._unfinished():
            job.stop()
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _unfinished(self) -> list[Job]:
        self._jobs = [job for job in self._jobs if not job.future.done()]
        return self._jobs
