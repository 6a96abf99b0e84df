"""Undoes the one systematic artefact of tracing: updates that are in place for plain tensors only.

1. `torch/csrc/autograd/input_buffer.cpp` (accumulate, can_accumulate_inplace; PyTorch 2.13) adds into the buffered
   gradient when it holds the last reference to a dense tensor and to its storage, but never for tensor subclasses.
2. Derivative formulas (`torch/csrc/autograd/FunctionsManual.cpp`) and composite ops (`_scaled_dot_product_attention_math`
   in `aten/src/ATen/native/transformers/attention.cpp`) take the functional variant of an op where
   `areAnyTensorSubclassLike` holds: index_put, scatter, scatter_add, index_add, masked_fill, add.

Under a trace each such update is therefore a new allocation. It is recognized afterwards: C++ code itself called the
op, and the first operand died before the next op ran.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from memplan.trace.recorder import Recorder

_aten = torch.ops.aten
FUNCTIONAL_FOR_SUBCLASSES = frozenset(
    {
        _aten.add.Tensor,
        _aten.index_put.default,
        _aten.scatter.src,
        _aten.scatter.value,
        _aten.scatter_add.default,
        _aten.index_add.default,
        _aten.masked_fill.Scalar,
    }
)


@dataclass(frozen=True)
class InPlaceUpdate:
    """An op called by C++ code whose first operand might have been its output."""

    operand_id: int
    result_id: int
    event_index: int

    @classmethod
    def candidate(cls, func: Any, args: Any, out: torch.Tensor, recorder: Recorder) -> InPlaceUpdate | None:
        """The pending decision for `out = func(args[0], ...)`; None where it is never in place."""
        first = args[0]
        if first.shape != out.shape or first.dtype != out.dtype:
            return None
        if func is _aten.add.Tensor:
            second = args[1]
            same = isinstance(second, torch.Tensor) and (second.dtype, second.shape) == (out.dtype, out.shape)
            if not same and not recorder.inside_composite:  # `attn.add_(attn_mask)` takes any mask
                return None
        # A view's base holds the storage too (use_count 2), so the real engine is out of place.
        if first._is_view() and not recorder.inside_composite:
            return None
        if not torch._prims_common.is_non_overlapping_and_dense_or_false(first):
            return None
        operand_id, result_id = recorder.alive_id(first), recorder.alive_id(out)
        if not operand_id or not result_id or operand_id == result_id:
            return None
        events = recorder.log.events
        birth = len(events) - 1
        while events[birth] != result_id:
            birth -= 1
        return cls(operand_id, result_id, birth)

    def happened_in_place(self, recorder: Recorder) -> bool:
        """Whether the operand died before the next op: nothing else held it."""
        return -self.operand_id in recorder.log.events[self.event_index :]

    def apply(self, recorder: Recorder) -> None:
        """The result takes over the operand's storage: one birth and one death less."""
        events = recorder.log.events
        kept = [event for event in events[self.event_index :] if event not in (self.result_id, -self.operand_id)]
        events[self.event_index :] = [-self.operand_id if event == -self.result_id else event for event in kept]
        operand, result = recorder.log.storages[self.operand_id], recorder.log.storages[self.result_id]
        operand.died_in_module = result.died_in_module
        recorder.rename(self.result_id, self.operand_id)
