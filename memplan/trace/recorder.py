"""Records every CUDA storage that a program allocates and frees, exactly and in order.

A dispatch mode above `FakeTensorMode` sees one kernel as one op. Each output's storage is a `StorageImpl`; a weak
reference to its Python object fires when the last C++ reference dies, saved tensors of autograd included.
"""

from __future__ import annotations

import sys
import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.autograd.graph import _engine_run_backward
from torch.utils._python_dispatch import TorchDispatchMode

from memplan.trace.dynamic_sizes import DynamicSizes
from memplan.trace.fake_kernels import KERNELS
from memplan.trace.guesses import ScalarGuesses
from memplan.trace.repair import FUNCTIONAL_FOR_SUBCLASSES, InPlaceUpdate
from memplan.trace.temporaries import KernelTemporaries

_ENGINE_CODE = _engine_run_backward.__code__
# torch/csrc/autograd/functions/accumulate_grad.cpp: its nodes come before all others.
_ACCUMULATE_GRAD = 2**64 - 1
_aten = torch.ops.aten
_DEVICE = torch.ops.prim.device.default


class _Death(weakref.ref[Any]):
    """A weak reference that knows which storage it watches."""

    __slots__ = ("address", "storage_id")
    address: int
    storage_id: int


@dataclass
class StorageRecord:
    """One allocation: what was allocated, by which op, and (filled in later) what it was for."""

    size_bytes: int
    shape: tuple[int, ...]
    dtype: str
    op_id: int
    component: str = ""
    name: str = ""
    stream: int = 0
    died_in_module: bool = False
    born_in_module: bool = False


@dataclass
class Mark:
    """From event number `event_index` on, events belong to this phase."""

    event_index: int
    step: int
    phase: str


@dataclass
class Log:
    """Everything recorded. `events` holds a storage id for its birth and the negated id for its death."""

    events: list[int] = field(default_factory=list)
    storages: list[StorageRecord] = field(default_factory=lambda: [StorageRecord(0, (), "", 0)])
    ops: list[tuple[str, str]] = field(default_factory=lambda: [("", "")])
    marks: list[Mark] = field(default_factory=list)
    cache_flushes: list[int] = field(default_factory=list)
    synchronized: list[int] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)


class SeesCopies(Protocol):
    """Who looks at the ops of a forward and a backward pass for copies into host memory."""

    def see(self, func: Any, args: Any, out: Any) -> None:
        """An op has run."""


