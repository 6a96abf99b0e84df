"""Loading as a sequence of allocations: checkpoint, quantization, casts, adapters.

Order, as transformers 5.23 and PEFT 0.21 do it: one block for the allocator's warm-up; each parameter in its load dtype, a
quantized one through its transients; PEFT's `prepare_model_for_kbit_training` casts what is left in 16 bits, one by one;
adapters arrive in their layer's dtype and are cast to float32 one by one.

Sources: transformers/modeling_utils.py (`caching_allocator_warmup`), core_model_loading.py; peft/utils/other.py,
peft/tuners/tuners_utils.py (`_move_adapter_to_device_of_base_layer`, `cast_adapter_dtype`).

Known limits:
    Initialisations that decompose weights (PiSSA, LoftQ, OLoRA, EVA, CorDA) need more while they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memplan.estimate import Component
from memplan.model_state import ModelState, StoredParameter
from memplan.quantization import Quantization, load_transient_bytes
from memplan.units import round_to_block

# (key, bytes) allocates under a new key, (key, 0) frees it.
LoadEvent = tuple[int, int]


@dataclass(frozen=True)
class Loading:
    """How loading goes.

    Attributes:
        events: allocations and frees in order; keys count up from 1.
        peak_bytes: the most that is alive at one moment.
        end_bytes: what is left.
        last_key: the highest key used.
    """

    events: tuple[LoadEvent, ...]
    peak_bytes: int
    end_bytes: int
    last_key: int


class _Recorder:
    def __init__(self) -> None:
        self.events: list[LoadEvent] = []
        self.sizes: dict[int, int] = {}
        self.live = self.peak = 0
        self.last_key = 0

    def alloc(self, size_bytes: int) -> int:
        if not size_bytes:
            return 0
        self.last_key += 1
        self.events.append((self.last_key, size_bytes))
        self.sizes[self.last_key] = size_bytes
        self.live += size_bytes
        self.peak = max(self.peak, self.live)
        return self.last_key

    def free(self, key: int) -> None:
        if key:
            self.events.append((key, 0))
            self.live -= self.sizes.pop(key)


def loading(state: ModelState, quantization: Quantization | None) -> Loading:
    """The events of loading `state`'s parameters."""
    recorder = _Recorder()
    base = [entry for entry in state.stored if entry.component is Component.WEIGHTS]
    added = [entry for entry in state.stored if entry.component is Component.ADAPTERS]
    if quantization is None:
        recorder.free(recorder.alloc(round_to_block(sum(_arrival_bytes(entry) for entry in base))))
    arrived = [_load(recorder, entry, quantization) for entry in base]
    recorder.alloc(state.shared_code_book_bytes)
    recorder.alloc(state.buffers_bytes)
    _cast(recorder, base, arrived)
    arrived = [recorder.alloc(_arrival_bytes(entry)) for entry in added]
    _cast(recorder, added, arrived)
    return Loading(tuple(recorder.events), recorder.peak, recorder.live, recorder.last_key)


def _load(recorder: _Recorder, entry: StoredParameter, quantization: Quantization | None) -> int:
    if not entry.quantized:
        return recorder.alloc(_arrival_bytes(entry))
    assert quantization is not None
    transient = recorder.alloc(round_to_block(load_transient_bytes(quantization, entry.shape, entry.dtype)))
    for size in entry.block_sizes:
        recorder.alloc(size)
    recorder.free(transient)
    return 0


def _cast(recorder: _Recorder, entries: Sequence[StoredParameter], arrived: Sequence[int]) -> None:
    """Each parameter whose dtype changed after it arrived: the new copy is made before the old one goes."""
    for entry, key in zip(entries, arrived, strict=True):
        if key and entry.arrival_dtype is not entry.dtype:
            recorder.alloc(entry.data_bytes)
            recorder.free(key)


def _arrival_bytes(entry: StoredParameter) -> int:
    return round_to_block(entry.elements * entry.arrival_dtype.itemsize_bytes)
