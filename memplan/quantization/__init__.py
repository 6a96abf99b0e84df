"""Quantized weights: storage to the byte, which modules are quantized, casts, and temporaries.

storage.py       a weight's storages and bytes        bitsandbytes.py  gptq_awq.py  fp8.py
policy.py        which modules transformers replaces
arrival.py       the order in which a weight is quantized
casts.py         dtypes of the rest: loaded, prepared for k-bit training, adapters
temporaries.py   what loading, forward and backward allocate      gemm_4bit.py
"""

from memplan.quantization.arrival import PROCESS_CODE_BOOK, arrival
from memplan.quantization.bitsandbytes import PROCESS_CODE_BOOK_BYTES
from memplan.quantization.casts import (
    autocast_adapter_dtype,
    kbit_prepare_dtype,
    load_dtype,
    quantized_module_bias_dtype,
)
from memplan.quantization.gemm_4bit import Gpu, uses_fused_kernel
from memplan.quantization.policy import (
    ModelOutline,
    ModuleKind,
    default_skip_modules,
    gptq_block_prefix,
    is_quantized,
    is_replaced,
    is_skipped,
    skip_patterns,
)
from memplan.quantization.scheme import Quantization, Scheme, StorageBytes, StoredTensor
from memplan.quantization.storage import storage_bytes, stored_tensors
from memplan.quantization.temporaries import (
    Moment,
    backward_temporaries,
    backward_temporary_bytes,
    forward_temporaries,
    forward_temporary_bytes,
    load_transient_bytes,
    load_transients,
    saves_input,
)

__all__ = [
    "PROCESS_CODE_BOOK",
    "PROCESS_CODE_BOOK_BYTES",
    "Gpu",
    "ModelOutline",
    "ModuleKind",
    "Moment",
    "Quantization",
    "Scheme",
    "StorageBytes",
    "StoredTensor",
    "arrival",
    "autocast_adapter_dtype",
    "backward_temporaries",
    "backward_temporary_bytes",
    "default_skip_modules",
    "forward_temporaries",
    "forward_temporary_bytes",
    "gptq_block_prefix",
    "is_quantized",
    "is_replaced",
    "is_skipped",
    "kbit_prepare_dtype",
    "load_dtype",
    "load_transient_bytes",
    "load_transients",
    "quantized_module_bias_dtype",
    "saves_input",
    "skip_patterns",
    "storage_bytes",
    "stored_tensors",
    "uses_fused_kernel",
]
