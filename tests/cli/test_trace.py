"""`memplan trace`: the same options and the same answer, from the trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import memplan
from memplan.errors import UnavailableError
from memplan.estimate import Estimate, Provenance
from memplan.resolve import Resolved
from tests.cli.conftest import MISTRAL, Run

TRACE = ("trace", *MISTRAL, "--method", "qlora", "--gpu", "t4")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Resolved, dict[str, Any]]]:
    """Answers for the trace, which would take seconds, and keeps what it was asked."""
    calls: list[tuple[Resolved, dict[str, Any]]] = []

    def answer(resolved: Resolved, **options: Any) -> Estimate:
        calls.append((resolved, options))
        return memplan.estimate(resolved.recipe).model_copy(update={"provenance": Provenance.TRACE})

    monkeypatch.setattr("memplan.trace.cli.answer", answer)
    return calls


def test_the_recipe_arrives_resolved(run: Run, asked: list[tuple[Resolved, dict[str, Any]]]) -> None:
    done = run(*TRACE, "--micro-batch-size", "2", "--memory-viz", "out.pickle", "--timeout", "60")
    ((resolved, options),) = asked
    assert (resolved.values["micro_batch_size"], resolved.method) == (2, "qlora")
    assert options == {
        "events": None, "memory_viz": Path("out.pickle"), "timeout_s": 60, "layers": "full", "progress": None,
    }  # fmt: skip
    assert "trace: the real model on fake tensors" in done.out


def test_json_and_events_do_not_mix(run: Run, asked: list[tuple[Resolved, dict[str, Any]]], tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    done = run(*TRACE, "--json", "--events", str(file))
    assert json.loads(done.out)["provenance"] == "trace"
    assert asked[0][1]["events"].name == str(file)
    refused = run(*TRACE, "--json", "--events", "-")
    assert (refused.code, refused.out, len(asked)) == (2, "", 1)
    assert "both want stdout" in refused.err


def test_events_on_stdout_are_alone_there(run: Run, asked: list[tuple[Resolved, dict[str, Any]]]) -> None:
    done = run(*TRACE, "--events", "-")
    assert (done.code, done.out, len(asked)) == (0, "", 1)  # the stand-in writes none


def test_a_file_that_cannot_be_written_is_told_before_the_trace(
    run: Run, asked: list[tuple[Resolved, dict[str, Any]]], tmp_path: Path
) -> None:
    done = run(*TRACE, "--events", str(tmp_path / "missing" / "events.jsonl"))
    assert (done.code, asked) == (2, [])
    assert "cannot be written: No such file or directory" in done.err


def test_how_deep_to_trace_is_checked_first(run: Run, asked: list[tuple[Resolved, dict[str, Any]]]) -> None:
    assert run(*TRACE, "--layers", "auto").code == 0
    assert asked[0][1]["layers"] == "auto"
    for wrong in ("2", "some", "-6"):
        done = run(*TRACE, "--layers", wrong)
        assert (done.code, len(asked)) == (2, 1)
        assert "full, auto, or a number from 6" in done.err


def test_exit_code_is_the_verdict(run: Run, asked: list[tuple[Resolved, dict[str, Any]]]) -> None:
    assert run("trace", *MISTRAL, "--gpu", "t4").code == 1
    assert len(asked) == 1


def test_without_the_extra_it_is_exit_code_4(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*_: Any, **__: Any) -> Estimate:
        raise UnavailableError("torch is not installed", hint="pip install 'memplan[trace]'")

    monkeypatch.setattr("memplan.trace.cli.answer", answer)
    done = run(*TRACE)
    assert (done.code, done.out) == (4, "")
    assert done.err == "error: torch is not installed\n  pip install 'memplan[trace]'\n"
