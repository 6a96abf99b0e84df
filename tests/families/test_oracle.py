"""The comparison with transformers can fail: each kind of difference is noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from memplan.architecture import Architecture, Parameter
from memplan.families import Head, describe
from memplan.model_config import normalise_config
from memplan.recipe import Task
from memplan.step.settings import StepSettings
from tests.families.oracle import assert_same, on_meta
from tests.families.recordings import assert_balanced

BERT: dict[str, Any] = {
    "model_type": "bert", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 50,
    "vocab_size": 97,
}  # fmt: skip
HEAD = Head(Task.MASKED_LM)

CHANGES: dict[str, Callable[[Architecture], Architecture]] = {
    "module": lambda a: replace(a, modules=a.modules[1:]),
    "shape": lambda a: replace(
        a, modules=(replace(a.modules[0], parameters=(Parameter("weight", (97, 23)),)), *a.modules[1:])
    ),
    "kind": lambda a: replace(a, modules=(replace(a.modules[0], class_name="Linear"), *a.modules[1:])),
    "tie": lambda a: replace(a, tied={}),
    "buffer": lambda a: replace(a, buffers=a.buffers[1:]),
    "input embedding": lambda a: replace(a, input_embeddings="bert.embeddings.position_embeddings"),
    "output embedding": lambda a: replace(a, output_embeddings=None),
    "prefix": lambda a: replace(a, base_model_prefix="model"),
    "layers": lambda a: replace(a, layer_groups={"bert.encoder.layer": 2}),
    "head": lambda a: replace(a, head_modules=("classifier",)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_wrong_description_is_noticed(change: Callable[[Architecture], Architecture]) -> None:
    architecture = describe(normalise_config(BERT), HEAD)
    model = on_meta(BERT, HEAD)
    assert_same(architecture, model)
    with pytest.raises(AssertionError):
        assert_same(change(architecture), model)


def test_a_parameter_without_gradient_is_noticed() -> None:
    with pytest.raises(AssertionError):
        assert_balanced(BERT, HEAD, StepSettings(batch=1, sequence=8), unused=r"word_embeddings")
