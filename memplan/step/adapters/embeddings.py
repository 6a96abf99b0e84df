"""Adapters on embeddings: LoRA's, and trainable tokens.

Symbols: R rank, V vocabulary, H hidden size, N chosen tokens.

Source: peft/tuners/lora/layer.py (Embedding), peft/tuners/trainable_tokens/layer.py (PEFT 0.21.2).

Known limits:
    Plain `nn.Embedding`, whose forward does not scale.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.layers import lookup
from memplan.step.tensor import Node, Shape, Tape, Tensor
from memplan.step.weight_ops import matmul, transposed


def lora_embedding(layer: AdaptedLayer, tokens: Tensor) -> Tensor:
    """`result + (F.embedding(x, A.T) @ B.T) * scaling`."""
    t = layer.t
    result = layer.base(tokens)
    dtype = result.dtype
    embedding_a = _turned(t, layer["lora_embedding_A"])
    embedding_b = transposed(t, layer["lora_embedding_B"])
    after_a = lookup(t, embedding_a, tokens, tokens.shape)
    result = result + ops.scale(t, matmul(t, after_a, embedding_b))
    return ops.to(t, result, dtype)


def trainable_tokens(layer: AdaptedLayer, tokens: Tensor) -> Tensor:
    """The embedding with the trained rows in their places: a copy of the whole weight."""
    return lookup(layer.t, _merged(layer), tokens, tokens.shape)


def trainable_tokens_head(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """The output embedding that is tied to such an embedding."""
    return layer.t.matmul(x, _merged(layer), None)


def trainable_tokens_creation(layer: AdaptedLayer) -> dict[str, Tensor]:
    """`update_layer`: the chosen rows, and a clone of them to train beside one to remember."""
    t, shape = layer.t, layer["trainable_tokens_delta"].shape
    index = t.new(shape[:1], DType.INT64, "_to_copy")
    rows = t.new(shape, layer.weight.dtype, "index")
    delta = ops.clone(t, rows)
    original = ops.clone(t, rows)
    del index, rows, original
    return {"trainable_tokens_delta": delta}


def _merged(layer: AdaptedLayer) -> Tensor:
    t, weight, delta = layer.t, layer.weight, layer["trainable_tokens_delta"]
    index = t.new((delta.shape[0],), DType.INT64, "_to_copy")
    rows = ops.to(t, delta, weight.dtype)
    node = t.record("index_copy", (rows,), (rows, index), _index_copy_backward, (rows.shape, rows.dtype))
    return t.new(weight.shape, weight.dtype, "index_copy", node)


def _index_copy_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    kept = node.all_stored()
    out = tape.new(shape, dtype, "index_select")
    del kept
    return (out,)


def _turned(t: Tape, x: Tensor) -> Tensor:
    """`x.T` of a parameter whose gradient comes back turned, so that it is copied and not stolen."""
    shape = (x.shape[1], x.shape[0])
    node = t.record("t", (x,), (), _turn_back, (x.shape,))
    return Tensor(t, shape, x.dtype, x.storage, node, is_view=True)


def _turn_back(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    (shape,) = cast(tuple[Shape], node.meta)
    return (Tensor(tape, shape, grad.dtype, grad.storage, None, is_view=True, by_token=True),)
