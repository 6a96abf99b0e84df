from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from memplan.errors import InputError, InvalidValueError, UnknownNameError
from memplan.methods.config import default_target_modules, resolve_config
from memplan.methods.registry import list_methods
from tests.methods import peft_tables


def test_tables_are_those_of_the_installed_peft() -> None:
    assert peft_tables.PATH.read_text(encoding="utf-8") == peft_tables.render()


@pytest.mark.parametrize("peft_type", ["LORA", "LOHA", "IA3", "PREFIX_TUNING", "VERA", "OFT"])
def test_an_adapter_config_as_peft_saves_it_is_accepted(peft_type: str) -> None:
    saved = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type)](task_type="CAUSAL_LM").to_dict()
    saved["inference_mode"] = True  # what save_pretrained writes
    content = json.loads(json.dumps(peft_tables.plain(saved)))
    fields = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type)])}
    found = resolve_config(peft_type.lower(), {key: content[key] for key in content if key in fields}, "causal-lm")
    assert found["inference_mode"] is False
    assert found.keys() == fields


def test_every_default_stands() -> None:
    for method in list_methods():
        if method.peft_type is None:
            continue
        found = resolve_config(method.name, None, "causal-lm")
        assert found["peft_type"] == method.peft_type
        assert found["task_type"] == "CAUSAL_LM"
        assert all(found[key] == value for key, value in method.options.items())


@pytest.mark.parametrize(
    ("task", "task_type"),
    [
        ("sequence-classification", "SEQ_CLS"),
        ("token-classification", "TOKEN_CLS"),
        ("seq2seq-lm", "SEQ_2_SEQ_LM"),
        ("masked-lm", None),
    ],
)
def test_task_type_follows_the_task_unless_given(task: str, task_type: str | None) -> None:
    assert resolve_config("lora", None, task)["task_type"] == task_type
    assert resolve_config("lora", {"task_type": None}, task)["task_type"] is None


def test_default_targets() -> None:
    assert default_target_modules("LORA", "llama") == ["q_proj", "v_proj"]
    assert default_target_modules("IA3", "llama") == ["k_proj", "v_proj", "down_proj"]
    assert default_target_modules("LORA", "modernbert") is None


@pytest.mark.parametrize(
    ("method", "peft", "message"),
    [
        ("lora", {"rank": 8}, "unknown key of LoraConfig 'rank'"),
        ("lora", {"target_module": ["q_proj"]}, "did you mean target_modules"),
        ("loha", {"lora_alpha": 8}, "unknown key of LoHaConfig"),
        ("lora", {"task_type": "CAUSAL"}, "unknown task_type 'CAUSAL'"),
    ],
)
def test_unknown_keys(method: str, peft: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        resolve_config(method, peft, "causal-lm")


def test_a_name_that_sets_an_option_cannot_be_contradicted() -> None:
    with pytest.raises(InputError, match="method = 'dora' means use_dora = True"):
        resolve_config("dora", {"use_dora": False}, "causal-lm")
    given = {"loftq_config": {"loftq_bits": 4, "loftq_iter": 5}}
    assert resolve_config("loftq", given, "causal-lm")["loftq_config"] == given["loftq_config"]


@pytest.mark.parametrize("value", [0, -3, 1.5, True, "8"])
def test_sizes_are_positive_integers(value: object) -> None:
    with pytest.raises(InvalidValueError, match=r"peft\.r"):
        resolve_config("lora", {"r": value}, "causal-lm")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("lora_bias", "x", "true or false"),
        ("use_dora", 1, "true or false"),
        ("lora_alpha", "x", "a number"),
        ("lora_dropout", True, "a number"),
    ],
)
def test_words_for_switches_and_numbers(key: str, value: object, allowed: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        resolve_config("lora", {key: value}, "causal-lm")
    assert str(caught.value) == f"peft.{key} = {value!r} is not allowed: {allowed}"
