"""The backward pass: graphs small enough to be worked out by hand, and random ones against torch itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from memplan.dtypes import DType
from memplan.estimate import Component, Phase
from memplan.step import ops
from memplan.step.autograd import backward, checkpoint
from memplan.step.reentrant import checkpoint_reentrant
from memplan.step.tensor import Leaf, Tape, Tensor

F32 = DType.FLOAT32
SHAPE = (8, 16)
BLOCK = 512


@pytest.fixture
def tape() -> Tape:
    tape = Tape()
    tape.enter(Phase.FORWARD)
    return tape


def parameter(tape: Tape, name: str = "weight", shape: tuple[int, ...] = SHAPE) -> Tensor:
    return Tensor(tape, shape, F32, None, Leaf(name, shape, F32))


def run_backward(tape: Tape, out: Tensor) -> None:
    """Backward from `out`, whose gradient is one more tensor."""
    tape.enter(Phase.BACKWARD)
    grad = tape.new(out.shape, F32, "ones_like")
    node, out.node = out.node, None
    backward(tape, node, grad)


def made_in_backward(tape: Tape) -> list[str]:
    """Names of what backward allocated, in order."""
    return [
        tape.infos[event].op
        for segment in tape.segments
        if segment.phase == Phase.BACKWARD
        for event in segment.events
        if event >= 0
    ]


def left(tape: Tape) -> list[tuple[str, Component]]:
    """What is alive."""
    alive: dict[int, None] = {}
    for segment in tape.segments:
        for event in segment.events:
            if event >= 0:
                alive[event] = None
            else:
                del alive[~event]
    return [(tape.infos[index].module, tape.infos[index].component) for index in alive]


def grad_of(tensor: Tensor) -> Any:
    assert isinstance(tensor.node, Leaf)
    return tensor.node.grad


# -- leaves -----------------------------------------------------------------------------------------------


def test_the_first_gradient_of_a_parameter_is_stolen(tape: Tape) -> None:
    weight = parameter(tape)
    run_backward(tape, ops.silu(tape, weight))
    # silu saved a parameter, which is not on the tape; its backward makes the gradient, and nothing copies it.
    assert made_in_backward(tape) == ["ones_like", "silu_backward"]
    assert left(tape) == [("weight", Component.GRADIENTS)]
    assert grad_of(weight).info.op == "silu_backward"


def test_a_gradient_that_somebody_else_holds_is_copied(tape: Tape) -> None:
    a, b = parameter(tape, "a"), parameter(tape, "b")
    run_backward(tape, a + b)
    # add hands the loss's own gradient to both, and the caller holds it too.
    assert made_in_backward(tape) == ["ones_like", "clone", "clone"]
    assert sorted(left(tape)) == [("a", Component.GRADIENTS), ("b", Component.GRADIENTS)]


def test_a_second_micro_batch_adds_in_place(tape: Tape) -> None:
    weight = parameter(tape)
    run_backward(tape, ops.silu(tape, weight))
    first = grad_of(weight)
    run_backward(tape, ops.silu(tape, weight))
    assert grad_of(weight) is first
    assert left(tape) == [("weight", Component.GRADIENTS)]


def test_a_frozen_operand_gets_no_gradient(tape: Tape) -> None:
    weight, frozen = parameter(tape), Tensor(tape, SHAPE, F32, None)
    run_backward(tape, weight * frozen)
    assert made_in_backward(tape) == ["ones_like", "mul"]


def test_nothing_to_train_is_a_bug_of_the_caller(tape: Tape) -> None:
    x = tape.new(SHAPE, F32, "x")
    with pytest.raises(AssertionError, match="nothing to train"):
        run_backward(tape, x * x)


# -- fan-in -----------------------------------------------------------------------------------------------


def test_fan_in_adds_in_place_where_nobody_else_holds_the_first(tape: Tape) -> None:
    x = ops.silu(tape, parameter(tape))
    out = ops.neg(tape, x) * ops.neg(tape, x)
    del x
    run_backward(tape, out)
    # Two products, two negations, their sum in place, then silu.
    assert made_in_backward(tape) == ["ones_like", "mul", "mul", "neg", "neg", "silu_backward"]


def test_fan_in_of_one_tensor_twice_is_a_new_tensor(tape: Tape) -> None:
    x = ops.silu(tape, parameter(tape))
    out = x + x
    del x
    run_backward(tape, out)
    # Both edges carry the very same tensor: adding in place would change the other.
    assert made_in_backward(tape) == ["ones_like", "accumulate_grad", "silu_backward"]


def test_a_view_is_never_added_to_in_place(tape: Tape) -> None:
    weight = parameter(tape)
    x = ops.silu(tape, weight)
    later = ops.neg(tape, tape.view(x, (16, 8)))
    out = ops.neg(tape, tape.view(x, (16, 8))) * later
    del x, later
    run_backward(tape, out)
    assert made_in_backward(tape).count("accumulate_grad") == 1


def test_dependencies_are_counted_anew_by_every_pass(tape: Tape) -> None:
    weight = parameter(tape)
    for _ in range(3):
        x = ops.silu(tape, weight)
        run_backward(tape, x * x)
        del x
    assert left(tape) == [("weight", Component.GRADIENTS)]


def test_saved_tensors_go_when_their_node_has_run(tape: Tape) -> None:
    weight = parameter(tape)
    x = weight
    for _ in range(3):
        x = ops.silu(tape, x)
    run_backward(tape, x)
    live = peak = 0
    for event in tape.segments[-1].events:
        live += BLOCK if event >= 0 else -BLOCK
        peak = max(peak, live)
    # One gradient arrives, one leaves, and each step gives back what it had saved.
    assert peak == 2 * BLOCK
    assert left(tape) == [("", Component.TEMPORARIES), ("weight", Component.GRADIENTS)]  # `x`, and the gradient


def test_the_gradient_of_a_subtrahend_is_negated_before_it_is_summed(tape: Tape) -> None:
    x, mean = parameter(tape, "x"), Tensor(tape, (SHAPE[0], 1), DType.FLOAT16, None)
    mean.node = Leaf("mean", mean.shape, mean.dtype)
    run_backward(tape, ops.sub(tape, x, mean))
    assert made_in_backward(tape) == ["ones_like", "neg", "sum", "_to_copy", "clone"]


# -- checkpointing ----------------------------------------------------------------------------------------


def layer(tape: Tape, weight: Tensor) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        x = ops.silu(tape, x)
        x = x * weight
        x = ops.silu(tape, x)
        return ops.neg(tape, x)

    return call


@pytest.mark.parametrize("kind", [checkpoint, checkpoint_reentrant])
def test_a_checkpoint_keeps_its_input_alone(tape: Tape, kind: Any) -> None:
    embedding, weight = parameter(tape, "embedding"), parameter(tape)
    x = ops.clone(tape, embedding)
    out = kind(tape, layer(tape, weight), x)
    del x
    assert len(left(tape)) == 2  # input and result
    run_backward(tape, out)
    del out
    tape.held.clear()  # what a reentrant checkpoint calls goes with the loss
    assert sorted(left(tape)) == [("embedding", Component.GRADIENTS), ("weight", Component.GRADIENTS)]


def test_recomputation_stops_at_the_last_saved_tensor(tape: Tape) -> None:
    x = ops.clone(tape, parameter(tape, "embedding"))
    out = checkpoint(tape, layer(tape, parameter(tape)), x)
    del x
    run_backward(tape, out)
    # neg needs nothing, so it comes first; then the call is repeated up to the second silu's input, without its neg.
    assert made_in_backward(tape) == [
        "ones_like", "neg", "silu", "mul", "silu_backward", "mul", "mul", "silu_backward",
    ]  # fmt: skip


def test_a_saved_parameter_starts_the_recomputation_and_can_be_its_last(tape: Tape) -> None:
    weight = Tensor(tape, SHAPE, F32, None)  # frozen: nothing but the weight is saved

    def call(x: Tensor) -> Tensor:
        return ops.neg(tape, ops.neg(tape, ops.silu(tape, x)) * weight)

    out = checkpoint(tape, call, ops.clone(tape, parameter(tape, "embedding")))
    run_backward(tape, out)
    assert made_in_backward(tape) == ["ones_like", "neg", "silu", "neg", "mul", "neg", "silu_backward"]


def test_reentrant_recomputation_repeats_the_whole_call_before_its_own_backward(tape: Tape) -> None:
    x = ops.clone(tape, parameter(tape, "embedding"))
    out = checkpoint_reentrant(tape, layer(tape, parameter(tape)), x)
    del x
    run_backward(tape, out)
    assert made_in_backward(tape) == [
        "ones_like", "silu", "mul", "silu", "neg", "neg", "silu_backward", "mul", "mul", "silu_backward",
    ]  # fmt: skip


def test_a_reentrant_checkpoint_keeps_what_its_function_has_of_its_own(tape: Tape) -> None:
    mask = tape.new(SHAPE, F32, "mask")
    tape.module = "table"
    table = tape.new(SHAPE, F32, "table")
    tape.module = ""
    out = checkpoint_reentrant(
        tape, lambda x, mask=mask, table=table: x * mask * table, ops.clone(tape, parameter(tape)), kept=(table,)
    )
    run_backward(tape, out)
    del out, mask, table
    assert [module for module, component in left(tape) if component is not Component.GRADIENTS] == ["table"]
    tape.held.clear()
    assert left(tape) == []


def test_a_result_that_nobody_used_gets_zeros_in_a_reentrant_backward(tape: Tape) -> None:
    weight = parameter(tape)

    def call(x: Tensor) -> tuple[Tensor, ...]:
        probabilities = ops.silu(tape, x * weight)
        return ops.neg(tape, probabilities), probabilities

    out, unused = checkpoint_reentrant(tape, call, ops.clone(tape, parameter(tape, "embedding")))
    assert unused.requires_grad
    run_backward(tape, out)
    # The zeros live on elsewhere, so that the gradient of `neg` is added to them in a tensor of its own.
    assert made_in_backward(tape) == [
        "ones_like", "zeros", "mul", "silu", "neg", "neg", "accumulate_grad", "silu_backward", "mul", "mul",
    ]  # fmt: skip


def test_a_reentrant_checkpoint_gives_every_argument_its_gradient(tape: Tape) -> None:
    parameters = [parameter(tape, name) for name in ("x", "source")]
    x, source = (ops.clone(tape, entry) for entry in parameters)
    first = checkpoint_reentrant(tape, lambda x, source, _: x * source, x, (source, None))
    out = checkpoint_reentrant(tape, lambda x, source: ops.neg(tape, x) * source, first, (source,))
    del x, first
    run_backward(tape, out)
    # Each checkpoint runs again before its own backward; the outer pass adds up the gradients of the shared argument, in place.
    assert made_in_backward(tape) == ["ones_like", "neg", "mul", "mul", "mul", "neg", "mul", "mul", "mul"]
    del source, out
    assert [component for _, component in left(tape)] == [Component.GRADIENTS] * 2


def test_a_reentrant_checkpoint_hands_on_the_gradient_of_a_second_result(tape: Tape) -> None:
    def call(x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return x + bias, bias

    made = ops.clone(tape, parameter(tape, "bias"))
    given = checkpoint_reentrant(tape, call, ops.clone(tape, parameter(tape, "x")), (made,))
    out = checkpoint_reentrant(tape, call, *given[:1], given[1:])
    assert out[1].storage is made.storage
    run_backward(tape, out[0])
    # Nobody used the last bias: zeros. Autograd's graph starts with a leaf that is a result itself, so the sum is a new tensor.
    assert made_in_backward(tape).count("zeros") == 1
    assert made_in_backward(tape).count("accumulate_grad") == 2


def holding(tape: Tape) -> Callable[[Tensor], Tensor]:
    """A call whose node keeps a tensor on its context."""

    def call(x: Tensor) -> Tensor:
        out = ops.silu(tape, x)
        if out.node is not None:
            tape.hold(tape.new((1,), DType.INT32, "offsets"))
        return out * out

    return call


@pytest.mark.parametrize(("kind", "held"), [(None, 1), (checkpoint, 1), (checkpoint_reentrant, 0)])
def test_a_context_keeps_its_attributes_with_the_graph(tape: Tape, kind: Any, held: int) -> None:
    x = ops.clone(tape, parameter(tape))
    out = kind(tape, holding(tape), x) if kind else holding(tape)(x)
    del x
    assert len(tape.held) - (kind is checkpoint_reentrant) == held
    run_backward(tape, out)
    assert len(tape.held) - (kind is checkpoint_reentrant) == held  # a recomputation's own went with its graph


def test_a_broadcast_gradient_is_gone_before_its_sum_is_cast(tape: Tape) -> None:
    wide = ops.clone(tape, parameter(tape))
    narrow = ops.to(tape, ops.clone(tape, parameter(tape, "row", (SHAPE[0], 1))), DType.BFLOAT16)
    run_backward(tape, wide * narrow)
    events = [event for segment in tape.segments if segment.phase == Phase.BACKWARD for event in segment.events]
    names = [("+" if event >= 0 else "-") + tape.infos[max(event, ~event)].op for event in events]
    begin = names.index("+sum")
    assert names[begin : begin + 3] == ["+sum", "-mul", "+_to_copy"]


@pytest.mark.parametrize("kind", [checkpoint, checkpoint_reentrant])
def test_checkpoints_do_nothing_without_gradients(tape: Tape, kind: Any) -> None:
    tape.grad_enabled = False
    out = kind(tape, layer(tape, parameter(tape)), tape.new(SHAPE, F32, "x"))
    assert out.node is None
    assert tape.held == []


def test_a_reentrant_checkpoint_needs_an_input_with_a_gradient(tape: Tape) -> None:
    """Without one, torch warns and trains nothing inside: the reason for `enable_input_require_grads`."""
    weight = parameter(tape)
    out = checkpoint_reentrant(tape, layer(tape, weight), tape.new(SHAPE, F32, "x"))
    assert out.node is None
    assert checkpoint(tape, layer(tape, weight), tape.new(SHAPE, F32, "x")).node is not None


def test_checkpoints_within_a_checkpoint_are_part_of_it(tape: Tape) -> None:
    weight = parameter(tape)
    inner = layer(tape, weight)
    x = ops.clone(tape, parameter(tape, "embedding"))
    out = checkpoint(tape, lambda h: checkpoint(tape, inner, h), x)
    del x
    assert len(left(tape)) == 2
    run_backward(tape, out)
    assert made_in_backward(tape).count("silu_backward") == 2


# -- random graphs against torch --------------------------------------------------------------------------

ROWS, WIDTH = 16, 32  # a tensor is 2048 bytes, a weight 4096: no two kinds are alike


def memory_events(profiler: profile) -> list[int]:
    """Bytes of every CPU allocation (positive) and free (negative), in order of time; Python's numbers left out."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return [size for size in sizes if abs(size) >= BLOCK]


