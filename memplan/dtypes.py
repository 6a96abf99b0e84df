"""Element types by torch's names, with their widths.

Four-bit formats have no element type of their own: they are packed into `uint8` storage
(see `memplan.quantization`).
"""

from __future__ import annotations

from enum import StrEnum

from memplan.errors import UnknownNameError


class DType(StrEnum):
    """A torch dtype by its name without the `torch.` prefix."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT8_E4M3FN = "float8_e4m3fn"
    FLOAT8_E5M2 = "float8_e5m2"
    INT64 = "int64"
    INT32 = "int32"
    INT16 = "int16"
    INT8 = "int8"
    UINT8 = "uint8"
    BOOL = "bool"
    COMPLEX64 = "complex64"

    @property
    def itemsize_bytes(self) -> int:
        """Bytes of one element."""
        return _ITEMSIZE_BYTES[self]

    @property
    def is_half(self) -> bool:
        """Whether this is one of the two 16-bit floating types."""
        return self in (DType.BFLOAT16, DType.FLOAT16)


_ITEMSIZE_BYTES: dict[DType, int] = {
    DType.FLOAT64: 8,
    DType.FLOAT32: 4,
    DType.BFLOAT16: 2,
    DType.FLOAT16: 2,
    DType.FLOAT8_E4M3FN: 1,
    DType.FLOAT8_E5M2: 1,
    DType.INT64: 8,
    DType.INT32: 4,
    DType.INT16: 2,
    DType.INT8: 1,
    DType.UINT8: 1,
    DType.BOOL: 1,
    DType.COMPLEX64: 8,
}

_ALIASES = {
    "fp32": DType.FLOAT32, "float": DType.FLOAT32, "f32": DType.FLOAT32,
    "bf16": DType.BFLOAT16, "fp16": DType.FLOAT16, "half": DType.FLOAT16,
    "fp64": DType.FLOAT64, "double": DType.FLOAT64,
}  # fmt: skip


def parse_dtype(text: str) -> DType:
    """The dtype that `text` names: torch's name, with or without `torch.`, or a common short form.

    Raises:
        UnknownNameError: no such dtype.
    """
    name = text.removeprefix("torch.").lower()
    if name in _ALIASES:
        return _ALIASES[name]
    try:
        return DType(name)
    except ValueError:
        raise UnknownNameError("dtype", text, [*DType, *_ALIASES]) from None
