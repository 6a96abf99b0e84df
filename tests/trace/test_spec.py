from __future__ import annotations

import pytest
from trace_cases import LLAMA

from memplan.errors import InvalidValueError, UnknownNameError
from memplan.trace import Checkpointing, GpuArch, TraceSpec


def test_round_trip() -> None:
    spec = TraceSpec(
        model_config=LLAMA, peft={"peft_type": "LORA"}, checkpointing="reentrant", gpu_arch="sm90", batch=3
    )
    assert TraceSpec.from_json(spec.to_json()) == spec
    assert spec.checkpointing is Checkpointing.REENTRANT
    assert spec.gpu_arch is GpuArch.SM90
    assert spec.gpu_arch.capability == (9, 0)
    assert GpuArch.SM120.capability == (12, 0)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"task": "causal"}, "causal-lm"),
        ({"dtype": "bf16"}, "bfloat16"),
        ({"gpu_arch": "sm81"}, "sm80"),
        ({"checkpointing": "reentrent"}, "reentrant"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(options: dict[str, str], word: str) -> None:
    with pytest.raises(UnknownNameError, match=word):
        TraceSpec(model_config=LLAMA, **options)  # type: ignore[arg-type]


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="sequence"):
        TraceSpec.from_dict({"model_config": LLAMA, "sequenc": 5})


@pytest.mark.parametrize(
    "options",
    [
        {"batch": 0},
        {"num_steps": 0},
        {"load_in_4bit": True, "load_in_8bit": True},
        {"peft": {"r": 8}},
        {"model_config": {"hidden_size": 8}},
    ],
)
def test_impossible_values_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InvalidValueError):
        TraceSpec(**{"model_config": LLAMA, **options})  # type: ignore[arg-type]


def test_flash_attn_needs_its_gpu_and_its_dtypes() -> None:
    options = {"model_config": LLAMA, "attn_implementation": "flash_attention_2"}
    with pytest.raises(InvalidValueError, match=r"needs compute capability 8\.0 or later, and this GPU has 7\.5"):
        TraceSpec.from_dict({**options, "gpu_arch": "sm75", "dtype": "float16"})
    with pytest.raises(InvalidValueError, match="computes in float32"):
        TraceSpec.from_dict({**options, "dtype": "float32"})
    assert TraceSpec.from_dict({**options, "dtype": "float32", "autocast": "bfloat16"}).gpu_arch is GpuArch.SM80
