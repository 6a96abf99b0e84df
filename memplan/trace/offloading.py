"""TRL's activation offloading in a trace: its own class runs, on streams that only say which of them allocates.

A second CUDA stream has memory of its own in the caching allocator (`BlockComparatorSize` compares streams first), so what is
allocated under it is recorded as such. Everything else about streams is order, which a trace has anyway.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from importlib import import_module
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from memplan.trace.recorder import Recorder
from memplan.trace.spec import TraceSpec

# What a storage's number is multiplied by to be its address: an offset in elements added to it leads to no other storage.
_APART = 1 << 48


class HostCopies:
    """Counts the host memory of what is copied there to wait for backward.

    It is pinned, of which there are powers of two, and never given back (ATen/core/CachingHostAllocator.h).
    """

    def __init__(self) -> None:
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._now: Counter[int] = Counter()
        self._most: Counter[int] = Counter()

    @property
    def held_bytes(self) -> int:
        """Of each size that was had, as much as was held at a time."""
        return sum(size * count for size, count in self._most.items())

    def see(self, func: Any, args: Any, out: Any) -> None:
        """Called for every op: a copy from the device into host memory is one."""
        name = func._schema.name
        if name == "aten::copy_":
            target, source = args[0], args[1]
        elif name == "aten::_to_copy":
            target, source = out, args[0]
        else:
            return
        if target.device.type != "cpu" or source.device.type != "cuda":
            return
        storage = target.untyped_storage()
        if storage._cdata in self._alive:
            return
        size = 1 << (storage.nbytes() - 1).bit_length()
        self._now[size] += 1
        self._most[size] = max(self._most[size], self._now[size])

        def gone(_: Any, address: int = storage._cdata, size: int = size) -> None:
            del self._alive[address]
            self._now[size] -= 1

        self._alive[storage._cdata] = weakref.ref(storage, gone)


def host_copies(spec: TraceSpec) -> HostCopies | None:
    """What counts a run's copies; None where nothing is offloaded."""
    return None if spec.activation_offloading == "none" else HostCopies()


class _Stream:
    """A CUDA stream: only its number matters, 0 for the one that computes, and when the program waits for it."""

    recorder: Recorder | None = None

    def __init__(self, number: int = 1) -> None:
        self.number = number

    def record_event(self) -> object:
        return object()

    def wait_event(self, event: object) -> None:
        pass

    def wait_stream(self, stream: _Stream) -> None:
        pass

    def synchronize(self) -> None:
        if self.recorder is not None and self.number:
            self.recorder.synchronize()


@contextmanager
def streams(spec: TraceSpec, recorder: Recorder) -> Iterator[None]:
    """Makes streams, pointers and the cache's calls mean something to `recorder` while the context lasts."""
    if spec.activation_offloading != "saved-tensors":
        yield
        return
    _Stream.recorder = recorder
    current = [_Stream(0)]

    @contextmanager
    def stream(chosen: _Stream) -> Iterator[None]:
        outer, recorder.stream = recorder.stream, chosen.number
        current.append(chosen)
        try:
            yield
        finally:
            current.pop()
            recorder.stream = outer

    def data_ptr(storage: Any) -> int:
        return recorder.id_of_storage(storage) * _APART

    def record_stream(tensor: torch.Tensor, _: _Stream) -> None:
        recorder.reused_later.add(recorder.alive_id(tensor))

    # The class empties the cache wherever bitsandbytes is imported. PEFT imports it where it is installed: only what cannot
    # run without it is taken to have it.
    empties = spec.load_in_4bit or spec.load_in_8bit
    changes: list[tuple[Any, str, Any]] = [
        (torch.cuda, "Stream", _Stream),
        (torch.cuda, "stream", stream),
        (torch.cuda, "current_stream", lambda *_: current[-1]),
        (torch.cuda, "empty_cache", recorder.empty_cache if empties else lambda: None),
        (torch.UntypedStorage, "data_ptr", data_ptr),
        (FakeTensor, "record_stream", record_stream),
    ]
    with _changed(changes):
        yield


@contextmanager
def _changed(attributes: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Attributes (owner, name, value) while the context lasts."""
    with ExitStack() as stack:
        for owner, name, value in attributes:
            is_own = name in vars(owner)
            if is_own:
                stack.callback(setattr, owner, name, vars(owner)[name])
            else:
                stack.callback(delattr, owner, name)
            setattr(owner, name, value)
        yield


def around_step(spec: TraceSpec, model: Any) -> AbstractContextManager[Any]:
    """What SFTTrainer enters for every `training_step`; one for the whole run."""
    if spec.activation_offloading != "saved-tensors":
        return nullcontext()
    module = import_module("trl.models.activation_offloading")
    with _changed([(torch.accelerator, "current_accelerator", lambda *_: torch.device("cuda"))]):
        made: AbstractContextManager[Any] = module.get_act_offloading_ctx_manager(model)
    return made
