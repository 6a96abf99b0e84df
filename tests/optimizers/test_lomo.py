"""lomo-optim 0.1.1: values worked out from the sources that each test names; CI does not install them."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.dtypes import DType
from memplan.errors import UnsupportedError
from memplan.optimizers import ParamInfo, StateBytes, get_optimizer
from memplan.optimizers.lomo import Lomo

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
        assert optimizer.step_peak_bytes([ParamInfo((64, 64), FP32)]) == 0

    def test_lomo_drops_a_16_bit_gradient_once_it_is_copied(self) -> None:
        optimizer = get_optimizer("lomo")
        assert isinstance(optimizer, Lomo)
        named = [(event.action, event.label.partition("#")[0]) for event in optimizer.hook(ParamInfo((64, 64), BF16))]
        assert named[:4] == [("alloc", "grad_fp32"), ("gradient", "grad"), ("free", "grad"), ("alloc", "p_fp32")]
        # In float32 the copy is the gradient itself, which lives until the hook returns.
        assert [event.action for event in optimizer.hook(ParamInfo((64, 64), FP32))] == ["gradient", "free"]

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
        # Gradient, update and parameter of [65, 33], p_rms, lr and -lr; in float32 update, outer product and their factors.
        assert get_optimizer("adalomo").step_peak_bytes([ParamInfo((65, 33), BF16)]) == 3 * 8704 + 3 * 512
        assert get_optimizer("adalomo").step_peak_bytes([ParamInfo((65, 33), FP32)]) == 18432

    def test_adalomo_cannot_train_experts(self) -> None:
        with pytest.raises(UnsupportedError, match="shape"):
            get_optimizer("adalomo").step_events([ParamInfo((8, 64, 32), BF16)])
        # It is made for them, frozen as they may be, by the first two sizes of their shape.
        assert [shape for _, shape, _, _ in layout("adalomo", ParamInfo((8, 64, 32), BF16))] == [(8,), (64,)]
        with pytest.raises(UnsupportedError, match="dimensions"):
            layout("adalomo", ParamInfo((), BF16))
