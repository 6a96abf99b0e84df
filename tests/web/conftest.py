"""One application for all tests of the service: its computing process is started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from memplan.web.app import create_app


@pytest.fixture(scope="session")
def client() -> Iterator[TestClient]:
    """A client of the whole application, limits and headers included."""
    with TestClient(create_app(), raise_server_exceptions=False) as session:
        yield session
