from __future__ import annotations

from typing import Any

import pytest

from memplan.errors import InvalidValueError
from memplan.methods import adapt
from tests.methods.matrix import architecture, assert_equals_peft, card_config, compare
from tests.methods.small import DISTILBERT, LLAMA, VIT

TARGETS = {"target_modules": ["k_proj", "down_proj"]}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("CARTRIDGE", {"num_virtual_tokens": 5, "num_frozen_tokens": 2}),
    ("CARTRIDGE", {"num_virtual_tokens": 5, "num_frozen_tokens": 0}),
    ("CPT", {"cpt_token_ids": [1, 2, 3], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]}),
    ("MULTITASK_PROMPT_TUNING", {"num_virtual_tokens": 5, "num_tasks": 3, "num_ranks": 2}),
    ("P_TUNING", {"num_virtual_tokens": 5}),
    ("P_TUNING", {"num_virtual_tokens": 5, "encoder_hidden_size": 7}),
    (
        "P_TUNING",
        {
            "num_virtual_tokens": 5,
            "encoder_reparameterization_type": "LSTM",
            "encoder_hidden_size": 7,
            "encoder_num_layers": 3,
        },
    ),
    ("PREFIX_TUNING", {"num_virtual_tokens": 5}),
    ("PREFIX_TUNING", {"num_virtual_tokens": 5, "prefix_projection": True, "encoder_hidden_size": 13}),
    ("PROMPT_TUNING", {"num_virtual_tokens": 5}),
    ("PROMPT_TUNING", {"num_virtual_tokens": 5, "modules_to_save": ["norm"]}),
]


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize(("peft_type", "options"), CASES, ids=lambda value: str(value)[:70])
def test_equals_peft(peft_type: str, options: dict[str, Any], autocast: bool) -> None:
    assert_equals_peft(LLAMA, "causal-lm", peft_type, options, autocast=autocast)


@pytest.mark.parametrize("peft_type", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"])
def test_classifier_head_is_trained_too(peft_type: str) -> None:
    assert_equals_peft(LLAMA, "sequence-classification", peft_type, {"num_virtual_tokens": 5})


@pytest.mark.parametrize("peft_type", ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"])
def test_encoder_and_decoder_get_prompts(peft_type: str) -> None:
    config = card_config("google-t5/t5-small")
    found, _, _ = compare(config, "seq2seq-lm", peft_type, {"num_virtual_tokens": 5})
    assert found == []


def test_positions_that_each_method_adds() -> None:
    described = architecture(LLAMA, "causal-lm")
    prompt = adapt(described, "prompt-tuning", {"num_virtual_tokens": 5})
    prefix = adapt(described, "prefix-tuning", {"num_virtual_tokens": 5})
    assert (prompt.virtual_tokens, prompt.prefix_key_values) == (5, 0)
    assert (prefix.virtual_tokens, prefix.prefix_key_values) == (0, 5)
    # keys and values of 3 layers for 2 key/value heads of size 12
    assert [parameter.shape for parameter in prefix.added] == [(5, 2 * 3 * 2 * 12)]


def test_width_that_peft_cannot_infer_is_asked_for() -> None:
    described = architecture(DISTILBERT, "sequence-classification")
    with pytest.raises(InvalidValueError, match=r"peft\.token_dim"):
        adapt(described, "prompt_tuning", {"num_virtual_tokens": 5})
    given = {"num_virtual_tokens": 5, "token_dim": 48, "num_attention_heads": 4}
    found, _, _ = compare(DISTILBERT, "sequence-classification", "PROMPT_TUNING", given)
    assert found == []


def test_a_model_without_tokens_cannot_be_prompted() -> None:
    with pytest.raises(InvalidValueError, match="no tokens to prompt"):
        adapt(architecture(VIT, "image-classification"), "prompt_tuning", {"num_virtual_tokens": 5})


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("PROMPT_TUNING", {}, "peft.num_virtual_tokens"),
    ("PROMPT_TUNING", {"num_virtual_tokens": -1}, "a positive integer"),
    ("PROMPT_TUNING", {"num_virtual_tokens": 5, "task_type": None}, "prompt learning needs the task"),
    ("CPT", {"cpt_token_ids": [1], "task_type": "SEQ_CLS"}, "CAUSAL_LM"),
    ("CARTRIDGE", {"num_virtual_tokens": 2, "num_frozen_tokens": 3}, "at most num_virtual_tokens"),
    ("P_TUNING", {"num_virtual_tokens": 5, "encoder_reparameterization_type": "GRU"}, "MLP or LSTM"),
    ("PREFIX_TUNING", {"num_virtual_tokens": 5, "num_layers": "x"}, "peft.num_layers = 'x'"),
    ("PREFIX_TUNING", {"num_virtual_tokens": 5, "encoder_hidden_size": 0}, "peft.encoder_hidden_size = 0"),
]


@pytest.mark.parametrize(("peft_type", "options", "message"), REFUSED, ids=lambda value: str(value)[:70])
def test_refusals(peft_type: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        adapt(architecture(LLAMA, "causal-lm"), None, {**options, "peft_type": peft_type})
