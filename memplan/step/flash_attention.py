"""`attn_implementation="flash_attention_2"`: the flash-attn package on whole batches, on padded and on packed ones.

Symbols: B micro batch, S query length, T key length, A attention heads, K key/value heads, D head size, N texts (packed) or
rows (padded) that are told apart.

Sources: transformers 5.23 modeling_flash_attention_utils.py (`_flash_attention_forward`, `_upad_input`, `_is_packed_sequence`,
`prepare_fa_kwargs_from_position_ids`) and integrations/flash_attention.py; flash-attn 2.8.3 flash_attn_interface.py
(`FlashAttnFunc`, `FlashAttnVarlenFunc`), bert_padding.py (`pad_input`), csrc/flash_attn/flash_api.cpp (`mha_fwd`,
`mha_varlen_fwd`, `mha_bwd`, `mha_varlen_bwd`); torch 2.13 aten/src/ATen/native/cuda/Indexing.cu
(`index_put_with_sort_kernel`).

Known limits:
    Head sizes are multiples of 8, and the same for keys and values. All B·S tokens of a padded batch count as real, which no
    fewer are. What `nonzero` borrows for a count (a few KB) and what `mha_fwd` borrows for partial sums in small batches
    (17 MB at the most) is not on the tape. The backward is not the deterministic one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.attention_kernels import Kernel, Meta, backward_workspaces, meta
from memplan.step.matmul import dense
from memplan.step.tensor import Node, Shape, Storage, Tape, Tensor, count_elements

# For queries and for keys, int32 [N + 1].
Limits = tuple[Storage, Storage]

# Rows of the query that one block of the kernel's backward takes: what lies between two texts in its float32 buffers.
BLOCK_ROWS = 128


def flash_attention(
    t: Tape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    target: DType,
    mask: Tensor | None = None,
    texts: int = 0,
    limits: Limits | None = None,
) -> Tensor:
    """Attention of q [B, A, S, D] on k, v [B, K, T, D], as [B, S, A, D].

    Args:
        t: the tape.
        q: queries.
        k: keys.
        v: values.
        target: what float32 inputs are cast to.
        mask: boolean [B, T] where there is padding: it is taken out.
        texts: N of a packed row; 0 for whole batches.
        limits: where they begin and end, if the batch says so; else every layer finds it by their positions.
    """
    if q.dtype is DType.FLOAT32:  # fa_peft_integration_check
        q, k, v = (ops.to(t, x, target) for x in (q, k, v))
    if mask is not None:
        return _unpadded(t, q, k, v)
    if texts:
        return _packed(t, q, k, v, texts) if limits is None else _delimited(t, q, k, v, texts, limits)
    name = "flash_attn_forward"
    batch, heads, length, _ = q.shape
    shape = (batch, length, heads, q.shape[3])
    out = t.alloc(shape, q.dtype, name)
    row_sums = t.alloc((batch, heads, length), DType.FLOAT32, name)
    random_state = t.alloc((2,), DType.INT64, name)
    saved = (q, k, v, out, row_sums, random_state)
    node = t.record("flash_attn", (q, k, v), saved, _backward, (meta(q), meta(k), meta(v)))
    result = Tensor(t, shape, q.dtype, out, node)
    # The result is laid out as the query is; `reshape` then copies it.
    return result if q.by_token else dense(t, result)


def _backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    q, k, v = cast(tuple[Meta, Meta, Meta], node.meta)
    kept = node.all_stored()
    name = "flash_attn_backward"
    grads = [tape.new(m.shape, m.dtype, name, by_token=m.by_token) for m in (q, k, v)]
    borrowed = [tape.alloc((size,), DType.UINT8, name) for size in backward_workspaces(Kernel.FLASH, q, k)]
    del borrowed, kept
    return tuple(g if edge is not None else None for g, edge in zip(grads, node.edges, strict=True))


# -- packed rows ------------------------------------------------------------------------------------------


def _packed(t: Tape, q: Tensor, k: Tensor, v: Tensor, texts: int) -> Tensor:
    _look_for_texts(t, q.shape[2])
    q, k, v = (_tokens(t, x) for x in (q, k, v))
    limits, longest = _limits_from_positions(t, q.shape[0], texts)
    out = _varlen(t, q, k, v, (limits, limits), texts, longest)
    return t.view(out, (1, *out.shape))


def _delimited(t: Tape, q: Tensor, k: Tensor, v: Tensor, texts: int, limits: Limits) -> Tensor:
    """`x.reshape(-1, A, D)` of a single row is a view, whatever its layout; the result is laid out as the query is."""
    out = _varlen(t, _flattened(t, q), _flattened(t, k), _flattened(t, v), limits, texts)
    out = t.view(out, (1, *out.shape))
    return out if q.by_token else dense(t, out)


def _flattened(t: Tape, x: Tensor) -> Tensor:
    heads, length, size = x.shape[1:]
    node = t.record("view", (x,), (), _flattened_back, (x.shape, x.by_token))
    return Tensor(t, (length, heads, size), x.dtype, x.storage, node, is_view=True)


def _flattened_back(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, by_token = cast(tuple[Shape, bool], node.meta)
    return (Tensor(tape, shape, grad.dtype, grad.storage, None, is_view=True, by_token=by_token),)


def _look_for_texts(t: Tape, length: int) -> None:
    """`_is_packed_sequence`, in every layer."""
    positions = t.alloc((length,), DType.INT64, "arange")
    least = t.alloc((), DType.INT64, "min")
    increasing = t.alloc((length,), DType.INT64, "add")
    del positions, least
    differences = t.alloc((length,), DType.INT64, "sub")
    absolute = t.alloc((length,), DType.INT64, "abs")
    del differences
    total = t.alloc((), DType.INT64, "sum")
    del absolute
    found = t.alloc((), DType.BOOL, "_to_copy")
    del total, increasing
    del found


def _tokens(t: Tape, x: Tensor) -> Tensor:
    """[1, A, S, D] as [S, A, D]: `transpose(1, 2).contiguous().view(-1, A, D)`."""
    heads, length, size = x.shape[1:]
    if x.by_token and _is_whole(x):
        node = t.record("view", (x,), (), _tokens_back, (x.shape,))
        return Tensor(t, (length, heads, size), x.dtype, x.storage, node, is_view=True)
    node = t.record("clone", (x,), (), _tokens_back, (x.shape,))
    return t.new((length, heads, size), x.dtype, "clone", node)


def _is_whole(x: Tensor) -> bool:
    """Whether it is no part of a larger tensor (of fused projections), so that its memory is in one piece."""
    return x.storage is None or count_elements(x.storage.info.shape) == count_elements(x.shape)


def _tokens_back(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (Tensor(tape, shape, grad.dtype, grad.storage, None, is_view=True, by_token=True),)


def _limits_from_positions(t: Tape, tokens: int, texts: int) -> tuple[Storage, Storage]:
    """`prepare_fa_kwargs_from_position_ids`: where texts begin and end, int32 [N + 1], and the longest one's length."""
    least = t.alloc((), DType.INT64, "min")
    first = t.alloc((tokens,), DType.BOOL, "eq")
    del least
    indices = t.alloc((texts, 1), DType.INT64, "nonzero")
    del first
    begins = t.alloc((texts,), DType.INT32, "_to_copy")
    end = t.alloc((1,), DType.INT32, "_to_copy")
    limits = t.alloc((texts + 1,), DType.INT32, "cat")
    del begins, end
    lengths = t.alloc((texts,), DType.INT32, "sub")
    longest = t.alloc((), DType.INT32, "max")
    del lengths, indices
    return limits, longest


