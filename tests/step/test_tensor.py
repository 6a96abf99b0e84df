"""Shape-only tensors: sizes, lifetimes, and what autograd saves, on tapes of a few tensors."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.dtypes import DType
from memplan.estimate import Component, Phase
from memplan.step import ops
from memplan.step.dim import symbol_of
from memplan.step.tensor import Dim, Frame, Leaf, Slot, StopRecomputation, Tape, Tensor, count_elements

F32, BF16 = DType.FLOAT32, DType.BFLOAT16


@pytest.fixture
def tape() -> Tape:
    tape = Tape()
    tape.enter(Phase.FORWARD)
    return tape


def leaf(tape: Tape, shape: tuple[int, ...], name: str = "weight") -> Tensor:
    """A trained parameter: a tensor whose storage is not on the tape."""
    return Tensor(tape, shape, F32, None, Leaf(name, shape, F32))


def events(tape: Tape) -> list[int]:
    return [event for segment in tape.segments for event in segment.events]


# -- dimensions -------------------------------------------------------------------------------------------


def test_a_dimension_is_an_integer_with_a_symbol() -> None:
    hidden, batch = Dim(4096, "H"), Dim(4, "B")
    assert hidden == 4096
    assert (hidden * batch, (hidden * batch).symbol) == (16_384, "H·B")
    assert ((hidden * 3).symbol, (3 * hidden).symbol) == ("H·3", "H·3")
    assert (hidden + 1, (hidden + 1).symbol, (1 + hidden).symbol) == (4097, "(H+1)", "(H+1)")
    assert hidden + 0 is hidden
    assert Dim(7).symbol == "7"
    assert (symbol_of(hidden), symbol_of(5)) == ("H", "5")


def test_elements_are_a_plain_integer() -> None:
    assert type(count_elements((Dim(3, "A"), 5))) is int
    assert count_elements(()) == 1
    assert count_elements((4, 0)) == 0


# -- lifetimes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "size"),
    [((), F32, 512), ((128,), F32, 512), ((129,), F32, 1024), ((128,), BF16, 512), ((3, 100), BF16, 1024),
     ((7,), DType.BOOL, 512), ((64,), DType.INT64, 512), ((0,), F32, 0)],
)  # fmt: skip
def test_storages_are_whole_blocks(tape: Tape, shape: tuple[int, ...], dtype: DType, size: int) -> None:
    assert tape.alloc(shape, dtype, "empty").info.size_bytes == size


def test_a_storage_goes_with_its_last_reference(tape: Tape) -> None:
    a = tape.new((4,), F32, "a")
    alias = a
    b = tape.new((4,), F32, "b")
    assert events(tape) == [0, 1]
    del a
    assert events(tape) == [0, 1]
    del alias
    assert events(tape) == [0, 1, ~0]
    del b
    assert events(tape) == [0, 1, ~0, ~1]


def test_a_view_keeps_its_base_alive_and_costs_nothing(tape: Tape) -> None:
    a = tape.new((2, 6), F32, "a")
    view = tape.view(a, (3, 4))
    del a
    assert events(tape) == [0]
    assert (view.shape, view.is_view, view.dtype) == ((3, 4), True, F32)
    del view
    assert events(tape) == [0, ~0]


def test_a_local_variable_keeps_its_tensor_until_the_function_returns(tape: Tape) -> None:
    x = tape.new((4,), F32, "x")

    def function() -> Tensor:
        early = ops.clone(tape, x)
        return ops.clone(tape, early)

    out = function()
    assert events(tape) == [0, 1, 2, ~1]
    assert out.storage is not None


def test_rebinding_frees_after_the_right_side_is_made(tape: Tape) -> None:
    x = tape.new((4,), F32, "x")
    x = ops.clone(tape, x)
    assert events(tape) == [0, 1, ~0]
    assert x.storage is not None


# -- what autograd saves ----------------------------------------------------------------------------------


def test_nothing_is_recorded_where_no_input_needs_a_gradient(tape: Tape) -> None:
    x = tape.new((4,), F32, "x")
    out = x * x
    assert out.node is None
    assert not out.requires_grad
    del x
    assert events(tape) == [0, 1, ~0]


def test_nothing_is_recorded_without_gradients(tape: Tape) -> None:
    tape.grad_enabled = False
    out = leaf(tape, (4,)) * leaf(tape, (4,))
    assert out.node is None


def test_mul_saves_what_the_other_operand_needs(tape: Tape) -> None:
    x = tape.new((4,), F32, "x")
    weight = leaf(tape, (4,))
    out = x * weight
    assert out.requires_grad
    del x  # saved for the weight's gradient
    assert events(tape) == [0, 1]
    assert tape.infos[0].component is Component.ACTIVATIONS
    assert tape.infos[1].component is Component.TEMPORARIES
    del out
    assert events(tape) == [0, 1, ~0, ~1] or events(tape) == [0, 1, ~1, ~0]


def test_one_tensor_saved_by_three_ops_counts_once(tape: Tape) -> None:
    weight = leaf(tape, (4,))
    x = ops.clone(tape, weight)
    kept = [ops.silu(tape, x) for _ in range(3)]
    del x
    assert [info.component for info in tape.infos] == [Component.ACTIVATIONS] + [Component.TEMPORARIES] * 3
    kept.clear()
    assert sorted(events(tape)) == [~3, ~2, ~1, ~0, 0, 1, 2, 3]


def test_add_saves_nothing(tape: Tape) -> None:
    x = ops.clone(tape, leaf(tape, (4,)))
    out = x + x
    del x
    assert events(tape) == [0, 1, ~0]
    assert out.node is not None


def test_a_scope_decides_what_allocations_are_for(tape: Tape) -> None:
    with tape.component(Component.LOGITS_AND_LOSS):
        inside = tape.new((4,), F32, "inside")
        explicit = tape.alloc((4,), F32, "explicit", Component.BUFFERS)
    outside = tape.new((4,), F32, "outside")
    assert [info.component for info in tape.infos] == [
        Component.LOGITS_AND_LOSS, Component.BUFFERS, Component.TEMPORARIES,
    ]  # fmt: skip
    del inside, explicit, outside


def test_saving_makes_an_activation_only_of_what_has_no_other_use(tape: Tape) -> None:
    weight = leaf(tape, (4,))
    with tape.component(Component.LOGITS_AND_LOSS):
        logits = ops.clone(tape, weight)
    out = logits * weight
    assert tape.infos[0].component is Component.LOGITS_AND_LOSS
    del out


def test_broadcasting_and_promotion(tape: Tape) -> None:
    a = tape.new((2, 1, 4), F32, "a")
    b = Tensor(tape, (3, 1), BF16, None)
    assert ((a * b).shape, (a + b).dtype) == ((2, 3, 4), F32)
    assert ops.promote(BF16, DType.FLOAT16) is F32
    assert ops.promote(BF16, DType.INT64) is BF16


# -- workspaces, layers -----------------------------------------------------------------------------------


def test_each_thread_has_one_blas_workspace(tape: Tape) -> None:
    tape.workspace_bytes = 8192
    weight = leaf(tape, (4, 4))
    for _ in range(2):
        ops.linear(tape, tape.new((2, 4), F32, "x"), weight)
    tape.enter(Phase.BACKWARD)
    for _ in range(2):
        tape.alloc((4,), F32, "mm")
    made = [info for info in tape.infos if info.op == "cuBLAS workspace"]
    assert [info.size_bytes for info in made] == [8192, 8192]
    assert list(tape.workspaces) == [Phase.FORWARD, Phase.BACKWARD]


def test_what_outlives_a_repeated_layer_is_freed_once_a_layer(tape: Tape) -> None:
    tape.layer_counts.append(3)
    tape.layer_names.append("layers.1")
    tape.enter(Phase.FORWARD, 1)
    inside = tape.new((4,), F32, "inside")
    del inside
    kept = tape.new((4,), F32, "kept")
    port = tape.new((4,), F32, "port")
    assert port.storage is not None
    port.storage.info.is_port = True
    tape.enter(Phase.FORWARD, 0)
    assert [segment.count for segment in tape.segments] == [1, 3, 1]
    assert tape.segments[1].events == [0, ~0, 1, 2]
    del kept
    assert tape.segments[2].events == [~1, ~1, ~1]
    del port
    assert tape.segments[2].events == [~1, ~1, ~1, ~2]


# -- checkpoint frames ------------------------------------------------------------------------------------


def test_a_frame_holds_no_tensors_in_forward_and_stops_at_the_last_in_recomputation(tape: Tape) -> None:
    weight = leaf(tape, (4,))

    def call(_: Any = None) -> object:
        x = ops.clone(tape, weight)
        x = ops.silu(tape, x)
        return ops.silu(tape, x).node

    runs: list[int] = []

    def recompute(frame: Frame) -> None:
        runs.append(len(tape.infos))
        frame.total, frame.count = frame.count, 0
        tape.frame = frame
        with pytest.raises(StopRecomputation):
            call()
        tape.frame = None

    frame = tape.frame = Frame(recompute)
    graph = call()
    tape.frame = None
    assert graph is not None
    assert frame.count == 2
    assert sorted(events(tape)) == [~2, ~1, ~0, 0, 1, 2]  # nothing is left
    first = Slot(frame, 0).unpack()
    assert first is not None
    assert (first.info.op, first.info.component) == ("clone", Component.ACTIVATIONS)
    assert runs == [3]
    # The second silu saved its input before it ran; the recomputation ended there.
    assert [info.op for info in tape.infos[3:]] == ["clone", "silu"]
    second = Slot(frame, 1).unpack()
    assert second is not None
    assert second.info.op == "silu"
    assert runs == [3]
    assert Slot(frame, 1).unpack() is None  # a slot gives its tensor once
    del first, second
    assert sum(1 for event in events(tape) if event < 0) == 5
