"""A little of `python -m tests.web.fuzz` on every operation; the whole of it under `full_matrix`."""

from __future__ import annotations

import pytest

from tests.web.fuzz import fuzz, send_recipes


def test_requests_made_from_the_document() -> None:
    assert fuzz(12, seed=7, phases="fuzzing") == 0


def test_random_recipes() -> None:
    assert send_recipes(60, seed=7) == 0


@pytest.mark.full_matrix
def test_many_requests_made_from_the_document() -> None:
    assert fuzz(2000) == 0


@pytest.mark.full_matrix
@pytest.mark.parametrize("operation", ["estimate", "plan"])
def test_many_random_recipes(operation: str) -> None:
    assert send_recipes(2000, path=operation) == 0
