"""The order of quantizing a weight: what stays is what is stored; its highest moment is the one torch's profiler saw."""

from __future__ import annotations

import pytest

from memplan.dtypes import DType
from memplan.quantization import PROCESS_CODE_BOOK, Quantization, Scheme, arrival, load_transients, stored_tensors

SHAPE = (1024, 128)


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT32])
@pytest.mark.parametrize(
    "quantization",
    [
        Quantization(Scheme.NF4),
        Quantization(Scheme.NF4, double_quant=True),
        Quantization(Scheme.FP4),
        Quantization(Scheme.INT8),
        Quantization(Scheme.FP8, block_shape=(8, 8)),
        Quantization(Scheme.GPTQ),
    ],
    ids=lambda quantization: f"{quantization.scheme}{'-double' * quantization.double_quant}",
)
def test_peak_and_end(quantization: Quantization, dtype: DType) -> None:
    alive: dict[str, int] = {}
    peak = books = 0
    for name, size in arrival(quantization, SHAPE, dtype):
        if name == PROCESS_CODE_BOOK:
            books += 1
        elif size:
            alive[name] = size
            peak = max(peak, sum(alive.values()))
        else:
            del alive[name]
    stored = stored_tensors(quantization, SHAPE, dtype)
    assert alive == {tensor.name: tensor.block_bytes for tensor in stored}
    assert books == quantization.double_quant
    # `load_transients` is held to the profiler in test_temporaries; what is stored is part of its moments' end.
    moments = load_transients(quantization, SHAPE, dtype)
    transient = max((moment.block_bytes for moment in moments), default=0)
    assert peak == sum(alive.values()) + transient
