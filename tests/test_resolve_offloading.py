from __future__ import annotations

import pytest

from memplan.errors import InvalidValueError
from memplan.recipe import Recipe
from memplan.resolve import resolve

TINY = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 4096,
}  # fmt: skip


def offloading(**keys: object) -> tuple[object, object]:
    resolved = resolve(Recipe(model=TINY, **keys))
    return resolved.values.get("activation_offloading"), resolved.sources.get("activation_offloading")


def test_nothing_is_offloaded_by_default_and_false_says_so() -> None:
    assert offloading() == offloading(activation_offloading=False) == (None, None)


@pytest.mark.parametrize("variant", ["checkpoints", "hidden-states"])
def test_what_a_checkpoint_keeps_needs_checkpointing(variant: str) -> None:
    assert offloading(activation_checkpointing=True, activation_offloading=variant) == (variant, "user")
    with pytest.raises(InvalidValueError, match="only beside activation_checkpointing"):
        offloading(activation_offloading=variant)


def test_saved_tensors_need_no_checkpointing() -> None:
    assert offloading(activation_offloading="saved-tensors")[0] == "saved-tensors"


@pytest.mark.parametrize(
    ("stack", "variant"), [("trl", "saved-tensors"), ("torchtune", "saved-tensors"), ("unsloth", "hidden-states")]
)
def test_true_is_the_stacks_own_switch(stack: str, variant: str) -> None:
    found, source = offloading(stack=stack, activation_checkpointing=True, activation_offloading=True)
    assert found == variant
    assert "user" not in str(source)


def test_true_needs_a_stack_with_such_a_switch() -> None:
    with pytest.raises(InvalidValueError, match="checkpoints, hidden-states or saved-tensors"):
        offloading(activation_checkpointing=True, activation_offloading=True)


def test_hidden_states_have_a_checkpoint_of_their_own() -> None:
    with pytest.raises(InvalidValueError, match="reentrant"):
        offloading(activation_checkpointing="non-reentrant", activation_offloading="hidden-states")


def test_another_word_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="checkpoints"):
        offloading(activation_checkpointing=True, activation_offloading="checkpoint")
