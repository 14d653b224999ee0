"""Running the server: where it listens, and how it ends."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import socket
from collections.abc import Mapping
from types import FrameType

import uvicorn

from qwq.engine import LanguageModel
from qwq.errors import QwqError, UsageError
from qwq.serve.app import create_app
from qwq.serve.guard import Lifecycle


def serve(
    models: Mapping[str, LanguageModel], host: str = "127.0.0.1", port: int = 8000, api_key: str | None = None
) -> None:
    """Serves until SIGTERM or Ctrl-C, then finishes what runs and returns; a second Ctrl-C returns at once.

    Args:
        models: what is served, by the names that requests use. Their engines are closed at the end.
        host: the address to listen on. Any but a loopback address demands an API key.
        port: the port; 0 takes a free one.
        api_key: what clients must send; None reads the environment variable QWQ_API_KEY.

    The environment variable QWQ_ALLOWED_HOSTS holds further host names (comma-separated) that a proxy may use.

    Raises:
        UsageError: no key for a host that others reach, a key no header can hold, an unknown host.
        QwqError: the port is taken or not permitted.
    """
    server = Server(models, host, port, api_key)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("qwq").setLevel(logging.INFO)
    print(f"Serving {', '.join(models)} at {server.url} (Ctrl-C stops)", flush=True)
    try:
        server.run()
    finally:
        for lm in models.values():
            lm.close()


class Server(uvicorn.Server):
    """uvicorn that drains before it closes: while requests finish, the port still answers, with 503 to new ones.

    The arguments are those of `serve`. The port is bound here: a server that exists can be reached, at `url`.
    """

    def __init__(
        self, models: Mapping[str, LanguageModel], host: str = "127.0.0.1", port: int = 8000, api_key: str | None = None
    ) -> None:
        if api_key is None:
            api_key = os.environ.get("QWQ_API_KEY") or None
        _check_key(api_key, host)
        self.listener = _listen(host, port)
        port = self.listener.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        extra = os.environ.get("QWQ_ALLOWED_HOSTS", "").split(",")
        app = create_app(models, api_key=api_key, host=host, port=port, allowed_hosts=extra)
        self.lifecycle: Lifecycle = app.state.lifecycle
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=5,
            )
        )

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until a signal comes (or `should_exit` is set), then drains."""
        super().run(sockets=[self.listener] if sockets is None else sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends at once. uvicorn would raise the signal again after its clean end,
        and the exit code would not be 0."""
        self.force_exit = self.should_exit
        self.should_exit = self.lifecycle.draining = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.lifecycle.active:
            print(f"Finishing {self.lifecycle.active} requests (Ctrl-C again stops at once)", flush=True)
        while self.lifecycle.active and not self.force_exit:
            await asyncio.sleep(0.05)
        if self.force_exit:
            for connection in list(self.server_state.connections):
                if connection.transport is not None:
                    connection.transport.abort()
        await super().shutdown(sockets)


def _check_key(api_key: str | None, host: str) -> None:
    if api_key is None:
        if not _is_loopback(host):
            raise UsageError(
                f"--host {host} lets other machines in, which needs a key: give --api-key KEY or set QWQ_API_KEY"
            )
    elif not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise UsageError("the API key must be one or more printable ASCII characters without spaces")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port} is no port: choose one from 1 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(f"--host {host!r} is no address of this machine ({error.strerror}): try 127.0.0.1") from error
    try:
        return socket.create_server(address, family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise QwqError(f"port {port} of {host} is in use: choose another with --port {port % 65535 + 1}") from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(f"--host {host} is no address of this machine: try 127.0.0.1") from error
        raise QwqError(f"cannot listen on {host} port {port} ({error.strerror}): choose another --port") from error
