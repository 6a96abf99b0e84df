"""Loading as a sequence of allocations: checkpoint, quantization, casts, adapters.

Order, as transformers 5.23 and PEFT 0.21 do it: one block for the allocator's warm-up; each parameter in its load dtype, a
quantized one through its transients; PEFT's `prepare_model_for_kbit_training` casts what is left in 16 bits, one by one, and
empties the cache; adapters arrive in their layer's dtype and are cast to float32 one by one; the copies of a token classifier's
or question answering's head come last.

Sources: transformers/modeling_utils.py (`caching_allocator_warmup`, `get_total_byte_count`), core_model_loading.py;
peft/utils/other.py (`auto_clear_cache`), peft/tuners/tuners_utils.py (`_move_adapter_to_device_of_base_layer`,
`cast_adapter_dtype`).

Known limits:
    Initialisations that look at data first (EVA, CorDA, LoRA-GA) need more while they do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.model_state import ModelState, StoredParameter
from memplan.quantization import PROCESS_CODE_BOOK, Quantization, arrival
from memplan.step.adapters.creation import Creation
from memplan.step.allocator_run import EMPTY_CACHE
from memplan.step.site import adapter_tensor_name
from memplan.units import round_to_block

# (key, bytes) allocates under a new key, (key, 0) frees it; or EMPTY_CACHE.
LoadEvent = tuple[int, int]


@dataclass(frozen=True)
class Loading:
    """How loading goes.

    Attributes:
        events: allocations and frees in order; keys count up from 1.
        peak_bytes: the most that is alive at one moment.
        end_bytes: what is left.
        settling: what the first forward does to it: parameters that it rewrites in another dtype.
        settled_bytes: what is left then.
        last_key: the highest key used.
        blas: number of the event before which cuBLAS is first used, if it is.
        peak_after_blas_bytes: the most that is alive from then on, without cuBLAS's workspace.
    """

    events: tuple[LoadEvent, ...]
    peak_bytes: int
    end_bytes: int
    settling: tuple[LoadEvent, ...]
    settled_bytes: int
    last_key: int
    blas: int | None = None
    peak_after_blas_bytes: int = 0

    def with_workspace(self, workspace_bytes: int) -> Loading:
        """The same with cuBLAS's workspace, where loading makes matrix products."""
        if self.blas is None or not workspace_bytes:
            return self
        size, key = round_to_block(workspace_bytes), self.last_key + 1
        return replace(
            self,
            events=(*self.events[: self.blas], (key, size), *self.events[self.blas :]),
            peak_bytes=max(self.peak_bytes, self.peak_after_blas_bytes + size),
            end_bytes=self.end_bytes + size,
            settled_bytes=self.settled_bytes + size,
            last_key=key,
        )


class LoadRecorder:
    """Allocations and frees of loading, with what is alive."""

    def __init__(self) -> None:
        self.events: list[LoadEvent] = []
        self.sizes: dict[int, int] = {}
        self.live = self.peak = self.peak_after_blas = 0
        self.last_key = 0
        self.blas: int | None = None

    def use_blas(self) -> None:
        """A matrix product: the first one takes cuBLAS's workspace."""
        if self.blas is None:
            self.blas, self.peak_after_blas = len(self.events), self.live

    def alloc(self, size_bytes: int) -> int:
        """The key of a new allocation; 0 where there is nothing to allocate."""
        if not size_bytes:
            return 0
        self.last_key += 1
        self.events.append((self.last_key, size_bytes))
        self.sizes[self.last_key] = size_bytes
        self.live += size_bytes
        self.peak = max(self.peak, self.live)
        self.peak_after_blas = max(self.peak_after_blas, self.live)
        return self.last_key

    def empty_cache(self) -> None:
        """`torch.cuda.empty_cache()`."""
        self.events.append(EMPTY_CACHE)

    def free(self, key: int) -> None:
        """Frees what `alloc` gave the key of."""
        if key:
            self.events.append((key, 0))
            self.live -= self.sizes.pop(key)

    def exchange(self, key: int, size_bytes: int) -> int:
        """A copy of another size in its place, which is made before the old one goes."""
        made = self.alloc(size_bytes)
        self.free(key)
        return made


