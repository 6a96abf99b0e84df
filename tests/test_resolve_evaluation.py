"""Evaluation's keys: TrainingArguments' defaults, what is refused, the batches that they make."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.errors import InputError, MemplanError
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.resolve_evaluation import HINTS, eval_batches


def values(**keys: Any) -> dict[str, Any]:
    return dict(resolve(Recipe(model="gpt2", **keys)).values)


def test_nothing_is_evaluated_by_default() -> None:
    found = values()
    assert found["eval_strategy"] == "no"
    assert not set(HINTS) & set(found)
    assert eval_batches(found) == ()


@pytest.mark.full_matrix
def test_defaults_are_those_of_training_arguments() -> None:
    from transformers import TrainingArguments

    found, known = values(eval_strategy="epoch"), TrainingArguments(output_dir="unused", eval_strategy="epoch")
    assert found["per_device_eval_batch_size"] == known.per_device_eval_batch_size
    assert found.get("eval_accumulation_steps") == known.eval_accumulation_steps
    assert found["prediction_loss_only"] is True  # without compute_metrics, whatever the argument says


@pytest.mark.parametrize(
    ("samples", "rows", "batches"), [(8, 4, (4, 4)), (9, 4, (4, 4, 1)), (3, 4, (3,)), (1, 1, (1,))]
)
def test_the_last_batch_has_what_is_left(samples: int, rows: int, batches: tuple[int, ...]) -> None:
    assert (
        eval_batches(values(eval_strategy="steps", per_device_eval_batch_size=rows, max_eval_samples=samples))
        == batches
    )


@pytest.mark.parametrize("key", HINTS)
def test_a_key_without_an_evaluation_is_refused(key: str) -> None:
    with pytest.raises(InputError, match="nothing in this recipe uses it") as caught:
        values(**{key: True if key in ("prediction_loss_only", "merge_and_unload") else 4})
    assert caught.value.hint == HINTS[key]


def test_logits_of_an_unknown_number_of_samples_are_refused() -> None:
    with pytest.raises(InputError, match="max_eval_samples is missing"):
        values(eval_strategy="steps", prediction_loss_only=False)


def test_a_wrong_strategy_is_met_with_the_right_one() -> None:
    with pytest.raises(MemplanError, match="did you mean"):
        values(eval_strategy="step")
    with pytest.raises(MemplanError, match="did you mean"):
        values(eval_stategy="steps")
