"""Unsloth's layers: projections with their LoRA adapters as one autograd function each, which save little and write in place.

Symbols: T tokens of the row (B texts of S tokens), H hidden size, A attention heads, K key/value heads, D head size,
I intermediate size, R adapter rank.

Sources: unsloth 2026.10.9 kernels/fast_lora.py (`LoRA_QKV`, `LoRA_W`, `LoRA_MLP`), kernels/utils.py (`matmul_lora`,
`fast_dequantize`), kernels/rms_layernorm.py, kernels/rope_embedding.py, kernels/qk_norm_rope.py,
utils/attention_dispatch.py (`_sdpa_packed_segments`). What the Triton kernels do allocates nothing.

Known limits:
    One row of texts of equal length, frozen norms and base weights, plain LoRA without dropout or bias. Which kernel attention
    takes is asked once with tensors of 128 tokens, which are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.attention_kernels import Kernel, choose_kernel, dispatched, sdpa
from memplan.step.autograd import part_backward
from memplan.step.split import copy, narrow
from memplan.step.tensor import Node, Shape, Storage, Tape, Tensor, count_elements

if TYPE_CHECKING:
    from memplan.step.builder import Builder

# attention_dispatch.py, `_CUDNN_LENGTH_BUCKET`.
_BUCKET_ROWS = 128
# Under these names a tape keeps what Unsloth keeps for the whole run.
SCRATCH, LENGTHS, OFFSETS = "weight scratch", "packed_seq_lengths", "cu_seqlens"


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A linear layer with its adapter.

    Attributes:
        path: of the module.
        shape: of the weight, [out, in].
        dtype: of the weight, dequantized.
        is_quantized: whether it is stored in 4 bits.
        a, b: of the adapter, [R, in] and [out, R].
    """

    path: str
    shape: Shape
    dtype: DType
    is_quantized: bool
    a: Tensor
    b: Tensor

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B."""
        return self.a, self.b


def projection(t: Builder, name: str, out_features: int, in_features: int) -> Projection:
    """The layer `name` of the running module."""
    path = t.join(name)
    assert t.sites is not None
    site = t.sites[path]
    weight = t.parameter(path, "weight", (out_features, in_features))
    layer = AdaptedLayer(t, path, site, weight, None, lambda x: x)
    return Projection(path, weight.shape, weight.dtype, layer.is_quantized, layer["lora_A"], layer["lora_B"])


# -- products ---------------------------------------------------------------------------------------------


def _in_scratch(t: Tape, p: Projection) -> None:
    """`fast_dequantize(use_global_buffer=True)`: one buffer for all, which grows and stays."""
    held = t.workspaces.get(SCRATCH)
    if not p.is_quantized or (held is not None and count_elements(held.info.shape) >= count_elements(p.shape)):
        return
    made = t.alloc(p.shape, p.dtype, "empty", Component.TEMPORARIES)
    if held is not None:
        t.outgrown.add(held.info.index)
    t.workspaces[SCRATCH] = made


def _dequantized(t: Tape, p: Projection) -> Storage | None:
    """`fast_dequantize`: a copy of the weight in 16 bits."""
    return t.alloc(p.shape, p.dtype, "empty") if p.is_quantized else None


def _matmul_lora(t: Tape, p: Projection, rows: int, dtype: DType) -> Storage:
    """`x @ W.t() + x @ A.t() @ B.t()`: [rows, out]."""
    _in_scratch(t, p)
    out = t.alloc((rows, p.shape[0]), dtype, "mm")
    a = t.alloc(p.a.shape, dtype, "_to_copy") if p.a.dtype is not dtype else None
    product = t.alloc((rows, p.a.shape[0]), dtype, "mm")
    del a
    if p.b.dtype is not dtype:
        t.alloc(p.b.shape, dtype, "_to_copy")
    del product
    return out


def _copies(tape: Tape, factors: Iterable[Tensor], dtype: DType) -> list[Storage]:
    """The adapters' weights in the activations' type."""
    return [tape.alloc(f.shape, dtype, "_to_copy") for f in factors if f.dtype is not dtype]


def _gradients(tape: Tape, order: Iterable[Tensor], dtype: DType) -> dict[int, Tensor]:
    """What the products are written into, by the adapter's weight."""
    return {id(f): tape.new(f.shape, dtype, "empty_like") for f in order}


