"""Sums, sharing and temporaries, whatever the optimizer."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.dtypes import DType
from memplan.errors import UnsupportedError
from memplan.optimizers import (
    ParamInfo,
    StateBytes,
    StateTensor,
    StepEvent,
    TensorGroup,
    get_optimizer,
    optimizer_names,
    peak_bytes,
)
from memplan.optimizers.temporaries import StepScope
from memplan.units import round_to_block

FLOATS = [DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16]
PARAMS = st.lists(
    st.builds(
        ParamInfo,
        shape=st.lists(st.integers(1, 300), min_size=1, max_size=2).map(tuple),
        dtype=st.sampled_from(FLOATS),
        name=st.sampled_from(["a.q_proj.weight", "a.bias", "lm_head.weight"]),
        is_embedding=st.booleans(),
    ),
    max_size=6,
)
NAMES = [name for name in optimizer_names(supported_only=True) if not name.startswith(("galore", "apollo"))]


@given(params=PARAMS, name=st.sampled_from(NAMES))
def test_bytes_are_the_sum_of_the_tensors(params: list[ParamInfo], name: str) -> None:
    optimizer = get_optimizer(name)
    expected = Counter[str]()
    shared: set[StateTensor] = set()
    for param in params:
        for tensor in optimizer.state_tensors(param):
            if tensor.shared:
                if tensor in shared:
                    continue
                shared.add(tensor)
            size_bytes = prod(tensor.shape) * tensor.dtype.itemsize_bytes
            expected[tensor.placement] += size_bytes
            if tensor.placement == "device":
                expected["rounded"] += round_to_block(size_bytes)
    assert optimizer.state_bytes(params) == StateBytes(
        expected["rounded"], expected["device"], expected["host"], expected["paged"]
    )
    assert optimizer.state_bytes(Counter(params)) == optimizer.state_bytes(iter(params))


@given(params=PARAMS, name=st.sampled_from(NAMES))
def test_every_temporary_is_freed(params: list[ParamInfo], name: str) -> None:
    optimizer = get_optimizer(name)
    if optimizer.step_temporaries == "unknown":
        with pytest.raises(UnsupportedError):
            optimizer.step_events(params)
        return
    alive: dict[str, tuple[TensorGroup, ...]] = {}
    for event in optimizer.step_events(params, params):
        if event.action in ("alloc", "gradient"):  # a gradient that is taken over is there already
            assert event.label not in alive
            alive[event.label] = event.tensors
        elif event.action == "states":
            assert event.param in params
            assert event.tensors == ()
        else:
            assert alive.pop(event.label) == event.tensors
    assert not alive


@given(params=PARAMS, name=st.sampled_from(NAMES))
def test_more_parameters_never_cost_less(params: list[ParamInfo], name: str) -> None:
    optimizer = get_optimizer(name)
    fewer, all_of_them = optimizer.state_bytes(params[1:]), optimizer.state_bytes(params)
    assert fewer.device_bytes <= all_of_them.device_bytes
    assert fewer.host_bytes <= all_of_them.host_bytes
    assert fewer.paged_bytes <= all_of_them.paged_bytes


def test_no_parameters_no_bytes() -> None:
    for name in NAMES:
        assert get_optimizer(name).state_bytes([]) == StateBytes()


def test_a_view_is_charged_for_its_storage() -> None:
    tensor = StateTensor("projector.ortho_matrix", (8, 64), DType.FLOAT32, storage_elements=64 * 64)
    assert StateBytes.of([tensor]).device_unrounded_bytes == 64 * 64 * 4


def test_peak_of_events() -> None:
    a, b = (TensorGroup(100, DType.FLOAT32),), (TensorGroup(1, DType.BFLOAT16, 3),)
    events = [
        StepEvent("alloc", "a#1", a),
        StepEvent("alloc", "b#2", b),
        StepEvent("free", "a#1", a),
        StepEvent("alloc", "a#3", a),
        StepEvent("free", "a#3", a),
        StepEvent("free", "b#2", b),
    ]
    assert peak_bytes(events) == 512 + 3 * 512
    assert peak_bytes([]) == 0


def test_a_name_holds_its_value_until_it_is_bound_again() -> None:
    scope = StepScope()
    block = TensorGroup(128, DType.FLOAT32)
    scope.bind("x", block)
    scope.bind("x", block)
    scope.rename("x", "y")
    scope.bind("x", block)
    scope.release("absent")
    scope.leave()
    actions = [(event.action, event.label) for event in scope.events]
    assert actions == [
        ("alloc", "x#1"),
        ("alloc", "x#2"),
        ("free", "x#1"),
        ("alloc", "x#3"),
        ("free", "x#2"),
        ("free", "x#3"),
    ]


def test_a_model_takes_well_under_a_millisecond() -> None:
    layer = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)] + [(4096,)] * 2
    params = [ParamInfo(shape, DType.BFLOAT16, f"layers.{index}") for index in range(32) for shape in layer]
    optimizer = get_optimizer("paged_adamw_8bit")
    optimizer.state_bytes(params)
    elapsed = []
    for _ in range(5):
        start = time.perf_counter()
        optimizer.state_bytes(params)
        elapsed.append(time.perf_counter() - start)
    assert min(elapsed) < 2e-3


def test_import_brings_no_torch() -> None:
    code = "import sys, memplan.optimizers as o; o.get_optimizer('sgd'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
