"""Merging an adapter into its layer (`merge`): what is computed until the weight holds it.

A weight that is replaced (IA3, MiSS, DoRA, whatever is quantized) goes when its successor is complete; both are of one size,
so here the successor goes in its place.

Source: peft/tuners/*/layer.py, `merge` and `get_delta_weight`; lora/{bnb,variants}.py; utils/quantization_utils.py
(PEFT 0.21.2).

Known limits:
    Not `safe_merge`, which copies each weight. Adapters beside the weight alone: their biases come after the peak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.step import ops
from memplan.step.adapters import ia3, lora, lycoris, miss, oft, vera
from memplan.step.adapters.adalora import adalora
from memplan.step.adapters.embeddings import lora_embedding
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.adapters.requantizing import play_arrival
from memplan.step.site import Rewrite
from memplan.step.tensor import Node, Shape, Tape, Tensor
from memplan.step.weight_ops import detached, div, mm, repeated, transposed, vector_norm

Merge = Callable[[AdaptedLayer], None]


def merge_of(layer: AdaptedLayer) -> Merge | None:
    """What merges the layer's adapter; None where no rule is known, or PEFT has none."""
    found = _ON_QUANTIZED if layer.is_quantized else _MERGES
    merge = found.get(layer.adapter.rewrite)
    if layer.has("miss_block") and layer.weight.shape[1] % layer["miss_block"].shape[0]:
        return None  # what is left over is added apart
    if merge is _oft and layer["oft_R"].dtype is layer.weight.dtype:
        return (
            None  # what the product saves is the weight it is copied into: autograd's graph holds itself and never goes
        )
    return merge


def _added(make: Callable[[AdaptedLayer], Tensor]) -> Merge:
    """`weight.data += get_delta_weight()`."""

    def merge(layer: AdaptedLayer) -> None:
        _ = make(layer)

    return merge


def _lora_delta(layer: AdaptedLayer) -> Tensor:
    """`transpose(B @ A) * scaling`."""
    a, b = ("lora_A", "lora_B") if layer.has("lora_A") else ("lora_embedding_A", "lora_embedding_B")
    return ops.scale(layer.t, mm(layer.t, layer[b], layer[a]))


def _adalora_delta(layer: AdaptedLayer) -> Tensor:
    """`B @ (A * E) * scaling / ranknum`."""
    t = layer.t
    scaled = ops.scale(t, mm(t, layer["lora_B"], layer["lora_A"] * layer["lora_E"]))
    return div(t, scaled, ops.add_scalar(t, layer["ranknum"]))


def _vera_delta(layer: AdaptedLayer) -> Tensor:
    """`(lambda_b * B) @ (lambda_d * A)`."""
    t, (outputs, inputs) = layer.t, layer.weight.shape
    rank = layer["vera_A"].shape[0]
    lambda_b = t.view(layer["vera_lambda_b"], (outputs, 1))
    lambda_d = t.view(layer["vera_lambda_d"], (rank, 1))
    return mm(
        t, lambda_b * t.view(layer["vera_B"], (outputs, rank)), lambda_d * t.view(layer["vera_A"], (rank, inputs))
    )


def _ia3(layer: AdaptedLayer) -> None:
    """`(weight * l).to(dtype)`, of `l.data`."""
    t, scale = layer.t, detached(layer["ia3_l"])
    _ = ops.to(t, layer.weight * scale, layer.weight.dtype)


def _miss(layer: AdaptedLayer) -> None:
    """`get_delta_weight_miss`, in the weight's type."""
    _ = ops.to(layer.t, _miss_weight(layer, layer.weight), layer.weight.dtype)