def _factors(projections: Sequence[Projection]) -> list[Tensor]:
    return [f for p in projections for f in p.factors]


def _fitted(tape: Tape, grads: dict[int, Tensor], factors: Sequence[Tensor]) -> list[Tensor | None]:
    """The adapters' gradients in their own type, one after the other, as the engine casts them."""
    given: list[Tensor | None] = [grads.pop(id(f)) for f in factors]
    return ops.fitted(tape, given, [(f.shape, f.dtype) for f in factors])


def _rows(shape: Shape) -> int:
    rows = shape[0]
    for size in shape[1:-1]:
        rows = rows * size
    return rows


# -- norms ------------------------------------------------------------------------------------------------


def rms_norm(t: Builder, name: str, x: Tensor) -> Tensor:
    """`Fast_RMS_Layernorm`: saves its input and each row's deviation; the input's gradient takes the output's place."""
    outer, t.module = t.module, t.join(name)
    weight = t.parameter(t.join(name), "weight", x.shape[-1:])
    out = t.alloc(x.shape, x.dtype, "empty")
    deviation = t.alloc((_rows(x.shape),), DType.FLOAT32, "empty")
    node = t.record("Fast_RMS_Layernorm", (x,), (x, weight, deviation), _rms_norm_backward, (x.shape,))
    t.module = outer
    return Tensor(t, x.shape, x.dtype, out, node)


def _rms_norm_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    kept = node.all_stored()
    del kept
    return (Tensor(tape, shape, grad.dtype, grad.storage, None, is_view=True),)


# -- several results of one function ----------------------------------------------------------------------


def _parts(
    t: Tape, whole: Node | None, waiting: dict[int, Tensor], made: Sequence[tuple[Shape, Storage]]
) -> list[Tensor]:
    """One torch node with several outputs: each gradient waits in its input buffer until all are there."""
    parts = []
    for place, (shape, storage) in enumerate(made):
        joint = Tensor(t, shape, storage.info.dtype, storage, whole)
        node = t.record("part", (joint,), (), part_backward, (waiting, place))
        parts.append(Tensor(t, shape, storage.info.dtype, storage, node))
    return parts


# -- LoRA_QKV, LoRA_W -------------------------------------------------------------------------------------


def lora_qkv(t: Builder, x: Tensor, projections: Sequence[Projection]) -> list[Tensor]:
    """`LoRA_QKV` on x [1, T, H]: queries, keys and values; saves x."""
    rows = _rows(x.shape)
    made = [((*x.shape[:-1], p.shape[0]), _matmul_lora(t, p, rows, x.dtype)) for p in projections]
    factors = _factors(projections)
    waiting: dict[int, Tensor] = {}
    node = t.record("LoRA_QKV", (x, *factors), (x, *factors), _qkv_backward, (waiting, x.shape, x.dtype, projections))
    return _parts(t, node, waiting, made)


def _qkv_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    waiting, shape, dtype, projections = cast(tuple[dict[int, Tensor], Shape, DType, Sequence[Projection]], node.meta)
    kept = node.all_stored()
    x, rows, factors = kept[0], _rows(shape), _factors(projections)
    copies = _copies(tape, factors, dtype)
    grads = _gradients(tape, factors, dtype)
    products = [tape.alloc((rows, p.a.shape[0]), dtype, "mm") for p in projections]
    for p in projections:
        tape.alloc((p.a.shape[0], rows), dtype, "mm")
    for p in projections:
        _dequantized(tape, p)
    del copies, products, kept, grad
    waiting.clear()
    return (Tensor(tape, shape, dtype, x, None, is_view=True), *_fitted(tape, grads, factors))


