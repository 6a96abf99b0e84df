"""What an optimizer holds and what it borrows: state tensors and the temporaries of `step()`.

The classes here know nothing of any library; each family of optimizers derives from `Optimizer`
and writes down the tensors that its library allocates, in the library's own names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from operator import index
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from memplan.dtypes import DType
from memplan.optimizers.temporaries import StepEvent, StepScope, TensorGroup, peak_bytes
from memplan.units import round_to_block

if TYPE_CHECKING:
    from memplan.optimizers.catalog import OptimizerRow

Placement = Literal["device", "host", "paged"]
StepTemporaries = Literal["none", "tensor_lists", "one_parameter_at_a_time", "unknown"]
Implementation = Literal["foreach", "fused", "for_loop", "compiled", "triton", "kernel"]

SCALAR: tuple[int, ...] = ()
"""Shape of a 0-dimensional tensor, such as torch's step counters."""


class ParamInfo(NamedTuple):
    """A trained parameter as an optimizer sees it. Its gradient has the same shape and dtype.

    Attributes:
        shape: sizes of the parameter tensor.
        dtype: element type of the parameter.
        name: full parameter name (`model.layers.0.self_attn.q_proj.weight`); needed only by optimizers
            that choose parameters by name (`optim_target_modules`, Muon's output head).
        is_embedding: whether it is the weight of an `nn.Embedding`.
        is_linear: whether it is the weight of an `nn.Linear`; None reads it off the rest
            (2-D, named `.weight`, not an embedding).
    """

    shape: tuple[int, ...]
    dtype: DType
    name: str = ""
    is_embedding: bool = False
    is_linear: bool | None = None

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(map(index, self.shape))


class StateTensor(NamedTuple):
    """One tensor of an optimizer's state.

    Attributes:
        name: key in `optimizer.state[param]`; a dot steps into an object or tensor subclass
            (`projector.ortho_matrix`, `exp_avg.codes`).
        shape: sizes of the tensor.
        dtype: element type.
        placement: `device` (torch's caching allocator), `host`, or `paged` (CUDA managed memory, which
            the caching allocator does not see and the driver moves to host memory under pressure).
        shared: one tensor for all parameters of the optimizer (bitsandbytes' code books).
        storage_elements: elements of the storage that the tensor keeps alive, where it is a view of
            something larger; None when it owns exactly its own elements.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    placement: Placement = "device"
    shared: bool = False
    storage_elements: int | None = None

    @property
    def storage_bytes(self) -> int:
        """Bytes of the storage behind the tensor, before any rounding."""
        elements = prod(map(index, self.shape)) if self.storage_elements is None else self.storage_elements
        return elements * self.dtype.itemsize_bytes


@dataclass(frozen=True, slots=True)
class StateBytes:
    """Bytes of optimizer state by where they live.

    Attributes:
        device_bytes: in the caching allocator, every tensor rounded up to 512 bytes.
        device_unrounded_bytes: the same tensors, exact.
        host_bytes: CPU memory (step counters, states kept on the CPU).
        paged_bytes: CUDA managed memory.
    """

    device_bytes: int = 0
    device_unrounded_bytes: int = 0
    host_bytes: int = 0
    paged_bytes: int = 0

    def __add__(self, other: StateBytes) -> StateBytes:
        return StateBytes(
            self.device_bytes + other.device_bytes,
            self.device_unrounded_bytes + other.device_unrounded_bytes,
            self.host_bytes + other.host_bytes,
            self.paged_bytes + other.paged_bytes,
        )

    def __mul__(self, count: int) -> StateBytes:
        return StateBytes(
            self.device_bytes * count,
            self.device_unrounded_bytes * count,
            self.host_bytes * count,
            self.paged_bytes * count,
        )

    @classmethod
    def of(cls, tensors: Iterable[StateTensor]) -> StateBytes:
        """Bytes of `tensors`, each counted once."""
        device = unrounded = host = paged = 0
        for tensor in tensors:
            size_bytes = tensor.storage_bytes
            if tensor.placement == "device":
                device += round_to_block(size_bytes)
                unrounded += size_bytes
            elif tensor.placement == "host":
                host += size_bytes
            else:
                paged += size_bytes
        return cls(device, unrounded, host, paged)


class LayoutKey(NamedTuple):
    """All that the layout of a parameter's state depends on; parameters with one key share one layout.

    `variant` is the answer of `Optimizer.variant` (for instance `low_rank`), empty for the plain case.
    """

    shape: tuple[int, ...]
    dtype: DType
    variant: str = ""

    @property
    def elements(self) -> int:
        """Number of elements of the parameter."""
        return prod(map(index, self.shape))


@dataclass(frozen=True)
class Optimizer(ABC):
    """An optimizer by name, with the options that change its memory. Make one with `get_optimizer`.

    Attributes:
        row: its row of the catalog: library, class, implementation, source.
        weight_decay: `TrainingArguments.weight_decay`; some foreach steps need a temporary for it.
        one_for_each: every parameter has an optimizer of its own, which steps inside backward.
    """

    row: OptimizerRow
    weight_decay: float = 0.0
    one_for_each: bool = False

    OPTIONS: ClassVar[Mapping[str, Callable[[str, object], object]]] = {}
    """Options that change memory, each with the converter that checks it."""

    lazy: ClassVar[bool] = True
    """Whether states come at the first `step()` (or, False, when the optimizer is constructed)."""

    covers_frozen_parameters: ClassVar[bool] = False
    """Whether the library allocates state for frozen parameters too; then pass those as well."""

    reads_names: ClassVar[bool] = False
    """Whether what it does with a parameter depends on its name; then infos without a name are not enough."""

    @property
    def name(self) -> str:
        """The name by which it was asked for."""
        return self.row.name

    @property
    def implementation(self) -> Implementation:
        """Which of the library's code paths runs on a CUDA device."""
        return self.row.implementation

    @property
    def updates_in_backward(self) -> bool:
        """Whether each gradient is used and freed inside backward by a hook, instead of in `step()`."""
        return self.one_for_each or self.row.updates_in_backward

    @property
    def step_temporaries(self) -> StepTemporaries:
        """What `step()` allocates beside the states; `unknown` means that `step_events` refuses."""
        return "none"

    def variant(self, param: ParamInfo) -> str:
        """Which of the optimizer's layouts `param` gets; empty for optimizers with a single layout."""
        return ""

    @abstractmethod
    def layout(self, key: LayoutKey) -> tuple[StateTensor, ...]:
        """State tensors of one parameter with this key after one `step()`, in the library's order."""

    def check_parameters(self, groups: Sequence[Sequence[ParamInfo]]) -> None:
        """Refuse parameters that the library refuses when the optimizer is constructed.

        Raises:
            InvalidValueError: the library would raise.
        """
        return

    def record_step(self, scope: StepScope, groups: Sequence[Sequence[ParamInfo]]) -> None:
        """Write the temporaries of one `step()` over `groups` into `scope`. By default there are none."""
        return

    def layout_key(self, param: ParamInfo) -> LayoutKey:
        """The key under which `param`'s state layout is found."""
        return LayoutKey(param.shape, param.dtype, self.variant(param))

    def state_tensors(self, param: ParamInfo) -> tuple[StateTensor, ...]:
        """Tensors in `optimizer.state[param]` after one `step()`, as the library allocates them.

        Raises:
            UnsupportedError: the library cannot train such a parameter, or no rule is known for it.
        """
        return self.layout(self.layout_key(param))

    def state_bytes(self, params: Iterable[ParamInfo] | Mapping[ParamInfo, int]) -> StateBytes:
        """Bytes of state for all of `params`; tensors that parameters share count once.

        Args:
            params: the trained parameters, or a mapping from parameter to how often it occurs.

        Raises:
            InvalidValueError: the library refuses these parameters.
            UnsupportedError: the library cannot train such a parameter, or no rule is known for it.
        """
        params = params if isinstance(params, Mapping) else Counter(params)
        self.check_parameters((tuple(params),))
        counts: Counter[LayoutKey] = Counter()
        for param, count in params.items():
            counts[self.layout_key(param)] += count
        device = unrounded = host = paged = 0
        shared: set[StateTensor] = set()
        for key, count in counts.items():
            own, common = _layout_bytes(self, key)
            device += own.device_bytes * count
            unrounded += own.device_unrounded_bytes * count
            host += own.host_bytes * count
            paged += own.paged_bytes * count
            shared.update(common)
        return StateBytes(device, unrounded, host, paged) + StateBytes.of(shared)

    def step_events(self, *groups: Sequence[ParamInfo]) -> tuple[StepEvent, ...]:
        """Temporaries of one `step()` in the order in which the library allocates and frees them.

        States are not among them, nor are temporaries of less than a block that no list holds on to
        (norms, scalars). Where steps differ, these are the events of the heaviest one.

        Args:
            groups: the parameter groups in their order. The Trainer makes two, the first with weight
                decay, the second without (`Trainer.create_optimizer`); `weight_decay` acts on the first.

        Raises:
            UnsupportedError: the temporaries of this optimizer are not known.
        """
        return _step_events(self, tuple(map(tuple, groups)))

    def step_peak_bytes(self, *groups: Sequence[ParamInfo]) -> int:
        """Most bytes of temporaries alive at once during `step()`; see `step_events`."""
        return _step_peak_bytes(self, tuple(map(tuple, groups)))


