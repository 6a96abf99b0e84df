"""Which tests run."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The full matrix takes hours: it runs only where `-m` names it."""
    if "full_matrix" in config.getoption("-m"):
        return
    skip = pytest.mark.skip(reason="run with -m full_matrix")
    for item in items:
        if item.get_closest_marker("full_matrix"):
            item.add_marker(skip)
