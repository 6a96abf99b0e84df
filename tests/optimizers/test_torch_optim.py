"""torch.optim against the real classes: states on a fake CUDA device, temporaries on the CPU."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from memplan.dtypes import DType
from memplan.errors import InvalidValueError, UnknownNameError
from memplan.optimizers import ParamInfo, StateBytes, get_optimizer
from memplan.optimizers.base import group_by_dtype

CASES: list[tuple[str, dict[str, Any], Any, dict[str, Any]]] = [
    ("adamw_torch", {}, torch.optim.AdamW, {"foreach": True}),
    ("adamw_torch", {"implementation": "for_loop"}, torch.optim.AdamW, {"foreach": False}),
    ("adamw_torch", {"amsgrad": True}, torch.optim.AdamW, {"foreach": True, "amsgrad": True}),
    ("adamw_torch_fused", {}, torch.optim.AdamW, {"fused": True}),
    ("adamw_torch_fused", {"amsgrad": True}, torch.optim.AdamW, {"fused": True, "amsgrad": True}),
    ("adam", {}, torch.optim.Adam, {"foreach": True}),
    ("adam", {"implementation": "fused"}, torch.optim.Adam, {"fused": True}),
    ("sgd", {}, torch.optim.SGD, {"foreach": True}),
    ("sgd", {"momentum": 0.9}, torch.optim.SGD, {"foreach": True, "momentum": 0.9}),
    ("sgd", {"momentum": 0.9, "nesterov": True}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    ("adagrad", {}, torch.optim.Adagrad, {"foreach": True}),
    ("rmsprop", {}, torch.optim.RMSprop, {"foreach": True}),
    ("rmsprop", {"momentum": 0.9}, torch.optim.RMSprop, {"foreach": True, "momentum": 0.9}),
    ("rmsprop", {"centered": True}, torch.optim.RMSprop, {"foreach": True, "centered": True}),
    (
        "rmsprop",
        {"momentum": 0.9, "centered": True},
        torch.optim.RMSprop,
        {"foreach": False, "momentum": 0.9, "centered": True},
    ),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "options", "cls", "arguments"), CASES)
def test_states_equal_those_of_the_real_optimizer(
    name: str,
    options: dict[str, Any],
    cls: Any,
    arguments: dict[str, Any],
    dtype: torch.dtype,
    shapes: Any,
    oracle: Any,
    fake_cuda: None,
) -> None:
    parameters = oracle.make_parameters(shapes, dtype, "cuda")
    real = cls(parameters, lr=0.01, **arguments)
    ours = get_optimizer(name, **options)
    states_before_step = len(real.state)
    real.step()
    for parameter in parameters:
        assert oracle.observe(real.state[parameter]) == oracle.expect(
            ours.state_tensors(oracle.info_of(parameter)), "cuda"
        )
    assert ours.lazy == (states_before_step == 0)


def test_fused_sgd_has_the_same_buffer(shapes: Any, oracle: Any) -> None:
    parameters = oracle.make_parameters(shapes, torch.float32)
    real = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, fused=True)
    ours = get_optimizer("sgd", momentum=0.9, implementation="fused")
    real.step()
    for parameter in parameters:
        assert oracle.observe(real.state[parameter]) == oracle.expect(
            ours.state_tensors(oracle.info_of(parameter)), "cpu"
        )


def test_dtypes_come_in_the_order_of_torchs_own_grouping(oracle: Any) -> None:
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
    for pair in itertools.permutations(dtypes, 2):
        tensors = [torch.empty(3, dtype=dtype) for dtype in pair]
        grouped = torch.optim.Optimizer._group_tensors_by_device_and_dtype([tensors])
        ours = group_by_dtype([oracle.info_of(tensor) for tensor in tensors])
        assert [str(dtype) for _, dtype in grouped] == [f"torch.{dtype}" for dtype in ours]


def test_the_default_class_path_is_the_catalogs() -> None:
    assert get_optimizer("adamw_torch").row.cls == "torch.optim.AdamW"
    assert issubclass(torch.optim.AdamW, torch.optim.Adam)


STEP_CASES: list[tuple[str, dict[str, Any], Any, dict[str, Any]]] = [
    (name, {**options, "implementation": path, "weight_decay": decay}, cls, {**arguments, "weight_decay": decay})
    for path in ("foreach", "for_loop")
    for decay in (0.0, 0.1)
    for name, options, cls, arguments in [
        ("adamw_torch", {}, torch.optim.AdamW, {}),
        ("adamw_torch", {"amsgrad": True}, torch.optim.AdamW, {"amsgrad": True}),
        ("adam", {}, torch.optim.Adam, {}),
        ("sgd", {}, torch.optim.SGD, {}),
        ("sgd", {"momentum": 0.9}, torch.optim.SGD, {"momentum": 0.9}),
        ("sgd", {"momentum": 0.9, "nesterov": True}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ("adagrad", {}, torch.optim.Adagrad, {}),
        ("rmsprop", {}, torch.optim.RMSprop, {}),
        ("rmsprop", {"momentum": 0.9, "centered": True}, torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    ]
]


@pytest.mark.parametrize(("name", "options", "cls", "arguments"), STEP_CASES)
def test_temporaries_peak_where_the_real_step_peaks(
    name: str, options: dict[str, Any], cls: Any, arguments: dict[str, Any], oracle: Any
) -> None:
    groups, infos = oracle.mixed_groups()
    real = cls(groups, lr=0.01, foreach=options["implementation"] == "foreach", **arguments)
    recorded = oracle.measure_step(real)
    ours = get_optimizer(name, **options)
    assert ours.step_peak_bytes(*infos) == recorded.peak_bytes
    allocated = sum(event.allocated_bytes for event in ours.step_events(*infos) if event.action == "alloc")
    assert allocated == sum(size for size in recorded.trail if size > 0)
    if ours.step_temporaries == "none":
        assert recorded.peak_bytes == 0


@pytest.mark.parametrize("name", ["adamw_torch", "sgd", "adagrad"])
def test_fused_kernels_borrow_nothing(name: str, oracle: Any) -> None:
    cls = {"adamw_torch": torch.optim.AdamW, "sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}[name]
    groups, infos = oracle.mixed_groups()
    assert oracle.measure_step(cls(groups, lr=0.01, fused=True)).peak_bytes == 0
    ours = get_optimizer(name, implementation="fused", weight_decay=0.1)
    assert ours.step_events(*infos) == ()
    assert ours.step_temporaries == "none"


def test_adamw_foreach_needs_one_more_tensor_per_parameter() -> None:
    params = [ParamInfo((4096, 4096), DType.BFLOAT16)] * 3
    assert get_optimizer("adamw_torch").step_peak_bytes(params) == 3 * 4096 * 4096 * 2


def test_the_lists_of_two_dtypes_are_alive_together() -> None:
    params = [ParamInfo((1024,), DType.FLOAT32), ParamInfo((1024,), DType.BFLOAT16)]
    assert get_optimizer("adamw_torch").step_peak_bytes(params) == 4096 + 2048
    assert get_optimizer("adamw_torch").step_peak_bytes([params[0]], [params[1]]) == 4096


def test_fused_step_counters_take_a_block_each() -> None:
    params = [ParamInfo((256,), DType.FLOAT32)] * 10
    assert get_optimizer("adamw_torch").state_bytes(params) == StateBytes(20 * 1024, 20 * 1024, 40, 0)
    assert get_optimizer("adamw_torch_fused").state_bytes(params) == StateBytes(20 * 1024 + 5120, 20 * 1024 + 40, 0, 0)


def test_options_that_cannot_be() -> None:
    with pytest.raises(InvalidValueError, match="Nesterov"):
        get_optimizer("sgd", nesterov=True)
    with pytest.raises(InvalidValueError, match="foreach and for_loop"):
        get_optimizer("rmsprop", implementation="fused")
    with pytest.raises(InvalidValueError, match="foreach, fused, for_loop"):
        get_optimizer("adamw_torch", implementation="apex")
    with pytest.raises(InvalidValueError, match="momentum"):
        get_optimizer("sgd", momentum=-0.1)
    with pytest.raises(UnknownNameError, match="amsgrad"):
        get_optimizer("sgd", amsgrad=True)