def lora_w(t: Builder, x: Tensor, p: Projection) -> Tensor:
    """`LoRA_W` on x [1, T, in]: saves x."""
    out = _matmul_lora(t, p, _rows(x.shape), x.dtype)
    node = t.record("LoRA_W", (x, *p.factors), (*p.factors, x), _w_backward, (x.shape, x.dtype, p))
    return Tensor(t, (*x.shape[:-1], p.shape[0]), x.dtype, out, node)


def _w_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype, p = cast(tuple[Shape, DType, Projection], node.meta)
    kept = node.all_stored()
    rows = _rows(shape)
    copies = _copies(tape, p.factors, dtype)
    grads = _gradients(tape, p.factors, dtype)
    product = tape.alloc((rows, p.a.shape[0]), dtype, "mm")
    tape.alloc((p.a.shape[0], rows), dtype, "mm")
    weight = _dequantized(tape, p)
    grad_x = tape.new(shape, dtype, "mm")
    grad_x.is_view = True  # made as [T, in]
    del copies, product, weight, kept
    return (grad_x, *_fitted(tape, grads, p.factors))


# -- LoRA_MLP ---------------------------------------------------------------------------------------------


def lora_mlp(t: Builder, x: Tensor, gate: Projection, up: Projection, down: Projection) -> Tensor:
    """`LoRA_MLP` on x [1, T, H]: down(silu(gate(x)) * up(x)); saves x and what gate and up made."""
    rows = _rows(x.shape)
    e = _matmul_lora(t, gate, rows, x.dtype)
    g = _matmul_lora(t, up, rows, x.dtype)
    h = t.alloc((rows, gate.shape[0]), x.dtype, "empty")
    out = _matmul_lora(t, down, rows, x.dtype)
    del h
    factors = _factors((gate, up, down))
    node = t.record("LoRA_MLP", (x, *factors), (*factors, x, e, g), _mlp_backward, (x.shape, x.dtype, (gate, up, down)))
    return Tensor(t, x.shape, x.dtype, out, node)


def _mlp_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype, (gate, up, down) = cast(tuple[Shape, DType, tuple[Projection, ...]], node.meta)
    kept = node.all_stored()
    x, rows, factors = kept[-3], _rows(shape), _factors((gate, up, down))
    copies = _copies(tape, factors, dtype)
    _in_scratch(tape, down)
    activated = tape.alloc((rows, down.shape[1]), dtype, "mm")
    tape.alloc((rows, down.a.shape[0]), dtype, "mm")
    grads = _gradients(tape, _factors((down, gate, up)), dtype)
    tape.alloc((rows, down.a.shape[0]), dtype, "mm")
    tape.alloc((down.a.shape[0], rows), dtype, "mm")
    products = [tape.alloc((rows, p.a.shape[0]), dtype, "mm") for p in (up, gate)]
    for p in (up, gate):
        tape.alloc((p.a.shape[0], rows), dtype, "mm")
    for p in (up, gate):
        _dequantized(tape, p)
    del copies, activated, products, kept
    return (Tensor(tape, shape, dtype, x, None, is_view=True), *_fitted(tape, grads, factors))


# -- rotary embedding and attention -----------------------------------------------------------------------


