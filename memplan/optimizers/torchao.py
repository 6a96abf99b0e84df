"""torchao's AdamW with 8-bit and 4-bit states (torchao 0.18)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from memplan.dtypes import DType
from memplan.errors import UnsupportedError
from memplan.optimizers.base import SCALAR, LayoutKey, Optimizer, ParamInfo, StateTensor, StepTemporaries
from memplan.optimizers.options import as_positive_int
from memplan.optimizers.temporaries import StepScope

# torchao/optim/adam.py, _new_buffer: "only quantize tensors >= 4096 values".
MINIMUM_QUANTIZED_ELEMENTS = 4096


def as_block_size(key: str, value: object) -> int:
    """A block size given as a number.

    Raises:
        UnsupportedError: it came as text from `optim_args`, which transformers passes on unconverted.
        InvalidValueError: not a whole number, one or more.
    """
    if isinstance(value, str):
        raise UnsupportedError(
            "block_size in optim_args fails with torchao",
            hint="transformers passes it on as text (trainer_optimizer.py, _get_torchao_optimizer); leave it out",
        )
    return as_positive_int(key, value)


@dataclass(frozen=True)
class TorchAoAdamW(Optimizer):
    """Quantized moments: packed codes, a float32 scale per block, and a code book of each state's own.

    Only parameters of 4096 elements and more whose count is a multiple of the block size are quantized;
    others keep moments of their own dtype.

    Source: torchao/optim/adam.py, `_AdamBase._new_buffer` and `step`; subclass_8bit.py and
    subclass_4bit.py, `zeros`, torchao 0.18; block size 256: transformers/trainer_optimizer.py,
    `_get_torchao_optimizer`, 5.23.

    Attributes:
        bits: 8 or 4.
        block_size: elements that share a scale.
    """

    bits: int = 8
    block_size: int = 256

    OPTIONS: ClassVar[Mapping[str, Callable[[str, object], object]]] = {
        "bits": as_positive_int,
        "block_size": as_block_size,
    }

    @property
    def step_temporaries(self) -> StepTemporaries:
        """Unknown: the step is compiled by torch.compile."""
        return "unknown"

    def layout(self, key: LayoutKey) -> tuple[StateTensor, ...]:
        """step, then exp_avg and exp_avg_sq as codes, scale and qmap."""
        step = StateTensor("step", SCALAR, DType.FLOAT32, "host")
        elements = key.elements
        if elements < MINIMUM_QUANTIZED_ELEMENTS or elements % self.block_size:
            return (step, StateTensor("exp_avg", key.shape, key.dtype), StateTensor("exp_avg_sq", key.shape, key.dtype))
        codes_shape = key.shape if self.bits == 8 else (elements // 2,)
        tensors = [step]
        for name in ("exp_avg", "exp_avg_sq"):
            tensors += [
                StateTensor(f"{name}.codes", codes_shape, DType.UINT8),
                StateTensor(f"{name}.scale", (elements // self.block_size,), DType.FLOAT32),
                StateTensor(f"{name}.qmap", (2**self.bits,), DType.FLOAT32),
            ]
        return tuple(tensors)

    def record_step(self, scope: StepScope, groups: Sequence[Sequence[ParamInfo]]) -> None:
        """Refused.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            f"the temporaries of {self.name}'s step are not known",
            hint="torch.compile decides which of single_param_adam's float32 intermediates are materialized",
        )