def _miss_weight(layer: AdaptedLayer, weight: Tensor) -> Tensor:
    """The weight in shards, and the block added to each."""
    t, block, (outputs, inputs) = layer.t, layer["miss_block"], weight.shape
    if block.shape[1] != outputs:
        block = repeated(t, block, (block.shape[0], outputs))
    rank = block.shape[0]
    return t.view(weight, (inputs // rank, rank, outputs)) + ops.scale(t, block)


def _miss_on_quantized(layer: AdaptedLayer) -> None:
    weight = layer.base_weight()
    dtype = weight.dtype
    weight = _miss_weight(layer, weight)
    _requantized(layer, ops.to(layer.t, weight, dtype))


def _oft(layer: AdaptedLayer) -> None:
    """`oft_mat @ weight.T`, copied into the weight."""
    t = layer.t
    rotation = _rotation(layer)
    result = mm(t, rotation, ops.to(t, transposed(t, layer.weight), rotation.dtype))
    del rotation, result


def _oft_on_quantized(layer: AdaptedLayer) -> None:
    """As for any weight, but the product is turned into a weight of its own."""
    t = layer.t
    rotation = _rotation(layer)
    weight = layer.base_weight()
    dtype = weight.dtype
    weight = mm(t, rotation, ops.to(t, transposed(t, weight), rotation.dtype))
    _requantized(layer, ops.to(t, ops.clone(t, weight), dtype))
    del rotation, weight


def _rotation(layer: AdaptedLayer) -> Tensor:
    """`OFTRotationModule.get_weight`: one block-diagonal matrix."""
    t, weight, size = layer.t, layer["oft_R"], layer.weight.shape[1]
    block = size // weight.shape[0]
    rotation = oft.cayley(t, weight, (weight.shape[0], block, block), layer.option("terms"))
    node = t.record("block_diag", (rotation,), (), _block_diagonal_backward, (rotation.shape, rotation.dtype))
    return t.new((size, size), rotation.dtype, "block_diag", node)


def _block_diagonal_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    return (tape.new(shape, dtype, "stack"),)


def _dora(layer: AdaptedLayer) -> None:
    """`DoraLinearVariant.merge_unsafe`."""
    _ = _dora_weight(layer, layer.weight)


def _dora_weight(layer: AdaptedLayer, weight: Tensor) -> Tensor:
    """The norm of the unmerged weight, of which there is a copy all the time, and the weight in its new direction."""
    t, dtype = layer.t, weight.dtype
    delta = _lora_delta(layer)
    base = ops.clone(t, layer.base_weight())
    summed = base + ops.scale(t, delta)
    norm = detached(ops.to(t, vector_norm(t, detached(summed), summed.shape[:1]), summed.dtype))
    del summed
    if layer.is_quantized:
        weight = layer.base_weight()
    factor = t.view(div(t, layer["lora_magnitude_vector"], norm), (*norm.shape, 1))
    merged = factor * (weight + delta)
    merged = ops.to(t, merged, dtype)
    del delta, base
    return merged


def _requantizing(make: Callable[[AdaptedLayer, Tensor], tuple[Tensor, ...]]) -> Merge:
    """The weight dequantized, changed, brought to host memory and quantized anew.

    `make` returns what is brought there, and what is held meanwhile.
    """

    def merge(layer: AdaptedLayer) -> None:
        weight = layer.base_weight()
        merged, *held = make(layer, weight)
        _requantized(layer, merged)
        del weight, merged, held

    return merge


def _requantized(layer: AdaptedLayer, merged: Tensor) -> None:
    quantization = layer.site.quantized
    assert quantization is not None
    _ = play_arrival(layer.t, quantization, layer.weight.shape, merged.dtype)


def _lora_added(layer: AdaptedLayer, weight: Tensor) -> tuple[Tensor, ...]:
    """lora/bnb.py: `dequantized + get_delta_weight()`; over 8 bits in the adapter's type."""
    delta = _lora_delta(layer)
    if not layer.is_4bit:
        weight = ops.to(layer.t, weight, delta.dtype)
    return weight + delta, delta


def _dora_replaced(layer: AdaptedLayer, weight: Tensor) -> tuple[Tensor, ...]:
    """`DoraLinearVariant.merge_safe`."""
    return (_dora_weight(layer, weight),)


def _vera_added(layer: AdaptedLayer, weight: Tensor) -> tuple[Tensor, ...]:
    """`weight += get_delta_weight()`, in place: the sum's graph keeps the factors of the product."""
    weight.node = _vera_delta(layer).node
    return (weight,)


_MERGES: dict[Rewrite, Merge] = {
    lora.lora: _added(_lora_delta),
    lora_embedding: _added(_lora_delta),
    lora.dora: _dora,
    adalora: _added(_adalora_delta),
    lycoris.loha: _added(lycoris.hadamard),
    lycoris.lokr: _added(lycoris.kronecker),
    vera.vera: _added(_vera_delta),
    ia3.ia3: _ia3,
    miss.miss: _miss,
    oft.oft: _oft,
}
_ON_QUANTIZED: dict[Rewrite, Merge] = {
    lora.lora: _requantizing(_lora_added),
    lora.dora: _requantizing(_dora_replaced),
    vera.vera: _requantizing(_vera_added),
    oft.oft: _oft_on_quantized,
    miss.miss: _miss_on_quantized,
}
