"""The kind of a recipe key's text follows its type; the command line and the page have no kinds of their own."""

from __future__ import annotations

import pytest

from memplan.recipe import Precision, Recipe
from memplan.recipe_text import Kind, choices_of, is_word_or_pattern, kind_of


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("model", Kind.TEXT_OR_OBJECT),
        ("method", Kind.TEXT),
        ("peft", Kind.OBJECT),
        ("lora_r", Kind.INTEGER),
        ("lora_dropout", Kind.NUMBER),
        ("target_modules", Kind.NAMES),
        ("trainable", Kind.LIST),
        ("load_in_4bit", Kind.FLAG),
        ("activation_checkpointing", Kind.FLAG_OR_NAME),
        ("precision", Kind.TEXT),
        ("torch_version", Kind.TEXT),
    ],
)
def test_kind_follows_the_type(key: str, kind: Kind) -> None:
    assert kind_of(key) is kind


def test_choices_follow_the_type() -> None:
    assert choices_of("precision") == tuple(Precision)
    assert choices_of("activation_checkpointing") == ("reentrant", "non-reentrant")
    assert choices_of("bnb_4bit_quant_type") == ("nf4", "fp4")
    assert choices_of("optim") == ()


def test_every_kind_is_some_keys() -> None:
    assert {kind_of(key) for key in Recipe.model_fields} == set(Kind)


@pytest.mark.parametrize("text", ["all-linear", r".*\.q_proj", "layers.(0|1)", "q_proj$"])
def test_words_and_patterns(text: str) -> None:
    assert is_word_or_pattern(text)


@pytest.mark.parametrize("text", ["q_proj", "model.layers.0", "lm-head", "q_proj,v_proj"])
def test_names(text: str) -> None:
    assert not is_word_or_pattern(text)
