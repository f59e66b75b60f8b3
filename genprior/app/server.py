"""The page's server: its files, a photo to paint on, and restorations that are followed."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import traceback
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from genprior.app import asked, work
from genprior.app.guard import Guard
from genprior.app.jobs import Job, Line
from genprior.pretrained import available, card
from genprior.restoration.progress import Stopped
from genprior.restoration.settings import Solving

FILES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "paint.js": "text/javascript; charset=utf-8",
    "view.js": "text/javascript; charset=utf-8",
}
"""All that is served of the disk."""

REFUSALS = (ValueError, TypeError, OSError, MemoryError, ArithmeticError)
"""What a wrong input can raise; anything else is a fault of ours and is shown in the terminal."""

EVERY = 0.25
"""Seconds between two looks at a job that takes long."""

ENDED = "the server was ended"
FAULT = "this is a fault of genprior: its terminal says more"


@dataclass(frozen=True)
class Limits:
    """What is taken.

    Attributes:
        file: Bytes of a photo's file.
        pixels: Of a photo.
        jobs: At work or waiting.
    """

    file: int
    pixels: int
    jobs: int


class Page:
    """What is served.

    Args:
        machine: The prior chosen at first, device and precision.
        limits: What is taken.
    """

    def __init__(self, machine: Solving, limits: Limits) -> None:
        self.machine, self.limits, self.line = machine, limits, Line(limits.jobs)
        names = available()
        self.offered = names if machine.prior_name in names else [machine.prior_name, *names]
        folder = resources.files("genprior.app") / "page"
        self.files = {name: (folder / name).read_bytes() for name in FILES}

    def app(self, host: str) -> Starlette:
        """Make the application that is served at a host."""
        return Starlette(
            routes=[
                Route("/", partial(self.file, "index.html")),
                *(Route(f"/{name}", partial(self.file, name)) for name in FILES),
                Route("/settings", self.settings),
                Route("/photo", self.photo, methods=["POST"]),
                Route("/restore", self.restore, methods=["POST"]),
            ],
            middleware=[Middleware(Guard, host=host)],
            exception_handlers={HTTPException: _refused, Exception: _failed},
        )

    async def file(self, name: str, _: Request) -> Response:
        return Response(self.files[name], media_type=FILES[name])

    async def settings(self, _: Request) -> Response:
        """What can be chosen, and what is taken."""
        shapes = {name: card(name)["config"].get("image_shape") for name in self.offered}
        return JSONResponse(
            {
                "priors": [{"name": name, "shape": shape} for name, shape in shapes.items()],
                "prior": self.machine.prior_name,
                "file": self.limits.file,
                "pixels": self.limits.pixels,
            }
        )

    async def photo(self, request: Request) -> Response:
        """What a photo is, and a picture of it to paint on."""
        data = await _body(request, self.limits.file)
        try:
            return JSONResponse(await run_in_threadpool(work.view, data, most=self.limits.pixels))
        except REFUSALS as error:
            raise HTTPException(400, _said(error)) from error

    async def restore(self, request: Request) -> Response:
        """A restoration, a line of JSON at a time; whoever hangs up stops it."""
        # photo and mask as base64, the mask of no more bytes than pixels
        most = (self.limits.file + self.limits.pixels) * 4 // 3 + 10_000
        data = await _body(request, most)
        try:
            what = await run_in_threadpool(
                asked.read, data, offered=self.offered, machine=self.machine
            )
            if len(what.photo) > self.limits.file:
                raise ValueError(f"the photo has more than {self.limits.file / 1e6:g} MB")
        except REFUSALS as error:
            raise HTTPException(400, _said(error)) from error
        do = partial(work.restore, what, most=self.limits.pixels)
        job = self.line.join(do)
        if job is None:
            raise HTTPException(503, "too many restorations wait already: try again later")
        return Following(job, self.line)


class Following(StreamingResponse):
    """Tells how far a job is, then what came of it; it stops when nobody listens any more."""

    def __init__(self, job: Job[work.Answer], line: Line) -> None:
        self._job, self._line = job, line
        super().__init__(self._lines(), media_type="application/x-ndjson")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.stop()

    async def _lines(self) -> AsyncIterator[str]:
        future, wait = self._job.future, EVERY / 16
        while not future.done():
            if self._line.closed:
                yield _line({"error": ENDED})
                return
            yield _line(self._now())
            await asyncio.sleep(wait)
            wait = min(2 * wait, EVERY)
        try:
            answer = future.result()
        except (Stopped, CancelledError):
            yield _line({"error": ENDED})
        except REFUSALS as error:
            yield _line({"error": _said(error)})
        except Exception:
            traceback.print_exc()
            yield _line({"error": FAULT})
        else:
            for name, picture in answer.pictures.items():
                yield _line({"picture": name, "png": base64.b64encode(picture).decode()})
            yield _line({"about": answer.about})

    def _now(self) -> dict[str, Any]:
        """Say how far it is."""
        progress, before = self._job.progress, self._line.before(self._job)
        if progress is None:
            return {"before": before, "said": self._job.said}
        return {
            "before": before,
            "done": progress.done,
            "left": progress.left,
            "said": self._job.said,
        }


async def _body(request: Request, most: int) -> bytes:
    """Take what was posted, and no more than `most` bytes of it."""
    said = request.headers.get("content-length", "0")
    data = bytearray()
    if not said.isdecimal() or int(said) > most:
        raise HTTPException(413, f"more than {most / 1e6:.3g} MB came")
    try:
        async for part in request.stream():
            data += part
            if len(data) > most:
                raise HTTPException(413, f"more than {most / 1e6:.3g} MB came")
    except ClientDisconnect as error:
        raise HTTPException(400, "not all of it came") from error
    return bytes(data)


def _line(content: dict[str, Any]) -> str:
    return json.dumps(content) + "\n"


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code)


async def _failed(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": FAULT}, status_code=500)


class Server(uvicorn.Server):
    """Serves a page; as it ends, it ends the work first, so that nobody waits for the other."""

    def __init__(self, config: uvicorn.Config, page: Page) -> None:
        super().__init__(config)
        self.page = page

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.page.line.close()
        await super().shutdown(sockets)


def serve(listener: socket.socket, machine: Solving, limits: Limits) -> None:
    """Serve the page at an open socket until the process is told to stop.

    Args:
        listener: Where.
        machine: The prior chosen at first, device and precision.
        limits: What is taken.
    """
    server(listener, machine, limits).run(sockets=[listener])


def server(listener: socket.socket, machine: Solving, limits: Limits) -> Server:
    """Make the server, and say where it is found."""
    host, port = listener.getsockname()[:2]
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    where = f"[{host}]" if ":" in host else host
    print(f"genprior app: http://{where}:{port} (Ctrl-C ends it)", flush=True)
    page = Page(machine, limits)
    config = uvicorn.Config(
        page.app(host),
        log_level="error",
        access_log=False,
        limit_concurrency=4 * limits.jobs + 64,
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    return Server(config, page)
