"""The precision policies: bytes per trained parameter, and the classic arithmetic of 7 billion parameters."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.dtypes import DType
from memplan.estimate import BytesPerParameter
from memplan.model_state import ModelState
from memplan.precision import policy_of
from memplan.prepare import prepare
from memplan.quantization import Quantization, Scheme
from memplan.quantization.storage import stored_tensors
from memplan.recipe import Precision, Recipe
from memplan.resolve import resolve
from memplan.units import GB

# precision -> bytes of a trained parameter's weight, gradient, and Adam states with the master copy
TABLE: dict[Precision, tuple[int, int, int]] = {
    Precision.FP32: (4, 4, 8),
    Precision.AMP: (4, 4, 8),
    Precision.PURE: (2, 2, 4),
    Precision.MASTER: (2, 2, 12),
    Precision.MASTER_FP32_GRADS: (2, 4, 12),
}
TOTAL = {
    Precision.FP32: 16,
    Precision.AMP: 16,
    Precision.PURE: 8,
    Precision.MASTER: 16,
    Precision.MASTER_FP32_GRADS: 18,
}
MISTRAL = "mistralai/Mistral-7B-v0.1"


def state_of(**keys: Any) -> ModelState:
    return prepare(resolve(Recipe(**{"model": MISTRAL, "optim": "adamw_torch", **keys}))).state


def test_the_table_is_complete() -> None:
    assert set(TABLE) == set(TOTAL) == set(Precision)


@pytest.mark.parametrize("precision", Precision)
def test_bytes_per_trained_parameter(precision: Precision) -> None:
    found = state_of(precision=precision).bytes_per_parameter
    weights, gradients, optimizer = TABLE[precision]
    # Adam's step counters, one a tensor, stay in host memory.
    assert found == BytesPerParameter(weights=weights, gradients=gradients, optimizer=optimizer)
    assert found.total == TOTAL[precision]


@pytest.mark.parametrize("precision", Precision)
def test_the_table_in_the_docstring_says_the_same(precision: Precision) -> None:
    import memplan.precision

    assert memplan.precision.__doc__ is not None
    rows = [line.split("|") for line in memplan.precision.__doc__.splitlines() if line.startswith("| `")]
    table = {row[1].strip(" `"): tuple(int(cell) for cell in row[2:5]) for row in rows}
    assert table[precision.value] == TABLE[precision]


@pytest.mark.parametrize("precision", Precision)
def test_float32_parameters_are_the_same_under_every_policy(precision: Precision) -> None:
    policy = policy_of(precision)
    assert policy.precision is precision
    assert policy.gradient_dtype(DType.FLOAT32) is DType.FLOAT32
    assert policy.state_dtype(DType.FLOAT32) is DType.FLOAT32
    assert policy.master_bytes(DType.FLOAT32) == 0


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16])
@pytest.mark.parametrize("precision", Precision)
def test_half_parameters(precision: Precision, dtype: DType) -> None:
    policy = policy_of(precision)
    has_master = precision in (Precision.MASTER, Precision.MASTER_FP32_GRADS)
    assert policy.master_bytes(dtype) == (4 if has_master else 0)
    assert policy.state_dtype(dtype) is (DType.FLOAT32 if has_master else dtype)
    assert policy.gradient_dtype(dtype) is (DType.FLOAT32 if precision is Precision.MASTER_FP32_GRADS else dtype)


# -- the classic line: 7 billion parameters at 16 bytes ---------------------------------------------------

SEVEN_BILLION = 7_000_000_000
TRAINED_FRACTION = 0.00296  # LoRA of rank 8 on every projection of Mistral-7B


def test_full_fine_tuning_of_7_billion_parameters_is_112_gb() -> None:
    per_parameter = state_of(precision="master").bytes_per_parameter
    assert SEVEN_BILLION * per_parameter.total == 112 * GB


def test_lora_of_7_billion_parameters_is_14_3_gb() -> None:
    """The base in 16 bits, and 16 bytes for the 0.296 % that are trained."""
    frozen = SEVEN_BILLION * DType.BFLOAT16.itemsize_bytes
    trained = SEVEN_BILLION * state_of(precision="master").bytes_per_parameter.total * TRAINED_FRACTION
    assert frozen == 14 * GB
    assert round((frozen + trained) / GB, 1) == 14.3


def test_qlora_of_7_billion_parameters_is_3_5_to_4_gb_and_0_3() -> None:
    """Half a byte a parameter, and what double quantization adds: a byte in 64 and 4 bytes in 16384."""
    tensors = stored_tensors(Quantization(Scheme.NF4, double_quant=True), (70_000, 100_000), DType.BFLOAT16)
    stored = sum(tensor.block_bytes for tensor in tensors)
    assert stored == pytest.approx(SEVEN_BILLION * (0.5 + 1 / 64 + 4 / 16384), rel=1e-5)
    assert 3.5 * GB < stored < 4 * GB
    trained = SEVEN_BILLION * 16 * TRAINED_FRACTION
    assert round(trained / GB, 1) == 0.3


def test_the_honest_figures_beside_it() -> None:
    """Mistral-7B has 7.24 billion parameters; PEFT's adapters are float32: 16 bytes each without a master copy."""
    full = state_of(precision="master")
    assert full.parameters.total == 7_241_732_096
    states = sum(full.loaded.values()) + full.gradients_bytes + full.master_bytes + full.states.device_bytes
    # Sixteen bytes exactly, and what 512-byte blocks round up on 291 tensors, with the buffers of rotary embeddings.
    assert 0 <= states - 16 * full.parameters.total < 1_000_000
    lora = state_of(method="lora", peft={"r": 8, "target_modules": "all-linear"}, dtype="bfloat16")
    assert lora.parameters.trainable == 20_971_520
    assert lora.bytes_per_parameter == BytesPerParameter(weights=4, gradients=4, optimizer=8)
    qlora = state_of(method="qlora", peft={"r": 8})
    assert qlora.parameters.trainable == lora.parameters.trainable
    assert sum(qlora.loaded.values()) < sum(lora.loaded.values()) / 2.9
