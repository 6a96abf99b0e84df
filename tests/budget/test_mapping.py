"""Content that somebody sent: judged without a look at the disk or at git."""

from __future__ import annotations

import builtins
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import memplan
from memplan.budget import Content, check_mapping
from memplan.errors import InputError
from memplan.recipe import Recipe

GPT2 = {"model": "openai-community/gpt2", "sequence_length": 128, "gpu": "t4"}
OWN = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 97}


def checks(**keys: Any) -> dict[str, Any]:
    return {"schema": 1, "check": [{"name": "a", **keys}]}


def test_inline_recipes() -> None:
    report = check_mapping(checks(recipe=GPT2))
    assert report.verdict == "pass"
    peak = memplan.estimate(**GPT2).peak
    assert report.checks[0].peak == peak
    assert report.checks[0].expected_bytes == peak.device_bytes
    assert report.checks[0].limits[0].upper_bytes == memplan.estimate(**GPT2).verdict("t4").upper_bytes


def test_files_that_were_sent() -> None:
    files = {"sft.yaml": "model: ./own\nsequence_length: 32\n", "own/config.json": json.dumps(OWN)}
    report = check_mapping(checks(config="./sft.yaml", gpu="t4"), files=files)
    assert report.verdict == "pass", report.to_text()
    assert report.checks[0].model == "./own"


def test_the_disk_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OWN))
    (tmp_path / "r.yaml").write_text("model: openai-community/gpt2\n")
    monkeypatch.chdir(tmp_path)
    check_mapping(checks(recipe=GPT2))  # tables and cards are read once, from the package

    def refuse(*arguments: object, **_: object) -> None:
        raise AssertionError(f"the disk or a process was asked for: {arguments}")

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    for model in (str(tmp_path), ".", "./config.json", "config.json", "/etc/passwd", "~/x", "../x.json"):
        report = check_mapping(checks(recipe={**GPT2, "model": model}))
        assert (report.verdict, report.exit_code) in (("error", 4), ("error", 2)), model
    assert check_mapping(checks(config="r.yaml", gpu="t4")).exit_code == 4
    assert check_mapping(checks(config=str(tmp_path / "r.yaml"), gpu="t4")).exit_code == 4


def test_growth_between_contents() -> None:
    base = Content(checks(config="r.json", max_increase="1 MiB"), {"r.json": json.dumps(GPT2)})
    now = {"r.json": json.dumps({**GPT2, "micro_batch_size": 8})}
    report = check_mapping(checks(config="r.json", max_increase="1 MiB"), files=now, base=base)
    assert (report.verdict, report.exit_code) == ("over", 1)
    assert report.checks[0].growth.change_bytes is not None


def test_what_each_key_does_is_said_as_far_as_the_allowance_goes() -> None:
    def both(**keys: Any) -> dict[str, Any]:
        runs = [{"name": name, "recipe": {**GPT2, **keys}, "max_increase": "9 GiB"} for name in ("first", "second")]
        return {
            "schema": 1,
            "check": [*runs, {"name": "one key", "recipe": {**GPT2, "padding": bool(keys)}, "gpu": "t4"}],
        }

    base = Content({**both(), "check": [*both()["check"][:2], {**both()["check"][2], "max_increase": "1 GiB"}]})
    now = both(micro_batch_size=8, sequence_length=64, optim="sgd")  # three keys: four estimates a check
    whole = check_mapping(now, base=base)
    bounded = check_mapping(now, base=base, most_explained=7)
    whys = [one.growth.why for one in bounded.checks]
    assert [len(why.attributions) if why is not None else -1 for why in whys] == [3, 0, 1]
    assert whys[1] is not None
    assert "3 changed keys does is left out" in whys[1].notes[0]
    assert [why and why.change_bytes for why in whys] == [
        one.growth.why and one.growth.why.change_bytes for one in whole.checks
    ]
    assert [one.status for one in bounded.checks] == [one.status for one in whole.checks]
    assert all(one.growth.why is not None and one.growth.why.attributions for one in whole.checks)


def test_accept_refuses_recipes() -> None:
    def accept(recipe: Recipe) -> None:
        if recipe.method == "lora":
            raise InputError("not here")

    assert check_mapping(checks(recipe=GPT2), accept=accept).exit_code == 0
    refused = check_mapping(checks(recipe={**GPT2, "method": "lora"}), accept=accept)
    assert refused.exit_code == 2
    assert refused.checks[0].problem is not None
    assert "not here" in refused.checks[0].problem.message


@pytest.mark.parametrize("level", ["allocated", "reserved", "device"])
def test_levels(level: str) -> None:
    peak = memplan.estimate(**GPT2).peak
    expected = {"allocated": peak.allocated_bytes, "reserved": peak.reserved_bytes, "device": peak.device_bytes}[level]
    recipe = {key: value for key, value in GPT2.items() if key != "gpu"}
    just = check_mapping(checks(recipe=recipe, gpu="t4", level=level, budget=f"{expected} B", headroom="0 B"))
    assert just.checks[0].limits[0].status == "within"
    short = check_mapping(checks(recipe=recipe, gpu="t4", level=level, budget=f"{expected - 1} B", headroom="0 B"))
    assert short.checks[0].limits[0].status == "over"
    auto = check_mapping(checks(recipe=recipe, gpu="t4", level=level, budget=f"{expected} B"))
    assert auto.checks[0].limits[0].status == "uncertain"
    assert auto.checks[0].limits[0].upper_bytes > expected


def test_a_device_budget_has_the_bound_of_the_verdict() -> None:
    """A budget of what a card has is judged as the card is."""
    verdict = memplan.estimate(**GPT2).verdict("t4")
    budget, gpu = check_mapping(checks(recipe=GPT2, budget=f"{verdict.usable_bytes} B")).checks[0].limits
    assert (budget.expected_bytes, budget.upper_bytes, budget.limit_bytes, budget.status) == (
        gpu.expected_bytes, gpu.upper_bytes, gpu.limit_bytes, gpu.status,
    )  # fmt: skip


def test_a_headroom_never_makes_a_card_fit() -> None:
    auto = check_mapping(checks(recipe=GPT2)).checks[0].limits[0]
    narrow = check_mapping(checks(recipe=GPT2, headroom="0 B")).checks[0].limits[0]
    wide = check_mapping(checks(recipe=GPT2, headroom="400%")).checks[0].limits[0]
    assert narrow.upper_bytes == auto.upper_bytes
    assert wide.upper_bytes == 5 * wide.expected_bytes > auto.upper_bytes


def test_without_a_gpu_the_bound_is_no_narrower() -> None:
    recipe = {key: value for key, value in GPT2.items() if key != "gpu"}
    limit = check_mapping(checks(recipe=recipe, budget="40 GiB")).checks[0].limits[0]
    assert limit.gpu is None
    assert limit.expected_bytes == memplan.estimate(**recipe).peak.device_bytes
    assert limit.upper_bytes >= limit.expected_bytes + 2 * 2**30
    assert "stated" in limit.margin


def test_whose_gpu_counts() -> None:
    document = {"schema": 1, "defaults": {"gpu": "h100"}, "check": [
        {"name": "own", "recipe": GPT2},
        {"name": "default", "recipe": {**GPT2, "gpu": None}},
        {"name": "check", "recipe": GPT2, "gpu": "a100-80gb"},
    ]}  # fmt: skip
    found = [one.limits[0].gpu for one in check_mapping(document).checks]
    assert found[0] == "t4"
    assert found[1] is not None
    assert found[1].startswith("h100")
    assert found[2] is not None
    assert found[2].startswith("a100")
