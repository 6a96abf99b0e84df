"""Extrapolation over equal layers against the trace at full depth: every phase, allocated and reserved, to the byte."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from trace_cases import FAMILIES, LLAMA, lora

from memplan.errors import InvalidValueError, UnsupportedError
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.step.allocator_run import replay
from memplan.trace import TraceResult, TraceSpec, cli, run_many
from memplan.trace.depth import combine, extrapolate, refusal
from memplan.trace.estimate import to_estimate

DEPTHS = (4, 5, 6)
FULL_DEPTH = 8
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"optim": "adamw_torch_for_loop", "max_grad_norm": 1.0}),
    "llama, LoRA, checkpointing": ("llama", {"peft": lora("all-linear"), "checkpointing": "reentrant"}),
    "llama, QLoRA": (
        "llama",
        {
            "peft": lora("all-linear"), "load_in_4bit": True, "bnb_4bit_use_double_quant": True, "autocast": "bfloat16",
            "checkpointing": "reentrant",
        },
    ),
    "gpt2, checkpointing": ("gpt2", {"checkpointing": "non-reentrant", "optim": "adamw_torch_fused"}),
    "qwen3, LoRA": ("qwen3", {"peft": lora(["q_proj", "v_proj"]), "optim": "adamw_torch_fused"}),
    "bert": ("bert", {"gradient_accumulation_steps": 2}),
    "bert, LoRA": ("bert", {"peft": lora(["query"]), "max_grad_norm": 1.0, "checkpointing": "reentrant"}),
}  # fmt: skip


def _spec(case: str) -> TraceSpec:
    family, options = CASES[case]
    config, task, _ = FAMILIES[family]
    return TraceSpec(model_config=config, task=task, batch=2, sequence=64, weight_decay_groups=True, **options)


@pytest.fixture(scope="module")
def traces() -> dict[tuple[str, int], TraceResult]:
    keys = [(case, depth) for case in CASES for depth in (*DEPTHS, FULL_DEPTH)]
    answers = run_many([dataclasses.replace(_spec(case), num_layers=depth) for case, depth in keys])
    return {key: answer for key, answer in zip(keys, answers, strict=True) if isinstance(answer, TraceResult)}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_trace_at_full_depth(case: str, traces: dict[tuple[str, int], TraceResult]) -> None:
    shallow = [traces[case, depth] for depth in DEPTHS]
    found, deep = combine(shallow, DEPTHS, FULL_DEPTH), traces[case, FULL_DEPTH]
    assert found.phases == deep.phases
    assert (found.parameters, found.attention, found.guesses) == (deep.parameters, deep.attention, deep.guesses)
    for expandable in (False, True):
        one, other = (replay(entry.allocator_events(), expandable_segments=expandable) for entry in (found, deep))
        assert one == other
    assert "4, 5 and 6" in found.notes[-1]
    # Every parameter of every layer has a gradient of its own.
    gradients = [{s.name for s in entry.storages if s.component == "gradients"} for entry in (found, deep)]
    assert gradients[0] == gradients[1]


def test_the_answer_is_the_same_estimate(traces: dict[tuple[str, int], TraceResult]) -> None:
    recipe = Recipe(model={**LLAMA, "num_hidden_layers": FULL_DEPTH}, micro_batch_size=2, sequence_length=64)
    shallow = [traces["llama", depth] for depth in DEPTHS]
    one = to_estimate(combine(shallow, DEPTHS, FULL_DEPTH), resolve(recipe))
    other = to_estimate(traces["llama", FULL_DEPTH], resolve(recipe))
    assert any("the events of one layer repeated" in text for text in one.assumptions)
    assert one.model_copy(update={"assumptions": ()}) == other.model_copy(update={"assumptions": ()})


def test_traces_that_do_not_grow_alike_are_refused(traces: dict[tuple[str, int], TraceResult]) -> None:
    low, middle, high = (traces["bert", depth] for depth in DEPTHS)
    storages = list(high.storages)
    index = next(s.id for s in storages if ".layer.4." in s.module and s.op == "addmm")
    storages[index] = dataclasses.replace(storages[index], size_bytes=storages[index].size_bytes + 512)
    with pytest.raises(UnsupportedError, match="cannot be extrapolated") as caught:
        combine([low, middle, dataclasses.replace(high, storages=storages)], DEPTHS, 40)
    assert caught.value.code == "layers_differ"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_config": {**LLAMA, "layer_types": ["full_attention", "sliding_attention"]}}, "layer_types"),
        ({"model_config": {**LLAMA, "model_type": "jamba"}}, "jamba"),
        ({"peft": lora("all-linear", layers_to_transform=[0])}, "layers_to_transform"),
        ({"peft": lora(r".*\.layers\.(0|1)\.self_attn\.q_proj")}, "by number"),
        ({"peft": lora("all-linear", rank_pattern={"layers.1.q_proj": 4})}, "by number"),
        ({"trainable": ("model.layers.1.*",)}, "by number"),
        ({"model_config": {**LLAMA, "model_type": "qwen3_moe", "mlp_only_layers": [0]}}, "experts"),
    ],
)
def test_layers_that_are_not_alike_are_refused(changes: dict[str, Any], words: str) -> None:
    spec = TraceSpec(**{"model_config": LLAMA, **changes})
    assert words in refusal(spec)
    with pytest.raises(UnsupportedError, match="cannot be extrapolated"):
        extrapolate(spec)


def test_names_with_digits_are_no_layers() -> None:
    assert refusal(TraceSpec(model_config=LLAMA, peft=lora(["w1", "fc2", "q_proj"]))) == ""


def test_what_cannot_be_extrapolated_is_traced_in_full_and_says_so() -> None:
    told: list[tuple[float, str]] = []
    recipe = Recipe(model={**LLAMA, "model_type": "olmo", "num_hidden_layers": 7}, sequence_length=16)
    estimate = cli.answer(resolve(recipe), layers="auto", progress=lambda part, words: told.append((part, words)))
    assert any(text.startswith("traced at full depth: these layers cannot") for text in estimate.assumptions)
    assert [words for _, words in told[-6:]] == [
        "forward of step 1", "backward of step 1", "optimizer step 1",
        "forward of step 2", "backward of step 2", "optimizer step 2",
    ]  # fmt: skip
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < fractions[-1] <= 1


@pytest.mark.parametrize("wrong", ["5", "-1", "half", "", "6.5"])
def test_other_depths_are_refused(wrong: str) -> None:
    with pytest.raises(InvalidValueError, match="a number from 6"):
        cli.check_layers(wrong)
    assert (cli.check_layers("auto"), cli.check_layers("full"), cli.check_layers("12")) == (6, 0, 12)
