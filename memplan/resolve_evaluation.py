"""What happens between and after training steps: keys by the names of TrainingArguments, GenerationConfig, TRL and PEFT.

Source: transformers 5.23 training_args.py; trainer.py (`evaluate`: without `compute_metrics` only losses are collected).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.errors import InputError, InvalidValueError
from memplan.filler import USER, Filler

EVALUATION_KEYS = ("prediction_loss_only", "eval_accumulation_steps", "max_eval_samples")
ROWS = "per_device_eval_batch_size"
PROMPT = "max_prompt_length"
# Why a key is refused where nothing uses it.
HINTS = {
    **dict.fromkeys(EVALUATION_KEYS, "nothing is evaluated: say eval_strategy=steps or epoch"),
    ROWS: "nothing is evaluated or generated: say eval_strategy=steps or epoch, or max_new_tokens",
    PROMPT: "nothing is generated: say max_new_tokens",
    "merge_and_unload": "there is no adapter to merge",
}
# Without a number of samples: losses take four bytes each, and from the second batch on all are alike.
DEFAULT_BATCHES = 2


def fill_evaluation(filler: Filler, *, limit: int | None = None) -> None:
    """Fill the keys of evaluation, generation and merging in, where anything is evaluated, generated or merged.

    Args:
        filler: has the length of the sequence already.
        limit: positions of the model, if it has a limit.

    Raises:
        InputError: logits are collected, and nobody says of how many samples; or a prompt with what follows is too long.
    """
    if "max_new_tokens" in filler.said:
        _fill_generation(filler, limit)
    if "save_strategy" in filler.said:
        filler.fill("save_strategy", None, USER)
    if filler.said.get("merge_and_unload") and "peft" in filler.values:
        filler.fill("merge_and_unload", None, USER)
    strategy = filler.fill("eval_strategy", "no", "TrainingArguments")
    if strategy == "no":
        return
    rows = filler.fill(ROWS, 8, "TrainingArguments")
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


def _fill_generation(filler: Filler, limit: int | None) -> None:
    filler.fill(ROWS, 8, "TrainingArguments")
    new_tokens = filler.fill("max_new_tokens", None, USER)
    sequence = filler.values["sequence_length"]
    longest = sequence if limit is None else min(sequence, max(limit - new_tokens, 1))
    prompt = filler.fill(PROMPT, longest, "default: the length of a sequence, within the model's positions")
    if limit is not None and prompt + new_tokens > limit:
        raise InvalidValueError(
            PROMPT, prompt, f"with max_new_tokens = {new_tokens} at most the model's {limit} positions together"
        )


def eval_batches(values: Mapping[str, Any]) -> tuple[int, ...]:
    """Rows of each batch of an evaluation; none where nothing is evaluated."""
    if values.get("eval_strategy", "no") == "no":
        return ()
    samples, rows = int(values["max_eval_samples"]), int(values["per_device_eval_batch_size"])
    whole, rest = divmod(samples, rows)
    return (rows,) * whole + ((rest,) if rest else ())
