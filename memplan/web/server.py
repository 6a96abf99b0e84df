"""Running the application: socket, log, and the server's own limits."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from memplan.errors import InvalidValueError, UnavailableError
from memplan.web.app import create_app
from memplan.web.settings import Settings

KEEP_ALIVE_SECONDS = 5
HEAD_TIMEOUT_SECONDS = 10
MAX_HEAD_BYTES = 16 * 1024
SHUTDOWN_SECONDS = 5
_BACKLOG = 1024


class Protocol(H11Protocol):
    """HTTP/1.1 whose clients must end the head of a request in time: a half-sent one holds a connection for good."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start to wait for the first request."""
        super().connection_made(transport)
        # Head and body of an answer are two writes. asyncio turns Nagle's algorithm off only where the socket names its
        # protocol, which an accepted one does not; left on, it keeps the body back for 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEAD_TIMEOUT_SECONDS, self._close)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close(self) -> None:
        self._late = None
        if not self.transport.is_closing():
            self.transport.close()


class Server(uvicorn.Server):
    """Says where it listens, once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start."""
        await super().startup(sockets=sockets)
        if self.started and sockets:
            sys.stderr.write(f"memplan serves {_address(sockets[0], self.config.root_path)} (Ctrl-C ends it)\n")
            sys.stderr.flush()


def serve(settings: Settings, *, host: str, port: int, log_requests: bool = False, trusted_proxies: str = "") -> None:
    """Serve until interrupted.

    Args:
        settings: limits and switches.
        host: address to listen on.
        port: to listen on; 0 takes a free one.
        log_requests: whether each request is a line of the log.
        trusted_proxies: addresses with commas between them whose X-Forwarded-For is believed.

    Raises:
        UnavailableError: the address cannot be listened on.
    """
    _log_to_stderr(log_requests)
    listening = _listen(host, port)
    gc.enable()  # the command line turns it off; a service runs for months
    app = create_app(settings)
    gc.collect()
    gc.freeze()  # what is there now stays: collections need not look at it again
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(trusted_proxies),
        forwarded_allow_ips=trusted_proxies or None,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        root_path=settings.root_path,
    )
    with listening:
        Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65_535:
        raise InvalidValueError("port", port, "a number from 0 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UnavailableError(
            f"{host} port {port} cannot be listened on: {error.strerror or error}",
            hint="another port: `memplan serve --port 8080`; --port 0 takes a free one",
        ) from None


def _address(listening: socket.socket, root_path: str) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{root_path}/"


def _log_to_stderr(log_requests: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("memplan.web", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    logging.getLogger("memplan.web.access").setLevel(logging.INFO if log_requests else logging.WARNING)
