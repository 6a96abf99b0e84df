"""The backward pass: nodes in the order of PyTorch's engine, gradients accumulated as it accumulates them.

Mirrors torch/csrc/autograd/engine.cpp (ready queue by descending sequence number, saved tensors released after a node has
run), input_buffer.cpp (fan-in sums are in place when nobody else holds the first gradient and it is no view) and
functions/accumulate_grad.h (the first gradient of a parameter is stolen, not copied), torch 2.13.

Known limits:
    No higher-order gradients, no hooks, one device thread.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar, cast

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step.tensor import Frame, Leaf, Node, Shape, StopRecomputation, Tape, Tensor

# What a layer returns: a tensor, or several of which only the first is used.
Returned = TypeVar("Returned", Tensor, tuple[Tensor, ...])


def _calibrate_uniqueness() -> tuple[int, int]:
    """What `sys.getrefcount` says inside `_is_unique` for a tensor that only an input buffer holds.

    The figure depends on how the interpreter passes arguments, so it is taken from a known case instead of written down.
    """
    tape = Tape()
    buffers = {0: tape.new((1,), DType.FLOAT32, "probe")}
    return _reference_counts(buffers, 0)


def _reference_counts(buffers: dict[int, Tensor], key: int) -> tuple[int, int]:
    held = buffers[key]
    return sys.getrefcount(held), sys.getrefcount(held.storage)


_UNIQUE = _calibrate_uniqueness()


def backward(tape: Tape, root: Node | Leaf | None, grad: Tensor, others: Sequence[tuple[Node, Tensor]] = ()) -> None:
    """Run the backward pass from `root`, whose gradient is `grad`; gradients end in the leaves' `grad`.

    Args:
        tape: the tape.
        root: what is differentiated.
        grad: its gradient.
        others: what is differentiated besides, with gradients.
    """
    assert isinstance(root, Node), "nothing to train: the loss needs no gradient"
    roots = [root, *(node for node, _ in others)]
    _count_dependencies(roots)
    buffers: dict[int, Tensor] = {id(root): grad, **{id(node): given for node, given in others}}
    ready: list[tuple[int, int, Node]] = [(-node.sequence, 0, node) for node in roots if not node.dependencies]
    heapq.heapify(ready)
    del grad, root, roots, others
    outer_layer, outer_module = tape.current_layer, tape.module
    while ready:
        node = heapq.heappop(ready)[2]
        if node.segment != tape.current_layer:
            tape.enter(tape.phase, node.segment)
        tape.module = node.module
        tape.scope_component = node.component
        # The gradient is moved into the call, as the engine moves it: nothing here keeps it alive meanwhile.
        outputs = list(node.backward(tape, node, buffers.pop(id(node))))
        node.saved = []
        finished: list[Leaf] = []
        edges = node.edges
        node.edges = []
        del node
        for position, edge in enumerate(edges):
            output, outputs[position] = outputs[position], None
            if edge is None:
                continue
            edge.dependencies -= 1
            if output is not None:
                _accumulate(tape, buffers, id(edge), output)
            del output
            if edge.dependencies == 0 and id(edge) in buffers:
                if isinstance(edge, Leaf):
                    finished.append(edge)
                else:
                    heapq.heappush(ready, (-edge.sequence, 0, edge))
        for leaf in finished:
            _accumulate_leaf(tape, leaf, buffers)
        del edges, outputs
    tape.module = outer_module
    tape.scope_component = None
    if tape.current_layer != outer_layer:
        tape.enter(tape.phase, outer_layer)


def _count_dependencies(roots: Sequence[Node]) -> None:
    seen = {id(root) for root in roots}
    for root in roots:
        root.dependencies = 0
    stack = list(roots)
    while stack:
        for edge in stack.pop().edges:
            if edge is None:
                continue
            if id(edge) not in seen:
                seen.add(id(edge))
                edge.dependencies = 0
                if isinstance(edge, Node):
                    stack.append(edge)
            edge.dependencies += 1


def _accumulate(tape: Tape, buffers: dict[int, Tensor], key: int, grad: Tensor) -> None:
    if key not in buffers:
        buffers[key] = grad
        return
    held = buffers[key]
    in_place = not held.is_view and _reference_counts(buffers, key) == (_UNIQUE[0] + 1, _UNIQUE[1])
    if not in_place:
        buffers[key] = tape.new(held.shape, held.dtype, "accumulate_grad")


def _accumulate_leaf(tape: Tape, leaf: Leaf, buffers: dict[int, Tensor]) -> None:
    unique = _reference_counts(buffers, id(leaf)) == _UNIQUE
    grad = buffers.pop(id(leaf))
    if leaf.grad is not None or leaf.accumulates:
        return  # added in place into the gradient that is there; the new one is freed here
    if unique and grad.storage is not None and not grad.by_token:  # stolen only in the parameter's own layout
        grad.storage.info.component = leaf.component
        leaf.grad = grad.storage
    else:
        leaf.grad = tape.alloc(grad.shape, grad.dtype, "clone", leaf.component)
    leaf.grad.info.shape = leaf.shape
    leaf.grad.info.module = leaf.name


def checkpoint(tape: Tape, call: Callable[[Tensor], Returned], x: Tensor) -> Returned:
    """`call(x)` whose saved tensors are recomputed in backward (`use_reentrant=False`, transformers' default).

    Mirrors torch/utils/checkpoint.py: forward keeps only what the recomputation needs (the arguments); the first saved
    tensor that backward asks for runs `call` again up to the last tensor to be saved.
    """
    if not tape.grad_enabled or tape.frame is not None:
        return call(x)
    module, layer = tape.module, tape.current_layer

    def recompute(frame: Frame) -> None:
        frame.total, frame.count = frame.count, 0
        outer_frame, outer_module = tape.frame, tape.module
        tape.frame, tape.module = frame, module
        try:
            call(x)
        except StopRecomputation:
            pass
        finally:
            tape.frame, tape.module = outer_frame, outer_module
            tape.casts.clear()  # autocast's context around the recomputation ends here

    frame = Frame(recompute)
    tape.frame = frame
    try:
        out = call(x)
    finally:
        tape.frame = None
    assert layer == tape.current_layer
    return out


def checkpoint_reentrant(tape: Tape, call: Callable[[Tensor], Returned], x: Tensor, *, kept: object = None) -> Returned:
    """`call(x)` without a graph; backward runs it again with one and a backward pass of its own (`use_reentrant=True`).

    Mirrors torch/utils/checkpoint.py, `CheckpointFunction`: the arguments are saved; in backward the whole call is repeated on
    detached arguments, and its result and the incoming gradient live until the inner backward pass is done. `kept` is what the
    function has of its own, which stays as long as the graph. A result that nobody used has zeros for its gradient.
    """
    if not tape.grad_enabled:
        return call(x)
    module = tape.module
    tape.grad_enabled = False
    try:
        out = call(x)
    finally:
        tape.grad_enabled = True
    tape.held.append(kept)
    unused = [(entry.shape, entry.dtype) for entry in _all(out)[1:]]
    node = tape.record("checkpoint", (x,), (x,), _reentrant_backward, (call, x.shape, x.dtype, module, unused))

    def differentiable(entry: Tensor) -> Tensor:
        return Tensor(tape, entry.shape, entry.dtype, entry.storage, node, entry.is_view, entry.by_token)

    return differentiable(out) if isinstance(out, Tensor) else tuple(map(differentiable, out))


def _all(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (out,) if isinstance(out, Tensor) else out


def _reentrant_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    call, shape, dtype, module, unused = cast(
        tuple[Callable[[Tensor], Tensor | tuple[Tensor, ...]], Shape, DType, str, list[tuple[Shape, DType]]], node.meta
    )
    zeros = [tape.new(*entry, "zeros") for entry in unused]  # autograd materializes them before it calls the function
    storage = node.stored(0) if node.saved else None
    outer, tape.module = tape.module, module
    leaf = Leaf(module, shape, dtype, Component.TEMPORARIES)
    detached = Tensor(tape, shape, dtype, storage, leaf)
    held = len(tape.held)
    out, *rest = _all(call(detached))
    tape.casts.clear()  # autocast's context around the recomputation ends here
    root, out.node = out.node, None
    others = [
        (entry.node, _alias(zero)) for entry, zero in zip(rest, zeros, strict=True) if isinstance(entry.node, Node)
    ]
    for entry in rest:
        entry.node = None
    backward(tape, root, _alias(grad), others)
    tape.module = outer
    made = leaf.grad
    del out, rest, zeros, detached, storage
    del tape.held[held:]  # what the inner graph held goes with it
    return (Tensor(tape, shape, dtype, made) if made is not None else None,)


def _alias(x: Tensor) -> Tensor:
    return Tensor(x.tape, x.shape, x.dtype, x.storage, None, x.is_view, x.by_token)
