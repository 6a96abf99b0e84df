"""The receipt: every byte at the peak has a line, and a line's formula is the line's bytes."""

from __future__ import annotations

from collections import Counter
from math import prod

import pytest
from hypothesis import given, settings

from memplan import training_step
from memplan.dtypes import DType
from memplan.estimate import Component, Line
from memplan.prepare import prepare
from memplan.recipe import Recipe
from memplan.step.receipt import fold_layers, formula, numbers, receipt
from memplan.step.tensor import Dim
from memplan.units import round_to_block
from tests.step.small_runs import RECIPES, prepared


def by_component(lines: tuple[Line, ...]) -> Counter[Component]:
    found: Counter[Component] = Counter()
    for line in lines:
        found[line.component] += line.bytes
    return found


@pytest.mark.parametrize(
    ("path", "folded"),
    [
        ("model.layers.3.mlp", "model.layers.*.mlp"),
        ("model.layers.31", "model.layers.*"),
        ("transformer.h.0.attn.c_attn.weight", "transformer.h.*.attn.c_attn.weight"),
        ("encoder.block.1.layer.0.DenseReluDense", "encoder.block.*.layer.*.DenseReluDense"),
        ("lm_head", "lm_head"),
        ("layers.q4_proj", "layers.q4_proj"),
        ("", ""),
    ],
)
def test_layer_numbers_become_a_star(path: str, folded: str) -> None:
    assert fold_layers(path) == folded


def test_formulas_are_products_of_symbols() -> None:
    shape = (Dim(4, "B"), Dim(768, "S"), Dim(3072, "I"))
    assert formula(shape, DType.BFLOAT16) == "B·S·I × 2"
    assert numbers(shape, DType.BFLOAT16) == "4·768·3072 × 2"
    assert (formula((), DType.FLOAT32), numbers((), DType.FLOAT32)) == ("1 × 4", "1 × 4")
    assert formula((1, 5, 1), DType.INT64) == "5 × 8"
    # A batch of one is still a batch.
    assert formula((Dim(1, "B"), 1, Dim(8, "S")), DType.INT64) == "B·S × 8"


@settings(derandomize=True, deadline=None, max_examples=60)
@given(RECIPES)
def test_lines_sum_to_the_peak_by_component(recipe: Recipe) -> None:
    resolved, found = prepared(recipe)
    recordings, walk = training_step.walk(resolved, found)
    lines = receipt(found.state, recordings[0], walk.peak)
    assert by_component(lines) == Counter(walk.peak.components)
    assert min(line.count for line in lines) > 0


@settings(derandomize=True, deadline=None, max_examples=40)
@given(RECIPES)
def test_the_numbers_of_a_line_are_its_bytes(recipe: Recipe) -> None:
    resolved, found = prepared(recipe)
    recordings, walk = training_step.walk(resolved, found)
    checked = 0
    for line in receipt(found.state, recordings[0], walk.peak):
        left, times, width = line.numbers.partition(" × ")
        if not times:
            continue  # sums over tensors, and packed weights
        size = prod(map(int, left.split("·"))) * int(width)
        assert line.bytes == line.count * round_to_block(size), line
        checked += 1
    assert checked > 5


def test_lines_are_sorted_by_component_and_size() -> None:
    resolved, found = prepared(method="lora")
    recordings, walk = training_step.walk(resolved, found)
    lines = receipt(found.state, recordings[0], walk.peak)
    order = list(Component)
    keys = [(order.index(line.component), -line.bytes) for line in lines]
    assert keys == sorted(keys)


def test_equal_layers_share_a_line() -> None:
    resolved, found = prepared()
    recordings, walk = training_step.walk(resolved, found)
    lines = receipt(found.state, recordings[0], walk.peak)
    (gate,) = [
        line for line in lines if line.module == "model.layers.*.mlp.gate_proj.weight" and line.op == "parameter"
    ]
    assert (gate.count, gate.bytes) == (4, 4 * 128 * 208 * 4)
    assert gate.numbers == "208·128 × 4"


def test_a_receipt_is_the_same_whether_layers_were_folded() -> None:
    resolved, found = prepared(method="lora", dtype="bfloat16")
    folded, executed = (
        receipt(found.state, recordings[0], walk.peak)
        for recordings, walk in (training_step.walk(resolved, found, fold=fold) for fold in (True, False))
    )
    assert {line.model_dump_json() for line in folded} == {line.model_dump_json() for line in executed}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"precision": "master"},
        {"method": "qlora", "bnb_4bit_use_double_quant": False},
        {"optim": "paged_adamw_8bit"},
    ],
)
def test_states_alone_have_a_receipt_too(keys: dict[str, object]) -> None:
    from memplan.resolve import resolve
    from tests.step.small_runs import LLAMA

    state = prepare(resolve(Recipe(model=LLAMA, **keys))).state
    expected = Counter(state.loaded)
    expected[Component.GRADIENTS] += state.gradients_bytes
    expected[Component.MASTER_WEIGHTS] += state.master_bytes
    expected[Component.OPTIMIZER_STATES] += state.states.device_bytes
    assert by_component(receipt(state, None, None)) == +expected
