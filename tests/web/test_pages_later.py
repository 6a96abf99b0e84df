"""Sections that load later have a process of their own, which ends with the application."""

from __future__ import annotations

from starlette.testclient import TestClient

from memplan.web.app import create_app
from memplan.web.settings import Settings
from memplan.web.work import Work


def _processes(work: Work) -> list[int]:
    return [worker.process.pid for worker in work._all]


def test_it_is_started_by_the_first_section_and_ends_with_the_application() -> None:
    app = create_app(Settings(timeout_seconds=3.0))
    with TestClient(app) as client:
        work: Work = app.state.later.work
        assert _processes(work) == []
        assert client.get("/?model=gpt2&gpu=t4").status_code == 200
        assert _processes(work) == []
        assert client.get("/fragments/gpus?model=gpt2&gpu=t4").status_code == 200
        (worker,) = work._all
        assert worker.process.pid not in _processes(app.state.work)
        assert worker.process.poll() is None
        assert work.settings.timeout_seconds >= 15
    assert _processes(work) == []
    assert worker.process.poll() is not None
