"""What the flash-attn package allocates, against the sizes that csrc/flash_attn/flash_api.cpp (2.8.3) gives its tensors."""

from __future__ import annotations

from typing import Any

import pytest
from trace_cases import LLAMA

from memplan.errors import MemplanError
from memplan.trace import TraceResult, TraceSpec, run_many

# Two layers, 4 heads of 64 elements on 2 key heads.
HEADS, KEY_HEADS, SIZE, TOKENS = 4, 2, 64, 2 * 128
RUNS: dict[str, dict[str, Any]] = {
    "whole": {"batch": 2, "sequence": 128},
    "padded": {"batch": 2, "sequence": 128, "padding": True},
    "packed": {"batch": 1, "sequence": TOKENS, "packing": True, "packed_sequences": 200},
    "one row": {"batch": 1, "sequence": TOKENS},
    "heads of 36": {"batch": 2, "sequence": 128, "model_config": {**LLAMA, "head_dim": 36}},
}  # fmt: skip


@pytest.fixture(scope="module")
def results() -> dict[str, TraceResult]:
    shared = {"model_config": LLAMA, "attn_implementation": "flash_attention_2", "num_steps": 1}
    found = run_many([TraceSpec.from_dict({**shared, **options}) for options in RUNS.values()])
    assert not [entry for entry in found if isinstance(entry, MemplanError)]
    return {name: entry for name, entry in zip(RUNS, found, strict=True) if isinstance(entry, TraceResult)}


def sizes(result: TraceResult, op: str, layer: int = 0) -> list[int]:
    """Bytes that `op` asks for in one layer, in the order of asking."""
    return [
        storage.size_bytes
        for storage in result.storages
        if storage.op == op and storage.module == f"model.layers.{layer}.self_attn"
    ]


def test_whole_batches(results: dict[str, TraceResult]) -> None:
    query, key = TOKENS * HEADS * SIZE * 2, TOKENS * KEY_HEADS * SIZE * 2
    for name in ("whole", "one row"):
        found = results[name]
        assert sizes(found, "memplan_flash_attn::forward") == [query, HEADS * TOKENS * 4, 16]
        assert sizes(found, "memplan_flash_attn::varlen_forward") == []
        assert sizes(found, "memplan_flash_attn::backward") == [HEADS * TOKENS * 4]
        accumulated = TOKENS * HEADS * SIZE * 4
        assert sizes(found, "memplan_flash_attn::backward (inside)") == [accumulated, query, query]
        assert sizes(found, "empty_like") == [query, key, key]


def test_heads_are_padded_to_a_multiple_of_eight(results: dict[str, TraceResult]) -> None:
    found = results["heads of 36"]
    query = TOKENS * HEADS * 40 * 2
    assert sizes(found, "memplan_flash_attn::forward")[0] == query
    assert sizes(found, "constant_pad_nd")[:3] == [query, query // 2, query // 2]
    # Rounded once more, to a multiple of 32, where the kernel accumulates.
    assert sizes(found, "memplan_flash_attn::backward (inside)") == [TOKENS * HEADS * 64 * 4, query, query]


@pytest.mark.parametrize(("name", "texts"), [("packed", 200), ("padded", 2)])
def test_batches_that_are_taken_apart(results: dict[str, TraceResult], name: str, texts: int) -> None:
    found = results[name]
    query, rows = TOKENS * HEADS * SIZE * 2, TOKENS + 128 * texts
    assert sizes(found, "memplan_flash_attn::forward") == []
    assert sizes(found, "memplan_flash_attn::varlen_forward") == [query, HEADS * TOKENS * 4, 16]
    assert sizes(found, "memplan_flash_attn::varlen_backward") == [HEADS * rows * 4]
    assert sizes(found, "memplan_flash_attn::varlen_backward (inside)") == [rows * HEADS * SIZE * 4, query, query]
    limits = "cat" if name == "packed" else "constant_pad_nd"
    assert (texts + 1) * 4 in sizes(found, limits)
    assert sizes(found, "nonzero") == [texts * 8 if name == "packed" else TOKENS * 8]


def test_padding_is_taken_out_and_put_back(results: dict[str, TraceResult]) -> None:
    found = results["padded"]
    query, key = TOKENS * HEADS * SIZE * 2, TOKENS * KEY_HEADS * SIZE * 2
    # Keys, values, queries; in backward the gradient of what was put back.
    assert sizes(found, "index") == [key, key, query, query]
    assert sizes(found, "zeros") == [query]
    # Their gradients are added into zeros, after six lists of integers have been sorted.
    assert sizes(found, "index_put (inside)") == [TOKENS * 8] * 18