@lru_cache(maxsize=4096)
def _layout_bytes(optimizer: Optimizer, key: LayoutKey) -> tuple[StateBytes, tuple[StateTensor, ...]]:
    """Bytes of one parameter's own state tensors, and the tensors that it shares with others."""
    tensors = optimizer.layout(key)
    own = StateBytes.of(tensor for tensor in tensors if not tensor.shared)
    return own, tuple(tensor for tensor in tensors if tensor.shared)


@lru_cache(maxsize=64)
def _step_events(optimizer: Optimizer, groups: tuple[tuple[ParamInfo, ...], ...]) -> tuple[StepEvent, ...]:
    """A loop over parameters makes thousands of events, and the same model is asked about again and again."""
    optimizer.check_parameters(groups)
    scope = StepScope()
    optimizer.record_step(scope, groups)
    scope.leave()
    return tuple(scope.events)


@lru_cache(maxsize=64)
def _step_peak_bytes(optimizer: Optimizer, groups: tuple[tuple[ParamInfo, ...], ...]) -> int:
    return peak_bytes(_step_events(optimizer, groups))


def group_by_dtype(params: Sequence[ParamInfo]) -> dict[DType, list[ParamInfo]]:
    """Parameters by dtype, in the order in which torch's foreach functions take the dtypes.

    `Optimizer._group_tensors_by_device_and_dtype` (torch 2.13) returns the entries of a C++
    `unordered_map`, which come out in the reverse order of first appearance.
    """
    buckets: dict[DType, list[ParamInfo]] = {}
    for param in params:
        buckets.setdefault(param.dtype, []).append(param)
    return dict(reversed(buckets.items()))


def tensor_groups(params: Iterable[ParamInfo], dtype: DType | None = None) -> tuple[TensorGroup, ...]:
    """One tensor per parameter, with its size and its dtype (or `dtype`), equal ones counted together."""
    counts = Counter((param.elements, dtype or param.dtype) for param in params)
    return tuple(TensorGroup(elements, kind, count) for (elements, kind), count in counts.items())
