"""torchao 0.18: values worked out from the sources that each test names; CI does not install them."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.dtypes import DType
from memplan.errors import UnsupportedError
from memplan.optimizers import ParamInfo, get_optimizer

BF16, FP32, UINT8 = DType.BFLOAT16, DType.FLOAT32, DType.UINT8


def layout(name: str, param: ParamInfo, **options: Any) -> list[tuple[str, tuple[int, ...], DType, str]]:
    tensors = get_optimizer(name, **options).state_tensors(param)
    return [(tensor.name, tensor.shape, tensor.dtype, tensor.placement) for tensor in tensors]


class TestTorchAo:
    """torchao/optim/adam.py, `_new_buffer`; subclass_8bit.py and subclass_4bit.py, `zeros` (torchao 0.18)."""

    def test_8bit(self) -> None:
        assert layout("adamw_torch_8bit", ParamInfo((64, 128), BF16)) == [
            ("step", (), FP32, "host"),
            ("exp_avg.codes", (64, 128), UINT8, "device"),
            ("exp_avg.scale", (32,), FP32, "device"),
            ("exp_avg.qmap", (256,), FP32, "device"),
            ("exp_avg_sq.codes", (64, 128), UINT8, "device"),
            ("exp_avg_sq.scale", (32,), FP32, "device"),
            ("exp_avg_sq.qmap", (256,), FP32, "device"),
        ]

    def test_4bit_packs_two_to_a_byte(self) -> None:
        tensors = layout("adamw_torch_4bit", ParamInfo((64, 128), BF16))
        assert tensors[1:4] == [
            ("exp_avg.codes", (4096,), UINT8, "device"),
            ("exp_avg.scale", (32,), FP32, "device"),
            ("exp_avg.qmap", (16,), FP32, "device"),
        ]

    @pytest.mark.parametrize("shape", [(4095,), (63, 65), (17, 257), (4097,)])
    def test_small_and_indivisible_parameters_keep_their_dtype(self, shape: tuple[int, ...]) -> None:
        for name in ("adamw_torch_8bit", "adamw_torch_4bit"):
            assert layout(name, ParamInfo(shape, BF16)) == [
                ("step", (), FP32, "host"),
                ("exp_avg", shape, BF16, "device"),
                ("exp_avg_sq", shape, BF16, "device"),
            ]

    def test_code_books_are_not_shared(self) -> None:
        one = get_optimizer("adamw_torch_8bit").state_bytes([ParamInfo((64, 64), BF16)])
        assert get_optimizer("adamw_torch_8bit").state_bytes([ParamInfo((64, 64), BF16)] * 2) == one * 2

    def test_a_compiled_step_is_not_guessed(self) -> None:
        optimizer = get_optimizer("adamw_torch_8bit")
        assert optimizer.step_temporaries == "unknown"
        with pytest.raises(UnsupportedError, match=r"torch\.compile"):
            optimizer.step_events([ParamInfo((64, 64), BF16)])

    def test_block_size_in_optim_args_reaches_torchao_as_text(self) -> None:
        with pytest.raises(UnsupportedError, match="block_size"):
            get_optimizer("adamw_torch_8bit", optim_args="block_size=128")
        tensors = layout("adamw_torch_8bit", ParamInfo((64, 128), BF16), block_size=128)
        assert tensors[2] == ("exp_avg.scale", (64,), FP32, "device")
