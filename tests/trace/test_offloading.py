"""Traces of what real code offloads, beside the walk: host memory, and what the allocator makes of two streams."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from memplan.engine import estimate
from memplan.errors import MemplanError
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.trace.depth import refusal
from memplan.trace.estimate import spec_of, to_estimate
from memplan.trace.result import TraceResult
from memplan.trace.runner import run_many
from tests.stacks.cases import LLAMA

SHAPE: dict[str, Any] = {"model": LLAMA, "micro_batch_size": 8, "sequence_length": 512}
TRL: dict[str, Any] = {**SHAPE, "stack": "trl", "activation_offloading": True}
CHECKPOINTS: dict[str, Any] = {**SHAPE, "activation_checkpointing": True, "activation_offloading": "checkpoints"}

needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="trl is not installed")


def traced(recipe: Recipe) -> TraceResult:
    (result,) = run_many([spec_of(resolve(recipe))])
    assert not isinstance(result, MemplanError), result
    return result


@pytest.mark.parametrize(
    "keys",
    [
        CHECKPOINTS,
        pytest.param(TRL, marks=needs_trl),
        pytest.param({**TRL, "method": "qlora", "gradient_accumulation_steps": 2}, marks=needs_trl),
    ],
    ids=["checkpoints", "saved tensors", "saved tensors, QLoRA"],
)
def test_host_memory_and_reserved_memory_are_the_walks(keys: dict[str, Any]) -> None:
    recipe = Recipe(optim="adamw_torch_fused", **keys)
    result, walked = traced(recipe), estimate(recipe)
    found = to_estimate(result, resolve(recipe))
    assert walked.host_bytes == found.host_bytes == result.host_copies_bytes > 0
    assert walked.peak.reserved_bytes == found.peak.reserved_bytes
    assert walked.peak.allocated_bytes == found.peak.allocated_bytes
    again = TraceResult.from_json(result.to_json())
    assert list(again.allocator_events()) == list(result.allocator_events())
    assert bool(result.second_stream) == bool(result.synchronized) == ("stack" in keys)


def test_tensors_on_their_way_are_not_extrapolated_from_a_few_layers() -> None:
    assert "while the layers after them run" in refusal(spec_of(resolve(Recipe(**TRL))))
    assert not refusal(spec_of(resolve(Recipe(**CHECKPOINTS))))
