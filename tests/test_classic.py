"""The classic accounting: the published numbers digit for digit, and a difference that adds up to the byte."""

from __future__ import annotations

import itertools

import pytest

import memplan
from memplan.classic import EXAMPLE, classic_accounting, classic_bytes
from memplan.errors import InputError
from memplan.recipe import Recipe
from memplan.report import Table
from memplan.report.classic import classic_json, classic_report
from memplan.units import GB


def test_sixteen_bytes_come_out_of_the_policies() -> None:
    per = classic_bytes()
    assert (per.weights, per.gradients, per.master, per.states, per.trained) == (2, 2, 4, 8, 16)
    assert (per.frozen, per.packed) == (2, 0.5)


def test_the_published_line() -> None:
    parameters = classic_accounting().parameters
    assert (parameters.trainable, parameters.total) == (21_549_136, 7_263_322_192)
    assert f"{parameters.trainable_percent:.4f}" == "0.2967"


def test_the_published_table() -> None:
    accounting = classic_accounting()
    full, lora, qlora = accounting.rows
    assert accounting.nominal_parameters == 7 * 10**9
    assert full.classic_bytes == 112 * GB
    assert (lora.base_bytes, qlora.base_bytes) == (14 * GB, 3.5 * GB)
    assert lora.classic_bytes / GB == pytest.approx(14 + 112 * 0.002967, abs=1e-3)
    assert qlora.trained_bytes == lora.trained_bytes
    assert round(lora.trained_bytes / GB, 1) == 0.3


CASES = [
    Recipe(**EXAMPLE),
    Recipe(model="meta-llama/Llama-3.2-3B", lora_r=16, target_modules=("q_proj", "v_proj")),
    Recipe(model="Qwen/Qwen2.5-0.5B", method="qlora"),
    Recipe(model="openai-community/gpt2", method="lora"),
]


@pytest.mark.parametrize("recipe", CASES, ids=lambda recipe: str(recipe.model))
def test_the_difference_adds_up(recipe: Recipe) -> None:
    for row in classic_accounting(recipe).rows:
        items = {item.reason: item.size_bytes for item in row.items}
        assert row.classic_bytes + sum(items.values()) == row.states_bytes
        # What no other reason explains is rounding: less than 512 bytes for each of some thousand tensors.
        assert 0 <= items.get("rounding to 512-byte blocks", 0) < 2**20
        if row.run_items:
            assert row.states_bytes + sum(item.size_bytes for item in row.run_items) == row.run.peak.device_bytes


def test_the_exact_figure_is_the_engines() -> None:
    recipe = CASES[1]
    row = classic_accounting(recipe).rows[1]
    state = memplan.model_states(recipe, method="lora", dtype="bfloat16")
    assert row.states_bytes == sum(state.loaded.values()) + state.gradients_bytes + state.states.device_bytes


def test_a_model_without_a_size_in_its_name_is_counted() -> None:
    accounting = classic_accounting(Recipe(model="openai-community/gpt2", method="lora"))
    assert accounting.nominal_source == "counted"
    assert accounting.nominal_parameters == 124_439_808


def test_methods_that_the_rule_does_not_know_are_refused() -> None:
    with pytest.raises(InputError, match="the classic accounting knows full, lora, qlora, not ia3"):
        classic_accounting(Recipe(model="mistralai/Mistral-7B-v0.1", method="ia3"))


@pytest.mark.parametrize("column", [1, 2, 3])
def test_the_report_adds_up_as_printed(column: int) -> None:
    *_, table = (block for block in classic_report(classic_accounting(CASES[1])).blocks if isinstance(block, Table))
    texts = [row[column] for row in table.rows]
    sums = sorted(table.strong)
    for start, end in itertools.pairwise(sums):
        if texts[end]:
            parts = [float(text.replace(",", "")) for text in texts[start:end] if text]
            assert sum(parts) == pytest.approx(float(texts[end].replace(",", "")), abs=0.0005 * len(parts))


def test_json_is_in_bytes() -> None:
    shown = classic_json(classic_accounting())
    assert shown["bytes_per_parameter"]["trained"] == 16
    assert shown["parameters"] == {"total": 7_263_322_192, "trainable": 21_549_136, "trainable_percent": 0.2967}
    assert shown["methods"][0]["classic_bytes"] == 112 * GB
