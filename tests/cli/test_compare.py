"""`memplan compare`: one recipe side by side, the sample, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memplan import agreement
from memplan.agreement import Cell, Result
from memplan.agreement.cases import plain_row, recipe_of, small_config
from memplan.compare import Comparison, PhaseDifference
from tests.cli.conftest import Run


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.json"
    keys = {"model": small_config("llama"), "micro_batch_size": 3, "sequence_length": 37}
    path.write_text(json.dumps(keys), encoding="utf-8")
    return path


def test_a_recipe_is_shown_side_by_side(run: Run, recipe_file: Path) -> None:
    result = run("compare", str(recipe_file))
    assert result.code == 0, result.err
    assert "agree to the byte in every phase" in result.out
    assert "each layer saves for backward are the same" in result.out
    assert result.out.count("optimizer step") == 4  # two steps, peaks and ends


def test_json_holds_both_answers(run: Run, recipe_file: Path) -> None:
    result = run("compare", str(recipe_file), "--json")
    answer = json.loads(result.out)
    assert answer["equal"] is True
    assert answer["refusal"] == ""
    assert [phase["phase"] for phase in answer["phases"]] == ["load", *["forward", "backward", "optimizer_step"] * 2]
    for phase in answer["phases"]:
        assert phase["estimate"]["peak_bytes"] == phase["trace"]["peak_bytes"] >= phase["estimate"]["end_bytes"] > 0
    assert answer["saved_tensors_equal"] is True
    layer = next(layer for layer in answer["layers"] if layer["layer"] == "model.layers.1")
    assert {"silu", "rsqrt"} <= {entry["op"] for entry in layer["trace"]}
    assert [entry["bytes"] for entry in layer["estimate"]] == [entry["bytes"] for entry in layer["trace"]]


def test_what_is_not_walked_is_refused_with_the_reason(run: Run, recipe_file: Path) -> None:
    result = run("compare", str(recipe_file), "--stack", "unsloth")
    assert result.code == 3
    assert "stack unsloth" in result.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "model"),
        (["--matrix", "--model", "meta-llama/Llama-3.2-1B"], "--matrix takes no recipe"),
        (["--cells", "9"], "belong to --matrix"),
        (["--matrix", "--jobs", "0"], "a whole number from 1"),
    ],
)
def test_bad_usage_is_one_clear_message(run: Run, arguments: list[str], message: str) -> None:
    result = run("compare", *arguments)
    assert result.code == 2
    assert message in result.err


@pytest.mark.parametrize(("difference", "code"), [(0, 0), (90_000, 1)])
def test_the_sample_exits_by_its_goal(run: Run, monkeypatch: pytest.MonkeyPatch, difference: int, code: int) -> None:
    row = plain_row()
    cell = Cell(tuple(row.items()))
    phase = PhaseDifference(1, "forward", 1_000_000 + difference, 1_000_000, 500, 500, "mm", "mm")
    comparison = Comparison(recipe_of(row), (phase,), parameters_equal=True)
    asked: dict[str, Any] = {}

    def traced(cells: list[Cell], *, jobs: int) -> list[Result]:
        asked.update(cells=len(cells), jobs=jobs)
        return [Result(cell, comparison) for cell in cells]

    monkeypatch.setattr(agreement, "sample", lambda cells: [cell] * cells)
    monkeypatch.setattr(agreement, "run", traced)
    result = run("compare", "--matrix", "--cells", "5", "--jobs", "3")
    assert (result.code, asked) == (code, {"cells": 5, "jobs": 3})
    assert result.out.startswith("# How the walk agrees with the trace")
    assert run("compare", "--matrix", "--cells", "5", "--markdown").out == result.out.replace("jobs=3", "jobs=2")
    answer = json.loads(run("compare", "--matrix", "--cells", "2", "--json").out)
    assert (answer["cells"], answer["exact"], answer["meets_goal"]) == (2, 2 * (not difference), not code)
    assert [entry["equal"] for entry in answer["results"]] == [not difference] * 2
    assert answer["results"][0]["choices"] == dict(row)
