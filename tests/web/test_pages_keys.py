"""The address says what the recipe says, in one way, and refuses the rest."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.recipe import Recipe
from memplan.web.pages.fields import all_fields, fill
from memplan.web.pages.keys import canonical, query_of, read_query

_CONFIG = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "name": "a&b=c #é\"'+ "}
_SAID: dict[str, Any] = {
    "model": "mistralai/Mistral-7B-v0.1",
    "method": "lora",
    "peft": {"r": 8, "target_modules": ["q_proj"]},
    "lora_dropout": 0.05,
    "target_modules": ("q_proj", "v_proj"),
    "micro_batch_size": 4,
    "activation_checkpointing": True,
    "padding": False,
    "precision": "amp",
    "max_grad_norm": 0.0,
    "gpu": "rtx-4090",
}


def test_every_recipe_key_has_one_input() -> None:
    assert sorted(field.key for field in all_fields()) == sorted(Recipe.model_fields)


def test_what_is_said_comes_back() -> None:
    query = read_query(query_of(_SAID).encode())
    assert not query.mistakes
    assert Recipe(**query.keys) == Recipe(**_SAID)


def test_the_order_is_the_recipes_and_empty_inputs_are_dropped() -> None:
    query = read_query(b"gpu=RTX+4090&micro_batch_size=04&lora_r=&method=LoRA&model=mistral-7b-v0.1&x=")
    assert not query.mistakes
    assert query_of(query.keys) == "model=mistralai/Mistral-7B-v0.1&method=lora&micro_batch_size=4&gpu=rtx-4090"


def test_an_inline_config_comes_back_with_every_sign() -> None:
    raw = query_of({"model": _CONFIG})
    assert raw.isascii()
    assert not set(raw) & set("\"'<> #{}")
    assert read_query(raw.encode()).keys["model"] == _CONFIG


@pytest.mark.parametrize("names", [("all-linear",), ("a,b", "c"), (".*_proj",), ("q_proj",)])
def test_a_list_stays_a_list(names: tuple[str, ...]) -> None:
    keys = read_query(query_of({"target_modules": names}).encode()).keys
    assert keys["target_modules"] == list(names)


@pytest.mark.parametrize("text", ["all-linear", r".*\.(q|v)_proj"])
def test_a_word_or_pattern_stays_text(text: str) -> None:
    assert read_query(query_of({"target_modules": text}).encode()).keys["target_modules"] == text


def test_the_old_name_of_checkpointing_is_read() -> None:
    assert read_query(b"gradient_checkpointing=true").keys == {"activation_checkpointing": True}
    twice = read_query(b"gradient_checkpointing=true&activation_checkpointing=false")
    assert [mistake.key for mistake in twice.mistakes] == ["activation_checkpointing"]


@pytest.mark.parametrize(
    ("raw", "key", "words"),
    [
        (b"micro_batch_size=4&micro_batch_size=8", "micro_batch_size", "given twice"),
        (b"micro_batch_size=four", "micro_batch_size", "whole number"),
        (b"micro_batch_size=1e3", "micro_batch_size", "whole number"),
        (b"micro_batch_size=%D9%A3", "micro_batch_size", "whole number"),
        (b"max_grad_norm=nan", "max_grad_norm", "a number"),
        (b"max_grad_norm=inf", "max_grad_norm", "a number"),
        (b"padding=yes", "padding", "true or false"),
        (b"activation_checkpointing=on", "activation_checkpointing", "reentrant"),
        (b"peft=%7B%22r%22:1,%22r%22:2%7D", "peft", "twice"),
        (b"peft=%7B%22r%22:NaN%7D", "peft", "NaN"),
        (b"peft=%5B1%5D", "peft", "JSON object"),
        (b'peft={"r":"\\ud800"}', "peft", "surrogate"),
        (b"model=%7B%22a%22:" + b"%7B%22a%22:" * 40 + b"1" + b"%7D" * 41, "model", "deeply"),
        (b"micro_bacth_size=4", "", "unknown recipe key"),
        (b"model=%ff", "", "cannot be read"),
        (b"&".join(b"a=1" for _ in range(300)), "", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused_where_it_stands(raw: bytes, key: str, words: str) -> None:
    mistakes = read_query(raw).mistakes
    assert [mistake.key for mistake in mistakes] == [key]
    assert words in mistakes[0].message


def test_every_mistake_is_told() -> None:
    query = read_query(b"micro_batch_size=x&lora_r=y&z=1&model=gpt2")
    assert {mistake.key for mistake in query.mistakes} == {"micro_batch_size", "lora_r", ""}
    assert query.keys == {"model": "gpt2"}
    assert query.texts["lora_r"] == "y"


def test_did_you_mean() -> None:
    (mistake,) = read_query(b"micro_bacth_size=4").mistakes
    assert "micro_batch_size" in mistake.hint


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_no_query_string_raises(raw: bytes) -> None:
    query = read_query(raw)
    assert set(query.keys) <= set(Recipe.model_fields)


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=20) | st.integers() | st.booleans(), max_size=4))
@settings(max_examples=200, deadline=None)
def test_any_object_survives_the_address(value: dict[str, Any]) -> None:
    raw = query_of({"model": "gpt2", "peft": value})
    assert read_query(raw.encode()).keys["peft"] == value
    assert dict(parse_qsl(raw))["model"] == "openai-community/gpt2"


def test_canonical_leaves_unknown_names_alone() -> None:
    assert canonical({"gpu": "no such", "model": "nope", "method": "what"}) == {
        "model": "nope",
        "method": "what",
        "gpu": "no such",
    }


def test_the_form_keeps_wrong_texts() -> None:
    query = read_query(b"model=gpt2&lora_r=x&gpu=rtx-9999&dtype=float8&padding=maybe&stack_version=1")
    form = fill(query.texts, query.mistakes)
    inputs = {entry.field.key: entry for fieldset in (*form.main, *form.rest) for entry in fieldset.inputs}
    assert inputs["lora_r"].text == "x"
    assert inputs["lora_r"].mistake is not None
    assert inputs["gpu"].groups[0].options[0].value == "rtx-9999"
    assert inputs["padding"].groups[0].options[0].value == "maybe"
    assert form.rest_is_open
    assert form.rest_said == 2
