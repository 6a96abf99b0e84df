"""The comment of a pull request, against a service on this machine that behaves as GitHub does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from memplan.budget.comment import PullRequest, upsert
from memplan.errors import InputError, UnavailableError

MARKER = "<!-- memplan:check:memplan.toml -->"


class FakeGitHub:
    """Comments of one pull request; `failures` are statuses that the next requests are answered with."""

    def __init__(self) -> None:
        self.comments: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str, str]] = []
        self.failures: list[int] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def answer(self, status: int, body: object) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                if status in (301, 302):
                    self.send_header("Location", "http://127.0.0.1:9/stolen")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def handle_one(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"null")
                fake.requests.append((self.command, self.path, self.headers.get("Authorization", "")))
                if fake.failures:
                    self.answer(fake.failures.pop(0), {"message": "no"})
                    return
                parts = urlsplit(self.path)
                if self.command == "GET":
                    assert parts.path == "/repos/o/r/issues/7/comments"
                    query = parse_qs(parts.query)
                    page, size = int(query["page"][0]), int(query["per_page"][0])
                    self.answer(200, fake.comments[(page - 1) * size : page * size])
                elif self.command == "POST":
                    assert parts.path == "/repos/o/r/issues/7/comments"
                    fake.comments.append({"id": len(fake.comments) + 1, "body": body["body"]})
                    self.answer(201, fake.comments[-1])
                else:
                    found = next(one for one in fake.comments if parts.path.endswith(f"/issues/comments/{one['id']}"))
                    found["body"] = body["body"]
                    self.answer(200, found)

            do_GET = do_POST = do_PATCH = handle_one  # noqa: N815

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def github() -> Iterator[FakeGitHub]:
    fake = FakeGitHub()
    yield fake
    fake.close()


def put(github: FakeGitHub, text: str, **options: Any) -> str:
    to = PullRequest(github.url, "o/r", 7)
    return upsert(f"{MARKER}\n{text}\n", MARKER, to, "secret", pause_s=0.01, **options)


def test_created_then_updated_in_place(github: FakeGitHub) -> None:
    github.comments.append({"id": 1, "body": f"I quote {MARKER}"})
    assert put(github, "one") == "created"
    assert put(github, "one") == "unchanged"
    assert put(github, "two") == "updated"
    assert [one["body"] for one in github.comments[1:]] == [f"{MARKER}\ntwo\n"]
    assert {token for _, _, token in github.requests} == {"Bearer secret"}


def test_found_on_a_later_page(github: FakeGitHub) -> None:
    github.comments = [{"id": index, "body": "hello"} for index in range(1, 251)]
    github.comments[230]["body"] = f"{MARKER}\r\nold\r\n"
    assert put(github, "old") == "unchanged"
    assert put(github, "new") == "updated"
    assert len(github.comments) == 250


def test_nothing_new_where_there_is_nothing_to_say(github: FakeGitHub) -> None:
    assert put(github, "one", create=False) == "left out"
    assert github.comments == []


def test_a_busy_service_is_asked_again(github: FakeGitHub) -> None:
    github.failures = [502, 503]
    assert put(github, "one") == "created"
    github.failures = [502, 502, 502]
    with pytest.raises(UnavailableError, match="refuses GET with 502"):
        put(github, "two")


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_refused_at_once_and_redirects_are_not_followed(github: FakeGitHub, status: int) -> None:
    github.failures = [status]
    with pytest.raises(UnavailableError, match=f"refuses GET with {status}"):
        put(github, "one")
    assert len(github.requests) == 1


def test_nobody_there() -> None:
    with pytest.raises(UnavailableError, match="cannot be reached"):
        upsert("x", "x", PullRequest("http://127.0.0.1:9", "o/r", 7), "secret", pause_s=0.01)


@pytest.mark.parametrize(
    ("url", "repository", "number"),
    [("http://example.org", "o/r", 1), ("ftp://x", "o/r", 1), ("https://x", "o", 1), ("https://x", "o/r/../x", 1),
     ("https://x", "o/r", 0)],
)  # fmt: skip
def test_what_is_no_pull_request(url: str, repository: str, number: int) -> None:
    with pytest.raises(InputError):
        PullRequest(url, repository, number)
