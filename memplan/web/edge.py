"""The outermost layer: a request id, the headers of every answer, one log line, and the answer to a bug.

    GET /api/v1/gpus 200 1.9 ms 5f0c...

The log holds the path and never the query or the body: a recipe is its author's business.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memplan.web.errors import INTERNAL, send_problem
from memplan.web.headers import SECURITY_HEADERS

log = logging.getLogger("memplan.web")
access_log = logging.getLogger("memplan.web.access")

_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
_LONGEST_PATH = 200

Observer = Callable[[Scope, int, float], None]


class Edge:
    """ASGI middleware around everything else.

    Args:
        app: what answers.
        observe: called after each answer with scope, status and seconds.
    """

    def __init__(self, app: ASGIApp, observe: Observer | None = None) -> None:
        self.app = app
        self.observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = _request_id(scope)
        is_head = scope["method"] == "HEAD"  # the headers of a GET, which is what the application knows
        if is_head:
            scope = {**scope, "method": "GET"}
        scope.setdefault("state", {})["request_id"] = request_id
        extra = [*SECURITY_HEADERS, (b"x-request-id", request_id.encode())]
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *extra]
            elif is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:
            log.exception("bug in the answer to request %s", request_id)
            if status:  # too late for another answer: let the server cut the connection
                raise
            await send_problem(INTERNAL, scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - started
            if self.observe is not None:
                self.observe(scope, status, seconds)
            if access_log.isEnabledFor(logging.INFO):
                path = _UNPRINTABLE.sub("?", scope["path"])[:_LONGEST_PATH]
                access_log.info("%s %s %d %.1f ms %s", scope["method"], path, status, 1e3 * seconds, request_id)


def _request_id(scope: Scope) -> str:
    """The client's X-Request-ID where it is one sane word, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE_REQUEST_ID.fullmatch(value):
            return str(value.decode())
    return secrets.token_hex(8)
