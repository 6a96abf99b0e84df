"""torch-optimi 0.3.3, grokadamw 0.1.2, torchdistx: values worked out from the sources that each test names."""

from __future__ import annotations

from typing import Any

from memplan.dtypes import DType
from memplan.optimizers import ParamInfo, StateBytes, get_optimizer, peak_bytes

BF16, FP32, UINT8 = DType.BFLOAT16, DType.FLOAT32, DType.UINT8


def layout(name: str, param: ParamInfo, **options: Any) -> list[tuple[str, tuple[int, ...], DType, str]]:
    tensors = get_optimizer(name, **options).state_tensors(param)
    return [(tensor.name, tensor.shape, tensor.dtype, tensor.placement) for tensor in tensors]


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
