"""The key/value cache of generation: it grows by concatenation, layer by layer (`DynamicCache`).

Symbols: E rows of the prompt, K key/value heads, D head size.

Source: transformers 5.23 cache_utils.py, `DynamicLayer.update`: each new tensor is there before the old one goes, keys first.

Known limits:
    Nothing leaves a window: what it holds must be no longer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step import ops
from memplan.step.dim import Dim
from memplan.step.tensor import Shape, Storage, Tape, Tensor


@dataclass
class _Layer:
    executed: int
    shape: Shape
    keys: Storage | None = None
    values: Storage | None = None
    dtypes: tuple[DType, DType] = (DType.FLOAT32, DType.FLOAT32)
    own_length: Storage | None = None


@dataclass
class KeyValueCache:
    """Keys and values of all layers.

    Attributes:
        length: tokens in it before the running forward pass.
        layers: by the path of the attention module.
    """

    length: int = 0
    layers: dict[str, _Layer] = field(default_factory=dict)

    def update(self, t: Tape, path: str, k: Tensor, v: Tensor, *, slides: bool) -> tuple[Tensor, Tensor]:
        """The layer's keys and values [E, K, T, D] with those of the new tokens at their end.

        A layer that `slides` keeps its length on the device.
        """
        dtypes = k.dtype, ops.promote(k.dtype, v.dtype)
        layer = self.layers.get(path)
        if layer is None:
            layer = self.layers[path] = _Layer(t.current_layer, k.shape, dtypes=dtypes)
            layer.own_length = t.alloc((), DType.INT64, "_to_copy", Component.KV_CACHE) if slides else None
        self._grow(t, layer, self.length + k.shape[2])
        shape = (*k.shape[:2], Dim(self.length + k.shape[2], "T"), k.shape[3])
        return (
            Tensor(t, shape, dtypes[0], layer.keys),
            Tensor(t, (*shape[:3], v.shape[3]), dtypes[1], layer.values),
        )

    def grow(self, t: Tape, length: int) -> None:
        """Bring every layer to `length` tokens, one after the other, without what else a forward pass allocates."""
        outer = t.module
        for path, layer in self.layers.items():
            t.enter(t.phase, layer.executed)
            t.module = path
            self._grow(t, layer, length)
        t.enter(t.phase)
        t.module = outer
        self.length = length

    def _grow(self, t: Tape, layer: _Layer, length: int) -> None:
        shape = (*layer.shape[:2], Dim(length, "T"), layer.shape[3])
        layer.keys = t.alloc(shape, layer.dtypes[0], "cat", Component.KV_CACHE)
        layer.values = t.alloc(shape, layer.dtypes[1], "cat", Component.KV_CACHE)