# An instruction makes one more value of what the program has so far.
Instruction = tuple[str, int, int]
PROGRAMS = st.lists(
    st.tuples(st.sampled_from(["mul", "add", "silu", "neg", "clone", "view", "linear", "scale"]), st.integers(0, 9),
              st.integers(0, 9)),
    min_size=1,
    max_size=9,
)  # fmt: skip


class OnTape:
    """The instructions as shape-only ops."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.parameters: dict[str, Tensor] = {}

    def parameter(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self.parameters:
            self.parameters[name] = parameter(self.tape, name, shape)
        return self.parameters[name]

    def apply(self, name: str, a: Any, b: Any, position: int) -> Any:
        tape = self.tape
        match name:
            case "mul":
                return a * b
            case "add":
                return a + b
            case "silu":
                return ops.silu(tape, a)
            case "neg":
                return ops.neg(tape, a)
            case "clone":
                return ops.clone(tape, a)
            case "view":
                return tape.view(tape.view(a, (WIDTH, ROWS)), (ROWS, WIDTH))
            case "scale":
                return ops.scale(tape, a)
            case _:
                return ops.linear(tape, a, self.parameter(f"weight{position % 2}", (WIDTH, WIDTH)))


class OnTorch:
    """The same for real."""

    def __init__(self) -> None:
        self.parameters: dict[str, torch.Tensor] = {}

    def parameter(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name not in self.parameters:
            self.parameters[name] = torch.nn.Parameter(torch.full(shape, 0.01))
        return self.parameters[name]

    def apply(self, name: str, a: Any, b: Any, position: int) -> Any:
        match name:
            case "mul":
                return a * b
            case "add":
                return a + b
            case "silu":
                return torch.nn.functional.silu(a)
            case "neg":
                return -a
            case "clone":
                return a.clone()
            case "view":
                return a.view(WIDTH, ROWS).view(ROWS, WIDTH)
            case "scale":
                return a * 2.0
            case _:
                return torch.nn.functional.linear(a, self.parameter(f"weight{position % 2}", (WIDTH, WIDTH)))


def interpret(machine: OnTape | OnTorch, program: list[Instruction]) -> Any:
    """The last value of a program that starts from two parameters.

    In programs with views every parameter first goes through an op that makes its gradient anew: torch steals a gradient
    that is a view even where others hold its storage, the tape copies it.
    """
    values: list[Any] = [machine.parameter("a", (ROWS, WIDTH)), machine.parameter("b", (ROWS, WIDTH))]
    if any(name == "view" for name, _, _ in program):
        values = [machine.apply("silu", value, value, 0) for value in values]
    for position, (name, left_index, right_index) in enumerate(program):
        a, b = values[-1 - left_index % len(values)], values[-1 - right_index % len(values)]
        values.append(machine.apply(name, a, b, position))
    return values[-1]


def measure(program: list[Instruction]) -> tuple[int, int, int]:
    """Bytes that torch holds after forward, at the most in backward, and after it."""
    machine = OnTorch()
    for name, shape in (("a", (ROWS, WIDTH)), ("b", (ROWS, WIDTH)), ("weight0", (WIDTH, WIDTH)),
                        ("weight1", (WIDTH, WIDTH))):  # fmt: skip
        machine.parameter(name, shape)
    seed = torch.ones(ROWS, WIDTH)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as forward:
        out = interpret(machine, program)
    live = peak = after_forward = sum(memory_events(forward))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        out.backward(seed)
    for size in memory_events(profiler):
        live += size
        peak = max(peak, live)
    return after_forward, peak, live


def predict(program: list[Instruction]) -> tuple[int, int, int]:
    """The same on a tape."""
    tape = Tape()
    tape.enter(Phase.FORWARD)
    machine = OnTape(tape)
    out = interpret(machine, program)
    seed = Tensor(tape, (ROWS, WIDTH), F32, tape.alloc((0,), F32, "seed"), None)  # of no size: the caller's own
    tape.enter(Phase.BACKWARD)
    after_forward = sum(info_size(tape, event) for segment in tape.segments[:-1] for event in segment.events)
    backward(tape, out.node, seed)
    live = peak = after_forward
    for event in tape.segments[-1].events:
        live += info_size(tape, event)
        peak = max(peak, live)
    return after_forward, peak, live


def info_size(tape: Tape, event: int) -> int:
    return tape.infos[event].size_bytes if event >= 0 else -tape.infos[~event].size_bytes


@settings(derandomize=True, deadline=None, max_examples=250)
@given(PROGRAMS)
def test_random_graphs_hold_what_torch_holds(program: list[Instruction]) -> None:
    assert predict(program) == measure(program)
