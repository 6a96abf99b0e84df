"""Charts are drawn to scale, and hold the numbers of the estimate."""

from __future__ import annotations

import pytest

from memplan import estimate
from memplan.estimate import Component
from memplan.web.charts import bar_of, timeline_of

KEYS = {"model": "mistralai/Mistral-7B-v0.1", "method": "lora"}


@pytest.mark.parametrize("gpu", ["h100-sxm-80gb", "rtx-4090", "rtx-3060-12gb", None])
def test_the_bar_is_to_scale(gpu: str | None) -> None:
    answer = estimate(**KEYS, gpu=gpu)
    bar = bar_of(answer)
    scale = bar.expected / answer.peak.device_bytes
    for part in bar.parts:
        assert part.width == pytest.approx(part.size_bytes * scale)
    ends = [part.x + part.width for part in bar.parts]
    assert all(end <= nxt.x + 1e-9 for end, nxt in zip(ends, bar.parts[1:], strict=False))
    assert max(ends) <= bar.expected + 1e-9
    sizes = {part.name: part.size_bytes for part in bar.parts}
    for entry in answer.components:
        if entry.component.value in sizes:
            assert sizes[entry.component.value] == entry.bytes
    assert sizes[Component.CUDA_CONTEXT] == answer.peak.device_bytes - answer.peak.reserved_bytes
    verdict = answer.verdict_report
    if verdict is None:
        assert (bar.expected, bar.upper, bar.usable) == (100, None, None)
    else:
        assert bar.upper == pytest.approx(verdict.upper_bytes * scale)
        assert bar.usable == pytest.approx(verdict.usable_bytes * scale)
        assert max(bar.expected, bar.upper, bar.usable) <= 100


def test_the_timeline_holds_every_phase_and_one_peak() -> None:
    answer = estimate(**KEYS, gpu="rtx-4090")
    timeline = timeline_of(answer)
    assert timeline is not None
    assert [(c.step, c.phase, c.peak_bytes, c.end_bytes) for c in timeline.columns] == [
        (p.step, p.phase, p.peak_bytes, p.end_bytes) for p in answer.timeline
    ]
    peaks = [column for column in timeline.columns if column.is_peak]
    assert [column.peak_bytes for column in peaks] == [answer.peak.live_bytes] * len(peaks)
    assert peaks
    for column in timeline.columns:
        assert 0 <= column.top <= column.end <= 100
        assert column.top + column.height == pytest.approx(100)
    assert sum(column.width for column in timeline.columns) == pytest.approx(100)
    assert timeline.limit is not None
    assert 1 <= len(timeline.ticks) <= 4


def test_without_a_walk_there_is_no_timeline() -> None:
    answer = estimate(**KEYS)
    assert timeline_of(answer.model_copy(update={"timeline": ()})) is None
