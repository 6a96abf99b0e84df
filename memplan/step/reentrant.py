"""Reentrant checkpoints: a function without a graph, which its backward runs again with a graph of its own.

Mirrors torch/utils/checkpoint.py, `CheckpointFunction`, and torch/csrc/autograd/custom_function.cpp, torch 2.13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step.autograd import Results, Returned, backward
from memplan.step.host_copies import HostCopy, move_to_host
from memplan.step.tensor import Leaf, Node, Shape, Tape, Tensor


@dataclass(frozen=True, slots=True)
class Detached:
    """An argument as the backward pass makes it anew.

    Attributes:
        is_saved: whether its storage is on the tape.
    """

    shape: Shape
    dtype: DType
    by_token: bool
    is_saved: bool


@dataclass(slots=True)
class Call:
    """What a checkpoint's node knows.

    Attributes:
        function: called with the arguments, hidden states first.
        module: where.
        arguments: each without a storage; None where none was given.
        results: shape and type of each result but the first; None for what is no tensor.
        copies: of the arguments that wait in host memory.
        gradients: of the results but the first that have one so far, by position.
    """

    function: Callable[..., Tensor | Results]
    module: str
    arguments: list[Detached | None]
    results: list[tuple[Shape, DType] | None]
    copies: list[HostCopy | None] = field(default_factory=list)
    gradients: dict[int, Tensor] = field(default_factory=dict)


def checkpoint_reentrant(
    tape: Tape,
    call: Callable[..., Returned],
    x: Tensor,
    given: Sequence[Tensor | None] = (),
    *,
    kept: object = None,
    saves_input: bool = True,
    offloads: bool = False,
) -> Returned:
    """`call(x, *given)` without a graph; backward runs it again with one and a backward pass of its own.

    The arguments are saved; in backward the whole call is repeated on detached arguments, and its results and the incoming
    gradients live until the inner backward pass is done. All results need a gradient then. `kept` is what the function has of
    its own, which stays as long as the graph. A result that nobody used has zeros for its gradient. Without `saves_input`
    `x` stands elsewhere until then; one that `offloads` keeps all arguments in host memory.
    """
    if not tape.grad_enabled:
        return call(x, *given)
    module = tape.module
    tape.grad_enabled = False
    try:
        out = call(x, *given)
    finally:
        tape.grad_enabled = True
    tape.held.append(kept)
    first, *rest = _all(out)
    arguments = (x, *given)
    made = Call(
        call,
        module,
        [_detached(entry, is_saved=not offloads and (saves_input or entry is not x)) for entry in arguments],
        [(entry.shape, entry.dtype) if entry is not None else None for entry in rest],
        [move_to_host(tape, entry) if entry is not None else None for entry in arguments] if offloads else [],
    )
    saved = () if offloads else arguments if saves_input else tuple(given)
    node = tape.record("checkpoint", arguments, saved, _backward, (made,))
    results: list[Tensor | None] = [_with_node(first, node)]
    for position, entry in enumerate(rest):
        if entry is None or node is None:
            results.append(entry)
            continue
        # One torch node with several outputs: each gradient waits in its input buffer until the last one is there.
        part = tape.record("checkpoint", (results[0],), (), _part_backward, (made, position))
        results.append(_with_node(entry, part))
    return cast(Returned, results[0] if isinstance(out, Tensor) else tuple(results))


def _with_node(x: Tensor, node: Node | Leaf | None) -> Tensor:
    return Tensor(x.tape, x.shape, x.dtype, x.storage, node, x.is_view, x.by_token)


def _detached(x: Tensor | None, *, is_saved: bool) -> Detached | None:
    return Detached(x.shape, x.dtype, x.by_token, is_saved and x.storage is not None) if x is not None else None


def _all(out: Tensor | Results) -> Results:
    return (out,) if isinstance(out, Tensor) else out


def _part_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    call, position = cast(tuple[Call, int], node.meta)
    call.gradients[position] = grad
    return (None,)


def _backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (call,) = cast(tuple[Call], node.meta)
    given: list[Tensor | None] = []  # autograd materializes those that are missing before it calls the function
    for position, kind in enumerate(call.results):
        given.append(call.gradients.pop(position, None) or (tape.new(*kind, "zeros") if kind is not None else None))
    outer, tape.module = tape.module, call.module
    stored = node.all_stored()
    arguments: list[Tensor | None] = []
    leaves: list[Leaf | None] = []
    copies = call.copies or [None] * len(call.arguments)
    for argument, edge, copy in zip(call.arguments, node.edges, copies, strict=True):
        if argument is None:
            arguments.append(None)
            leaves.append(None)
            continue
        made = Leaf(call.module, argument.shape, argument.dtype, Component.TEMPORARIES) if edge is not None else None
        storage = stored.pop(0) if argument.is_saved else copy.bring_back(tape).storage if copy is not None else None
        arguments.append(Tensor(tape, argument.shape, argument.dtype, storage, made, False, argument.by_token))
        leaves.append(made)
        del storage
    held = len(tape.held)
    out, *rest = _all(call.function(*arguments))
    tape.casts.clear()  # autocast's context around the recomputation ends here
    root, out.node = out.node, None
    others = [
        (entry.node, _with_node(zero, None))
        for entry, zero in zip(rest, given, strict=True)
        if entry is not None and entry.node is not None and zero is not None
    ]
    for entry in rest:
        if entry is not None and not isinstance(entry.node, Leaf):
            entry.node = None
    backward(tape, root, _with_node(grad, None), others)
    del others
    tape.module = outer
    del out, rest, given, arguments, stored
    del tape.held[held:]  # what the inner graph held goes with it
    return [
        Tensor(tape, leaf.shape, leaf.dtype, leaf.grad) if leaf is not None and leaf.grad is not None else None
        for leaf in leaves
    ]
