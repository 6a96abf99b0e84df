"""Steps of encoders and encoder-decoders against the trace, where kernels, casts and variables decide what is alive."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.agreement.cases import small_config
from memplan.compare import compare
from tests.methods.agreement import Agreement, recipe

FLOAT16 = {"dtype": "float16", "precision": "pure"}
AMP = {"dtype": "float32", "precision": "amp"}
BFLOAT16 = {"dtype": "bfloat16", "precision": "pure"}
# More than 1536 rows: bitsandbytes always dequantizes there, whatever the GPU.
MANY_ROWS = {"micro_batch_size": 13, "sequence_length": 129}
ODD = {"micro_batch_size": 4, "sequence_length": 257}
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")

CASES: dict[str, dict[str, Any]] = {
    # Autocast's softmax is float32, and so is the dropout on it.
    "xlm-roberta, LoRA, float16 amp, eager, checkpointed": {
        "model": small_config("xlm-roberta"), **AMP, "autocast_dtype": "float16", "method": "lora",
        "attn_implementation": "eager", "activation_checkpointing": True,
    },
    "distilbert, BEFT, amp, eager, padded": {
        "model": small_config("distilbert"), **AMP, "method": "beft", "attn_implementation": "eager", "padding": True,
        "activation_checkpointing": True, "task": "token-classification", "target_modules": ("q_lin", "v_lin"),
    },
    # VeRA's inner product goes before the outer one is scaled.
    "roberta, VeRA, padded, T4": {
        "model": small_config("roberta"), **BFLOAT16, "method": "vera", "padding": True, "gpu": "t4",
        "task": "sequence-classification",
    },
    # The pooler's input is [B, H].
    "bert, OFT, amp": {
        "model": small_config("bert"), **AMP, "method": "oft", "task": "sequence-classification",
        "target_modules": ("dense", "query"),
    },
    # cuDNN takes no dropout of 0.1; without a mask an encoder's unfused attention has none.
    "bert, padded, H100": {"model": small_config("bert"), **BFLOAT16, **ODD, "padding": True, "gpu": "h100"},
    "bert, T4": {"model": small_config("bert"), **BFLOAT16, **ODD, "gpu": "t4"},
    # No fused kernel takes bfloat16 there: the trained bias is added to the scores.
    "t5, padded, T4": {"model": small_config("t5"), **BFLOAT16, **ODD, "padding": True, "gpu": "t4"},
    # The bias of cross-attention has the queries' type, and what a layer is given lives as long as its checkpoint.
    "t5, VeRA, amp, eager, checkpointed, outputs kept": {
        "model": small_config("t5"), **AMP, "method": "vera", "attn_implementation": "eager", "padding": True,
        "activation_checkpointing": True, "keep_outputs": True, "gradient_accumulation_steps": 3,
    },
    "mt5, LoKr, amp, checkpointed": {
        "model": small_config("mt5"), **AMP, "method": "lokr", "activation_checkpointing": True, "gpu": "h100",
    },
    "t5, float16": {"model": small_config("t5"), **FLOAT16, "target_length": 37},
    "mt5, OFT, float16, eager, checkpointed": {
        "model": small_config("mt5"), **FLOAT16, "method": "oft", "attn_implementation": "eager",
        "activation_checkpointing": True, "padding": True,
    },
    # The decoder is given no mask and makes one of ones, which sdpa does without.
    "bart, padded, H100": {"model": small_config("bart"), **BFLOAT16, **ODD, "padding": True, "gpu": "h100"},
    "bart, float16, padded, eager": {
        "model": small_config("bart"), **FLOAT16, "padding": True, "attn_implementation": "eager",
    },
    "mbart, DoRA, float16": {
        "model": small_config("mbart"), **FLOAT16, "method": "dora", "sequence_length": 45, "target_modules": ATTENTION,
    },
    "modernbert, H100": {"model": small_config("modernbert"), **BFLOAT16, **ODD, "gpu": "h100"},
    "modernbert, LoRA, float16, eager, checkpointed": {
        "model": small_config("modernbert"), **FLOAT16, "method": "lora", "target_modules": ("Wqkv", "Wo"),
        "attn_implementation": "eager", "activation_checkpointing": True, "micro_batch_size": 5, "sequence_length": 21,
    },
    # A masked language model's head is in the checkpoint and is quantized with it.
    "bert, QLoRA": {"model": small_config("bert"), "method": "qlora", **MANY_ROWS},
    "t5, QLoRA, eager, padded": {
        "model": small_config("t5"), "method": "qlora", "attn_implementation": "eager", "padding": True, **MANY_ROWS,
        "activation_checkpointing": True,
    },
    # The bias of the logits is loaded first and stays as loaded; DoRA copies a layer's bias with it.
    "bart, DoRA on 4 bits, T4": {
        "model": small_config("bart"), "method": "dora", "load_in_4bit": True, **AMP, "gpu": "t4", **MANY_ROWS,
        "prepare_model_for_kbit_training": True, "activation_checkpointing": True,
    },
    # The result in 32 bits goes through attention in 16, as autocast has it.
    "bloom, QLoRA": {"model": small_config("bloom"), "method": "qlora", **MANY_ROWS},
    "gpt2, IA3 on 4 bits": {"model": small_config("gpt2"), "method": "ia3", "load_in_4bit": True, **AMP, **MANY_ROWS},
}  # fmt: skip
STEPS = Agreement(CASES)


@pytest.mark.parametrize("name", CASES)
def test_walk_equals_trace(name: str) -> None:
    STEPS.check(name)


def test_an_8_bit_layers_input_stays_as_long_as_the_graph() -> None:
    # What depends on the data, LLM.int8's outlier columns, is in neither figure.
    keys = {
        "model": small_config("modernbert"),
        "method": "lora",
        "load_in_8bit": True,
        "target_modules": ("Wqkv", "Wo"),
    }
    (comparison,) = compare([recipe(**keys, **MANY_ROWS, activation_checkpointing=True)], walk_unsupported=True)
    assert [phase for phase in comparison.phases if not phase.is_equal] == []
    assert comparison.phases
