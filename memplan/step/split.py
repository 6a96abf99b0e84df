"""Taking tensors apart along their last dimension and putting them together again.

Symbols: B micro batch, A attention heads, S sequence length, D head size.

Source: tools/autograd/derivatives.yaml and torch/csrc/autograd/FunctionsManual.cpp (`split_backward`, `slice_backward`,
`cat_tensors_backward`), torch 2.13.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import cast

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step import ops
from memplan.step.attention import AttentionOps
from memplan.step.tensor import Node, Shape, Tape, Tensor


def split(t: Tape, x: Tensor, sizes: Sequence[int], *, dim: int = -1) -> list[Tensor]:
    """`x.split(sizes, dim)` (and `chunk`): views; backward puts the parts' gradients together into one tensor."""
    waiting: list[Tensor] = []
    whole = Tensor(t, x.shape, x.dtype, x.storage, t.record("split", (x,), (), _split_backward, (waiting, x.shape)))
    parts = []
    for size in sizes:
        node = t.record("split", (whole,), (), _part_backward, (waiting,))
        shape = list(x.shape)
        shape[dim] = size
        parts.append(Tensor(t, tuple(shape), x.dtype, x.storage, node, is_view=True, by_token=x.by_token))
    return parts


def _part_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    # One torch node with several outputs: each gradient waits in its input buffer until the last one is there.
    (waiting,) = cast(tuple[list[Tensor]], node.meta)
    whole = node.edges[0]
    assert whole is not None
    if whole.dependencies > 1:
        waiting.append(grad)
        return (None,)
    return (grad,)


def _split_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    waiting, shape = cast(tuple[list[Tensor], Shape], node.meta)
    out = tape.new(shape, grad.dtype, "cat")
    waiting.clear()
    return (out,)


def narrow(t: Tape, x: Tensor, shape: Shape, op: str = "slice") -> Tensor:
    """A view of part of `x` (slice or select); backward scatters into a tensor of zeros as large as `x`."""
    node = t.record(op, (x,), (), _narrow_backward, (x.shape, op))
    return Tensor(t, shape, x.dtype, x.storage, node, is_view=True, by_token=x.by_token)


def take(t: Tape, x: Tensor, shape: Shape, indices: Sequence[Tensor] = ()) -> Tensor:
    """`x[..., [i], :]`: a copy of part of `x`; backward adds into a tensor of zeros as large as `x`; saves the indices."""
    node = t.record("index", (x,), tuple(indices), _narrow_backward, (x.shape, "index"))
    return t.new(shape, x.dtype, "index", node)


def _narrow_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, op = cast(tuple[Shape, str], node.meta)
    return (tape.new(shape, grad.dtype, f"{op}_backward"),)


def copy(t: Tape, x: Tensor, shape: Shape, op: str = "clone", component: Component | None = None) -> Tensor:
    """`x` copied into another shape of as many elements (`reshape` where no view can do it); its gradient is viewed back."""
    node = t.record(op, (x,), (), _view_back, (x.shape,))
    return Tensor(t, shape, x.dtype, t.alloc(shape, x.dtype, op, component), node)


def _view_back(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (Tensor(tape, shape, grad.dtype, grad.storage, None, is_view=True),)


def permuted(t: Tape, x: Tensor, shape: Shape) -> Tensor:
    """`x` seen with its dimensions in another order; the gradient is copied back into the order of `x`."""
    node = t.record("permute", (x,), (), _permute_backward, (x.shape,))
    return Tensor(t, shape, x.dtype, x.storage, node, is_view=True)


def _permute_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (tape.new(shape, grad.dtype, "clone"),)


def unflatten(t: Tape, x: Tensor, shape: Shape) -> Tensor:
    """[B, S, A·D] viewed as [B, S, A, D]; the gradient is copied where it comes back with its heads outermost."""
    node = t.record("view", (x,), (), _flatten_back, (x.shape,))
    return Tensor(t, shape, x.dtype, x.storage, node, is_view=True)


def _flatten_back(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    if grad.by_token:
        grad = tape.new(shape, grad.dtype, "clone")
    return (Tensor(tape, shape, grad.dtype, grad.storage, None, is_view=True),)


def turned(t: Tape, x: Tensor) -> Tensor:
    """[B, S, A, D] viewed as [B, A, S, D]. On the way back `by_token` says that memory is not laid out as the shape is."""
    shape = (x.shape[0], x.shape[2], x.shape[1], x.shape[3])
    node = t.record("transpose", (x,), (), _turned_back, (x.shape,))
    return Tensor(t, shape, x.dtype, x.storage, node, is_view=True, by_token=True)


def _turned_back(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (Tensor(tape, shape, grad.dtype, grad.storage, None, is_view=True, by_token=not grad.by_token),)


def concatenate(t: Tape, parts: Sequence[Tensor], shape: Shape, component: Component | None = None) -> Tensor:
    """`torch.cat(parts)` of the given result shape, in the widest type; each part's gradient is a view of the whole one."""
    node = t.record("cat", tuple(parts), (), _cat_backward, tuple((part.shape, part.dtype) for part in parts))
    dtype = reduce(ops.promote, (part.dtype for part in parts))
    return Tensor(t, shape, dtype, t.alloc(shape, dtype, "cat", component), node)


def _cat_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    kinds = cast(tuple[tuple[Shape, DType], ...], node.meta)
    views = [
        Tensor(tape, shape, grad.dtype, grad.storage, None, is_view=True, by_token=grad.by_token) for shape, _ in kinds
    ]
    return tuple(
        ops.fit_gradient(tape, view, *kind) if edge else None
        for view, kind, edge in zip(views, kinds, node.edges, strict=True)
    )


def parts(t: Tape, x: Tensor, rotary_size: int) -> tuple[Tensor, Tensor]:
    """The first `rotary_size` of D elements, which are rotated, and the rest, which is passed on: x [B, A, S, D]."""
    rotated = narrow(t, x, (*x.shape[:-1], rotary_size))
    return rotated, narrow(t, x, (*x.shape[:-1], x.shape[-1] - rotary_size))


def rotate_parts(
    t: AttentionOps, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, rotary_size: int
) -> tuple[Tensor, Tensor]:
    """`apply_rotary_pos_emb` on the first `rotary_size` of D elements, the rest passed on: q, k [B, A, S, D]."""
    q_rotated, q_passed = parts(t, q, rotary_size)
    k_rotated, k_passed = parts(t, k, rotary_size)
    q_embed, k_embed = t.rotary(q_rotated, cos, sin), t.rotary(k_rotated, cos, sin)
    q_embed = concatenate(t, (q_embed, q_passed), q.shape)
    k_embed = concatenate(t, (k_embed, k_passed), k.shape)
    return q_embed, k_embed
