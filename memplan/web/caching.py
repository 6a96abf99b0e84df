"""Answers kept, and answers not sent again.

`conditional` gives a GET its ETag and answers 304 where the client already has the bytes. `Cache` keeps computed answers up
to a number of bytes. Both rest on answers being the same bytes for the same question and version.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from typing import Generic, TypeVar

from starlette.requests import Request
from starlette.responses import Response

_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
DEFAULT_MAX_AGE_SECONDS = 300


Value = TypeVar("Value")


def etag_of(body: bytes) -> str:
    """A strong validator: equal for equal bytes only."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def conditional(
    request: Request,
    body: bytes,
    media_type: str,
    max_age: int = DEFAULT_MAX_AGE_SECONDS,
    *,
    etag: str | None = None,
) -> Response:
    """A GET's answer with ETag and Cache-Control; 304 where `If-None-Match` names these bytes.

    Args:
        request: the request.
        body: the whole answer.
        media_type: its type.
        max_age: seconds that a cache may keep it unasked.
        etag: `etag_of(body)`, where it is known already.
    """
    etag = etag or etag_of(body)
    headers = {"ETag": etag, "Cache-Control": f"public, max-age={max_age}"}
    if _names(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=media_type)


def _names(header: str, etag: str) -> bool:
    """Whether an If-None-Match header names the tag (weak comparison, RFC 9110 13.1.2)."""
    return header.strip() == "*" or etag in _TAG.findall(header)


class Cache(Generic[Value]):
    """The most recently used answers, up to a number of bytes.

    Args:
        max_bytes: of all values; 0 keeps none.
    """

    # Of the dictionary, the key and the value's own head.
    ENTRY_OVERHEAD_BYTES = 400

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self._entries: OrderedDict[bytes, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Value | None:
        """The value of `key`, if it is still there."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: bytes, value: Value, size_bytes: int) -> None:
        """Keep `value` of `size_bytes`; the least recently used make room for it."""
        self._drop(key)
        size = size_bytes + self.ENTRY_OVERHEAD_BYTES
        if size > self.max_bytes:
            return
        while self.size_bytes + size > self.max_bytes:
            self._drop(next(iter(self._entries)))
        self._entries[key] = value, size
        self.size_bytes += size

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size_bytes -= entry[1]