def rope(t: Builder, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """`Fast_RoPE_Embedding_QK` on q [1, A, T, D] and k as split from the projections: two new tensors."""
    made = [(x.shape, t.alloc(x.shape, x.dtype, "empty_like")) for x in (q, k)]
    waiting: dict[int, Tensor] = {}
    node = t.record("Fast_RoPE_Embedding_QK", (q, k), (), _rope_backward, (waiting, q.shape, k.shape))
    return _rotated(t, node, waiting, made)


def _rotated(
    t: Builder, whole: Node | None, waiting: dict[int, Tensor], made: list[tuple[Shape, Storage]]
) -> tuple[Tensor, Tensor]:
    q, k = _parts(t, whole, waiting, made)
    q.by_token = k.by_token = True
    return q, k


def _rope_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    waiting, *shapes = cast(tuple[dict[int, Tensor], Shape, Shape], node.meta)
    made = [tape.new(shape, grad.dtype, "empty") for shape in shapes]
    del grad
    waiting.clear()
    return made


def norm_rope(t: Builder, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """`Fast_QK_Norm_RoPE` on q [1, A, T, D] and k, normed head by head: two new tensors; saves both inputs."""
    made = [(x.shape, t.alloc(x.shape, x.dtype, "empty")) for x in (q, k)]
    deviations = [t.alloc((x.shape[2] * x.shape[0], x.shape[1]), DType.FLOAT32, "empty") for x in (q, k)]
    weights = [t.parameter(t.join(name), "weight", q.shape[-1:]) for name in ("q_norm", "k_norm")]
    waiting: dict[int, Tensor] = {}
    # It saves the tables and positions too, which live anyway.
    node = t.record(
        "Fast_QK_Norm_RoPE", (q, k), (q, k, *weights, *deviations), _norm_rope_backward, (waiting, q.shape, k.shape)
    )
    return _rotated(t, node, waiting, made)


def _norm_rope_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    waiting, *shapes = cast(tuple[dict[int, Tensor], Shape, Shape], node.meta)
    kept = node.all_stored()
    made = [tape.new(shape, grad.dtype, "empty", by_token=True) for shape in shapes]
    del grad, kept
    waiting.clear()
    return made


def packed_attention(t: Builder, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`_sdpa_packed_segments` on q [1, A, T, D]: one call for texts of one length, its result copied: [1, T, A·D]."""
    _, heads, tokens, size = q.shape

    def texts(x: Tensor) -> Tensor:
        return narrow(t, x, (t.batch, x.shape[1], t.tokens, size), "select")

    given = [texts(x) for x in (q, k, v)]
    kernel = _kernel(t, size)
    if kernel is Kernel.CUDNN and t.settings.compute_capability[0] == 9:
        out = _bucketed(t, given)
    else:
        out = sdpa(t, given[0], given[1], given[2], None, t.settings)
    return copy(t, out, (1, tokens, heads * size), "cat")


def _kernel(t: Builder, head_size: int) -> Kernel:
    settings = t.settings
    return choose_kernel(
        settings.autocast or DType.BFLOAT16,
        head_size,
        has_mask=False,
        grouped=False,
        compute_capability=settings.compute_capability,
        torch_version=settings.torch_version,
    )


def _bucketed(t: Builder, given: Sequence[Tensor]) -> Tensor:
    """`_cudnn_length_bucketed_sdpa`: texts padded by 1 to 128 rows, so that cuDNN sees few lengths: [B, S, A, D]."""
    batch, heads, length, size = given[0].shape
    padded = length + (_BUCKET_ROWS - length % _BUCKET_ROWS)
    q, k, v = (_padded(t, x, padded) for x in given)
    _, whole = dispatched(t, q, k, v, None, t.settings, 0.0, True)
    del q, k, v
    return copy(t, narrow(t, whole, (batch, length, heads, size)), (batch, length, heads, size))


def _padded(t: Tape, x: Tensor, length: int) -> Tensor:
    """`F.pad(x, (0, 0, 0, n))`: a copy; backward copies what was not padding."""
    shape = (*x.shape[:2], length, x.shape[3])
    node = t.record("constant_pad_nd", (x,), (), _padded_backward, (x.shape,))
    return t.new(shape, x.dtype, "constant_pad_nd", node)


def _padded_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (tape.new(shape, grad.dtype, "constant_pad_nd"),)
