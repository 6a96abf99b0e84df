"""Undoes the one systematic artefact of tracing under a dispatch mode: gradient sums that are in place for real.

`torch/csrc/autograd/input_buffer.cpp` (accumulate, can_accumulate_inplace; PyTorch 2.13) adds into the buffered
gradient when it holds the last reference to a dense tensor and to its storage, but never for tensor subclasses. Under
a trace each such sum is therefore a new allocation. It is recognized afterwards: the engine itself called
`aten.add.Tensor`, and the first operand died before the next op ran.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from memplan.trace.recorder import Recorder


@dataclass(frozen=True)
class InPlaceSum:
    """A sum called by the engine whose first operand might have been its output."""

    operand_id: int
    result_id: int
    event_index: int

    @classmethod
    def candidate(cls, args: Any, out: torch.Tensor, recorder: Recorder) -> InPlaceSum | None:
        """The pending decision for `out = args[0] + args[1]`; None where the engine never adds in place."""
        first, second = args[0], args[1]
        if not (isinstance(second, torch.Tensor) and first.shape == second.shape == out.shape):
            return None
        if first.dtype != out.dtype or second.dtype != out.dtype:
            return None
        # A view's base holds the storage too (use_count 2), so the real engine is out of place.
        if first._is_view() or not torch._prims_common.is_non_overlapping_and_dense_or_false(first):
            return None
        alive = recorder._alive
        operand = alive.get(first.untyped_storage()._cdata)
        result = alive.get(out.untyped_storage()._cdata)
        if operand is None or result is None or operand.storage_id == result.storage_id:
            return None
        return cls(operand.storage_id, result.storage_id, len(recorder.log.events) - 1)

    def happened_in_place(self, recorder: Recorder) -> bool:
        """Whether the operand died before the next op: the engine held its last reference."""
        return -self.operand_id in recorder.log.events[self.event_index :]

    def apply(self, recorder: Recorder) -> None:
        """The result takes over the operand's storage: one birth and one death less."""
        events = recorder.log.events
        tail = [event for event in events[self.event_index :] if event not in (self.result_id, -self.operand_id)]
        renamed = [-self.operand_id if event == -self.result_id else event for event in tail]
        events[self.event_index :] = renamed
        operand, result = recorder.log.storages[self.operand_id], recorder.log.storages[self.result_id]
        operand.died_in_module = result.died_in_module
        for death in recorder._alive.values():
            if death.storage_id == self.result_id:
                death.storage_id = self.operand_id
                break
