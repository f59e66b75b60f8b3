"""Who may speak to the page: whoever opened it here, no other site that a browser shows."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Sent with every answer: no script but ours runs, nobody else embeds or keeps what is shown."""


class Guard:
    """Refuses other sites' requests.

    A site can make a browser send requests here, by its own name once that is made to point to
    this address (DNS rebinding) or from its pages. So the Host must be an address or a name of
    this machine, and an Origin, which browsers send along with what a page posts, must be ours.

    Args:
        app: What is guarded.
        host: Address that is served at.
    """

    def __init__(self, app: ASGIApp, *, host: str) -> None:
        self._app = app
        name = socket.gethostname().lower()
        self._names = {"localhost", host.lower(), name, f"{name}.local"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        ours = self._is_here(host) and origin in (None, f"http://{host}", f"https://{host}")
        app = self._app if ours else JSONResponse({"error": "not from here"}, status_code=403)
        await app(scope, receive, send_guarded)

    def _is_here(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True
