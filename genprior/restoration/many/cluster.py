"""Workers on the machines of a Ray cluster, which see one file system."""

from __future__ import annotations

import os
import socket
from typing import Any

from typing_extensions import Self

from genprior.restoration.many.crews import Event, refuse_unfit
from genprior.restoration.many.photos import Entry
from genprior.restoration.many.work import Work, Worker


class Cluster:
    """Actors of Ray, each with one CPU, and with one GPU where the cluster has some.

    An actor that is lost, with its machine or without, is replaced where there is room.

    Args:
        work: What they do.
        address: Of the cluster, `auto`, or `local` to start one on this machine.
        size: How many; as many as there is room for if None.
    Raises:
        ValueError: Ray is not installed, or nobody answers.
    """

    def __init__(self, work: Work, address: str, size: int | None) -> None:
        self._ray = _ray()
        self.size: int = size or 0
        self._work, self._address = work, address
        self._actors: list[Any] = []
        self._awaited: dict[Any, int] = {}
        if address != "local":
            _refuse_unreached(address)
            self._connect()

    def _connect(self, **options: Any) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
        try:
            self._ray.init(self._address, log_to_driver=False, logging_level="error", **options)
        except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"--cluster {self._address}: no cluster answers: {reason}") from error

    def __enter__(self) -> Self:
        """Start the actors.

        Raises:
            ValueError: There is no room for so many.
        """
        if self._address == "local":
            self._connect(num_cpus=self.size or None, include_dashboard=False)
        try:
            self._staff()
        except BaseException:
            self._ray.shutdown()
            raise
        return self

    def _staff(self) -> None:
        has = self._ray.cluster_resources()
        gpus, cpus = int(has.get("GPU", 0)), int(has.get("CPU", 0))
        device = self._work.solving.device
        if device == "cuda" and not gpus:
            raise ValueError("--device cuda: the cluster has no GPU")
        on_gpus = gpus > 0 and device in ("auto", "cuda")
        room = min(gpus, cpus) if on_gpus else cpus
        if not 0 < max(self.size, 1) <= room:
            kind = "GPUs" if on_gpus else "CPUs"
            raise ValueError(f"--workers {self.size}: the cluster has {room} {kind}, one for each")
        self.size = self.size or room
        self._kind = self._ray.remote(num_cpus=1, num_gpus=int(on_gpus))(Worker)
        self._actors = [self._start(member) for member in range(self.size)]

    def _start(self, member: int) -> Any:
        actor = self._kind.remote(self._work, threads=1)
        self._awaited[actor.load.remote()] = member
        return actor

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        self._ray.shutdown()

    def give(self, member: int, entry: Entry) -> None:
        self._awaited[self._actors[member].do.remote(entry)] = member

    def wait(self) -> list[tuple[int, Event]]:
        heard, _ = self._ray.wait(list(self._awaited), num_returns=1)
        return [(member, self._event(ref, member)) for ref, member in self._taken(heard)]

    def _taken(self, heard: list[Any]) -> list[tuple[Any, int]]:
        return [(ref, self._awaited.pop(ref)) for ref in heard]

    def _event(self, ref: Any, member: int) -> Event:
        try:
            said = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError:  # a fault of ours: a photo's are outcomes
            raise
        except self._ray.exceptions.RayError:  # killed, out of memory, or its machine is gone
            self._ray.kill(self._actors[member])  # so that nothing is done twice
            self._actors[member] = self._start(member)
            return "died"
        if said is None or isinstance(said, str):
            refuse_unfit(said)
            return "ready"
        return said


def _refuse_unreached(address: str) -> None:
    """Raise a ValueError where no machine answers, for which Ray would wait for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return  # auto, which Ray looks up
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            pass
    except (OSError, ValueError, OverflowError) as error:
        raise ValueError(f"--cluster {address}: nobody answers there ({error})") from error


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ValueError('--cluster needs Ray: pip install "genprior[cluster]"') from error
    return ray
