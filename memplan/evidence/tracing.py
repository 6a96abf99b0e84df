"""Traces the recipes of committed records and keeps the answers in `traced.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from memplan.errors import UnavailableError, UnsupportedError
from memplan.evidence.predictions import TRACED_FILE, recipe_key, traced_answers
from memplan.evidence.records import Level, Record, select_files
from memplan.resolve import resolve
from memplan.trace.estimate import trace

TIMEOUT_S = 300.0


def trace_records(
    source: str | None = None, *, again: bool = False, progress: Callable[[str], None] = lambda line: None
) -> int:
    """Trace every configuration of `source` that has no answer yet (with `again`, every one); say how many were run.

    Answers are written as they come, so that an interrupted run goes on where it stopped; those to recipes that no record
    has any more are dropped.

    Raises:
        UnavailableError: the trace extra is not installed.
        UnknownNameError: no such source.
    """
    asked = {key for key, _ in _configurations(None)}
    answers = {key: answer for key, answer in traced_answers().items() if key in asked}
    count = 0
    for key, record in _configurations(source):
        if key not in answers or again:
            answers[key] = traced_answer(record)
            _write(answers)
            count += 1
            progress(f"{record.id}: {answers[key].get('failed') or answers[key]['reserved_bytes']}")
    return count


def traced_answer(record: Record) -> dict[str, Any]:
    """Bytes by level and the versions behind them, or `failed` with the reason.

    Raises:
        UnavailableError: the trace extra is not installed.
    """
    try:
        answer = trace(resolve(record.as_recipe()), timeout_s=TIMEOUT_S)
    except UnavailableError:
        raise
    except UnsupportedError as error:
        return {"failed": error.message}
    peak = answer.peak
    return {
        f"{Level.ALLOCATED}_bytes": peak.allocated_bytes,
        f"{Level.RESERVED}_bytes": peak.reserved_bytes,
        f"{Level.DEVICE}_bytes": peak.device_bytes,
        "phase": str(peak.phase),
        "versions": dict(answer.versions),
    }


def _configurations(source: str | None) -> Iterator[tuple[str, Record]]:
    seen = set()
    for file in select_files(source):
        for record in file.records:
            key = recipe_key(record)
            if record.usable and key not in seen:
                seen.add(key)
                yield key, record


def _write(answers: dict[str, dict[str, Any]]) -> None:
    rows = [json.dumps({"recipe": json.loads(key), **answer}) for key, answer in sorted(answers.items())]
    TRACED_FILE.write_text('{"answers": [\n' + ",\n".join(rows) + "\n]}\n", encoding="utf-8")


__all__ = ["TIMEOUT_S", "trace_records", "traced_answer"]
