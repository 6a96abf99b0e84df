"""A step that was recorded for one batch and sequence answers for others alike; what is not walked says so."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.dtypes import DType
from memplan.engine import estimate
from memplan.errors import InputError, InvalidValueError
from memplan.estimate import Fits
from memplan.prepare import prepare
from memplan.recipe import Loss, Precision, Recipe
from memplan.resolve import resolve
from memplan.step.chunked_loss import chunk_sizes
from memplan.step.dim import Dim, next_power_of_two
from memplan.step.fused_loss import piece_rows
from memplan.training_step import recorded_step, walk
from tests.stacks.cases import AMP, LLAMA

STACKS: list[dict[str, Any]] = [
    {"loss": "fused_linear"},
    {"loss": "fused_linear", **AMP},
    {"loss": "chunked"},
    {"stack": "liger"},
    {"stack": "trl"},
    {"stack": "torchtune"},
    {"stack": "torchtune", "method": "lora", "target_modules": "all-linear", "activation_checkpointing": True},
    {"packing": True},
    {"packing": True, "attn_implementation": "flash_attention_2"},
    {"packing": True, "attn_implementation": "flash_attention_2", "packed_text_tokens": 400},
    {"padding": True, "attn_implementation": "flash_attention_2", "activation_checkpointing": True},
]
SHAPES = ((1, 64), (3, 37), (2, 700), (5, 64), (7, 1000), (1, 9001), (64, 1), (3, 9), (2, 128))


@pytest.mark.parametrize("keys", STACKS, ids=str)
def test_other_shapes_are_what_they_would_be_recorded_as(keys: dict[str, Any]) -> None:
    for batch, length in SHAPES:
        if length == 1 and keys.get("stack") == "trl":
            continue
        model = {**LLAMA, "max_position_embeddings": 16_384}
        resolved = resolve(Recipe(model=model, micro_batch_size=batch, sequence_length=length, **keys))
        prepared = prepare(resolved)
        step, sizes = recorded_step(resolved, prepared)  # of an earlier shape, where it is the same course
        known = [(phase.peak_bytes, phase.end_bytes) for phase in step.walker.run(sizes).phases]
        anew = [(phase.peak_bytes, phase.end_bytes) for phase in walk(resolved, prepared)[1].phases]
        assert known == anew, (batch, length)


@pytest.mark.parametrize(("tokens", "hidden", "vocabulary", "rows"), [
    (16_384, 4096, 32_000, 2048),  # the example in liger_kernel/ops/fused_linear_cross_entropy.py
    (185, 384, 5003, 16), (10, 384, 300, 10), (1, 64, 50_000, 1),
])  # fmt: skip
def test_pieces_of_the_fused_loss(tokens: int, hidden: int, vocabulary: int, rows: int) -> None:
    assert piece_rows(Dim(tokens), hidden, vocabulary) == rows


def test_powers_of_two_follow_their_number() -> None:
    assert [int(next_power_of_two(value)) for value in (1, 2, 3, 4, 5, 1000, 1025)] == [1, 2, 4, 4, 8, 1024, 2048]
    code = next_power_of_two(Dim.variable(5, "S") + 1).terms[0]
    assert eval(code, {"S": 99}) == 128


@pytest.mark.parametrize(("length", "sizes"), [(1, [1]), (7, [1] * 7), (9, [2, 2, 2, 2, 1]), (37, [5] * 7 + [2])])
def test_chunks_are_torchs(length: int, sizes: list[int]) -> None:
    assert chunk_sizes(Dim(length)) == sizes


def test_defaults_of_trl_are_those_of_its_version() -> None:
    found = resolve(Recipe(model=LLAMA, stack="trl"))
    assert (found["loss"], found["precision"], found.dtype) == (Loss.CHUNKED, Precision.AMP, DType.FLOAT32)
    assert found["activation_checkpointing"] is True
    assert "trl/trainer/" in found.sources["loss"]
    older = resolve(Recipe(model=LLAMA, stack="trl", stack_version="1.6.0"))
    assert older["loss"] is Loss.DEFAULT
    assert estimate(Recipe(model=LLAMA, stack="trl", stack_version="1.6.0", gpu="b200")).unsupported
    said = resolve(Recipe(model=LLAMA, stack="trl", precision="pure", activation_checkpointing=False))
    assert (said.dtype, said["activation_checkpointing"]) == (DType.BFLOAT16, False)
    with pytest.raises(InputError, match="not known"):
        resolve(Recipe(model=LLAMA, stack="trl", stack_version="0.5"))
    with pytest.raises(InvalidValueError, match=r"stack_version = 'abc' is not allowed: a version such as 1\.16\.0"):
        resolve(Recipe(model=LLAMA, stack="trl", stack_version="abc"))


def test_defaults_of_torchtune_are_those_of_its_recipes() -> None:
    found = resolve(Recipe(model=LLAMA, stack="torchtune", method="lora"))
    assert (found["loss"], found["precision"], found.dtype) == (Loss.CHUNKED, Precision.PURE, DType.BFLOAT16)
    assert (found["max_grad_norm"], found["activation_checkpointing"]) == (0.0, False)
    assert found["autocast_adapter_dtype"] is False
    assert "recipes/" in found.sources["max_grad_norm"]
    said = resolve(Recipe(model=LLAMA, stack="torchtune", precision="fp32"))
    assert said.dtype is DType.FLOAT32
    with pytest.raises(InputError, match="not known"):
        resolve(Recipe(model=LLAMA, stack="torchtune", stack_version="0.1.0"))


def test_torchtune_has_its_own_rotary_tables_and_no_warm_up() -> None:
    full, lora = (
        estimate(
            Recipe(model={**LLAMA, "max_position_embeddings": 65_536}, stack="torchtune", sequence_length=64, **keys)
        )
        for keys in ({}, {"method": "lora", "target_modules": ("q_proj", "v_proj")})
    )
    table = 65_536 * 64 * 4 + 512
    buffers = [next(part.bytes for part in e.components if part.component == "buffers") for e in (full, lora)]
    assert buffers[1] - buffers[0] == 3 * table  # one for each of four layers, where a full model shares one


def test_components_under_torchtune_are_those_of_the_trace() -> None:
    answer = estimate(Recipe(model=LLAMA, stack="torchtune", micro_batch_size=5, sequence_length=37))
    # Of the trace of "nothing said": the logits of all chunks are not the activations of the layers.
    found = {str(part.component): part.bytes for part in answer.components}
    assert (found["activations"], found["logits_and_loss"]) == (14_485_504, 9_334_272)
    assert any("rotary table of 4096 positions" in text for text in answer.assumptions)


TORCHTUNE = {"stack": "torchtune", "method": "lora", "target_modules": ("q_proj",)}


@pytest.mark.parametrize("keys", [
    {**TORCHTUNE, "target_modules": ("q_proj", "gate_proj")}, {**TORCHTUNE, "target_modules": ("gate_proj",)},
    {**TORCHTUNE, "autocast_adapter_dtype": True}, {**TORCHTUNE, "peft": {"use_rslora": True}},
    {**TORCHTUNE, "peft": {"modules_to_save": ["lm_head"]}}, {**TORCHTUNE, "merge_and_unload": True},
    {**TORCHTUNE, "activation_checkpointing": "reentrant"}, {**TORCHTUNE, "stack_version": "0.5.0"},
    {**TORCHTUNE, "model": {**LLAMA, "model_type": "qwen3"}}, {**TORCHTUNE, "model": {**LLAMA, "attention_bias": True}},
    {**TORCHTUNE, "model": {**LLAMA, "tie_word_embeddings": True}}, {**TORCHTUNE, "model": {**LLAMA, "head_dim": 32}},
    {"stack": "torchtune", "method": "qlora"}, {"stack": "torchtune", "method": "ia3"},
    {"stack": "torchtune", "packing": True}, {"stack": "torchtune", "precision": "amp"},
    {"stack": "torchtune", "dtype": "float16"}, {"stack": "torchtune", "attn_implementation": "eager"},
    {"stack": "torchtune", "loss": "fused_linear"}, {"stack": "torchtune", "keep_outputs": True},
    {"stack": "torchtune", "save_strategy": "steps"}, {"stack": "torchtune", "eval_strategy": "steps"},
    {"stack": "torchtune", "max_new_tokens": 8}, {"stack": "torchtune", "trainable": ("lm_head.weight",)},
    {"stack": "torchtune", "task": "sequence-classification"}, {"stack": "torchtune", "use_cache": True},
    {"stack": "unsloth"}, {"stack": "trl", "keep_outputs": True},
    {"stack": "trl", "loss": "default"}, {"stack": "trl", "method": "lora", "load_in_8bit": True},
    {"stack": "trl", "method": "lora", "target_modules": ("lm_head", "q_proj")}, {"stack": "liger", "loss": "chunked"},
    {"stack": "liger", "model": {**LLAMA, "model_type": "gemma"}}, {"stack": "liger", "gpu": "rtx-5090"},
    {"stack": "liger", "stack_version": "0.5.0"}, {"loss": "fused_linear", "trainable": ("lm_head.weight",)},
    {"loss": "fused_linear", "task": "sequence-classification"},
    {"loss": "chunked", "model": {**LLAMA, "model_type": "gemma2"}}, {"stack": "trl", "sequence_length": 1},
    {"packing": True, "padding": True},
    {
        "stack": "trl", "packing": True, "attn_implementation": "flash_attention_2",
        "model": {**LLAMA, "model_type": "stablelm"},
    },
    {"packing": True, "micro_batch_size": 1, "sequence_length": 1, "attn_implementation": "flash_attention_2"},
    {"packing": True, "attn_implementation": "flash_attention_2", "eval_strategy": "steps"},
    {"packing": True, "use_cache": True},
    {"stack": "trl", "model": {**LLAMA, "model_type": "mistral", "sliding_window": 20}},
], ids=str)  # fmt: skip
def test_what_no_trace_confirms_never_fits(keys: dict[str, Any]) -> None:
    answer = estimate(Recipe(**{"model": LLAMA, "gpu": "b200", "sequence_length": 64, **keys}))
    assert answer.unsupported
    assert answer.verdict().fits is not Fits.FITS
