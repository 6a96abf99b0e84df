"""Oracles for optimizers: what real objects hold after a step, and what the step allocates on the way."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from memplan.dtypes import DType, parse_dtype
from memplan.optimizers import ParamInfo, StateTensor
from memplan.units import round_to_block

SHAPES: tuple[tuple[int, ...], ...] = (
    (),
    (1,),
    (7,),
    (4095,),
    (4096,),
    (4097,),
    (33, 65),
    (63, 65),
    (64, 64),
    (17, 257),
    (5, 3, 7),
    (1, 1),
    (400, 300),
)

ObservedState = dict[str, tuple[tuple[int, ...], str, str]]


@pytest.fixture
def shapes() -> tuple[tuple[int, ...], ...]:
    """Odd and even sizes, vectors, matrices, experts; below, at and above every threshold of 8-bit states."""
    return SHAPES


@pytest.fixture
def fake_cuda() -> Iterator[None]:
    """Tensors made inside live on a CUDA device that does not exist: placement is real, data is not."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def make_parameters(
    shapes: Iterable[tuple[int, ...]], dtype: torch.dtype, device: str = "cpu"
) -> list[torch.nn.Parameter]:
    """Parameters of `shapes`, each with a gradient."""
    parameters = []
    for shape in shapes:
        parameter = torch.nn.Parameter(torch.full(shape, 0.5, dtype=dtype, device=device))
        parameter.grad = torch.full_like(parameter, 0.25)
        parameters.append(parameter)
    return parameters


def info_of(parameter: torch.Tensor, **facts: Any) -> ParamInfo:
    """The `ParamInfo` of a real parameter."""
    return ParamInfo(tuple(parameter.shape), parse_dtype(str(parameter.dtype)), **facts)


def observe(state: Mapping[str, Any]) -> ObservedState:
    """Tensors in a real `optimizer.state[param]`: shape, dtype and placement by name."""
    return {
        key: (tuple(value.shape), str(value.dtype).removeprefix("torch."), value.device.type)
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def expect(tensors: Iterable[StateTensor], device: str) -> ObservedState:
    """Our state tensors in the form of `observe`, for parameters on `device`."""
    types = {"device": device, "host": "cpu"}
    return {tensor.name: (tensor.shape, str(tensor.dtype), types[tensor.placement]) for tensor in tensors}


class TemporaryRecorder(TorchDispatchMode):
    """Follows every storage born inside, by weak reference, and keeps the most bytes alive at once.

    0-dimensional tensors (norms, step arithmetic) are left out, as `step_events` leaves them out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self.trail: list[int] = []
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        arguments = {self._identity(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and self._identity(leaf) not in arguments:
                self._follow(leaf)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return result

    def _identity(self, tensor: torch.Tensor) -> int:
        return tensor.untyped_storage()._cdata

    def _follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        identity, size_bytes = storage._cdata, round_to_block(storage.nbytes())
        if tensor.dim() == 0 or identity in self._known:
            return
        self.live_bytes += size_bytes
        self.trail.append(size_bytes)

        def gone() -> None:
            self._known.pop(identity, None)
            self.live_bytes -= size_bytes
            self.trail.append(-size_bytes)

        self._known[identity] = weakref.finalize(storage, gone)


def measure_step(optimizer: torch.optim.Optimizer) -> TemporaryRecorder:
    """Temporaries of a second step, in which no state is new."""
    optimizer.step()
    recorder = TemporaryRecorder()
    with recorder:
        optimizer.step()
    assert recorder.live_bytes == 0, "the step left something behind that is not state"
    return recorder


MIXED_GROUPS: tuple[tuple[tuple[tuple[int, ...], DType], ...], ...] = (
    (((33, 65), DType.FLOAT32), ((64, 64), DType.BFLOAT16), ((400, 30), DType.FLOAT32), ((300,), DType.BFLOAT16)),
    (((7,), DType.FLOAT32), ((4097,), DType.FLOAT32), ((129, 3), DType.BFLOAT16)),
)


def mixed_groups(*, ndim: int | None = None) -> tuple[list[dict[str, Any]], list[list[ParamInfo]]]:
    """Two parameter groups of mixed dtypes, as real groups for a constructor and as ours."""
    real: list[dict[str, Any]] = []
    ours: list[list[ParamInfo]] = []
    for index, group in enumerate(MIXED_GROUPS):
        members = [(shape, dtype) for shape, dtype in group if ndim is None or len(shape) == ndim]
        parameters = [make_parameters([shape], getattr(torch, dtype))[0] for shape, dtype in members]
        real.append({"params": parameters} if index == 0 else {"params": parameters, "weight_decay": 0.0})
        ours.append([ParamInfo(shape, dtype) for shape, dtype in members])
    return real, ours


@pytest.fixture
def oracle() -> Any:
    """The functions above, for tests that are collected without an importable package."""

    class Oracle:
        make_parameters: Callable[..., list[torch.nn.Parameter]] = staticmethod(make_parameters)
        info_of: Callable[..., ParamInfo] = staticmethod(info_of)
        observe: Callable[..., ObservedState] = staticmethod(observe)
        expect: Callable[..., ObservedState] = staticmethod(expect)
        measure_step: Callable[..., TemporaryRecorder] = staticmethod(measure_step)
        mixed_groups: Callable[..., tuple[list[dict[str, Any]], list[list[ParamInfo]]]] = staticmethod(mixed_groups)

    return Oracle
