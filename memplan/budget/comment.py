"""One comment on a pull request, found again by its hidden first line and brought up to date in place.

Speaks GitHub's REST API with the standard library alone. The token goes to the API's own address and nowhere else: redirects
are not followed.
"""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from memplan.errors import InputError, UnavailableError

TIMEOUT_S = 10
_TRIES = 3
_PAGES = 30
_PER_PAGE = 100
_MAX_BYTES = 16 * 2**20
_REPOSITORY = re.compile(r"[A-Za-z0-9._-]{1,100}/[A-Za-z0-9._-]{1,100}", re.ASCII)
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class PullRequest:
    """Where a comment goes.

    Attributes:
        api_url: of GitHub or a GitHub Enterprise, https unless on this machine.
        repository: `owner/name`.
        number: of the pull request.
    """

    api_url: str
    repository: str
    number: int

    def __post_init__(self) -> None:
        parts = urlsplit(self.api_url)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise InputError(f"{self.api_url!r} is no https address of a GitHub API")
        if not _REPOSITORY.fullmatch(self.repository) or self.number < 1:
            raise InputError(f"{self.repository!r} #{self.number} is no pull request")


def upsert(body: str, marker: str, to: PullRequest, token: str, *, create: bool = True, pause_s: float = 1.0) -> str:
    """Bring the comment that begins with `marker` up to date, or write it.

    Args:
        body: of the comment; begins with the marker.
        marker: the hidden first line.
        to: the pull request.
        token: may write comments.
        create: whether to write one where there is none.
        pause_s: before the second try where the service is busy; twice that before the third.

    Returns:
        `created`, `updated`, `unchanged`, or `left out` where there is none and none is to be created.

    Raises:
        UnavailableError: the service cannot be reached or refuses.
    """
    api = _Api(to, token, pause_s)
    issues = f"/repos/{to.repository}/issues"
    for comment in api.pages(f"{issues}/{to.number}/comments"):
        if not str(comment.get("body", "")).startswith(marker):
            continue
        if str(comment["body"]).replace("\r\n", "\n").rstrip() == body.rstrip():
            return "unchanged"
        api.call("PATCH", f"{issues}/comments/{int(comment['id'])}", {"body": body})
        return "updated"
    if not create:
        return "left out"
    api.call("POST", f"{issues}/{to.number}/comments", {"body": body})
    return "created"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True, slots=True)
class _Api:
    to: PullRequest
    token: str
    pause_s: float

    def pages(self, path: str) -> Iterator[dict[str, Any]]:
        for page in range(1, _PAGES + 1):
            found = self.call("GET", f"{path}?per_page={_PER_PAGE}&page={page}")
            if not isinstance(found, list):
                raise UnavailableError("GitHub did not answer with a list of comments")
            yield from (entry for entry in found if isinstance(entry, dict))
            if len(found) < _PER_PAGE:
                return

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        for attempt in range(1, _TRIES + 1):
            try:
                return self._once(method, path, body)
            except urllib.error.HTTPError as error:
                with error:
                    busy = error.code in (429, 502, 503, 504)
                    # A comment that was perhaps written is not written again: only what was refused is tried anew.
                    if not busy or attempt == _TRIES or (method == "POST" and error.code == 504):
                        raise UnavailableError(f"GitHub refuses {method} with {error.code} {error.reason}") from None
            except (OSError, ValueError) as error:
                if attempt == _TRIES or method == "POST":
                    raise UnavailableError(f"GitHub cannot be reached: {error}") from None
            time.sleep(self.pause_s * attempt)
        raise AssertionError("the last try returns or raises")

    def _once(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        request = urllib.request.Request(
            self.to.api_url.rstrip("/") + path,
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={
                "Accept": "application/vnd.github+json",
                "Authorization": f"Bearer {self.token}",
                "Content-Type": "application/json",
                "User-Agent": "memplan",
                "X-GitHub-Api-Version": "2022-11-28",
            },
        )
        opener = urllib.request.build_opener(_NoRedirects)
        with opener.open(request, timeout=TIMEOUT_S) as response:
            return json.loads(response.read(_MAX_BYTES) or b"null")
