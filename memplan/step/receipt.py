"""The receipt: what is alive at the peak, line by line, each with its formula in symbols and in numbers."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from memplan.dtypes import DType
from memplan.estimate import Component, Line
from memplan.model_state import ModelState, StoredParameter
from memplan.step.dim import symbol_of
from memplan.step.recording import Recording
from memplan.step.tensor import Dim, Shape
from memplan.step.walk import PhasePeak

_LAYER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class _Key:
    component: Component
    module: str
    op: str
    formula: str
    numbers: str


def receipt(state: ModelState, recording: Recording | None, peak: PhasePeak | None) -> tuple[Line, ...]:
    """Lines of everything alive at `peak`, largest first within a component.

    Args:
        state: what stays.
        recording: storages of the micro-step; None where the step was not walked.
        peak: the moment; None where the step was not walked.
    """
    groups: dict[_Key, list[int]] = defaultdict(lambda: [0, 0])
    for entry in state.stored:
        _add(groups, _stored_key(entry), 1, entry.data_bytes)
        if entry.state_bytes:
            _add(groups, _state_key(entry), 1, entry.state_bytes)
    if peak is not None and recording is not None:
        for index, count in peak.storages.items():
            info = recording.infos[index]
            if not count:
                continue
            key = _Key(
                info.component,
                fold_layers(info.module),
                info.op,
                formula(info.shape, info.dtype),
                numbers(info.shape, info.dtype),
            )
            _add(groups, key, count, count * info.size_bytes)
    lines = [
        Line(
            component=key.component,
            module=key.module,
            op=key.op,
            formula=key.formula,
            numbers=key.numbers,
            count=count,
            bytes=size,
        )
        for key, (count, size) in groups.items()
        if size
    ]
    if peak is not None:
        lines += _remainder(lines, peak)
    else:
        lines += _states(state)
    order = list(Component)
    return tuple(sorted(lines, key=lambda line: (order.index(line.component), -line.bytes)))


def _add(groups: dict[_Key, list[int]], key: _Key, count: int, size_bytes: int) -> None:
    group = groups[key]
    group[0] += count
    group[1] += size_bytes


def _stored_key(entry: StoredParameter) -> _Key:
    where = fold_layers(entry.name)
    if entry.quantized:
        return _Key(
            entry.component,
            where,
            "quantized weight",
            _product(entry.shape) + " packed",
            _numbers(entry.shape) + " packed",
        )
    return _Key(
        entry.component, where, "parameter", formula(entry.shape, entry.dtype), numbers(entry.shape, entry.dtype)
    )


def _state_key(entry: StoredParameter) -> _Key:
    return _Key(
        Component.QUANTIZATION_STATE,
        fold_layers(entry.name),
        "absmax, code books, offset",
        f"{_product(entry.shape)} / blocks",
        f"{_numbers(entry.shape)} / blocks",
    )


def _states(state: ModelState) -> list[Line]:
    found = []
    for component, op, size in (
        (Component.GRADIENTS, "gradients", state.gradients_bytes),
        (Component.MASTER_WEIGHTS, "float32 copies", state.master_bytes),
        (Component.OPTIMIZER_STATES, "optimizer states", state.states.device_bytes),
        (Component.BUFFERS, "buffers", state.buffers_bytes),
        (Component.QUANTIZATION_STATE, "code book of the process", state.shared_code_book_bytes),
    ):
        if size:
            found.append(_whole(component, op, size, state))
    return found


def _whole(component: Component, op: str, size: int, state: ModelState) -> Line:
    trained = state.parameters.trainable
    return Line(
        component=component,
        module="",
        op=op,
        formula="over all trained parameters",
        numbers=f"{trained:,} trained",
        count=1,
        bytes=size,
    )


def _remainder(lines: list[Line], peak: PhasePeak) -> list[Line]:
    """What the walk holds as a sum: gradients and states of all parameters, buffers, workspaces, optimizer temporaries."""
    words = {
        Component.GRADIENTS: "gradients of trained parameters",
        Component.OPTIMIZER_STATES: "optimizer states",
        Component.BUFFERS: "buffers",
        Component.TEMPORARIES: "BLAS workspaces, optimizer temporaries",
    }
    found = []
    for component, size in peak.components.items():
        rest = size - sum(line.bytes for line in lines if line.component is component)
        if rest:
            found.append(
                Line(
                    component=component,
                    module="",
                    op=words.get(component, "other"),
                    formula="sum over tensors",
                    numbers=f"{rest:,} bytes",
                    count=1,
                    bytes=rest,
                )
            )
    return found


def fold_layers(path: str) -> str:
    """`model.layers.3.mlp` as `model.layers.*.mlp`."""
    return _LAYER.sub("*", path)


def formula(shape: Shape, dtype: DType) -> str:
    """`B·S·H × 2`: symbols of the dimensions times bytes per element."""
    return f"{_product(shape)} × {dtype.itemsize_bytes}"


def numbers(shape: Shape, dtype: DType) -> str:
    """`4·768·3072 × 2`: the formula with its numbers."""
    return f"{_numbers(shape)} × {dtype.itemsize_bytes}"


def _product(shape: Shape) -> str:
    return "·".join(symbol_of(size) for size in shape if _counts(size)) or "1"


def _numbers(shape: Shape) -> str:
    return "·".join(str(int(size)) for size in shape if _counts(size)) or "1"


def _counts(size: int) -> bool:
    """Whether a dimension says something: a 1 only where it is a symbol's value."""
    return size != 1 or (isinstance(size, Dim) and not size.symbol.isdigit())