def loading(
    state: ModelState,
    quantization: Quantization | None,
    creations: Mapping[str, Creation] | None = None,
    *,
    prepare_kbit: bool = False,
    recast_adapters: bool = False,
) -> Loading:
    """The events of loading `state`'s parameters, and of making adapters whose making computes something.

    Args:
        state: what is there afterwards.
        quantization: of the base model.
        creations: what making a module's adapter computes.
        prepare_kbit: `prepare_model_for_kbit_training` is called on a quantized base.
        recast_adapters: PEFT makes the adapters float32, and the trainer casts them back, one by one at the end.
    """
    recorder = LoadRecorder()
    base = [entry for entry in state.stored if entry.component is Component.WEIGHTS]
    added = [entry for entry in state.stored if entry.component is Component.ADAPTERS]
    recorder.free(recorder.alloc(round_to_block(sum(_warmup_bytes(entry, quantization) for entry in base) // 2 * 2)))
    code_books = [state.shared_code_book_bytes]
    recorder.alloc(state.first_buffers_bytes)
    arrived = [_load(recorder, entry, quantization, code_books) for entry in base]
    recorder.alloc(sum(code_books))
    others = sum(buffer.data_bytes for buffer in state.added_buffers) + state.first_buffers_bytes
    recorder.alloc(state.buffers_bytes - others)
    loaded = _cast(recorder, base, arrived)
    if prepare_kbit:
        recorder.empty_cache()
    last = [entry for entry in added if entry.after_casts]
    added = [entry for entry in added if not entry.after_casts]
    weights = {entry.name: place for place, entry in enumerate(base)}
    keys = _add(recorder, added, creations or {}, weights, loaded)
    early = [buffer for buffer in state.added_buffers if not buffer.after_casts]
    arriving = [
        (buffer, keys.get(adapter_tensor_name(buffer.name)) or recorder.alloc(buffer.arrival_bytes)) for buffer in early
    ]
    buffers = [(buffer, key) for buffer, key in arriving if buffer.arrival_bytes != buffer.data_bytes]
    widened: list[tuple[StoredParameter, int]] = []
    casts = _AdapterCasts(recorder)
    for path, entries in groupby(added, key=lambda entry: entry.module):
        members = list(entries)
        settled = casts.cast(members, [keys[entry.name] for entry in members])
        if recast_adapters:
            for entry, key in zip(members, settled, strict=True):
                widened.append((entry, recorder.exchange(key, _bytes_in(DType.FLOAT32, entry))))
        for buffer, key in [entry for entry in buffers if entry[0].name.startswith(f"{path}.")]:
            recorder.exchange(key, buffer.data_bytes)
            buffers.remove((buffer, key))
    for buffer, key in buffers:  # of layers that have no parameters of their own
        recorder.exchange(key, buffer.data_bytes)
    casts.finish()
    for entry, key in widened:
        recorder.exchange(key, entry.data_bytes)
    _add(recorder, last, {}, {}, [])
    for buffer in state.added_buffers:
        if buffer.after_casts:
            recorder.alloc(buffer.data_bytes)
    count, peak, end = len(recorder.events), recorder.peak, recorder.live
    for entry, key in zip(base, loaded, strict=True):
        if key and entry.loaded_dtype is not entry.dtype:
            recorder.exchange(key, entry.data_bytes)
    return Loading(
        tuple(recorder.events[:count]),
        peak,
        end,
        tuple(recorder.events[count:]),
        recorder.live,
        recorder.last_key,
        recorder.blas,
        recorder.peak_after_blas if recorder.blas is not None else 0,
    )


class _AdapterCasts:
    """`cast_adapter_dtype`: a variable of its loop holds the last parameter of a module until it comes to another one."""

    def __init__(self, recorder: LoadRecorder) -> None:
        self._recorder = recorder
        self._held = 0

    def cast(self, entries: Sequence[StoredParameter], arrived: Sequence[int]) -> list[int]:
        """Each parameter of a layer that is to be float32, one after the other; the keys then."""
        recorder, keys = self._recorder, []
        for owner, members in groupby(zip(entries, arrived, strict=True), key=lambda pair: _owning_module(pair[0])):
            if not owner:
                keys += [_cast(recorder, [entry], [key])[0] for entry, key in members]
                continue
            self.finish()
            replaced = []
            for entry, key in members:
                if key and entry.arrival_dtype is not entry.loaded_dtype:
                    replaced.append(key)
                    key = recorder.alloc(_bytes_in(entry.loaded_dtype, entry))
                keys.append(key)
            for key in replaced[:-1]:
                recorder.free(key)
            self._held = replaced[-1] if replaced else 0
        return keys

    def finish(self) -> None:
        """The variable lets go."""
        self._recorder.free(self._held)
        self._held = 0


def _owning_module(entry: StoredParameter) -> str:
    """The module under an adapter's name that holds a parameter (`lora_A.default`); "" for a parameter of that name."""
    return entry.name.rpartition(".")[0] if ".default." in entry.name else ""


def _add(
    recorder: LoadRecorder,
    added: Sequence[StoredParameter],
    creations: Mapping[str, Creation],
    weights: Mapping[str, int],
    loaded: list[int],
) -> dict[str, int]:
    """The key of every added parameter, and of every buffer that is computed.

    A layer's tensors are there before its adapter computes the others.

    Args:
        recorder: takes the events.
        added: the parameters, a layer's together.
        creations: what making a module's adapter computes.
        weights: places of the base model's parameters in `loaded`.
        loaded: their keys; an adapter that leaves another weight puts its key there.
    """
    keys: dict[str, int] = {}
    for module, entries in groupby(added, key=lambda entry: entry.module):
        creation = creations.get(module)
        made = creation.made if creation is not None else {}
        computed: list[tuple[StoredParameter, int]] = []
        for entry in entries:
            name = adapter_tensor_name(entry.name[len(module) + 1 :])
            if name in made:
                computed.append((entry, made[name]))
            else:
                keys[entry.name] = recorder.alloc(_bytes_in(entry.arrival_dtype, entry))
        if creation is not None:
            place = weights.get(f"{module}.weight", -1)
            stays = _create(recorder, creation, loaded[place] if place >= 0 else 0)
            if creation.weight is not None and place >= 0:
                loaded[place] = stays[creation.weight]
            keys.update((f"{module}.{name}", stays[index]) for name, index in made.items())
            keys.update((entry.name, stays[index]) for entry, index in computed)
    return keys


def _create(recorder: LoadRecorder, creation: Creation, weight: int) -> dict[int, int]:
    """Play what making an adapter on the base weight with the key `weight` allocates; returns the keys of what stays."""
    keys: dict[int, int] = {}
    for number, event in enumerate(creation.events):
        if number in creation.flushes:
            recorder.empty_cache()
        if creation.weight is not None and number == creation.replaced:
            recorder.free(weight)
        if event < 0:
            key = keys.pop(~event, 0)
            if ~event not in creation.made.values():
                recorder.free(key)
            else:
                keys[~event] = key
        elif creation.sizes[event]:
            keys[event] = recorder.alloc(creation.sizes[event])
        else:
            recorder.use_blas()
    if creation.weight is not None and creation.replaced == len(creation.events):
        recorder.free(weight)
    return keys


def _warmup_bytes(entry: StoredParameter, quantization: Quantization | None) -> int:
    """What `get_total_byte_count` expects of a parameter: no state of quantization, and no rounding."""
    if entry.quantized:
        assert quantization is not None
        if not quantization.scheme.is_bitsandbytes:
            return entry.data_bytes + entry.state_bytes
        # `quantized_element_size`: 0.5 for 4 bit, 1 for 8 bit
        return entry.elements // 2 if quantization.scheme.is_4bit_bitsandbytes else entry.elements
    return entry.elements * entry.arrival_dtype.itemsize_bytes


def _load(
    recorder: LoadRecorder, entry: StoredParameter, quantization: Quantization | None, code_books: list[int]
) -> int:
    """One parameter; the first one that is quantized twice takes the process's code book along."""
    if not entry.quantized:
        return recorder.alloc(_bytes_in(entry.arrival_dtype, entry))
    assert quantization is not None
    keys: dict[str, int] = {}
    for name, size in arrival(quantization, entry.shape, entry.dtype):
        if name == PROCESS_CODE_BOOK:
            if code_books:
                recorder.alloc(code_books.pop())
        elif size:
            keys[name] = recorder.alloc(size)
        else:
            recorder.free(keys.pop(name))
    return 0


def _cast(recorder: LoadRecorder, entries: Sequence[StoredParameter], arrived: Sequence[int]) -> list[int]:
    """Each parameter whose dtype changed after it arrived: the new copy is made before the old one goes; the keys then."""
    return [
        recorder.exchange(key, _bytes_in(entry.loaded_dtype, entry))
        if key and entry.arrival_dtype is not entry.loaded_dtype
        else key
        for entry, key in zip(entries, arrived, strict=True)
    ]


def _bytes_in(dtype: DType, entry: StoredParameter) -> int:
    return round_to_block(entry.elements * dtype.itemsize_bytes)
