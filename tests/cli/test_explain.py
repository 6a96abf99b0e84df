"""`memplan explain` and `memplan explain --classic`."""

from __future__ import annotations

import json

import pytest

import memplan
from memplan.estimate import Component
from tests.cli.conftest import MISTRAL, Run

QLORA = ("explain", *MISTRAL, "--method", "qlora")


def test_the_receipt_adds_up() -> None:
    answer = memplan.estimate(model="mistralai/Mistral-7B-v0.1", method="qlora")
    for component in Component:
        lines = sum(line.bytes for line in answer.lines if line.component is component)
        assert lines == answer.component_bytes(component), component


def test_json_holds_every_line_and_its_sums(run: Run) -> None:
    answer = memplan.estimate(model="mistralai/Mistral-7B-v0.1", method="qlora")
    shown = json.loads(run(*QLORA, "--json").out)
    assert list(shown) == ["schema_version", "peak", "components", "unsupported"]
    assert sum(entry["bytes"] for entry in shown["components"]) == answer.peak.live_bytes
    assert sum(len(entry["lines"]) for entry in shown["components"]) == len(answer.lines)
    assert set(shown["components"][0]["lines"][0]) == {"module", "op", "formula", "numbers", "count", "bytes", "share"}


def test_lines_carry_formula_and_numbers(run: Run) -> None:
    out = run(*QLORA, "--micro-batch-size", "4").out
    assert out.startswith("Peak of mistralai/Mistral-7B-v0.1: ")
    line = next(line for line in out.splitlines() if "B·S·H × 4" in line and "4·2048·4096 × 4" in line)
    assert line.split()[:2] == ["4.00", "GiB"]


def test_one_component_and_top(run: Run) -> None:
    shown = json.loads(run(*QLORA, "--component", "optimizer-states", "--component", "weights", "--json").out)
    assert [entry["component"] for entry in shown["components"]] == ["optimizer_states", "weights"]
    top = json.loads(run(*QLORA, "--component", "weights", "--top", "2", "--json").out)
    assert len(top["components"][0]["lines"]) == 2
    assert top["components"][0]["bytes"] == shown["components"][1]["bytes"]


def test_the_rest_is_summed_in_a_line(run: Run) -> None:
    out = run(*QLORA, "--component", "weights", "--top", "1").out
    assert "11 smaller lines" in out
    assert "smaller" not in run(*QLORA, "--component", "weights", "--top", "0").out


def test_the_classic_lines(run: Run) -> None:
    out = run("explain", "--classic").out
    for line in (
        "7 billion parameters, as the model's name says",
        "2 weights + 2 gradients + (4 float32 copy + 8 Adam states) = 16",
        "2 in 16 bits, 0.5 in 4 bits",
        "trainable: 21,549,136 || all params: 7,263,322,192 || trainable%: 0.2967",
        "N × 16 ",
        "112.0 GB",
        "14.0 + 0.33 = 14.3 GB",
        "3.5 + 0.33 = 3.8 GB",
    ):
        assert line in out, line


def test_gigabytes_stand_in_classic_columns_alone(run: Run) -> None:
    lines = [line for line in run("explain", "--classic").out.splitlines() if " GB" in line]
    assert [line.split()[0] for line in lines] == ["full", "LoRA", "QLoRA"]


@pytest.mark.parametrize("arguments", [(), ("--model", "Llama-3.2-3B", "--lora-r", "16", "--method", "qlora")])
def test_the_classic_difference_adds_up(run: Run, arguments: tuple[str, ...]) -> None:
    shown = json.loads(run("explain", "--classic", "--json", *arguments).out)
    assert [row["method"] for row in shown["methods"]] == ["full", "lora", "qlora"]
    for row in shown["methods"]:
        assert row["classic_bytes"] + sum(item["bytes"] for item in row["difference"]) == row["states_bytes"]
        if row["run"]:
            assert row["states_bytes"] + sum(item["bytes"] for item in row["run"]) == row["device_bytes"]


def test_explain_needs_a_model(run: Run) -> None:
    done = run("explain")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: no model is named\n")
