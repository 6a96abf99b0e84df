"""An estimate against a budget and a GPU.

Of every limit: `over` where the expected bytes are beyond it, `within` where the upper bound is within it and everything is
covered, else `uncertain`. The expected bytes are those of the level. The upper bound is

    device, headroom auto       the verdict's: highest known CUDA context and the margin (`memplan.catalog.calibration`)
    reserved                    the same margin above the reserved peak, no context
    allocated                   the stated margin above the allocated peak: measured margins are of reserved memory
    a headroom that was said    expected + headroom; against a GPU it may widen the verdict's bound and never narrows it
"""

from __future__ import annotations

from dataclasses import replace

from memplan.budget.config import CheckSpec, Level
from memplan.budget.result import Limit, LimitKind, Status
from memplan.catalog.calibration import margin
from memplan.catalog.cuda_context import cuda_context
from memplan.catalog.gpus import Gpu, get_gpu, list_gpus
from memplan.estimate import Estimate
from memplan.verdict import run_of_estimate


def peak_bytes(estimate: Estimate, level: Level) -> int:
    """The peak at a level."""
    peak = estimate.peak
    return {
        Level.ALLOCATED: peak.allocated_bytes,
        Level.RESERVED: peak.reserved_bytes,
        Level.DEVICE: peak.device_bytes,
    }[level]


def judge_limits(spec: CheckSpec, estimate: Estimate, gpu: str | None) -> tuple[Limit, ...]:
    """The budget and the GPU of a check, each judged.

    Args:
        spec: the check.
        estimate: of its recipe, made for `gpu`.
        gpu: the card; None for none.
    """
    found = []
    row = get_gpu(gpu) if gpu is not None else None
    if spec.budget_bytes is not None:
        found.append(_on_budget(spec, estimate, row))
    if row is not None:
        found.append(_on_gpu(spec, estimate, row))
    return tuple(found)


def status_of(expected_bytes: int, upper_bytes: int, limit_bytes: int, covered: bool) -> Status:
    """Where a peak stands against a limit. What is not covered is a lower bound: beyond the limit it is over all the same."""
    if expected_bytes > limit_bytes:
        return Status.OVER
    return Status.WITHIN if upper_bytes <= limit_bytes and covered else Status.UNCERTAIN


def _on_budget(spec: CheckSpec, estimate: Estimate, row: Gpu | None) -> Limit:
    assert spec.budget_bytes is not None
    expected = peak_bytes(estimate, spec.level)
    if spec.headroom is not None:
        upper, text = expected + spec.headroom.of(expected), f"the headroom that was asked for, {spec.headroom.text}"
    else:
        upper, text = _upper(estimate, spec.level, row)
    return Limit(
        kind=LimitKind.BUDGET,
        gpu=row.id if row is not None else None,
        level=spec.level,
        limit_bytes=spec.budget_bytes,
        expected_bytes=expected,
        upper_bytes=upper,
        status=status_of(expected, upper, spec.budget_bytes, not estimate.unsupported),
        margin=text,
        said=f'budget = "{spec.budget}"',
        place=spec.places.get("budget", ""),
    )


def _on_gpu(spec: CheckSpec, estimate: Estimate, row: Gpu) -> Limit:
    verdict = estimate.verdict(row.id)
    expected, upper, text = verdict.expected_bytes, verdict.upper_bytes, verdict.margin
    if spec.headroom is not None and expected + spec.headroom.of(expected) > upper:
        upper, text = expected + spec.headroom.of(expected), f"the headroom that was asked for, {spec.headroom.text}"
    return Limit(
        kind=LimitKind.GPU,
        gpu=row.id,
        level=Level.DEVICE,
        limit_bytes=row.usable_bytes,
        expected_bytes=expected,
        upper_bytes=upper,
        status=status_of(expected, upper, row.usable_bytes, not estimate.unsupported),
        margin=text,
        said=f'gpu = "{row.id}"',
        place=spec.places.get("gpu", ""),
    )


def _upper(estimate: Estimate, level: Level, row: Gpu | None) -> tuple[int, str]:
    card = row if row is not None else _any_card()
    expected, reserved = peak_bytes(estimate, level), estimate.peak.reserved_bytes
    run = run_of_estimate(estimate) if level is not Level.ALLOCATED else None
    added = margin(card, run, reserved, expected)
    context = cuda_context(card).high_bytes if level is Level.DEVICE else 0
    start = reserved + context if level is Level.DEVICE else expected
    # A card that is not named has no calibrated row, and no narrower context than the one that is expected.
    return max(start, expected) + added.bytes, added.text


def _any_card() -> Gpu:
    """A row without a name, an architecture and measured runs: the CUDA context is that of row `unknown`."""
    return replace(list_gpus()[0], id="budget", architecture="", compute_capability=None)
