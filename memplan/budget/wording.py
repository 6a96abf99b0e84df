"""Sentences of checks and comparisons that every format shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memplan.budget.result import (
    Attribution,
    CheckReport,
    CheckResult,
    Growth,
    KeyChange,
    Limit,
    LimitKind,
    Outcome,
    Status,
)
from memplan.catalog.gpus import get_gpu
from memplan.report.wording import counted, difference, gib_apart, value_text
from memplan.units import format_bytes

STATUS_WORDS = {
    Status.WITHIN: "within",
    Status.UNCERTAIN: "uncertain",
    Status.GREW: "grew",
    Status.OVER: "over",
    Status.ERROR: "error",
}


_VERDICT_WORDS = {
    "pass": "Pass:", "warn": "Pass:", "over": "Over budget:", "uncertain": "Uncertain:", "error": "Error:",
}  # fmt: skip


def headline_of(report: CheckReport) -> tuple[str, str]:
    """The verdict's word, and the rest of its sentence: `Over budget:`, `1 of 3 checks over`."""
    checks = report.checks
    counts = [
        (sum(one.status in statuses and one.outcome is outcome for one in checks), text)
        for statuses, outcome, text in (
            ({Status.ERROR}, Outcome.ERROR, "could not be judged"),
            ({Status.OVER}, Outcome.FAIL, "over"),
            ({Status.GREW}, Outcome.FAIL, "grew too much"),
            ({Status.UNCERTAIN}, Outcome.FAIL, "uncertain"),
            ({Status.OVER, Status.GREW, Status.UNCERTAIN}, Outcome.WARN, "with a warning"),
        )
    ]
    word = _VERDICT_WORDS[report.verdict]
    found = [f"{count} {text}" for count, text in counts if count]
    limited = any(one.limits or one.growth.limit_bytes is not None for one in checks)
    whole = counted(len(checks), "check")
    if not found and not limited:
        return "Peaks:", f"{counted(len(checks), 'run')}, nothing to judge by"
    if not found:
        return word, f"{whole} within {'their limits' if len(checks) > 1 else 'its limits'}"
    first, _, text = found[0].partition(" ")
    return word, ", ".join([f"{first} of {whole} {text}", *found[1:]])


def run_text(recipe: Mapping[str, Any], model: str) -> str:
    """A run in a few words: `mistralai/Mistral-7B-v0.1, lora, 4 × 2048 tokens, adamw_torch`."""
    batch = f"{recipe.get('micro_batch_size')} × {recipe.get('sequence_length')} tokens"
    checkpointing = "activation checkpointing" if recipe.get("activation_checkpointing") else ""
    return ", ".join(
        str(part) for part in (model, recipe.get("method"), batch, recipe.get("optim"), checkpointing) if part
    )


def limit_name(limit: Limit) -> str:
    """What limits, for a reader."""
    if limit.kind is LimitKind.GPU:
        assert limit.gpu is not None
        return get_gpu(limit.gpu).name
    return "the budget" if str(limit.level) == "device" else f"the budget of {limit.level} memory"


def reasons_of(limits: Sequence[Limit], growth: Growth, unsupported: Sequence[str]) -> tuple[str, ...]:
    """A sentence for each limit that is not kept, which ends with the line to change."""
    found = [_limit_reason(limit, bool(unsupported)) for limit in limits if limit.status is not Status.WITHIN]
    if growth.status is not None and growth.status is not Status.WITHIN:
        found.append(_growth_reason(growth))
    return tuple(found)


def sentences_of(result: CheckResult) -> list[str]:
    """What is to be said of a check: its problem or its reasons, then the message of the budget file."""
    if result.problem is not None:
        sentences = [result.problem.message, *result.problem.hint.splitlines()]
    else:
        sentences = list(result.reasons)
    return [*sentences, result.message] if result.message else sentences


def _limit_reason(limit: Limit, partial: bool) -> str:
    expected, upper, allowed = gib_apart(limit.expected_bytes, limit.upper_bytes, limit.limit_bytes)
    least = "at least " if partial else ""
    where = _where(limit.said, limit.place)
    if limit.status is Status.OVER:
        over = format_bytes(limit.expected_bytes - limit.limit_bytes)
        return f"over {limit_name(limit)}: {least}{expected} expected, {allowed} allowed, {over} too much; {where}"
    if partial:
        return (
            f"not certain for {limit_name(limit)}: at least {expected} of {allowed}, not everything is covered; {where}"
        )
    return (
        f"not certain for {limit_name(limit)}: {expected} expected, up to {upper} possible, {allowed} allowed; {where}"
    )


def _growth_reason(growth: Growth) -> str:
    where = _where(growth.said, growth.place)
    change = growth.change_bytes
    if change is None or growth.before_bytes is None:
        return f"growth is not known: {growth.note}; {where}"
    if growth.status is Status.UNCERTAIN:
        return f"growth is not certain: one side is a lower bound; {where}"
    assert growth.limit_bytes is not None
    return f"grew by {format_bytes(change)}, {format_bytes(growth.limit_bytes)} allowed; {where}"


def _where(said: str, place: str) -> str:
    return f"the limit is {said} in {place}" if place else f"the limit is {said}"


def change_text(change: KeyChange) -> str:
    """`sequence_length 2048 → 4096`; `not set` stands for a key that is not said."""
    return f"{change.key} {_value(change.before)} → {_value(change.after)}"


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    text = value_text(value)
    return text if len(text) <= 80 else text[:77] + "..."


def attribution_text(attribution: Attribution) -> str:
    """Keys and what they did: `sequence_length 2048 → 4096: +6.20 GiB`."""
    keys = ", ".join(change_text(change) for change in attribution.changes)
    return f"{keys}: {difference(attribution.in_order_bytes)}"


def interaction_text(interaction_bytes: int | None, count: int, *, covered: bool) -> str:
    """What the single changes leave unexplained; empty where there is one change alone, or the steps are not covered."""
    if count < 2 or not covered:
        return ""
    if interaction_bytes is None:
        return "some of these changes make no run alone, so the order above decides what each is said to do"
    if interaction_bytes == 0:
        return "each does the same alone: the changes do not interact"
    return f"{difference(interaction_bytes)} of the whole is from the changes together: alone they sum to the rest"


def change_of(result: CheckResult) -> str:
    """The growth of a check in a cell: `+1.50 GiB`, `new`, `0 B`, or nothing."""
    growth = result.growth
    if growth.base in ("new", "failed"):
        return {"new": "new", "failed": "unknown"}[growth.base]
    if growth.change_bytes is None:
        return ""
    return difference(growth.change_bytes) if growth.is_known else "unknown"


def binding_limit(result: CheckResult) -> Limit | None:
    """The limit that decides: the worst one, of equals the one with the least room."""
    if not result.limits:
        return None
    return min(result.limits, key=lambda limit: (-limit.status.rank, limit.limit_bytes - limit.upper_bytes))
