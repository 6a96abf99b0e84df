"""Evaluation during training: the keys, by the names of TrainingArguments, and the batches that they make.

Source: transformers 5.23 training_args.py; trainer.py (`evaluate`: without `compute_metrics` only losses are collected).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.errors import InputError
from memplan.filler import USER, Filler

KEYS = ("per_device_eval_batch_size", "prediction_loss_only", "eval_accumulation_steps", "max_eval_samples")
# Without a number of samples: losses take four bytes each, and from the second batch on all are alike.
DEFAULT_BATCHES = 2


def fill_evaluation(filler: Filler) -> None:
    """Fill the keys of evaluation in; without `eval_strategy` there are none.

    Raises:
        InputError: logits are collected, and nobody says of how many samples.
    """
    strategy = filler.fill("eval_strategy", "no", "TrainingArguments")
    if strategy == "no":
        return
    rows = filler.fill("per_device_eval_batch_size", 8, "TrainingArguments")
    loss_only = filler.fill("prediction_loss_only", True, "Trainer.evaluate without compute_metrics")
    if "eval_accumulation_steps" in filler.said:
        filler.fill("eval_accumulation_steps", None, USER)
    if not loss_only and "max_eval_samples" not in filler.said:
        raise InputError(
            "max_eval_samples is missing: with prediction_loss_only=false the logits of all evaluated samples are collected",
            hint="give the number of samples of the evaluation set",
        )
    filler.fill(
        "max_eval_samples", DEFAULT_BATCHES * rows, "default: two batches, which are alike where losses are kept"
    )


def eval_batches(values: Mapping[str, Any]) -> tuple[int, ...]:
    """Rows of each batch of an evaluation; none where nothing is evaluated."""
    if values.get("eval_strategy", "no") == "no":
        return ()
    samples, rows = int(values["max_eval_samples"]), int(values["per_device_eval_batch_size"])
    whole, rest = divmod(samples, rows)
    return (rows,) * whole + ((rest,) if rest else ())
