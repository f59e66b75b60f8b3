"""Ctrl-C and SIGTERM end a run between two steps, so that what it did can be kept."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """Notes a signal that would end the process, and passes it on when the block is left.

    A second one has its usual effect at once. Signals that are ignored, as those of `nohup`, stay
    so; only the main thread can be told of any.

    Attributes:
        came: The signal's number; 0 while there is none.
    """

    def __init__(self) -> None:
        self.came = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._restore()
        if not self.came or kind is not None:
            return
        if self._before.get(self.came, signal.SIG_DFL) is signal.SIG_DFL:
            raise SystemExit(128 + self.came)  # as a shell says it, after `finally` and `with`
        signal.raise_signal(self.came)


def leave_to_parent(worker: int) -> None:
    """Let a process that reads images outlive a Ctrl-C that reaches the whole group.

    The run ends it, after the step for which it reads.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
