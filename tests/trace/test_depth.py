"""Extrapolation over equal layers against the trace at full depth: every peak and end, to the byte."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from trace_cases import LLAMA, lora

from memplan.errors import UnsupportedError
from memplan.trace import TraceResult, TraceSpec, run_many
from memplan.trace.depth import DEPTHS, combine, extrapolate

FULL_DEPTH = 11
CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "full, eager": {"attn_implementation": "eager"},
    "full, checkpointing": {"checkpointing": "reentrant"},
    "lora": {"peft": lora("all-linear")},
    "qlora": {
        "peft": lora("all-linear"),
        "load_in_4bit": True,
        "bnb_4bit_use_double_quant": True,
        "autocast": "bfloat16",
    },
    "full, one token": {"sequence": 1, "batch": 1},
}


@pytest.fixture(scope="module")
def traces() -> dict[tuple[str, int], TraceResult]:
    keys, specs = [], []
    for case, options in CASES.items():
        spec = TraceSpec(model_config=LLAMA, **{"batch": 2, "sequence": 96, **options})
        for depth in (*DEPTHS, FULL_DEPTH):
            keys.append((case, depth))
            specs.append(dataclasses.replace(spec, num_layers=depth))
    answers = run_many(specs)
    return {key: answer for key, answer in zip(keys, answers, strict=True) if isinstance(answer, TraceResult)}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_trace_at_full_depth(case: str, traces: dict[tuple[str, int], TraceResult]) -> None:
    found = combine([traces[case, depth] for depth in DEPTHS], DEPTHS, FULL_DEPTH)
    deep = traces[case, FULL_DEPTH]
    assert found.exact, found.doubts
    assert [(entry.step, entry.phase) for entry in found.phases] == [(entry.step, entry.phase) for entry in deep.phases]
    for entry in found.phases:
        real = deep.phase(entry.step, entry.phase)
        assert (entry.peak_bytes, entry.end_bytes) == (real.peak_bytes, real.end_bytes), (entry, real)
    assert found.peak_bytes == deep.peak.peak_bytes


def test_layers_of_several_kinds_are_refused() -> None:
    spec = TraceSpec(model_config={**LLAMA, "layer_types": ["full_attention", "sliding_attention"]})
    with pytest.raises(UnsupportedError, match="several kinds"):
        extrapolate(spec, 40)
