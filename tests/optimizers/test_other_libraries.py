"""torchao, schedulefree, lomo-optim, torch-optimi, grokadamw, torchdistx: values worked out from their sources.

CI does not install these; each number names the lines that it comes from.
"""

from __future__ import annotations

from typing import Any

import pytest

from memplan.dtypes import DType
from memplan.errors import UnsupportedError
from memplan.optimizers import ParamInfo, StateBytes, get_optimizer, peak_bytes

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
        assert get_optimizer("schedule_free_sgd").step_events([ParamInfo((3, 5), FP32)]) == ()

    def test_denominators_of_both_groups_are_alive_together(self) -> None:
        optimizer = get_optimizer("schedule_free_adamw")
        first, second = [ParamInfo((1024,), FP32)] * 2, [ParamInfo((128,), FP32)]
        assert optimizer.step_peak_bytes(first, second) == 2 * 4096 + 512
        assert optimizer.step_temporaries == "tensor_lists"


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


class TestStableAdamW:
    """optimi/stableadamw.py, `_init_state` (torch-optimi 0.3.3)."""

    def test_16_bits_are_compensated(self) -> None:
        assert layout("stable_adamw", ParamInfo((3, 5), BF16)) == [
            ("exp_avg", (3, 5), BF16, "device"),
            ("exp_avg_sq", (3, 5), BF16, "device"),
            ("eps_sq", (), BF16, "device"),
            ("kahan_comp", (3, 5), BF16, "device"),
            ("mean_square", (1,), FP32, "device"),
        ]

    def test_float32_has_a_dummy_for_the_kernel(self) -> None:
        assert layout("stable_adamw", ParamInfo((3, 5), FP32))[3:] == [
            ("kahan_comp", (1,), UINT8, "device"),
            ("mean_square", (1,), FP32, "device"),
        ]
        names = [name for name, *_ in layout("stable_adamw", ParamInfo((3, 5), FP32), triton=False)]
        assert names == ["exp_avg", "exp_avg_sq", "eps_sq"]

    def test_transformers_reads_every_text_as_true(self) -> None:
        param = ParamInfo((3, 5), BF16)
        assert layout("stable_adamw", param, optim_args="kahan_sum=False") == layout("stable_adamw", param)
        assert layout("stable_adamw", param, kahan_sum=False)[3] == ("kahan_comp", (1,), UINT8, "device")

    def test_kernels_borrow_nothing_and_the_loop_two_tensors(self) -> None:
        assert get_optimizer("stable_adamw").step_events([ParamInfo((1024,), FP32)]) == ()
        assert get_optimizer("stable_adamw", triton=False).step_peak_bytes([ParamInfo((1024,), FP32)] * 2) == 8192


class TestGrokAdamW:
    """grokadamw/grokadamw.py, `_update_group` (grokadamw 0.1.2)."""

    def test_all_state_is_in_host_memory(self) -> None:
        state = get_optimizer("grokadamw").state_bytes([ParamInfo((1024,), FP32)] * 3)
        assert state == StateBytes(0, 0, 3 * 3 * 4096, 0)

    def test_copies_of_two_turns_meet(self) -> None:
        optimizer = get_optimizer("grokadamw")
        one = 4096
        # averages, grok_ema, grok_grad and lamb * grok_ema (or the root) of a single parameter
        assert optimizer.step_peak_bytes([ParamInfo((1024,), FP32)]) == 5 * one
        # the second turn copies two averages while the first's four tensors are held
        assert optimizer.step_peak_bytes([ParamInfo((1024,), FP32)] * 2) == 6 * one


class TestAnyPrecision:
    """torchdistx/optimizers/anyprecision_optimizer.py, `step`; defaults of transformers 5.23."""

    def test_defaults_are_float32_moments(self) -> None:
        assert layout("adamw_anyprecision", ParamInfo((3, 5), BF16)) == [
            ("step", (), FP32, "host"),
            ("exp_avg", (3, 5), FP32, "device"),
            ("exp_avg_sq", (3, 5), FP32, "device"),
        ]

    def test_pure_bfloat16_with_kahan(self) -> None:
        arguments = "use_kahan_summation=True, momentum_dtype=bfloat16, variance_dtype=bfloat16"
        tensors = layout("adamw_anyprecision", ParamInfo((3, 5), BF16), optim_args=arguments)
        assert [(name, dtype) for name, _, dtype, _ in tensors[1:]] == [
            ("exp_avg", BF16),
            ("exp_avg_sq", BF16),
            ("compensation", BF16),
        ]

    def test_loop(self) -> None:
        params = [ParamInfo((1024,), BF16)] * 2
        plain = get_optimizer("adamw_anyprecision")
        kahan = get_optimizer("adamw_anyprecision", use_kahan_summation=True)
        assert peak_bytes(plain.step_events(params)) == 3 * 4096
        assert kahan.step_peak_bytes(params) == 3 * 4096 + 2048
