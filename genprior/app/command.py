"""`genprior app`: serve the page on which photos are restored."""

from __future__ import annotations

import ipaddress
import socket
from importlib import import_module

from genprior.restoration.settings import PRIOR, Device, Precision, Solving


def app(
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    prior: str | None = None,
    device: Device = "auto",
    precision: Precision = "auto",
    max_megabytes: int = 32,
    max_pixels: int = 16_000_000,
    max_waiting: int = 32,
) -> None:
    """Serve a page on which photos are opened, painted on and restored.

    Photos stay in this machine's memory; nothing is written. One restoration runs at a time.

    Args:
        host: Address to serve at. The default is seen from this machine alone; 0.0.0.0 lets in
            whoever reaches it, and the page asks for no password.
        port: To serve at; 0 takes a free one.
        prior: Name, weights file or folder of the prior that is chosen when the page opens.
        device: Where to compute; auto takes a GPU if there is one.
        precision: Of a diffusion prior's network, as in `restore`.
        max_megabytes: Of a photo's file.
        max_pixels: Of a photo.
        max_waiting: Most restorations at work or waiting.
    """
    machine = Solving(prior=prior or PRIOR, device=device, precision=precision)
    machine.load_prior()  # so that what cannot be loaded is refused here
    for library in ("starlette", "uvicorn"):
        try:
            import_module(library)
        except ImportError as error:
            raise ValueError(
                f'genprior app needs {library}: pip install "genprior[app]"'
            ) from error
    from genprior.app.server import Limits, serve

    with _listening(host, port) as listener:
        limits = Limits(file=max_megabytes * 10**6, pixels=max_pixels, jobs=max_waiting)
        serve(listener, machine, limits)


def _listening(host: str, port: int) -> socket.socket:
    """Open the socket; a name is not looked up, so that nobody else says where it listens."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError as error:
        raise ValueError(
            f"--host must be an address as 127.0.0.1, or localhost, not {host}"
        ) from error
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        return socket.create_server((str(address), port), family=family)
    except OSError as error:
        raise ValueError(
            f"--host {host} --port {port} cannot be listened at: {error.strerror or error}"
        ) from error
