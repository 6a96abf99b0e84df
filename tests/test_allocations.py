"""What backward allocates, block by block: the walk's allocations against the trace's, those included that no peak shows."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest

from memplan.estimate import Phase
from memplan.interop.memory_viz import events_of
from memplan.prepare import prepare
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.trace.estimate import spec_of
from memplan.trace.result import TraceResult
from memplan.trace.runner import run_many
from memplan.training_step import recordings, run_of
from memplan.units import BLOCK_BYTES
from tests.test_agreement import ATTENTION, BLOOM, DECODER, GPT2, OPT

# Positions, scalars and the like are a block or a few; the walk has not all of them.
SMALL_BYTES = 3 * BLOCK_BYTES

EAGER = {"attn_implementation": "eager"}
PADDED = {"precision": "amp", "activation_checkpointing": True, "padding": True, "micro_batch_size": 3}
RECIPES: dict[str, dict[str, Any]] = {
    "Qwen3, LoRA, padded, checkpointed": {"model": {"model_type": "qwen3", **DECODER}, "method": "lora", **PADDED},
    "Qwen2, DoRA, reentrant, one sequence": {
        "model": {"model_type": "qwen2", **DECODER}, "method": "dora", **ATTENTION, **EAGER, "micro_batch_size": 1,
        "activation_checkpointing": "reentrant",
    },
    "Cohere": {"model": {"model_type": "cohere", **DECODER}, **EAGER},
    "OPT": {"model": OPT, **EAGER},
    "BLOOM": {"model": BLOOM, **EAGER},
    "GPT-J": {"model": {"model_type": "gptj", **GPT2, "rotary_dim": 32}, **EAGER},
    "GPT-BigCode, padded, checkpointed": {"model": {"model_type": "gpt_bigcode", **GPT2}, **EAGER, **PADDED},
}  # fmt: skip


@cache
def allocated() -> dict[str, tuple[Counter[int], Counter[int]]]:
    """Bytes of each block that the first backward allocates, with how often: by the walk and by the trace."""
    recipes = [resolve(Recipe(**{"micro_batch_size": 2, "sequence_length": 51, **keys})) for keys in RECIPES.values()]
    found = {}
    for name, resolved, traced in zip(RECIPES, recipes, run_many([spec_of(entry) for entry in recipes]), strict=True):
        prepared = prepare(resolved)
        walked = events_of(run_of(recordings(resolved, prepared, fold=False), resolved, prepared))
        found[name] = (_blocks(walked), _blocks(traced))
    return found


def _blocks(run: TraceResult) -> Counter[int]:
    starts = {phase: index for index, step, phase in run.marks if step == 1}
    events = run.events[starts[Phase.BACKWARD] : starts[Phase.OPTIMIZER_STEP]]
    sizes = (run.storages[event].block_bytes for event in events if event > 0)
    return Counter(size for size in sizes if size > SMALL_BYTES)


@pytest.mark.parametrize("name", RECIPES)
def test_backward_allocates_the_same_blocks(name: str) -> None:
    walked, traced = allocated()[name]
    assert walked == traced
