"""schedulefree 1.4.1: values worked out from the sources that each test names; CI does not install them."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.dtypes import DType
from memplan.optimizers import ParamInfo, get_optimizer

BF16, FP32 = DType.BFLOAT16, DType.FLOAT32


def layout(name: str, param: ParamInfo, **options: Any) -> list[tuple[str, tuple[int, ...], DType, str]]:
    tensors = get_optimizer(name, **options).state_tensors(param)
    return [(tensor.name, tensor.shape, tensor.dtype, tensor.placement) for tensor in tensors]


class TestScheduleFree:
    """schedulefree/*_schedulefree.py, `step` (schedulefree 1.4.1)."""

    @pytest.mark.parametrize("name", ["schedule_free_adamw", "schedule_free_radam"])
    def test_adam_forms(self, name: str) -> None:
        assert layout(name, ParamInfo((3, 5), BF16)) == [
            ("z", (3, 5), BF16, "device"),
            ("exp_avg_sq", (3, 5), BF16, "device"),
        ]

    def test_sgd_keeps_z_only_and_borrows_nothing(self) -> None:
        assert layout("schedule_free_sgd", ParamInfo((3, 5), FP32)) == [("z", (3, 5), FP32, "device")]
        assert {
            event.action for event in get_optimizer("schedule_free_sgd").step_events([ParamInfo((3, 5), FP32)])
        } == {"states"}

    def test_denominators_of_both_groups_are_alive_together(self) -> None:
        optimizer = get_optimizer("schedule_free_adamw")
        first, second = [ParamInfo((1024,), FP32)] * 2, [ParamInfo((128,), FP32)]
        assert optimizer.step_peak_bytes(first, second) == 2 * 4096 + 512
        assert optimizer.step_temporaries == "tensor_lists"
