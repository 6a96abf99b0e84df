"""A weight that comes back from host memory and is quantized on the device: merging into quantized weights, LoftQ.

Sources: bitsandbytes/nn/modules.py, `Params4bit._quantize` and `Int8Params._quantize` (0.50.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from memplan.dtypes import DType
from memplan.quantization import Quantization, Scheme, arrival
from memplan.step.tensor import Storage

if TYPE_CHECKING:
    from memplan.step.layers import LayerOps

_LET_GO_LAST_FIRST = (
    "weight",
    "weight.nested_quant_map",
    "weight.nested_absmax",
    "weight.nested_offset",
    "weight.quant_map",
    "weight.absmax",
    "weight.SCB",
)


def play_arrival(t: LayerOps, quantization: Quantization, shape: tuple[int, ...], dtype: DType) -> list[Storage]:
    """A weight goes from host memory to the device and is quantized there; returns what stays.

    `Int8Params._quantize` makes it float16 on the way.
    """
    keys: dict[str, Storage] = {}
    for name, size in arrival(quantization, shape, dtype):
        if quantization.scheme is Scheme.INT8 and name == "value":
            continue
        if size:
            keys[name] = t.alloc((size,), DType.UINT8, f"quantize: {name}")
        else:
            keys.pop(name, None)
    # A list lets go of its last entry first: the state by its attributes (functional.py, QuantState), then the weight.
    return [keys[name] for name in _LET_GO_LAST_FIRST if name in keys]
