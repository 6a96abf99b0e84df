"""Evaluation and saving between steps, as the configs of Trainer and of what is built on it ask for them.

Sources: transformers/trainer.py (5.23.0): `evaluate` collects losses alone without `compute_metrics`, which is code and in no
config; `evaluation_loop` casts for `bf16_full_eval` and `fp16_full_eval` only outside of training. axolotl 0.19
core/builders/{base,causal}.py and utils/config/__init__.py; llamafactory 0.9.5 train/sft/workflow.py.

Known limits:
    What a script evaluates or saves without a key that says so is not seen.
    TrainingArguments saves every 500 steps by default: only what a file says itself is taken over, objects hold the default.
"""

from __future__ import annotations

from typing import Any

from memplan.interop.draft import Draft, Source

ROWS = "per_device_eval_batch_size"
_KNOWN = (
    "eval_strategy", "evaluation_strategy", "do_eval", "do_predict", "eval_on_start", ROWS, "prediction_loss_only",
    "eval_accumulation_steps", "max_eval_samples", "predict_with_generate", "batch_eval_metrics", "include_for_metrics",
    "include_inputs_for_metrics", "eval_do_concat_batches", "jit_mode_eval", "metric_for_best_model",
)  # fmt: skip
# What changes the memory of an evaluation, and the walk has no rule for.
_REFUSED = {
    "predict_with_generate": "generation during evaluation",
    "batch_eval_metrics": "metrics of each evaluated batch, after which the cache is emptied",
    "include_for_metrics": "metrics, for which the logits of all evaluated samples are kept",
    "include_inputs_for_metrics": "metrics, for which the logits and inputs of all evaluated samples are kept",
    "jit_mode_eval": "evaluation by a traced model",
}
_ON_START = "an evaluation before the first step, of which the steps find what it leaves in the allocator's cache"
_STRATEGIES = ("no", "steps", "epoch")


def read_evaluation(source: Source, draft: Draft, *, script_evaluates: bool) -> None:
    """The evaluation that Trainer makes between steps, with TrainingArguments' keys.

    Args:
        source: holds them.
        draft: has the batch of training already.
        script_evaluates: `do_eval` and `do_predict` are obeyed after training, as by transformers' example scripts.
    """
    strategy = strategy_of(source)
    source.take(*_KNOWN)
    if script_evaluates and source.flag("do_predict"):
        draft.refuse(source, "do_predict", "predictions after training, whose logits are all kept")
    if source.flag("eval_on_start"):
        draft.refuse(source, "eval_on_start", _ON_START)
    if strategy != "no":
        key = "eval_strategy" if source.has("eval_strategy") else "evaluation_strategy"
        draft.use(source, key, "eval_strategy", strategy)
    elif script_evaluates and source.flag("do_eval"):
        # After the last step the memory is that of an evaluation between two.
        draft.use(source, "do_eval", "eval_strategy", "epoch")
    elif not source.flag("eval_on_start"):
        return
    if "eval_strategy" in draft.keys:
        draft.use_or_default(source, ROWS, ROWS, "transformers")
        for key in ("eval_accumulation_steps", "max_eval_samples"):
            if source.has(key):
                draft.use(source, key, key, source.integer(key))
        if source.flag("prediction_loss_only"):  # false is the default, and leaves it to compute_metrics
            draft.use(source, "prediction_loss_only", "prediction_loss_only", True)
    refuse_metrics(source, draft)


def refuse_metrics(source: Source, draft: Draft) -> None:
    """Report what an evaluation keeps or does beyond its losses."""
    draft.refuse_all(source, _REFUSED)
    if source.flag("eval_do_concat_batches") is False:
        draft.refuse(source, "eval_do_concat_batches", "evaluated batches that are kept apart")
    metric = source.get("metric_for_best_model")
    if metric not in (None, "", "loss", "eval_loss") and not source.flag("prediction_loss_only"):
        draft.refuse(
            source,
            "metric_for_best_model",
            f"the metric {str(metric)[:80]}, for which the logits of all evaluated samples may be kept",
        )


def strategy_of(source: Source) -> str:
    """`eval_strategy`, or under its older name.

    Raises:
        FileFormatError: another word than no, steps and epoch.
    """
    return _strategy(source, "eval_strategy" if source.has("eval_strategy") else "evaluation_strategy", _STRATEGIES)


def _strategy(source: Source, key: str, allowed: tuple[str, ...]) -> str:
    value: Any = source.get(key)
    # An unquoted `no` is false in YAML 1.1.
    text = "no" if value in (None, False, "") else str(value).lower()
    if text not in allowed:
        raise source.wrong(key, ", ".join(allowed))
    return text


def read_saving(source: Source, draft: Draft) -> None:
    """`save_strategy` where a file says it; an object of TrainingArguments always holds its default."""
    strategy = _strategy(source, "save_strategy", (*_STRATEGIES, "best"))
    if draft.facts.get("objects") or strategy == "no":
        return
    # The best one is saved after an evaluation, with what any checkpoint has.
    draft.use(source, "save_strategy", "save_strategy", "epoch" if strategy == "best" else strategy)


def read_axolotl(source: Source, draft: Draft) -> None:
    """axolotl's evaluation, whose batch is training's unless it is said; an evaluation before the first step belongs to it.

    Without data for it (`val_set_size`, `test_datasets`) axolotl evaluates nothing; a strategy alone still counts, since a file
    that names no data yet is no run.
    """
    strategy = strategy_of(source)
    data = bool(source.number("val_set_size")) or bool(source.get("test_datasets"))
    timed = next((key for key in ("eval_steps", "evals_per_epoch") if source.number(key)), None)
    rows = source.integer("eval_batch_size")
    source.take(*_KNOWN, "eval_sample_packing", "eval_table_size", "do_bench_eval", "eval_max_new_tokens")
    # `eval_steps` decides before `eval_strategy`, and `evals_per_epoch` becomes it.
    if timed is not None and (data or strategy != "no"):
        draft.use(source, timed, "eval_strategy", "steps")
        key = timed
    elif strategy != "no":
        key = "eval_strategy" if source.has("eval_strategy") else "evaluation_strategy"
        draft.use(source, key, "eval_strategy", strategy)
    else:
        return
    if rows is not None:
        draft.use(source, "eval_batch_size", ROWS, rows)
    else:
        draft.follow(ROWS, "micro_batch_size")  # utils/config/__init__.py:215
    draft.follow("eval_accumulation_steps", "gradient_accumulation_steps")  # core/builders/causal.py:244
    draft.refuse(source, key, _ON_START)
    packed = source.flag("eval_sample_packing")
    if packed and not draft.keys.get("packing"):
        draft.refuse(source, "eval_sample_packing", "packed sequences in evaluation only")
    if source.number("eval_table_size"):
        draft.refuse(source, "eval_table_size", "generation during evaluation")
    if source.flag("do_bench_eval"):
        draft.refuse(source, "do_bench_eval", "a benchmark during evaluation, whose logits are kept")
    refuse_metrics(source, draft)