# -- the kernel for several lengths -----------------------------------------------------------------------


def _varlen(
    t: Tape, q: Tensor, k: Tensor, v: Tensor, limits: Limits, texts: int, longest: Storage | None = None
) -> Tensor:
    """`flash_attn_varlen_func` on q [tokens, A, D] and k, v [tokens, K, D]; `longest` stays on the node's context."""
    tokens, heads, _ = q.shape
    name = "flash_attn_varlen_forward"
    out = t.alloc(q.shape, q.dtype, name)
    row_sums = t.alloc((heads, tokens), DType.FLOAT32, name)
    random_state = t.alloc((2,), DType.INT64, name)
    saved = (q, k, v, out, row_sums, *limits, random_state)
    node = t.record("flash_attn_varlen", (q, k, v), saved, _varlen_backward, (meta(q), meta(k), meta(v), texts))
    if node is not None and longest is not None:
        t.hold(Tensor(t, (), DType.INT32, longest))
    return Tensor(t, q.shape, q.dtype, out, node)


def _varlen_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    q, k, v, texts = cast(tuple[Meta, Meta, Meta, int], node.meta)
    kept = node.all_stored()
    name = "flash_attn_varlen_backward"
    grads = [tape.new(m.shape, m.dtype, name) for m in (q, k, v)]
    borrowed = [tape.alloc((size,), DType.UINT8, name) for size in varlen_workspaces(q, k, texts)]
    del borrowed, kept
    return tuple(g if edge is not None else None for g, edge in zip(grads, node.edges, strict=True))


