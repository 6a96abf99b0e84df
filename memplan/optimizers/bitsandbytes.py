"""bitsandbytes: 8-bit, 32-bit and paged Adam, AdEMAMix, Lion and RMSprop (bitsandbytes 0.50).

The kernels update in place, so `step()` borrows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from memplan.dtypes import DType
from memplan.optimizers.base import LayoutKey, Optimizer, ParamInfo, Placement, StateTensor
from memplan.optimizers.options import as_bool, as_positive_int

# bitsandbytes/optim/optimizer.py, init_state: `blocksize = 256`.
BLOCK_SIZE_ELEMENTS = 256
# bitsandbytes/functional.py, create_dynamic_map: 256 float32 values; one signed and one unsigned.
CODE_BOOK_ELEMENTS = 256
# bitsandbytes/optim/optimizer.py, get_state_buffer: `if not self.is_paged or p.numel() < 1e5`.
PAGED_MINIMUM_ELEMENTS = 100_000
# bitsandbytes/optim/optimizer.py, Optimizer2State.__init__: default of min_8bit_size.
MINIMUM_8BIT_ELEMENTS = 4096

KEPT_32_BIT = "kept_32_bit"


@dataclass(frozen=True)
class BitsAndBytes(Optimizer):
    """An optimizer of bitsandbytes with one or two states per parameter.

    States are uint8 with one float32 absmax per 256 elements, or float32: for `optim_bits = 32`, for
    parameters under `min_8bit_size` elements, and for embeddings, which the Trainer registers with
    the `GlobalOptimManager` as 32-bit whenever `optim_bits == 8`.

    Source: bitsandbytes/optim/optimizer.py, `Optimizer1State.init_state`, `Optimizer2State.init_state`,
    `Optimizer8bit.get_state_buffer`; bitsandbytes/optim/ademamix.py, `AdEMAMix.init_state`, 0.50;
    transformers/trainer.py, `Trainer.create_optimizer`, 5.23.

    Attributes:
        states: number of states (two for Adam and AdEMAMix, one for Lion and RMSprop).
        optim_bits: 8 or 32.
        paged: states of 100,000 elements and more are CUDA managed memory.
        double_first_state: AdEMAMix keeps its fast and slow averages in one tensor of shape [2, *shape].
        embeddings_32bit: the Trainer's override; False for a loop without the Trainer, and for the
            names that the Trainer does not know (Adam's).
        min_8bit_size: parameters with fewer elements keep 32-bit states.
    """

    states: int = 2
    optim_bits: int = 8
    paged: bool = False
    double_first_state: bool = False
    embeddings_32bit: bool = True
    min_8bit_size: int = MINIMUM_8BIT_ELEMENTS

    OPTIONS: ClassVar[Mapping[str, Callable[[str, object], object]]] = {
        "states": as_positive_int,
        "optim_bits": as_positive_int,
        "paged": as_bool,
        "double_first_state": as_bool,
        "embeddings_32bit": as_bool,
        "min_8bit_size": as_positive_int,
    }

    def variant(self, param: ParamInfo) -> str:
        """`kept_32_bit` for embeddings that the Trainer exempts from 8 bits, which it cannot where it makes no optimizer."""
        exempts = self.optim_bits == 8 and self.embeddings_32bit and not self.one_for_each
        return KEPT_32_BIT if exempts and param.is_embedding else ""

    def layout(self, key: LayoutKey) -> tuple[StateTensor, ...]:
        """state1, state2 and for 8 bits qmap1, qmap2, absmax1, absmax2 (the step is a Python int)."""
        quantized = self.optim_bits == 8 and key.variant != KEPT_32_BIT and key.elements >= self.min_8bit_size
        dtype = DType.UINT8 if quantized else DType.FLOAT32
        placement: Placement = "paged" if self.paged and key.elements >= PAGED_MINIMUM_ELEMENTS else "device"
        first_shape = (2, *key.shape) if self.double_first_state else key.shape
        tensors = [StateTensor("state1", first_shape, dtype, placement)]
        if self.states == 2:
            tensors.append(StateTensor("state2", key.shape, dtype, placement))
        if quantized:
            tensors += self.quantization_constants(key.elements)
        return tuple(tensors)

    def quantization_constants(self, elements: int) -> list[StateTensor]:
        """Code books (one per optimizer, shared by its parameters) and absmax (one per state)."""
        shared = not self.one_for_each
        blocks = -(-elements // BLOCK_SIZE_ELEMENTS)
        tensors = []
        for number in range(1, self.states + 1):
            absmax_shape = (2, blocks) if number == 1 and self.double_first_state else (blocks,)
            tensors.append(StateTensor(f"qmap{number}", (CODE_BOOK_ELEMENTS,), DType.FLOAT32, shared=shared))
            tensors.append(StateTensor(f"absmax{number}", absmax_shape, DType.FLOAT32))
        return tensors
