"""Measured and traced allocations side by side: a hand-made pair, and the real steps of a small Llama on the CPU."""

from __future__ import annotations

import dataclasses

import pytest

from memplan.errors import InputError
from memplan.measure.history import compare_history, history_text
from memplan.measure.result import MeasureResult, PhaseReading
from memplan.trace.result import Storage, TraceResult
from memplan.trace.runner import run
from memplan.trace.spec import TraceSpec
from tests.measure.conftest import LLAMA

KIB = 1024


def storage(index: int, kib: int, op: str) -> Storage:
    return Storage(index, kib * KIB, (kib * KIB,), "uint8", op, "model.layers.0", "activations", "")


@pytest.fixture
def pair(invented: MeasureResult) -> tuple[MeasureResult, TraceResult]:
    phases = tuple(
        PhaseReading(step=step, phase=phase, peak_allocated_bytes=100 * KIB, end_allocated_bytes=0, first_event=first)
        for step, phase, first in ((0, "load", 0), (1, "forward", 1))
    )
    history = tuple(kib * KIB for kib in (64, 8, 16, -16, 1, 32))
    measured = dataclasses.replace(invented, phases=phases, history=history)
    storages = [storage(0, 0, "")] + [storage(i, kib, f"op{i}") for i, kib in enumerate((64, 8, 24, 32), 1)]
    traced = TraceResult(storages=storages, events=[1, 2, 3, 4], marks=[(0, 0, "load"), (1, 1, "forward")])
    return measured, traced


def test_what_differs_is_named_by_the_traces_op(pair: tuple[MeasureResult, TraceResult]) -> None:
    load, forward = compare_history(*pair)
    assert (load.equal, load.measured, load.traced, load.differences) == (1, 1, 1, ())
    assert (forward.equal, forward.measured, forward.traced) == (2, 3, 3)  # 1 KiB is left out
    (difference,) = forward.differences
    assert difference.measured_bytes == (16 * KIB,)
    assert [entry.op for entry in difference.traced] == ["op3"]
    assert "measured 16.00 KiB; traced op3 in model.layers.0 (24.00 KiB)" in history_text([forward])


def test_without_events_there_is_nothing_to_compare(pair: tuple[MeasureResult, TraceResult]) -> None:
    measured, traced = pair
    with pytest.raises(InputError, match="no allocator events"):
        compare_history(dataclasses.replace(measured, history=()), traced)
    with pytest.raises(InputError, match="different steps"):
        compare_history(dataclasses.replace(measured, phases=measured.phases[:1]), traced)


def test_real_steps_and_their_trace_agree_allocation_by_allocation(on_the_cpu: tuple[TraceSpec, MeasureResult]) -> None:
    """What the trace adds is what a GPU allocates and the CPU does not: BLAS workspaces, softmax backward's product."""
    spec, measured = on_the_cpu
    phases = compare_history(measured, run(spec))
    assert [(entry.step, entry.phase) for entry in phases][:4] == [
        (0, "load"), (1, "forward"), (1, "backward"), (1, "optimizer_step"),
    ]  # fmt: skip
    for entry in phases:
        assert entry.equal == entry.measured, history_text([entry])
    added = [storage.op for entry in phases for gap in entry.differences for storage in gap.traced]
    assert set(added) <= {"caching_allocator_warmup", "cublas_workspace", "bmm", "mul"}
    assert len(added) == 3 + spec.num_steps * LLAMA["num_hidden_layers"]
