"""Shape-only tensors on a tape: what a training step allocates and frees, and when.

A family's forward pass is ordinary Python that runs on these tensors. A tensor holds its storage, an
autograd node holds the storages it saved, and a storage that nobody holds any more is freed: the same
reference counting that decides lifetimes in the real model decides them here, so a local variable keeps
its tensor alive exactly as long as in the code that is mirrored.

Symbols: B micro batch, S sequence length, H hidden size, L layers, V vocabulary, A attention heads,
K key/value heads, D head size, I intermediate size, R adapter rank.

Known limits:
    Relies on CPython's immediate reference counting. One stream, one device.
    A view shares its base's storage; sizes are those of the storage, rounded to 512-byte blocks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from memplan.dtypes import DType
from memplan.estimate import Component, Phase
from memplan.step.dim import Dim as Dim
from memplan.step.dim import count_elements as count_elements
from memplan.units import BLOCK_BYTES

if TYPE_CHECKING:
    from memplan.step.in_backward import Hooks

Shape = tuple[int, ...]


# The op that a workspace of cuBLAS goes under.
WORKSPACE = "cuBLAS workspace"
BLAS_OPS = frozenset({"mm", "bmm", "matmul_4bit_backward", "matmul_8bit_backward"})


@dataclass(slots=True, eq=False)
class StorageInfo:
    """What one storage is; outlives the storage so that events can be read afterwards.

    Attributes:
        size_bytes: rounded up to the allocator's 512-byte blocks.
        component: what the bytes are for. Raised from `temporaries` when autograd saves the storage.
        repeats: how many layers allocate one like it, where equal layers are executed once.
        in_backward: whether backward allocated it.
        is_port: handed from one layer to the next, so that only the last one outlives its layer: a layer's result, and in
            backward whatever outlives one (the gradient of a layer's input).
        stream: the CUDA stream whose memory it is; 0 is the one that computes.
        is_reused_later: whether its memory waits for another stream's work once it is freed (`Tensor.record_stream`).
    """

    index: int
    size_bytes: int
    component: Component
    op: str
    module: str
    shape: Shape
    dtype: DType
    repeats: int = 1
    in_backward: bool = False
    is_port: bool = False
    stream: int = 0
    is_reused_later: bool = False


class Storage:
    """A live allocation; frees itself on its tape when the last reference goes."""

    __slots__ = ("info", "tape")

    def __init__(self, tape: Tape, info: StorageInfo) -> None:
        self.tape = tape
        self.info = info

    def __del__(self) -> None:
        info, tape = self.info, self.tape
        if info.repeats > 1 and tape.repeats == 1 and not info.is_port:
            # Kept beyond its layer (autocast's cache, past key/values): freed once for every layer that made one.
            tape.events.extend([~info.index] * info.repeats)
        elif info.repeats == 1 and tape.repeats > 1 and not info.is_port and info.index not in tape.handed:
            # What all layers share (rotary embedding, mask) goes with the last of them, once.
            tape.leaving.append(~info.index)
        else:
            tape.events.append(~info.index)


class Node:
    """One autograd node: what it saved, where its gradients go, and what its backward allocates.

    Attributes:
        saved: storages (or checkpoint slots) held until the node has run.
        edges: for each input that needs a gradient, the node or leaf that receives it; None where none is needed.
        backward: called with (tape, node, gradient), returns one gradient per edge (None where edge is None).
    """

    __slots__ = (
        "backward",
        "component",
        "dependencies",
        "edges",
        "meta",
        "module",
        "op",
        "saved",
        "segment",
        "sequence",
    )

    def __init__(
        self,
        op: str,
        module: str,
        segment: int,
        sequence: int,
        edges: list[Node | Leaf | None],
        saved: list[Storage | Slot | Packed | None],
        backward: Callable[[Tape, Node, Tensor], Iterable[Tensor | None]],
        meta: tuple[object, ...],
        component: Component | None,
    ) -> None:
        self.component = component
        self.op = op
        self.module = module
        self.segment = segment
        self.sequence = sequence
        self.edges = edges
        self.saved = saved
        self.backward = backward
        self.meta = meta
        self.dependencies = 0

    def stored(self, index: int) -> Storage | None:
        """The storage saved at `index`; inside a checkpoint this is what the recomputation produced."""
        entry = self.saved[index]
        if isinstance(entry, Slot):
            return entry.unpack()
        assert not isinstance(entry, Packed), "the engine unpacks what is offloaded"
        return entry

    def all_stored(self) -> list[Storage | None]:
        """Everything saved, unpacked in order: a checkpointed layer is recomputed before the caller allocates."""
        return [self.stored(index) for index in range(len(self.saved))]


@dataclass(slots=True, eq=False)
class Packed:
    """What a node has in the place of a saved tensor that an offloader keeps under a number."""

    number: int


class KeepsSaved(Protocol):
    """Who keeps saved tensors in the place of autograd's nodes, and what it is told of backward.

    Attributes:
        forgets_at: the segment at whose beginning it lets go of the graph of the step before.
    """

    forgets_at: int | None

    def pack(self, entry: Tensor | Storage) -> Packed:
        """Saves a tensor."""

    def unpack(self, packed: Packed) -> Storage | None:
        """The saved tensor's storage, on the device again; None for a parameter."""

    def begin_node(self) -> None:
        """A node is about to run."""

    def end_node(self) -> None:
        """A node has run."""

    def close(self) -> None:
        """Backward has ended."""


class Leaf:
    """Where an edge ends and a gradient accumulates: a trainable parameter, or another tensor made to require one.

    Attributes:
        component: what its gradient counts as.
        accumulates: whether an earlier micro-batch has left a gradient, which a new one is added to in place.
        has_states: whether an optimizer that steps inside backward has made its states.
    """

    __slots__ = ("accumulates", "component", "dependencies", "dtype", "grad", "has_states", "name", "shape")

    def __init__(
        self,
        name: str,
        shape: Shape,
        dtype: DType,
        component: Component = Component.GRADIENTS,
        *,
        accumulates: bool = False,
    ) -> None:
        self.name = name
        self.accumulates = accumulates
        self.component = component
        self.shape = shape
        self.dtype = dtype
        self.grad: Storage | None = None
        self.has_states = False
        self.dependencies = 0


class Frame:
    """One checkpointed call: its saved tensors are forgotten in forward and recomputed on first use.

    Mirrors torch/utils/checkpoint.py (`_CheckpointFrame`, non-reentrant, torch 2.13): saved tensors are numbered in the
    order of saving; the recomputation stops early at the last one; each slot gives up its tensor when it is unpacked.

    Attributes:
        count: tensors saved so far in this run of the call.
        total: tensors that the forward run saved; known once the recomputation starts.
        recompute: runs the call again; holds its arguments until the last node of the call has run.
        slots: those of the forward run; one whose node is gone by then is not filled again.
    """

    __slots__ = ("count", "recompute", "recomputed", "slots", "total")

    def __init__(self, recompute: Callable[[Frame], None]) -> None:
        self.count = 0
        self.total: int | None = None
        self.recompute = recompute
        self.recomputed: dict[int, Storage] = {}
        self.slots: list[weakref.ref[Slot]] = []


class Slot:
    """A place in a checkpoint frame where a saved tensor would be."""

    __slots__ = ("__weakref__", "frame", "index")

    def __init__(self, frame: Frame, index: int) -> None:
        self.frame = frame
        self.index = index

    def unpack(self) -> Storage | None:
        """Recompute the frame if this is its first use, and take this slot's storage out of it."""
        frame = self.frame
        if frame.total is None:
            frame.recompute(frame)
        return frame.recomputed.pop(self.index, None)


class StopRecomputation(Exception):  # noqa: N818 - not an error: the early stop of a recomputation
    """Raised inside a recomputation once every slot of its frame is filled."""


class Tensor:
    """A tensor without values.

    Attributes:
        storage: None for parameters and inputs that the tape does not own.
        node: the autograd node that made it, or the leaf it is; None when no gradient is needed.
        is_view: whether it shares another tensor's storage (such a gradient is never accumulated in place).
        by_token: for [B, A, S, D], whether its memory is laid out [B, S, A, D], as split heads are.
    """

    __slots__ = ("by_token", "dtype", "is_view", "node", "shape", "storage", "tape")

    def __init__(
        self,
        tape: Tape,
        shape: Shape,
        dtype: DType,
        storage: Storage | None,
        node: Node | Leaf | None = None,
        is_view: bool = False,
        by_token: bool = False,
    ) -> None:
        self.by_token = by_token
        self.tape = tape
        self.shape = shape
        self.dtype = dtype
        self.storage = storage
        self.node = node
        self.is_view = is_view

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient flows to this tensor."""
        return self.node is not None

    def __add__(self, other: Tensor) -> Tensor:
        return self.tape.add(self, other)

    def __mul__(self, other: Tensor) -> Tensor:
        return self.tape.mul(self, other)


@dataclass(slots=True)
class Segment:
    """A stretch of events that happens `count` times in a row (equal layers are executed once).

    Attributes:
        layer: module path of the layer that was executed, with its last number where it is a group (`layers.2-3`), or ""
            outside the layers.
        events: storage index for an allocation, its complement (`~index`) for a free.
    """

    layer: str
    phase: str
    count: int
    events: list[int] = field(default_factory=list)


class Tape:
    """Records allocations, frees and the autograd graph of one step.

    The tape starts outside any layer; `enter` opens a new segment for what follows.

    Attributes:
        scope_component: what allocations count as, where it is not decided by the op.
        training: whether the model is in training: without it dropout does nothing.
        frame: the checkpointed call that is running, if any.
        workspaces: what stays for the whole run once it is made: cuBLAS's, by the phase whose thread made it, others by name.
        handed: indices of what enters a run of equal layers from outside as the input of its first.
        leaving: frees that a repeated layer has seen of what is not its own; they happen when the run is over.
        outgrown: indices of such as have been replaced by larger ones.
        late: of them what a run's second pass makes.
        steps_in_backward: whether an optimizer steps inside backward.
        hooks: what it does there.
        states: its states, made when a parameter's first gradient arrives.
        casts: autocast's cache of casted leaves, each with the leaf; emptied when autocast's context ends.
        offloader: who keeps saved tensors outside of checkpoints, where they are offloaded.
        input_ids: the batch's tokens, where an offloader looks at them.
        host_copies: shape, dtype and number of what was copied to the host to wait for backward.
        held: what the loss's graph keeps until backward is done: tensors made to require a gradient with their gradients, and
            what the functions of reentrant checkpoints have of their own.
    """

    def __init__(self) -> None:
        self.infos: list[StorageInfo] = []
        self.segments: list[Segment] = []
        self.events: list[int] = []
        self.module = ""
        self.grad_enabled = True
        self.training = True
        self.scope_component: Component | None = None
        self.frame: Frame | None = None
        self.layer_counts: list[int] = [1]
        self.layer_names: list[str] = [""]
        self.current_layer = 0
        self.repeats = 1
        self.phase = ""
        self.held: list[object] = []
        self.offloader: KeepsSaved | None = None
        self.input_ids: Tensor | None = None
        self.host_copies: list[tuple[Shape, DType, int]] = []
        self.casts: dict[str, tuple[Tensor, Tensor]] = {}
        self.workspace_bytes = 0
        self.workspace_is_loaded = False
        self.workspaces: dict[str, Storage] = {}
        self.handed: set[int] = set()
        self.leaving: list[int] = []
        self.outgrown: set[int] = set()
        self.late: dict[str, Storage] = {}
        self.steps_in_backward = False
        self.hooks: Hooks | None = None
        self.states: list[Storage] = []
        self._sequence = 0

    # -- segments ---------------------------------------------------------------------------------------

    def enter(self, phase: str, layer: int = 0) -> None:
        """Start a new segment: events from here on belong to `phase` and to executed layer number `layer`."""
        self.phase = phase
        self.current_layer = layer
        self.repeats = self.layer_counts[layer]
        segment = Segment(self.layer_names[layer], phase, self.repeats)
        self.segments.append(segment)
        self.events = segment.events
        if self.repeats == 1:
            self.events += self.leaving
            self.leaving.clear()

    @contextmanager
    def component(self, component: Component) -> Iterator[None]:
        """What is allocated inside counts as `component`, in forward and in the backward of the nodes made here."""
        outer, self.scope_component = self.scope_component, component
        try:
            yield
        finally:
            self.scope_component = outer

    # -- allocation -------------------------------------------------------------------------------------

    def alloc(self, shape: Shape, dtype: DType, op: str, component: Component | None = None) -> Storage:
        """A new storage for `shape` elements of `dtype`."""
        size = count_elements(shape) * dtype.itemsize_bytes
        in_backward = self.phase == Phase.BACKWARD
        info = StorageInfo(
            len(self.infos),
            -(-size // BLOCK_BYTES) * BLOCK_BYTES,
            component or self.scope_component or Component.TEMPORARIES,
            op,
            self.module,
            shape,
            dtype,
            self.repeats,
            in_backward,
            in_backward,
        )
        self.infos.append(info)
        self.events.append(info.index)
        if op in BLAS_OPS:
            self.use_blas()
        return Storage(self, info)

    def new(
        self, shape: Shape, dtype: DType, op: str, node: Node | Leaf | None = None, *, by_token: bool = False
    ) -> Tensor:
        """A tensor with a storage of its own."""
        return Tensor(self, shape, dtype, self.alloc(shape, dtype, op), node, False, by_token)

    def view(self, x: Tensor, shape: Shape, *, by_token: bool = False) -> Tensor:
        """`x` under another shape, sharing its storage. Autograd's view nodes allocate nothing in backward."""
        node = self.record("view", (x,), (), _pass_view, (x.shape, x.by_token))
        return Tensor(self, shape, x.dtype, x.storage, node, True, by_token)

    def use_blas(self) -> None:
        """A matrix product runs. The first one of the forward and of the autograd thread allocates cuBLAS's workspace."""
        if self.workspace_bytes and self.phase not in self.workspaces:
            if self.workspace_is_loaded and self.phase == Phase.FORWARD:
                return
            outer, self.module = self.module, ""
            self.workspaces[self.phase] = self.alloc(
                (self.workspace_bytes,), DType.UINT8, WORKSPACE, Component.TEMPORARIES
            )
            self.module = outer

    # -- autograd graph ---------------------------------------------------------------------------------

    def record(
        self,
        op: str,
        inputs: tuple[Tensor | None, ...],
        saved: tuple[Tensor | Storage | Packed | None, ...],
        backward: Callable[[Tape, Node, Tensor], Iterable[Tensor | None]],
        meta: tuple[object, ...] = (),
    ) -> Node | None:
        """The node of an op, or None where no input needs a gradient (or gradients are off)."""
        if not self.grad_enabled:
            return None
        edges = [x.node if x is not None else None for x in inputs]
        if not any(edges):
            return None
        kept: list[Storage | Slot | Packed | None] = []
        for entry in saved:
            if entry is None:
                continue
            if isinstance(entry, Packed):
                kept.append(entry)
                continue
            storage = entry.storage if isinstance(entry, Tensor) else entry
            if self.frame is not None:  # parameters as well: one that is asked for starts a recomputation
                kept.append(self._save_in_frame(self.frame, storage))
            elif self.offloader is not None:
                kept.append(self.offloader.pack(entry))
            elif storage is not None:
                self.mark_saved(storage)
                kept.append(storage)
        self._sequence += 1
        return Node(
            op, self.module, self.current_layer, self._sequence, edges, kept, backward, meta, self.scope_component
        )

    def packed(self, x: Tensor | None, inputs: tuple[Tensor | None, ...]) -> Tensor | Packed | None:
        """`x` as an op of these inputs saves it before it runs, where an offloader sees the order; otherwise `x` itself."""
        if x is None or self.offloader is None or self.frame is not None or not self.grad_enabled:
            return x
        return self.offloader.pack(x) if any(entry is not None and entry.node for entry in inputs) else x

    def hold(self, tensor: Tensor) -> None:
        """An attribute of a node's context: it stays with the graph, and no checkpoint sees it.

        The graph of a recomputation goes when that is done.
        """
        if self.frame is None or self.frame.total is None:
            if tensor.storage is not None:
                self.mark_saved(tensor.storage)
            self.held.append(tensor)

    def mark_saved(self, storage: Storage) -> None:
        """The storage waits for backward."""
        info = storage.info
        if info.component in (Component.TEMPORARIES, Component.KV_CACHE):
            info.component = Component.ACTIVATIONS

    def _save_in_frame(self, frame: Frame, storage: Storage | None) -> Storage | Slot | None:
        index = frame.count
        frame.count += 1
        if frame.total is None:
            slot = Slot(frame, index)
            frame.slots.append(weakref.ref(slot))
            return slot
        if storage is not None:
            self.mark_saved(storage)
            if frame.slots[index]() is not None:
                frame.recomputed[index] = storage
        if frame.count == frame.total:
            raise StopRecomputation
        return storage

    # -- the two elementwise ops that operators need ----------------------------------------------------

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """`a + b` with broadcasting; saves nothing; the gradient passes through unchanged."""
        from memplan.step.ops import add

        return add(self, a, b)

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        """`a * b` with broadcasting; saves an operand where the other one needs a gradient."""
        from memplan.step.ops import mul

        return mul(self, a, b)


def _pass_view(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, _ = node.meta
    assert isinstance(shape, tuple)
    return (Tensor(tape, shape, grad.dtype, grad.storage, None, True, grad.by_token),)
