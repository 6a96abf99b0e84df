"""A layer with an adapter, as the rewrites of the methods see it.

Source: peft/tuners/tuners_utils.py, BaseTunerLayer; utils/integrations.py, dequantize_module_weight (PEFT 0.21.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from memplan.dtypes import DType
from memplan.quantization import Scheme, StoredTensor, backward_temporaries
from memplan.step.site import AdapterSite, Site
from memplan.step.tensor import Leaf, Shape, Tensor

if TYPE_CHECKING:
    from memplan.step.layers import LayerOps
    from memplan.step.modules import ModuleTape


class AdaptedLayer:
    """The base layer at a path with the adapter's tensors.

    Attributes:
        t: the tape.
        path: of the layer.
        site: what stands there.
        adapter: of the site.
        weight: of the base layer, [out, in] for linear layers and Conv1D, [V, H] for embeddings.
        bias: of the base layer, if it has one.
        replaced: what takes the weight's place, and after how many events.
        flushes: after how many events the program empties the allocator's cache.
    """

    def __init__(
        self,
        t: LayerOps,
        path: str,
        site: Site,
        weight: Tensor,
        bias: Tensor | None,
        base: Callable[[Tensor], Tensor],
    ) -> None:
        assert site.adapter is not None
        self.t = t
        self.path = path
        self.site = site
        self.adapter: AdapterSite = site.adapter
        self.weight = weight
        self.bias = bias
        self.base = base
        self.replaced: tuple[int, Tensor] | None = None
        self.flushes: list[int] = []

    def has(self, name: str) -> bool:
        """Whether the adapter has a tensor of that name."""
        return any(entry.name == name for entry in self.adapter.tensors)

    def __getitem__(self, name: str) -> Tensor:
        """The adapter's tensor `name`: a leaf if it is trained; its storage is not on the tape."""
        return adapter_parameter(self.t, self.path, self.adapter, name)

    def replace_weight(self, weight: Tensor) -> None:
        """`weight.data = ...`: the old one goes here."""
        self.replaced = len(self.t.events), weight

    def empty_cache(self) -> None:
        """The program calls `torch.cuda.empty_cache()` here."""
        self.flushes.append(len(self.t.events))

    def option(self, name: str) -> Any:
        """What the adapter config says about this layer."""
        return dict(self.adapter.options)[name]

    def linear(self, x: Tensor, name: str) -> Tensor:
        """The adapter's `nn.Linear` called `name`."""
        bias = f"{name}.bias"
        return self.t.matmul(x, self[name], self[bias] if self.has(bias) else None)

    @property
    def is_quantized(self) -> bool:
        """Whether the base weight is."""
        return self.site.quantized is not None

    @property
    def is_4bit(self) -> bool:
        """Whether the base weight is packed in 4 bits."""
        return self.site.quantized is not None and self.site.quantized.scheme.is_4bit_bitsandbytes

    def base_weight(self) -> Tensor:
        """`dequantize_module_weight`: the weight itself, or a dequantized copy."""
        quantized = self.site.quantized
        if quantized is None:
            return self.weight
        return dequantize(self, self.weight.shape)


def adapter_parameter(t: ModuleTape, path: str, adapter: AdapterSite, name: str) -> Tensor:
    """The tensor `name` of the adapter at `path`."""
    entry = next(entry for entry in adapter.tensors if entry.name == name)
    key = f"{entry.owner or path}.{name}"
    known = t.parameters.get(key)
    if known is None:
        leaf = Leaf(key, entry.shape, entry.dtype, accumulates=t.settings.accumulating) if entry.trainable else None
        known = t.parameters[key] = Tensor(t, entry.shape, entry.dtype, None, leaf)
    return known


def dequantize(layer: AdaptedLayer, shape: Shape) -> Tensor:
    """A dequantized copy of a bitsandbytes weight, in the dtype that it was loaded in (int8: float32)."""
    quantized, t = layer.site.quantized, layer.t
    assert quantized is not None
    if quantized.scheme is Scheme.INT8:
        return int8_dequantized(t, shape)
    rows, columns = shape
    absmax = _absmax(
        backward_temporaries(quantized, (rows, columns), layer.weight.dtype, layer.weight.dtype)[0].tensors
    )
    held = [t.alloc(entry.shape, entry.dtype, f"dequantize_4bit: {entry.name}") for entry in absmax]
    out = t.new(shape, layer.weight.dtype, "dequantize_4bit")
    del held
    return out


def int8_dequantized(t: LayerOps, shape: tuple[int, ...]) -> Tensor:
    """`int8_vectorwise_dequant`: `A * stats * constant` (bitsandbytes/_ops.py, 0.50.2)."""
    product = t.alloc(shape, DType.FLOAT32, "int8_vectorwise_dequant")
    out = t.new(shape, DType.FLOAT32, "int8_vectorwise_dequant")
    del product
    return out


def _absmax(tensors: tuple[StoredTensor, ...]) -> tuple[StoredTensor, ...]:
    return tuple(entry for entry in tensors if "absmax" in entry.name)
