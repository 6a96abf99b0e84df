"""Linear layers on quantized weights: bitsandbytes `Linear4bit` and `Linear8bitLt`.

Symbols: B micro batch, S sequence length.

Source: bitsandbytes 0.50 nn/modules.py and autograd/_functions.py; temporaries from `memplan.quantization`.

Known limits:
    LLM.int8: the columns of the input that hold outliers depend on the data and are left out.
    A 4-bit forward is taken to dequantize its weight, also where a fused kernel would not need to.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.quantization import Moment, Quantization, Scheme, backward_temporaries, forward_temporaries
from memplan.step import ops
from memplan.step.modules import ModuleTape
from memplan.step.tensor import Node, Shape, Storage, Tape, Tensor, count_elements


def quantized_linear(t: ModuleTape, q: Quantization, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., in] times the dequantized weight [out, in]; the result has the input's dtype."""
    if q.scheme is Scheme.INT8:
        return _linear_int8(t, q, x, weight, bias)
    # Linear4bit.forward: inputs are cast to the compute dtype, the result back to the input's dtype.
    input_dtype = x.dtype
    x = ops.to(t, x, q.compute_dtype)
    shape = (*x.shape[:-1], weight.shape[0])
    autocast = t.settings.autocast
    dtype = autocast or q.compute_dtype
    meta = (x.shape, x.dtype, weight.shape, weight.dtype, dtype, q)
    node = t.record("matmul_4bit", (x,), (), _matmul_4bit_backward, meta)
    rows = count_elements(x.shape[:-1])
    moments = forward_temporaries(q, _matrix(weight.shape), rows, q.compute_dtype, autocast_dtype=autocast)
    out = _run_moments(t, moments, shape, dtype, "matmul_4bit")
    return ops.to(t, Tensor(t, shape, dtype, out, node), input_dtype)


def _matmul_4bit_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    x_shape, x_dtype, w_shape, w_dtype, dtype, q = cast(
        tuple[Shape, DType, Shape, DType, DType, Quantization], node.meta
    )
    moments = backward_temporaries(q, _matrix(w_shape), w_dtype, dtype)
    out = _run_moments(tape, moments, x_shape, dtype, "matmul_4bit_backward")
    return (ops.fit_gradient(tape, Tensor(tape, x_shape, dtype, out, is_view=True), x_shape, x_dtype),)


def _linear_int8(t: ModuleTape, q: Quantization, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    shape = (*x.shape[:-1], weight.shape[0])
    # The input is an attribute of the node (`ctx.tensors`): no checkpoint forgets it, and it stays as long as the graph.
    node = t.record("matmul_8bit", (x,), (), _matmul_8bit_backward, (x.shape, x.dtype, weight.shape, q))
    if node is not None:
        t.hold(Tensor(t, x.shape, x.dtype, x.storage))
    moments = forward_temporaries(q, _matrix(weight.shape), count_elements(x.shape[:-1]), x.dtype)
    out = _run_moments(t, moments, shape, x.dtype, "matmul_8bit")
    return Tensor(t, shape, x.dtype, out, node)


def _matmul_8bit_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    x_shape, x_dtype, w_shape, q = cast(tuple[Shape, DType, Shape, Quantization], node.meta)
    moments = backward_temporaries(q, _matrix(w_shape), x_dtype, x_dtype)
    out = _run_moments(tape, moments, x_shape, x_dtype, "matmul_8bit_backward")
    return (Tensor(tape, x_shape, x_dtype, out, is_view=True),)


def _run_moments(tape: Tape, moments: tuple[Moment, ...], shape: Shape, dtype: DType, op: str) -> Storage:
    """Allocate each moment's temporaries in turn, the output when the moment says so; return the output."""
    out: Storage | None = None
    alive: dict[str, Storage] = {}
    for moment in moments:
        wanted = {tensor.name: tensor for tensor in moment.tensors}
        alive = {name: storage for name, storage in alive.items() if name in wanted}
        for name, tensor in wanted.items():
            if name not in alive:
                alive[name] = tape.alloc(tensor.shape, tensor.dtype, f"{op}: {name}")
        if moment.output_alive and out is None:
            out = tape.alloc(shape, dtype, op)
    if out is None:
        out = tape.alloc(shape, dtype, op)
    return out


def _matrix(shape: Shape) -> tuple[int, int]:
    rows, columns = shape
    return rows, columns
