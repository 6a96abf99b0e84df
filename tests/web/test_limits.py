"""Rates, counters, and where the service is mounted."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from memplan.web.app import create_app
from memplan.web.errors import is_api, route_path
from memplan.web.limits import RateLimit, client_of
from memplan.web.settings import Settings
from tests.web.models import SMALL


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


# -- rates ------------------------------------------------------------------------------------------------


def test_a_bucket_fills_again() -> None:
    clock = Clock()
    limit = RateLimit(pytest.fail, per_minute=3, clock=clock)
    assert [limit.take("a") for _ in range(3)] == [0, 0, 0]
    assert limit.take("a") == pytest.approx(20)
    assert limit.take("b") == 0
    clock.now += 19
    assert limit.take("a") == pytest.approx(1)
    clock.now += 1
    assert limit.take("a") == 0
    clock.now += 3600
    assert [limit.take("a") > 0 for _ in range(4)] == [False, False, False, True]


def test_clients_are_forgotten_from_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RateLimit, "MAX_CLIENTS", 3)
    limit = RateLimit(pytest.fail, per_minute=1, clock=Clock())
    for client in ("a", "b", "a", "c", "d"):
        limit.take(client)
    assert list(limit.buckets) == ["a", "c", "d"]


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (("192.0.2.7", 80), "192.0.2.7"), (("2001:db8:1:2:3::4", 80), "2001:db8:1:2::/64"),
        (("2001:db8:1:2:ffff::", 1), "2001:db8:1:2::/64"), (None, ""), (("testclient", 1), "testclient"),
    ],
)  # fmt: skip
def test_who_is_one_client(client: Any, expected: str) -> None:
    assert client_of({"client": client}) == expected


def test_too_many_requests_are_told_when_to_come_again() -> None:
    with TestClient(create_app(Settings(rate_limit=2))) as client:
        assert [client.get("/api/v1/gpus").status_code for _ in range(3)] == [200, 200, 429]
        response = client.get("/api/v1/gpus")
        error = response.json()["error"]
        assert (error["code"], error["request_id"]) == ("too_many_requests", response.headers["x-request-id"])
        assert 1 <= int(response.headers["retry-after"]) <= 30
        assert response.headers["content-security-policy"]
        assert {client.get("/healthz").status_code for _ in range(5)} == {200}


def test_there_is_no_rate_limit_unless_asked_for(client: TestClient) -> None:
    assert {client.get("/api/v1/gpus").status_code for _ in range(100)} == {200}


# -- counters ---------------------------------------------------------------------------------------------


def samples(text: str) -> dict[str, float]:
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            assert name not in found
            found[name] = float(value)
    return found


def test_counters_count() -> None:
    with TestClient(create_app(Settings(metrics=True))) as client:
        recipe = {"model": SMALL, "sequence_length": 16, "gpu": "h100"}
        for _ in range(2):
            client.post("/api/v1/estimate", json=recipe)
        client.post(
            "/api/v1/estimate/batch", json={"recipes": [recipe, recipe | {"stack": "unsloth"}, {"model": "nope"}]}
        )
        client.post("/api/v1/estimate", json={"model": "nope"})
        client.get("/api/v1/models/nope")
        client.get("/healthz")
        response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(response.text)
    requests = {name: value for name, value in found.items() if name.startswith("memplan_requests_total")}
    assert requests == {
        'memplan_requests_total{method="POST",route="/api/v1/estimate",status="200"}': 2,
        'memplan_requests_total{method="POST",route="/api/v1/estimate",status="422"}': 1,
        'memplan_requests_total{method="POST",route="/api/v1/estimate/batch",status="200"}': 1,
        'memplan_requests_total{method="GET",route="/api/v1/models/{id:path}",status="404"}': 1,
        'memplan_requests_total{method="GET",route="/healthz",status="200"}': 1,
    }
    assert found['memplan_verdicts_total{fits="fits"}'] == 3
    assert found['memplan_verdicts_total{fits="uncertain"}'] == 1
    assert found["memplan_uncovered_total"] == 1
    assert found["memplan_kept_answers_total"] == 1
    assert found["memplan_kept_bytes"] > 0
    assert found['memplan_request_seconds_count{route="/api/v1/estimate"}'] == 3
    assert found['memplan_request_seconds_bucket{route="/api/v1/estimate",le="+Inf"}'] == 3


def test_no_client_makes_labels() -> None:
    with TestClient(create_app(Settings(metrics=True))) as client:
        for number in range(20):
            client.get(f"/nowhere/{number}")
            client.request(f"METHOD{number}", f"/api/v1/{number}")
            client.get(f"/api/v1/models/{number}")
        names = [name for name in samples(client.get("/metrics").text) if name.startswith("memplan_requests_total")]
    assert len(names) <= 6


def test_there_are_no_counters_unless_asked_for(client: TestClient) -> None:
    assert client.get("/metrics").status_code == 404


# -- behind a proxy ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "path", "expected"),
    [
        ("", "/api/v1", "/api/v1"),
        ("/a", "/a/x", "/x"),
        ("/a", "/api/x", "/api/x"),
        ("/a", "/a", ""),
        ("/a/", "/a/x", "/x"),
    ],
)
def test_where_the_service_is_mounted_is_no_part_of_an_address(root: str, path: str, expected: str) -> None:
    assert route_path({"root_path": root, "path": path}) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/v1/x", True),
        ("/api", False),
        ("/api/docs", False),
        ("/api/v9", True),
        ("/healthz", True),
        ("/gpus", False),
    ],
)
def test_errors_of_the_api_are_for_programs(path: str, expected: bool) -> None:
    assert is_api({"path": "/at" + path, "root_path": "/at"}) is expected


def test_a_mounted_service_names_itself_where_it_is() -> None:
    with TestClient(create_app(Settings(root_path="/at")), root_path="/at") as client:
        assert client.get("/at/api/v1/gpus").status_code == 200
        assert client.get("/at/openapi.json").json()["servers"] == [{"url": "/at"}]
        reference = client.get("/at/api/docs").text
        assert 'href="/at/openapi.json"' in reference
        assert 'href="/static' not in reference
        assert client.get("/at/nowhere", headers={"Accept": "text/html"}).status_code == 404
        assert client.get("/at/api/v1/nowhere").json()["error"]["code"] == "not_found"
