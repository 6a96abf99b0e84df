"""The flash-attn package on whole, padded and packed batches: how memory follows what a batch holds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.dtypes import DType
from memplan.engine import estimate
from memplan.errors import InputError
from memplan.estimate import Estimate, Fits
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.step.attention_kernels import Meta
from memplan.step.flash_attention import varlen_workspaces

# Narrow but for its attention, whose backward is the peak.
MODEL: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 512, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 200, "max_position_embeddings": 65536, "dtype": "bfloat16",
}  # fmt: skip
KEYS: dict[str, Any] = {
    "model": MODEL, "method": "lora", "attn_implementation": "flash_attention_2", "gpu": "a100-80gb",
    "activation_checkpointing": True,
}  # fmt: skip


def peak_of(**keys: Any) -> int:
    return answer(**keys).peak.live_bytes


def answer(**keys: Any) -> Estimate:
    return estimate(Recipe(**{**KEYS, **keys}))


@pytest.mark.parametrize(("heads", "kv_heads", "size", "texts", "expected"), [
    (8, 8, 128, 3, [8 * 1384 * 4, 1384 * 8 * 128 * 4]),
    (8, 2, 80, 1, [8 * 1128 * 4, 1128 * 8 * 96 * 4, 1000 * 8 * 80 * 2, 1000 * 8 * 80 * 2]),
    (2, 1, 160, 10, [2 * 2280 * 4, 2280 * 2 * 192 * 4, 1000 * 2 * 160 * 2, 1000 * 2 * 160 * 2]),
    (2, 2, 256, 1, [2 * 1128 * 4, 1128 * 2 * 256 * 4]),
])  # fmt: skip
def test_what_the_backward_borrows(heads: int, kv_heads: int, size: int, texts: int, expected: list[int]) -> None:
    query = Meta((1000, heads, size), DType.BFLOAT16, False)
    key = Meta((1000, kv_heads, size), DType.BFLOAT16, False)
    assert varlen_workspaces(query, key, texts) == expected


def test_every_text_costs_a_block_of_rows() -> None:
    # 128 rows of 8 heads in float32: 128 elements each for the query's gradient and one for the sums.
    row_bytes = 8 * (128 + 1) * 4
    texts = {
        length: peak_of(packing=True, sequence_length=4096, packed_text_tokens=length) for length in (16, 64, 2048)
    }
    assert texts[16] - texts[64] == pytest.approx((256 - 64) * 128 * row_bytes, abs=2048)
    assert texts[64] - texts[2048] == pytest.approx((64 - 2) * 128 * row_bytes, abs=2048)


@settings(derandomize=True, deadline=None, max_examples=15)
@given(st.integers(1, 5), st.integers(2, 700), st.integers(1, 900), st.integers(1, 900))
def test_shorter_texts_never_take_less(batch: int, length: int, one: int, other: int) -> None:
    keys = {"packing": True, "micro_batch_size": batch, "sequence_length": length}
    short, long = sorted((one, other))
    assert peak_of(**keys, packed_text_tokens=short) >= peak_of(**keys, packed_text_tokens=long)


@settings(derandomize=True, deadline=None, max_examples=15)
@given(st.integers(1, 5), st.integers(2, 700), st.booleans(), st.sampled_from(["full", "lora"]))
def test_padding_never_takes_less(batch: int, length: int, checkpointed: bool, method: str) -> None:
    keys = {
        "micro_batch_size": batch, "sequence_length": length, "activation_checkpointing": checkpointed, "method": method,
    }  # fmt: skip
    assert peak_of(**keys, padding=True) >= peak_of(**keys)


@pytest.mark.parametrize("gpu", ["h100", "b200", "rtx-4090"])
def test_the_package_does_not_follow_the_gpu(gpu: str) -> None:
    """On compute capability 9.0 sdpa would take cuDNN's kernel, which borrows nothing in backward."""
    for batch in ({}, {"padding": True}, {"packing": True}):
        keys = {**batch, "micro_batch_size": 2, "sequence_length": 1000}
        here, there = answer(**keys, gpu=gpu), answer(**keys)
        rest = [dict.fromkeys(("activations", "weights", "adapters", "gradients"), 0) for _ in range(2)]
        for found, found_in in zip(rest, (here, there), strict=True):
            found.update(
                {str(part.component): part.bytes for part in found_in.components if str(part.component) in found}
            )
        assert rest[0] == rest[1]


def test_what_is_assumed_is_said() -> None:
    said = " ".join(answer(packing=True, sequence_length=512).assumptions)
    assert "texts of 32 tokens on average" in said
    assert "packed_text_tokens" in said
    assert "packed rows" not in " ".join(answer(packing=True, sequence_length=512, packed_text_tokens=100).assumptions)
    assert "a padded batch has as many tokens" in " ".join(answer(padding=True, sequence_length=512).assumptions)
    assert not any("padded" in text for text in answer(padding=True, attn_implementation="sdpa").assumptions)


def test_the_default_and_where_the_key_is_refused() -> None:
    found = resolve(Recipe(model=MODEL, packing=True, attn_implementation="flash_attention_2"))
    assert (found["packed_text_tokens"], found.sources["packed_text_tokens"][:8]) == (32, "default:")
    for keys in ({"packing": True}, {"attn_implementation": "flash_attention_2"}):
        with pytest.raises(InputError, match="packed_text_tokens is given, but nothing in this recipe uses it"):
            resolve(Recipe(model=MODEL, packed_text_tokens=100, **keys))


@pytest.mark.parametrize("keys", [
    {"model": {**MODEL, "head_dim": 36}}, {"model": {**MODEL, "head_dim": 264}}, {"gpu": "t4"},
    {"precision": "fp32", "dtype": "float32"}, {"model": {**MODEL, "model_type": "gpt_oss"}, "method": "full"},
    {"padding": True, "method": "prefix_tuning", "num_virtual_tokens": 4, "activation_checkpointing": False},
    {"packing": True, "padding": True},
], ids=str)  # fmt: skip
def test_what_no_trace_confirms_never_fits(keys: dict[str, Any]) -> None:
    found = answer(**{"gpu": "b200", "sequence_length": 64, **keys})
    assert found.unsupported
    assert found.verdict().fits is not Fits.FITS
