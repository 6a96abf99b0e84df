from __future__ import annotations

from typing import Any

import pytest

from memplan.dtypes import DType
from memplan.errors import InvalidValueError, UnsupportedError
from memplan.methods import adapt
from tests.methods.matrix import architecture, assert_equals_peft
from tests.methods.small import GPT2, LLAMA, QWEN2, TIED_LLAMA

TARGETS = {"target_modules": ["k_proj", "down_proj"]}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("ADAPTION_PROMPT", {"adapter_len": 4, "adapter_layers": 2}),
    ("LN_TUNING", {}),
    ("LN_TUNING", {"target_modules": ["norm", "q_proj"]}),
    ("TRAINABLE_TOKENS", {"token_indices": [1, 4]}),
    ("TRAINABLE_TOKENS", {"token_indices": [1, 4], "target_modules": ["embed_tokens", "lm_head"]}),
]


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize(("peft_type", "options"), CASES, ids=lambda value: str(value)[:70])
def test_equals_peft(peft_type: str, options: dict[str, Any], autocast: bool) -> None:
    assert_equals_peft(LLAMA, "causal-lm", peft_type, options, autocast=autocast)


@pytest.mark.parametrize("targets", [None, ["embed_tokens", "lm_head"]])
def test_trainable_tokens_of_tied_embeddings_equal_peft(targets: list[str] | None) -> None:
    options = {"token_indices": [1, 4], "target_modules": targets}
    assert_equals_peft(TIED_LLAMA, "causal-lm", "TRAINABLE_TOKENS", options)


def test_ln_tuning_is_not_cast() -> None:
    found = adapt(architecture(LLAMA, "causal-lm"), "ln_tuning", None, dtype=DType.BFLOAT16)
    assert {parameter.dtype for parameter in found.added} == {DType.BFLOAT16}


def test_adaption_prompt_of_another_model_is_not_covered() -> None:
    with pytest.raises(UnsupportedError, match="no adaption prompt for qwen2"):
        adapt(architecture(QWEN2, "causal-lm"), "adaption_prompt", {"adapter_len": 4, "adapter_layers": 1})


def test_adaption_prompt_on_gpt2_equals_peft() -> None:
    assert_equals_peft(GPT2, "causal-lm", "ADAPTION_PROMPT", {"adapter_len": 4, "adapter_layers": 1})


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("TRAINABLE_TOKENS", {}, "a list of token indices"),
    ("TRAINABLE_TOKENS", {"token_indices": [97]}, "below the vocabulary of 97"),
    ("TRAINABLE_TOKENS", {"token_indices": [-1]}, "below the vocabulary of 97"),
    ("TRAINABLE_TOKENS", {"token_indices": [1], "task_type": "TOKEN_CLS"}, "PEFT fails to wrap TRAINABLE_TOKENS"),
    ("ADAPTION_PROMPT", {"adapter_layers": 1}, "peft.adapter_len"),
    ("ADAPTION_PROMPT", {"adapter_len": 4, "adapter_layers": 4}, "at most the 3 layers"),
    ("LN_TUNING", {"target_modules": ["nothing"]}, "no module of this llama model matches"),
]


@pytest.mark.parametrize(("peft_type", "options", "message"), REFUSED, ids=lambda value: str(value)[:70])
def test_refusals(peft_type: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        adapt(architecture(LLAMA, "causal-lm"), None, {**options, "peft_type": peft_type})
