"""The backward pass: nodes in the order of PyTorch's engine, gradients accumulated as it accumulates them.

Mirrors torch/csrc/autograd/engine.cpp (ready queue by descending sequence number, saved tensors released after a node has
run), input_buffer.cpp (fan-in sums are in place when nobody else holds the first gradient and it is no view) and
functions/accumulate_grad.h (the first gradient of a parameter is stolen, not copied), torch 2.13.

Known limits:
    No higher-order gradients, no hooks but an optimizer's (`memplan.step.in_backward`), one device thread.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar, cast

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step.host_copies import move_to_host
from memplan.step.tensor import Frame, Leaf, Node, Packed, StopRecomputation, Tape, Tensor, count_elements

# What a layer returns: a tensor, or several of which the first is the hidden states.
Results = tuple[Tensor, *tuple[Tensor | None, ...]]
Returned = TypeVar("Returned", bound=Tensor | tuple[Tensor, *tuple[Tensor | None, ...]])


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


def backward(
    tape: Tape, root: Node | Leaf | None, grad: Tensor, others: Sequence[tuple[Node | Leaf, Tensor]] = ()
) -> None:
    """Run the backward pass from `root`, whose gradient is `grad`; gradients end in the leaves' `grad`.

    Args:
        tape: the tape.
        root: what is differentiated.
        grad: its gradient.
        others: what is differentiated besides, with gradients.
    """
    assert isinstance(root, Node), "nothing to train: the loss needs no gradient"
    roots: list[Node | Leaf] = [root, *(node for node, _ in others)]
    _count_dependencies(roots)
    buffers: dict[int, Tensor] = {id(root): grad, **{id(node): given for node, given in others}}
    del grad, others
    ready: list[tuple[int, int, Node]] = []
    for entry in roots:
        if entry.dependencies:
            continue
        if isinstance(entry, Node):
            ready.append((-entry.sequence, 0, entry))
        else:
            _accumulate_leaf(tape, entry, buffers)
    heapq.heapify(ready)
    del root, roots, entry
    outer_layer, outer_module = tape.current_layer, tape.module
    while ready:
        node = heapq.heappop(ready)[2]
        if node.segment != tape.current_layer:
            tape.enter(tape.phase, node.segment)
        tape.module = node.module
        tape.scope_component = node.component
        # The gradient is moved into the call, as the engine moves it: nothing here keeps it alive meanwhile.
        if tape.offloader is None:
            outputs = list(node.backward(tape, node, buffers.pop(id(node))))
            node.saved = []
        else:
            tape.offloader.begin_node()
            packed = {entry.number: place for place, entry in enumerate(node.saved) if isinstance(entry, Packed)}
            for number in sorted(packed):  # autograd asks for tensors in the order in which it saved them
                node.saved[packed[number]] = tape.offloader.unpack(Packed(number))
            outputs = list(node.backward(tape, node, buffers.pop(id(node))))
            node.saved = []
            tape.offloader.end_node()
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


def _count_dependencies(roots: Sequence[Node | Leaf]) -> None:
    seen = {id(root) for root in roots}
    for root in roots:
        root.dependencies = 0
    stack = [root for root in roots if isinstance(root, Node)]
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
    hooks = tape.hooks if leaf.component is Component.GRADIENTS else None
    if hooks is not None:
        hooks.arrives(tape)
    unique = _reference_counts(buffers, id(leaf)) == _UNIQUE
    grad = buffers.pop(id(leaf))
    if leaf.grad is not None or leaf.accumulates:
        return  # added in place into the gradient that is there; the new one is freed here
    # Stolen only in the leaf's own layout: a bias that is padded for a kernel has a gradient that is part of a wider one.
    is_whole = leaf.component is Component.GRADIENTS or count_elements(grad.shape) == count_elements(leaf.shape)
    if unique and is_whole and grad.storage is not None and not grad.by_token:
        grad.storage.info.component = leaf.component
        leaf.grad = grad.storage
    else:
        leaf.grad = tape.alloc(leaf.shape, grad.dtype, "clone", leaf.component)
    leaf.grad.info.shape = leaf.shape
    leaf.grad.info.module = leaf.name
    if hooks is not None:
        hooks.accumulated(tape, leaf)  # what came in is held here until they are done, as in `AccumulateGrad::apply`


def checkpoint(
    tape: Tape, call: Callable[..., Returned], x: Tensor, given: Sequence[Tensor | None] = (), *, offloads: bool = False
) -> Returned:
    """`call(x, *given)` whose saved tensors are recomputed in backward (`use_reentrant=False`, transformers' default).

    Mirrors torch/utils/checkpoint.py: forward keeps only what the recomputation needs (the arguments, in host memory where it
    `offloads` them); the first saved tensor that backward asks for runs `call` again up to the last tensor to be saved.
    """
    if not tape.grad_enabled or tape.frame is not None:
        return call(x, *given)
    module, layer = tape.module, tape.current_layer
    arguments = [_kept_argument(tape, entry, offloads=offloads) for entry in (x, *given)]

    def recompute(frame: Frame) -> None:
        frame.total, frame.count = frame.count, 0
        outer_frame, outer_module = tape.frame, tape.module
        tape.frame, tape.module = frame, module
        try:
            call(*(argument() for argument in arguments))
        except StopRecomputation:
            pass
        finally:
            tape.frame, tape.module = outer_frame, outer_module
            tape.casts.clear()  # autocast's context around the recomputation ends here

    frame = Frame(recompute)
    tape.frame = frame
    try:
        out = call(x, *given)
    finally:
        tape.frame = None
    assert layer == tape.current_layer
    return out


def _kept_argument(tape: Tape, x: Tensor | None, *, offloads: bool) -> Callable[[], Tensor | None]:
    """What a checkpoint keeps of `x`, as what gives it back."""
    if x is None or (tape.offloader is None and not offloads):
        return lambda: x
    if offloads:
        return partial(move_to_host(tape, x).bring_back, tape)
    assert tape.offloader is not None
    offloader, packed, shape, dtype, node = tape.offloader, tape.offloader.pack(x), x.shape, x.dtype, x.node
    return lambda: Tensor(tape, shape, dtype, offloader.unpack(packed), node)


def part_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    """Of one of several outputs of one torch node: each gradient waits in its input buffer until all are there."""
    waiting, place = cast(tuple[dict[int, Tensor], int], node.meta)
    waiting[place] = grad
    whole = node.edges[0]
    assert whole is not None
    return (None,) if whole.dependencies > 1 else (grad,)
