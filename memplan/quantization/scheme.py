"""What "quantized" means: the scheme, its options, and the tensors that one weight becomes.

The options carry the names and defaults of the libraries that own them: bitsandbytes 0.50 for `nf4`, `fp4` and
`int8` (through transformers' `BitsAndBytesConfig`), transformers 5.23 `FineGrainedFP8Config` for `fp8`, and gptqmodel
for `gptq` and `awq`. bitsandbytes' own 4-bit default is `fp4` without double quantization; a QLoRA recipe asks for
`nf4` with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import prod
from operator import index
from typing import Literal

from memplan.dtypes import DType
from memplan.errors import InvalidValueError
from memplan.units import round_to_block

# bitsandbytes/functional.py, quantize_4bit (0.50): the block sizes its kernels are compiled for.
BLOCKSIZES_4BIT = (32, 64, 128, 256, 512, 1024, 2048, 4096)

# transformers/utils/quantization_config.py, BitsAndBytesConfig (5.23): accepted `bnb_4bit_quant_storage`.
QUANT_STORAGE_DTYPES = (DType.UINT8, DType.INT8, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32, DType.FLOAT64)

_COMPUTE_DTYPES = (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16)
_GPTQ_BITS = (2, 3, 4, 8)  # transformers/utils/quantization_config.py, GPTQConfig.post_init (5.23)
_AWQ_BITS = (4,)  # awq/modules/linear/gemm.py, WQLinear_GEMM (AutoAWQ); gptqmodel's AWQ kernels support the same


class Scheme(StrEnum):
    """How a weight is stored."""

    NF4 = "nf4"
    FP4 = "fp4"
    INT8 = "int8"
    FP8 = "fp8"
    GPTQ = "gptq"
    AWQ = "awq"

    @property
    def is_4bit_bitsandbytes(self) -> bool:
        """Whether bitsandbytes stores the weight as `Params4bit`."""
        return self in (Scheme.NF4, Scheme.FP4)

    @property
    def is_bitsandbytes(self) -> bool:
        """Whether bitsandbytes quantizes the weight."""
        return self.is_4bit_bitsandbytes or self is Scheme.INT8


@dataclass(frozen=True, slots=True)
class Quantization:
    """A quantization scheme with its options.

    Attributes:
        scheme: how weights are stored.
        double_quant: nf4 and fp4: quantize the absmax as well (`bnb_4bit_use_double_quant`).
        blocksize: nf4 and fp4: elements that share one absmax. `Params4bit` uses 64 and transformers offers no
            other value.
        quant_storage: nf4 and fp4: dtype of the packed tensor (`bnb_4bit_quant_storage`).
        compute_dtype: nf4 and fp4: dtype that inputs are cast to (`bnb_4bit_compute_dtype`, whose default is float32).
        bits: gptq and awq: bits of one element.
        group_size: gptq and awq: input features that share one scale; -1 for all of them.
        block_shape: fp8: rows and columns that share one scale (`weight_block_size`); None for one scale a weight.
        skip_modules: modules to leave unquantized, as given by the user (`llm_int8_skip_modules`,
            `modules_to_not_convert`); None when nothing was given, which is not the same as an empty tuple.
        pre_quantized: whether the checkpoint already holds quantized tensors; always so for gptq and awq.
    """

    scheme: Scheme
    double_quant: bool = False
    blocksize: int = 64
    quant_storage: DType = DType.UINT8
    compute_dtype: DType = DType.FLOAT32
    bits: int = 4
    group_size: int = 128
    block_shape: tuple[int, int] | None = (128, 128)
    skip_modules: tuple[str, ...] | None = None
    pre_quantized: bool = False

    def __post_init__(self) -> None:
        if self.blocksize not in BLOCKSIZES_4BIT:
            raise InvalidValueError("blocksize", self.blocksize, f"one of {', '.join(map(str, BLOCKSIZES_4BIT))}")
        if self.quant_storage not in QUANT_STORAGE_DTYPES:
            allowed = ", ".join(QUANT_STORAGE_DTYPES)
            raise InvalidValueError("bnb_4bit_quant_storage", str(self.quant_storage), f"one of {allowed}")
        if self.compute_dtype not in _COMPUTE_DTYPES:
            allowed = ", ".join(_COMPUTE_DTYPES)
            raise InvalidValueError("bnb_4bit_compute_dtype", str(self.compute_dtype), f"one of {allowed}")
        if self.scheme is Scheme.GPTQ and self.bits not in _GPTQ_BITS:
            raise InvalidValueError("bits", self.bits, "2, 3, 4 or 8 for gptq")
        if self.scheme is Scheme.AWQ and self.bits not in _AWQ_BITS:
            raise InvalidValueError("bits", self.bits, "4 for awq")
        if self.group_size != -1 and self.group_size <= 0:
            raise InvalidValueError("group_size", self.group_size, "a positive integer, or -1 for one group a column")
        if self.block_shape is not None and (len(self.block_shape) != 2 or min(self.block_shape) <= 0):
            raise InvalidValueError("weight_block_size", self.block_shape, "two positive integers, or none")
        if self.double_quant and not self.scheme.is_4bit_bitsandbytes:
            raise InvalidValueError("bnb_4bit_use_double_quant", True, "only with nf4 or fp4")
        if self.scheme in (Scheme.GPTQ, Scheme.AWQ) and not self.pre_quantized:
            object.__setattr__(self, "pre_quantized", True)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One storage on the device.

    Attributes:
        name: the attribute that holds it, below the module ("weight", "weight.absmax", "qzeros").
        shape: as allocated; `()` for a scalar.
        dtype: as allocated.
        role: `data` for the elements of the weight, `state` for what is needed to read them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    role: Literal["data", "state"] = "data"

    @property
    def size_bytes(self) -> int:
        """Bytes of the elements."""
        return prod(map(index, self.shape)) * self.dtype.itemsize_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes of the block that the CUDA caching allocator hands out for it."""
        return round_to_block(self.size_bytes)


@dataclass(frozen=True, slots=True)
class StorageBytes:
    """Bytes of one quantized weight, as elements and as blocks of the caching allocator."""

    data_bytes: int
    state_bytes: int
    data_block_bytes: int
    state_block_bytes: int

    @property
    def total_bytes(self) -> int:
        """Elements of data and state."""
        return self.data_bytes + self.state_bytes

    @property
    def total_block_bytes(self) -> int:
        """Blocks of data and state: what `torch.cuda.memory_allocated` grows by."""
        return self.data_block_bytes + self.state_block_bytes
