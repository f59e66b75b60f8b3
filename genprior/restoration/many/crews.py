"""Workers on this machine: the process itself, or several that it starts."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from multiprocessing import connection
from typing import Any, Literal, Protocol

import torch
from typing_extensions import Self

from genprior.restoration.many.photos import Entry
from genprior.restoration.many.record import Outcome
from genprior.restoration.many.work import Work, Worker

Event = Outcome | Literal["ready", "died"]
"""What is heard of a worker: a photo's outcome; that its prior is loaded; that it died, and that
another one begins in its place."""


PATIENCE = 3.0
"""Seconds that a worker may take to end."""


class Crew(Protocol):
    """Workers, by number from 0 to `size` - 1; a context that ends them."""

    size: int

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def give(self, member: int, entry: Entry) -> None:
        """Have a worker that is ready restore a photo."""
        ...

    def wait(self) -> list[tuple[int, Event]]:
        """Wait until something is heard.

        Raises:
            ValueError: A worker cannot load the prior.
        """
        ...


class Alone:
    """This process is the only worker."""

    size: int = 1

    def __init__(self, work: Work) -> None:
        self._worker = Worker(work)
        self._given: Entry | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def give(self, member: int, entry: Entry) -> None:
        self._given = entry

    def wait(self) -> list[tuple[int, Event]]:
        if self._given is None:
            refuse_unfit(self._worker.load())
            return [(0, "ready")]
        return [(0, self._worker.do(self._given))]


class Processes:
    """Several processes of this machine, which share its threads, its memory and its GPUs."""

    def __init__(self, work: Work, size: int) -> None:
        self.size: int = size
        self._work = work
        self._context = multiprocessing.get_context("spawn")  # a fork has no CUDA
        self._pipes: list[Any] = [None] * size
        self._processes: list[Any] = [None] * size

    def __enter__(self) -> Self:
        for member in range(self.size):
            self._start(member)
        return self

    def __exit__(self, error: object, *_: object) -> None:
        for pipe in filter(None, self._pipes):
            pipe.close()  # which ends a worker that waits for a photo
        for process in filter(None, self._processes):
            process.join(PATIENCE if error is None else 0)
            process.terminate()
        for process in filter(None, self._processes):
            process.join(PATIENCE)
            process.kill()
            process.join()

    def _start(self, member: int) -> None:
        self._pipes[member], far = self._context.Pipe()
        self._processes[member] = self._context.Process(
            target=_serve, args=(far, self._work, member, self.size), daemon=True
        )
        self._processes[member].start()
        far.close()  # or its end would never be heard of

    def give(self, member: int, entry: Entry) -> None:
        with suppress(OSError):  # it died between two photos: `wait` will say so
            self._pipes[member].send(entry)

    def wait(self) -> list[tuple[int, Event]]:
        return [
            (self._pipes.index(pipe), self._heard(self._pipes.index(pipe)))
            for pipe in connection.wait(self._pipes)
        ]

    def _heard(self, member: int) -> Event:
        try:
            kind, what = self._pipes[member].recv()
        except (EOFError, OSError):
            self._processes[member].join()
            self._start(member)
            return "died"
        if kind == "loaded":
            refuse_unfit(what)
            return "ready"
        return what


def refuse_unfit(reason: str | None) -> None:
    """Raise a ValueError where a worker said why it cannot work."""
    if reason is not None:
        raise ValueError(reason)


def _serve(pipe: Any, work: Work, member: int, size: int) -> None:
    """Work in a process of its own for as long as the other end of the pipe is there."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who started us
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # and leave nothing half done
    threading.Thread(target=_end_with_parent, daemon=True).start()
    beside = size
    if work.solving.device in ("auto", "cuda") and torch.cuda.is_available():
        torch.cuda.set_device(member % torch.cuda.device_count())
        beside = -(-size // torch.cuda.device_count())
    worker = Worker(work, threads=max(1, (os.cpu_count() or 1) // size), beside=beside)
    with _silence(), suppress(EOFError, OSError):  # the other end is closed: all is done
        pipe.send(("loaded", worker.load()))
        while True:
            pipe.send(("done", worker.do(pipe.recv())))


def _end_with_parent() -> None:
    """End at once when the process that started this one is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


@contextmanager
def _silence() -> Iterator[None]:
    """Let nobody print: several bars would write over one another."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
