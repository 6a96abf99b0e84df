"""Every model type, task and method against PEFT on the meta device; every card at full depth by `-m full_matrix`."""

from __future__ import annotations

import pytest

from memplan.cards import card_ids, load_card
from memplan.families import family_of, model_types
from memplan.recipe import Task
from tests.methods.matrix import METHODS, card_config, cell_differences

COVERED = [card_id for card_id in card_ids() if load_card(card_id).config["model_type"] in model_types()]

# Enough to see that a task's head is treated as PEFT treats it; the family's first task gets every method.
PER_TASK = ("lora", "lora-all-linear", "dora", "prompt-tuning", "prefix-tuning", "p-tuning", "trainable-tokens")


def tasks_of(card_id: str) -> tuple[Task, ...]:
    model_type = load_card(card_id).config["model_type"]
    return family_of(model_type).tasks_of(model_type)


def first_of_each_model_type() -> list[tuple[str, Task, tuple[str, ...]]]:
    """One card a model type with every task of it, and the methods to compare."""
    cards: dict[str, str] = {}
    for card_id in COVERED:
        cards.setdefault(load_card(card_id).config["model_type"], card_id)
    return [
        (card_id, task, tuple(METHODS) if index == 0 else PER_TASK)
        for card_id in cards.values()
        for index, task in enumerate(tasks_of(card_id))
    ]


@pytest.mark.parametrize(("card_id", "task", "methods"), first_of_each_model_type())
def test_two_layers_of_each_model_type(card_id: str, task: Task, methods: tuple[str, ...]) -> None:
    config = card_config(card_id, layers=2)
    found = {method: differ for method in methods if (differ := cell_differences(config, task, method))}
    assert found == {}


@pytest.mark.full_matrix
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("card_id", COVERED)
def test_every_card_at_full_depth(card_id: str, method: str) -> None:
    config = card_config(card_id, layers=None)
    for task in tasks_of(card_id):
        assert cell_differences(config, task, method) == []
