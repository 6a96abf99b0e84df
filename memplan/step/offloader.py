"""TRL's activation offloading: what autograd saves goes to pinned host memory and comes back over a second CUDA stream.

Source: trl 1.16.0 models/activation_offloading.py (`OffloadActivations` with its defaults, `pack_tensor`,
`unpack_tensor_with_streams` and the hook in it), whose names the attributes here have.

Every saved tensor gets a number. One of at least `MINIMUM_BYTES` that is no parameter is copied to the host; the tensor itself
stays on the device until a later one is copied whose number is `STASH` or more higher, or until backward has begun. A storage
that is saved again while its first copy is under way is kept on the device instead. In backward a tensor comes back into memory
of the second stream; it goes after the next node that asks for one has run, except where something else uses it by then, which
is left to decide.

Known limits:
    Tensors are taken to be contiguous and whole, as those are that are saved outside of checkpoints.
    One graph a step: a reentrant checkpoint, whose recomputation saves as well, is not covered.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step.dim import count_elements
from memplan.step.tensor import Packed, Shape, Storage, Tape, Tensor

MINIMUM_BYTES = 1024
STASH = 5

Key = tuple[int, DType]


@dataclass(slots=True, eq=False)
class _Tracked:
    """A saved tensor: what stays on the device, or only what it was."""

    storage: Storage | None
    is_moved: bool = False
    shape: Shape = ()
    dtype: DType = DType.UINT8


def _calibrate() -> int:
    held = {0: object()}
    return sys.getrefcount(held[0])


# What `sys.getrefcount` says of something that a dictionary alone holds.
_ALONE = _calibrate()


class Offloader:
    """The context manager of one micro-step on `tape`.

    Attributes:
        forgets_at: the segment at whose beginning the graph of the step before goes, which the manager has held by its last
            node (`curr_autograd_node`).
    """

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.forgets_at: int | None = None
        self.tracker: dict[int, _Tracked] = {}
        self.tensor_id = 0
        self.storage_to_tensor_id: dict[Key, int] = {}
        self.storage_key_by_tensor_id: dict[int, Key] = {}
        self.fwd_stash: dict[int, Storage] = {}
        self.bwd_tensor_stash: dict[int, Storage] = {}
        self._node = self._previous_node = 0
        self._hooks: list[tuple[int, bool, list[int]]] = []

    # -- forward ----------------------------------------------------------------------------------------

    def pack(self, entry: Tensor | Storage) -> Packed:
        """Saves a tensor."""
        self.tensor_id += 1
        number = self.tensor_id
        storage: Storage | None
        if isinstance(entry, Tensor):
            storage, shape, dtype = entry.storage, entry.shape, entry.dtype
        else:
            storage, shape, dtype = entry, entry.info.shape, entry.info.dtype
        self.tracker[number] = _Tracked(storage)
        if storage is None:  # a parameter
            return Packed(number)
        self.tape.mark_saved(storage)
        key = (storage.info.index, dtype)
        if key in self.storage_to_tensor_id:
            self._track(key, number)
            return Packed(number)
        if count_elements(shape) * dtype.itemsize_bytes < MINIMUM_BYTES:
            return Packed(number)
        for other in list(self.fwd_stash):
            if other > number - STASH:
                break
            self._leave(other)
        self.tracker[number] = _Tracked(None, True, shape, dtype)
        self.tape.host_copies.append((shape, dtype, self.tape.repeats))
        self.fwd_stash[number] = storage
        self._track(key, number)
        return Packed(number)

    def _track(self, key: Key, number: int) -> None:
        self.storage_to_tensor_id[key] = number
        self.storage_key_by_tensor_id[number] = key

    def _release_key(self, number: int) -> None:
        key = self.storage_key_by_tensor_id.pop(number, None)
        if key is not None and self.storage_to_tensor_id.get(key) == number:
            del self.storage_to_tensor_id[key]

    def _leave(self, number: int) -> None:
        del self.fwd_stash[number]
        self._release_key(number)

    # -- backward ---------------------------------------------------------------------------------------

    def begin_node(self) -> None:
        """Another node runs."""
        self._node += 1

    def unpack(self, packed: Packed) -> Storage | None:
        """The saved tensor's storage, on the device again."""
        number = packed.number
        tracked = self.tracker.pop(number)
        storage = tracked.storage
        if tracked.is_moved:
            previous: list[int] = []
            if self._previous_node != self._node:
                if not self._previous_node:  # the last node of the step before goes, and with it what its graph holds
                    self.tape.enter(self.tape.phase, self.tape.current_layer)
                    self.forgets_at = len(self.tape.segments) - 1
                self._previous_node = self._node
                previous = list(self.bwd_tensor_stash)
            comes_back = number not in self.fwd_stash
            if comes_back:
                storage = self.tape.alloc(tracked.shape, tracked.dtype, "to", Component.ACTIVATIONS)
                storage.info.stream = 1
                self.bwd_tensor_stash[number] = storage
            else:
                storage = self.fwd_stash[number]
            self._hooks.append((number, comes_back, previous))
        self._release_key(number)
        return storage

    def end_node(self) -> None:
        """The hooks of a node that has run; what it saved is still there."""
        hooks, self._hooks = self._hooks, []
        for number, comes_back, previous in hooks:
            stash = self.bwd_tensor_stash
            if comes_back and number in stash and sys.getrefcount(stash[number]) > _ALONE:
                stash[number].info.is_reused_later = True  # record_stream
                del stash[number]
            for other in list(self.fwd_stash):
                self._leave(other)
            for other in previous:
                self.bwd_tensor_stash.pop(other, None)

    def close(self) -> None:
        """The step has ended. What was saved and never asked for stays until the next one begins (`__enter__`)."""
        self.bwd_tensor_stash.clear()
        self.fwd_stash.clear()
