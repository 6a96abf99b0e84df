"""lomo-optim 0.1.1: values worked out from the sources that each test names; CI does not install them."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.dtypes import DType
from memplan.errors import UnsupportedError
from memplan.optimizers import ParamInfo, StateBytes, get_optimizer

BF16, FP32 = DType.BFLOAT16, DType.FLOAT32


def layout(name: str, param: ParamInfo, **options: Any) -> list[tuple[str, tuple[int, ...], DType, str]]:
    tensors = get_optimizer(name, **options).state_tensors(param)
    return [(tensor.name, tensor.shape, tensor.dtype, tensor.placement) for tensor in tensors]


class TestLomo:
    """lomo_optim/lomo.py and adalomo.py, `fuse_update` (lomo-optim 0.1.1)."""

    def test_lomo_has_no_state_and_updates_in_backward(self) -> None:
        optimizer = get_optimizer("lomo")
        assert optimizer.state_bytes([ParamInfo((64, 64), BF16)]) == StateBytes()
        assert optimizer.updates_in_backward

    def test_lomo_casts_gradient_and_parameter_of_16_bits(self) -> None:
        optimizer = get_optimizer("lomo")
        assert optimizer.step_peak_bytes([ParamInfo((64, 64), BF16)] * 3) == 2 * 64 * 64 * 4
        assert optimizer.step_events([ParamInfo((64, 64), FP32)]) == ()

    def test_adalomo_has_a_row_and_a_column_from_the_start(self) -> None:
        optimizer = get_optimizer("adalomo")
        assert layout("adalomo", ParamInfo((65, 33), BF16)) == [
            ("exp_avg_sq_row", (65,), FP32, "device"),
            ("exp_avg_sq_col", (33,), FP32, "device"),
        ]
        assert layout("adalomo", ParamInfo((7,), BF16)) == [("exp_avg_sq", (7,), FP32, "device")]
        assert not optimizer.lazy
        assert optimizer.covers_frozen_parameters

    def test_adalomo_holds_three_copies_and_the_factors(self) -> None:
        # gradient, update and outer product of [65, 33], r_factor, c_factor: measured with lomo-optim 0.1.1.
        assert get_optimizer("adalomo").step_peak_bytes([ParamInfo((65, 33), BF16)]) == 27136
        assert get_optimizer("adalomo").step_peak_bytes([ParamInfo((65, 33), FP32)]) == 18432

    def test_adalomo_cannot_train_experts(self) -> None:
        with pytest.raises(UnsupportedError, match="shape"):
            get_optimizer("adalomo").state_tensors(ParamInfo((8, 64, 32), BF16))
