"""A little of `python -m tests.web.fuzz`."""

from __future__ import annotations

from tests.web.fuzz import fuzz, send_recipes


def test_requests_made_from_the_document() -> None:
    assert fuzz(12, ("estimate", "estimate_batch", "check", "model"), seed=7, phases="fuzzing") == 0


def test_random_recipes() -> None:
    assert send_recipes(60, seed=7) == 0