class ModuleStack:
    """Which module is running: by the stack in the forward pass, by autograd's sequence numbers in the backward."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.stack: list[str] = []
        self._numbers: list[int] = [0]
        self._paths: list[str] = [""]
        self.last_error_path = ""
        # What runs while a gradient is accumulated: the hooks of an optimizer that steps inside backward.
        self.hooks = ""

    def name_modules(self, root: torch.nn.Module) -> None:
        """Takes the qualified names of `root`'s modules, PEFT's wrapping prefix removed."""
        self.names = {id(module): plain_path(name) for name, module in root.named_modules()}

    def current(self, in_backward: bool) -> str:
        """The path of the running module; in the backward pass that of the forward op being differentiated."""
        if self.stack:
            return self.stack[-1]
        if not in_backward:
            return ""
        node = torch._C._current_autograd_node()
        if node is None:
            return ""
        number = node._sequence_nr()
        if number == _ACCUMULATE_GRAD:
            return self.hooks
        return self._paths[bisect_right(self._numbers, number) - 1]

    def _note(self) -> None:
        number = torch._C._autograd._get_sequence_nr()
        path = self.stack[-1] if self.stack else ""
        if self._numbers[-1] == number:
            self._paths[-1] = path
        else:
            self._numbers.append(number)
            self._paths.append(path)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Follows every `nn.Module.__call__` while the context lasts."""
        original = torch.nn.Module.__call__
        stack, note = self.stack, self._note

        def call(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            path = self.names.get(id(module))
            if path is None:
                return original(module, *args, **kwargs)
            stack.append(path)
            note()
            try:
                return original(module, *args, **kwargs)
            except Exception:
                self.last_error_path = self.last_error_path or path
                raise
            finally:
                stack.pop()
                note()

        torch.nn.Module.__call__ = call
        try:
            yield
        finally:
            torch.nn.Module.__call__ = original


def plain_path(name: str) -> str:
    """`name` as the base model knows it: `base_model.model.` is PEFT's wrapping, the other torch's around a checkpoint."""
    name = name.replace("._checkpoint_wrapped_module", "")
    if name in ("base_model", "base_model.model"):
        return ""
    return name.removeprefix("base_model.model.")


class Recorder(TorchDispatchMode):  # type: ignore[misc]
    """The dispatch mode. Enter it inside an active `FakeTensorMode` (or over real tensors, for the differential test).

    Args:
        device_type: only storages of this device are recorded.
        temporaries: what kernels allocate inside, where fakes cannot see it; None records what is visible only.
        guesses: what a data-dependent `.item()` returns.
    """

    def __init__(
        self,
        device_type: str = "cuda",
        temporaries: KernelTemporaries | None = None,
        guesses: ScalarGuesses | None = None,
    ) -> None:
        super().__init__()
        self.log = Log()
        self.modules = ModuleStack()
        self.device_type = device_type
        self.temporaries = temporaries
        self.guesses = guesses or ScalarGuesses()
        self.sizes = DynamicSizes()
        self.in_backward = False
        # The number of the CUDA stream that allocates; 0 is the one that computes.
        self.stream = 0
        self.copies_to_host: SeesCopies | None = None
        # Storages whose memory waits for another stream's work after it is freed (`Tensor.record_stream`).
        self.reused_later: set[int] = set()
        self._alive: dict[int, _Death] = {}
        self._alias: dict[int, int] = {}
        self._pending: InPlaceUpdate | None = None
        self._stopped = False
        # Ops that are run, and recorded, as the sequence of ops that CUDA runs.
        self.decompositions: dict[Any, Callable[..., Any]] = {}
        # True while a composite op that updates in place for plain tensors runs decomposed.
        self.inside_composite = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Dynamo's wrapper would put its own frame between the autograd engine and __torch_dispatch__.
        return False

    @contextmanager
    def decomposed(self) -> Iterator[None]:
        """A composite op runs here op by op."""
        self.inside_composite = True
        try:
            yield
        finally:
            self._settle()
            self.inside_composite = False

    def mark(self, step: int, phase: str) -> None:
        """A new phase begins here."""
        self._settle()
        self.in_backward = phase == "backward"
        self.log.marks.append(Mark(len(self.log.events), step, phase))

    def stop(self) -> None:
        """The run ends here; what is torn down afterwards is not part of it."""
        self._settle()
        self._stopped = True

    def empty_cache(self) -> None:
        """The program calls `torch.cuda.empty_cache()` here."""
        self._settle()
        self.log.cache_flushes.append(len(self.log.events))

    def synchronize(self) -> None:
        """The program waits here for all streams."""
        self._settle()
        self.log.synchronized.append(len(self.log.events))

    def id_of(self, tensor: torch.Tensor) -> int:
        """The id of the storage behind `tensor`; 0 for one that is not recorded (another device, or no bytes)."""
        if tensor.device.type != self.device_type:
            return 0
        self._settle()
        death = self._alive.get(tensor.untyped_storage()._cdata)
        return death.storage_id if death is not None else 0

    def alive_id(self, tensor: torch.Tensor) -> int:
        """The id of the storage behind `tensor`, without deciding a pending update; 0 if it is not recorded."""
        death = self._alive.get(tensor.untyped_storage()._cdata)
        return death.storage_id if death is not None else 0

    def id_of_storage(self, storage: Any) -> int:
        """The id of a living storage; 0 if it is not recorded."""
        death = self._alive.get(storage._cdata)
        return death.storage_id if death is not None else 0

    def rename(self, storage_id: int, new_id: int) -> None:
        """From now on the living storage `storage_id` counts as `new_id`."""
        for death in self._alive.values():
            if death.storage_id == storage_id:
                death.storage_id = new_id
                return

    def live_ids(self) -> set[int]:
        """Ids of the storages alive now."""
        self._settle()
        return {death.storage_id for death in self._alive.values()}

    def allocate(self, size_bytes: int, op: str, *, name: str = "", component: str = "", path: str = "") -> int:
        """Records an allocation that no tensor stands for; `release` ends it. Returns its id."""
        self.log.ops.append((op, path))
        self.log.storages.append(
            StorageRecord(size_bytes, (size_bytes,), "uint8", len(self.log.ops) - 1, component=component, name=name)
        )
        storage_id = len(self.log.storages) - 1
        self.log.events.append(storage_id)
        return storage_id

    def release(self, storage_id: int) -> None:
        """Ends an allocation made by `allocate`."""
        self.log.events.append(-storage_id)

    def track(self, tensor: torch.Tensor, op: str) -> None:
        """Records a tensor that came to be without the dispatcher's knowledge."""
        self._record(tensor, op, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE:
            # `tensor.device` of a fake; not an op of the program.
            return func(*args, **(kwargs or {}))
        if self._pending is not None:
            self._settle()
        kwargs = kwargs or {}
        decomposition = self.decompositions.get(func)
        if decomposition is not None:
            with self:
                return decomposition(*args, **kwargs)
        if func is _aten._local_scalar_dense.default:
            return self._scalar(func, args, kwargs)
        log = self.log
        first_new = len(log.storages)
        substitute = KERNELS.get(func)
        if self.temporaries is not None:
            self.temporaries.before(self, func, args, kwargs)
        try:
            out = func(*args, **kwargs) if substitute is None else substitute(func, args, kwargs)
        except DynamicOutputShapeException:
            out = self.sizes.run(func, args, kwargs)
        name = func._schema.name
        log.calls[name] += 1
        if self.copies_to_host is not None and log.marks and log.marks[-1].phase in ("forward", "backward"):
            self.copies_to_host.see(func, args, out)
        op_id = 0
        if isinstance(out, torch.Tensor):
            op_id = self._record(out, name, op_id)
        elif isinstance(out, (tuple, list)):
            for item in out:
                if isinstance(item, torch.Tensor):
                    op_id = self._record(item, name, op_id)
                elif isinstance(item, (tuple, list)):
                    for inner in item:
                        if isinstance(inner, torch.Tensor):
                            op_id = self._record(inner, name, op_id)
        if self.temporaries is not None:
            self.temporaries.after(self, func, args, kwargs, out, first_new)
        if func in FUNCTIONAL_FOR_SUBCLASSES and len(log.storages) > first_new:
            composite = self.inside_composite or (self.in_backward and sys._getframe(1).f_code is _ENGINE_CODE)
            if composite:
                self._pending = InPlaceUpdate.candidate(func, args, out, self)
        return out

    def _record(self, tensor: torch.Tensor, op: str, op_id: int) -> int:
        if tensor.device.type != self.device_type:
            return op_id
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:
            return op_id
        address = storage._cdata
        if address in self._alive:
            return op_id
        size_bytes = storage.nbytes()
        if size_bytes == 0:
            return op_id
        log = self.log
        if not op_id:
            log.ops.append((op.removeprefix("aten::"), self.modules.current(self.in_backward)))
            op_id = len(log.ops) - 1
        record = StorageRecord(
            size_bytes, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), op_id, stream=self.stream,
            born_in_module=bool(self.modules.stack),
        )  # fmt: skip
        log.storages.append(record)
        storage_id = len(log.storages) - 1
        death = _Death(storage, self._on_death)
        death.address = address
        death.storage_id = storage_id
        self._alive[address] = death
        log.events.append(storage_id)
        return op_id

    def _on_death(self, death: weakref.ref[Any]) -> None:
        assert isinstance(death, _Death)
        if self._stopped:
            return
        self._alive.pop(death.address, None)
        self.log.storages[death.storage_id].died_in_module = bool(self.modules.stack)
        self.log.events.append(-death.storage_id)

    def _settle(self) -> None:
        """Decides the update left pending by the previous op: in place in the real engine, or not."""
        pending, self._pending = self._pending, None
        if pending is not None and pending.happened_in_place(self):
            pending.apply(self)

    def _scalar(self, func: Any, args: Any, kwargs: Any) -> Any:
        try:
            return func(*args, **kwargs)
        except DataDependentOutputException:
            return self.guesses.guess(args[0])