def varlen_workspaces(q: Meta, k: Meta, texts: int) -> list[int]:
    """Bytes that `mha_varlen_bwd` borrows for q [tokens, A, D] and k [tokens, K, D] of N texts.

    softmax_d and dq_accum in float32 over tokens + 128·N rows, head sizes rounded up to 32 (64 above 128); with grouped heads
    dk and dv expanded to all heads.
    """
    tokens, heads, size = q.shape
    rows = tokens + BLOCK_ROWS * texts
    multiple = 32 if size <= 128 else 64
    sizes = [heads * rows * 4, rows * heads * -(-size // multiple) * multiple * 4]
    if k.shape[1] != heads:
        sizes += [k.shape[0] * heads * size * q.dtype.itemsize_bytes] * 2
    return sizes


# -- padding taken out and put back -----------------------------------------------------------------------


def _unpadded(t: Tape, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`_upad_input`, the kernel on the tokens that are left, `pad_input`: q, k, v as long as the mask."""
    batch, heads, length, size = q.shape
    indices, limits = _limits_from_mask(t, batch, length)
    key, value = _gather(t, k, indices), _gather(t, v, indices)
    query = _gather(t, q, indices)
    out = _varlen(t, query, key, value, (limits, limits), batch)
    node = t.record("index_put_first_axis", (out,), (indices,), _put_back, (out.shape,))
    return t.new((batch, length, heads, size), q.dtype, "zeros", node)


def _limits_from_mask(t: Tape, batch: int, length: int) -> tuple[Storage, Storage]:
    """`_get_unpad_data`, in every layer: positions of the tokens, int64, and where rows begin and end, int32 [B + 1]."""
    lengths = t.alloc((batch,), DType.INT32, "sum")
    indices = t.alloc((batch * length, 1), DType.INT64, "nonzero")
    longest = t.alloc((), DType.INT32, "max")
    del longest
    ends = t.alloc((batch,), DType.INT32, "cumsum")
    limits = t.alloc((batch + 1,), DType.INT32, "constant_pad_nd")
    del ends, lengths
    return indices, limits


def _gather(t: Tape, x: Tensor, indices: Storage) -> Tensor:
    """[B, A, S, D] as [tokens, A, D]: `transpose(1, 2).reshape(-1, A, D)[indices]`."""
    batch, heads, length, size = x.shape
    rows = (batch * length, heads, size)
    if x.by_token or batch == 1:
        node = t.record("view", (x,), (), _rows_back, (x.shape, False))
        flat = Tensor(t, rows, x.dtype, x.storage, node, is_view=True)
    else:
        node = t.record("clone", (x,), (), _rows_back, (x.shape, True))
        flat = t.new(rows, x.dtype, "clone", node)
    node = t.record("index", (flat,), (indices,), _gather_back, (rows,))
    return t.new(rows, x.dtype, "index", node)


def _rows_back(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, _ = cast(tuple[Shape, bool], node.meta)
    return (Tensor(tape, shape, grad.dtype, grad.storage, None, is_view=True, by_token=True),)


def _gather_back(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    kept = node.all_stored()
    out = tape.new(shape, grad.dtype, "new_zeros")
    # linearIndex, sorted_indices, orig_indices, range, and the sort's second buffers of keys and values.
    borrowed = [tape.alloc((grad.shape[0],), DType.INT64, "index_put") for _ in range(6)]
    del borrowed, kept
    return (out,)


def _put_back(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    kept = node.all_stored()
    out = tape.new(shape, grad.dtype, "index")
    del kept
    return (out,)
