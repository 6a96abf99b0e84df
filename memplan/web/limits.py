"""What is refused before anything reads it: long addresses, long or slow bodies, too many requests.

The body is read here, whole and counted byte by byte, so that a body without a Content-Length ends at the same limit.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memplan.units import format_bytes
from memplan.web.errors import route_path, send_problem
from memplan.web.problems import Problem
from memplan.web.settings import Settings

MAX_PATH_BYTES = 1024
_BATCH_PATH = "/api/v1/estimate/batch"
# Never limited: what monitors ask every few seconds, and files that a browser keeps.
_FREE_PATHS = ("/healthz", "/metrics", "/static/")

PATH_TOO_LONG = Problem(414, "path_too_long", f"the path is longer than {format_bytes(MAX_PATH_BYTES)}")


def query_too_long(limit: int) -> Problem:
    """What a query of more than `limit` bytes is answered."""
    said = f"the query is longer than {format_bytes(limit)}"
    return Problem(414, "query_too_long", said, "POST a recipe to the API instead")


def body_limit(path: str, settings: Settings) -> int:
    """How many bytes a body for an address may have."""
    if path.startswith("/api/"):
        return settings.max_batch_body_bytes if path == _BATCH_PATH else settings.max_body_bytes
    return settings.max_upload_bytes


def body_too_large(limit: int) -> Problem:
    """What a body of more than `limit` bytes is answered."""
    return Problem(413, "body_too_large", f"the body is larger than {format_bytes(limit)}")


def body_too_slow(seconds: float) -> Problem:
    """What a body is answered that is not there after so many seconds."""
    return Problem(408, "body_too_slow", f"the body took longer than {seconds:g} s to arrive")


def too_many_requests(per_minute: int, seconds: int) -> Problem:
    """What a client is answered who has used up its requests for so many seconds."""
    return Problem(
        429,
        "too_many_requests",
        f"more than {per_minute} requests a minute",
        f"try again in {seconds} s; a batch asks for many estimates in one request",
        headers=(("Retry-After", str(seconds)),),
    )


class Limits:
    """ASGI middleware: the size of the address, and size and time of the body.

    Args:
        app: what answers.
        settings: the limits.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        problem = self._address_problem(scope)
        if problem is None:
            limit = body_limit(route_path(scope), self.settings)
            body = await _read_body(scope, receive, limit, self.settings.body_timeout_seconds)
            if isinstance(body, bytes):
                await self.app(scope, _replayed(body, receive), send)
                return
            if body is None:  # the client is gone
                return
            problem = body
        await send_problem(problem, scope, receive, send)

    def _address_problem(self, scope: Scope) -> Problem | None:
        limit = self.settings.max_query_bytes
        if len(scope.get("query_string", b"")) > limit:
            return query_too_long(limit)
        return PATH_TOO_LONG if len(scope.get("raw_path") or b"") > MAX_PATH_BYTES else None


async def _read_body(scope: Scope, receive: Receive, limit: int, timeout_seconds: float) -> bytes | Problem | None:
    declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    if declared.isdigit() and int(declared) > limit:
        return body_too_large(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_seconds):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return None
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limit:
                    return body_too_large(limit)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError:
        return body_too_slow(timeout_seconds)


def _replayed(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


class RateLimit:
    """ASGI middleware: a token bucket for each client.

    Args:
        app: what answers.
        per_minute: requests that a client may send in a minute, at once or one by one.
        clock: seconds that only grow.
    """

    # Beyond, those longest not seen are forgotten: their buckets are the fullest.
    MAX_CLIENTS = 10_000

    def __init__(self, app: ASGIApp, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.app = app
        self.per_minute = per_minute
        self.clock = clock
        self.buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and not route_path(scope).startswith(_FREE_PATHS):
            wait_seconds = self.take(client_of(scope))
            if wait_seconds:
                problem = too_many_requests(self.per_minute, math.ceil(wait_seconds))
                await send_problem(problem, scope, receive, send)
                return
        await self.app(scope, receive, send)

    def take(self, client: str) -> float:
        """Take one token; returns 0, or the seconds until there is one."""
        now = self.clock()
        per_second = self.per_minute / 60
        tokens, seen = self.buckets.pop(client, (float(self.per_minute), now))
        tokens = min(float(self.per_minute), tokens + (now - seen) * per_second)
        allowed = tokens >= 1
        self.buckets[client] = (tokens - 1 if allowed else tokens, now)
        if len(self.buckets) > self.MAX_CLIENTS:
            self.buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / per_second


def client_of(scope: Scope) -> str:
    """Who is counted as one client: an IPv4 address, or the /64 network that an IPv6 address belongs to."""
    host = str((scope.get("client") or ("",))[0])
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((address, 64), strict=False))
    return str(address)
