"""Dtypes against transformers' loader and PEFT's own functions on small models."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import peft
import pytest
import torch
import transformers
from peft.tuners.tuners_utils import BaseTunerLayer

from memplan.dtypes import DType
from memplan.quantization import (
    Quantization,
    Scheme,
    autocast_adapter_dtype,
    kbit_prepare_dtype,
    load_dtype,
    quantized_module_bias_dtype,
    storage_bytes,
)

CONFIGS: dict[str, transformers.PreTrainedConfig] = {
    "llama": transformers.LlamaConfig(
        vocab_size=67, hidden_size=32, intermediate_size=72, num_hidden_layers=2, num_attention_heads=2
    ),
    "bert": transformers.BertConfig(
        vocab_size=67, hidden_size=32, intermediate_size=72, num_hidden_layers=2, num_attention_heads=2
    ),
    "t5": transformers.T5Config(vocab_size=67, d_model=32, d_ff=72, d_kv=16, num_layers=2, num_heads=2),
}
CLASSES = {
    "llama": transformers.LlamaForCausalLM,
    "bert": transformers.BertForMaskedLM,
    "t5": transformers.T5ForConditionalGeneration,
}
QUANTIZATIONS = {
    "nf4": (
        Quantization(Scheme.NF4, double_quant=True, compute_dtype=DType.BFLOAT16),
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
         "bnb_4bit_compute_dtype": torch.bfloat16},
    ),
    "fp4-bf16-storage": (
        Quantization(Scheme.FP4, quant_storage=DType.BFLOAT16),
        {"load_in_4bit": True, "bnb_4bit_quant_storage": torch.bfloat16},
    ),
    "int8": (Quantization(Scheme.INT8), {"load_in_8bit": True}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _load(name: str, path: Path, dtype: torch.dtype, **options: Any) -> transformers.PreTrainedModel:
    CLASSES[name](CONFIGS[name]).save_pretrained(path)
    config = transformers.BitsAndBytesConfig(**options)
    return CLASSES[name].from_pretrained(path, quantization_config=config, dtype=dtype)


def _dtype(tensor: torch.Tensor) -> DType:
    return DType(str(tensor.dtype).removeprefix("torch."))


def _is_packed(parameter: torch.nn.Parameter) -> bool:
    return isinstance(parameter, (bnb.nn.Params4bit, bnb.nn.Int8Params))


def _state_bytes(parameter: torch.nn.Parameter) -> int:
    if isinstance(parameter, bnb.nn.Int8Params):
        return int(parameter.SCB.nbytes)
    state = parameter.quant_state
    nested = (state.state2.absmax, state.state2.code, state.offset) if state.nested else ()
    return sum(tensor.nbytes for tensor in (state.absmax, state.code, *nested))


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16, DType.FLOAT32])
@pytest.mark.parametrize("quantization_name", QUANTIZATIONS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_loaded_and_prepared_byte_for_byte(
    tmp_path: Path, name: str, quantization_name: str, dtype: DType
) -> None:
    quantization, options = QUANTIZATIONS[quantization_name]
    model = _load(name, tmp_path, getattr(torch, dtype), **options)
    shapes = {path: tuple(p.shape) for path, p in CLASSES[name](CONFIGS[name]).named_parameters()}
    kept = sorted(model._keep_in_fp32_modules or ())
    expected_bytes = 0
    for path, parameter in model.named_parameters():
        if _is_packed(parameter):
            size = storage_bytes(quantization, shapes[path], dtype)
            assert parameter.untyped_storage().nbytes() == size.data_bytes
            assert _state_bytes(parameter) == size.state_bytes
            expected_bytes += size.total_bytes
        else:
            loaded = load_dtype(path, dtype, keep_in_fp32_modules=kept)
            assert _dtype(parameter) is loaded, path
            prepared = kbit_prepare_dtype(quantization, loaded)
            expected_bytes += parameter.numel() * prepared.itemsize_bytes

    model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    real_bytes = sum(parameter.nbytes for parameter in model.parameters())
    real_bytes += sum(_state_bytes(parameter) for parameter in model.parameters() if _is_packed(parameter))
    assert real_bytes == expected_bytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_kbit_preparation_skips_gptq_but_not_awq_fp8_or_plain_models(dtype: torch.dtype) -> None:
    schemes = {"gptq": Quantization(Scheme.GPTQ), "awq": Quantization(Scheme.AWQ), "fp8": Quantization(Scheme.FP8)}
    for method, quantization in {**schemes, None: None}.items():
        model = CLASSES["llama"](CONFIGS["llama"]).to(dtype)
        if method is not None:
            model.quantization_method = method
        before = _dtype(next(model.parameters()))
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        assert {_dtype(parameter) for parameter in model.parameters()} == {kbit_prepare_dtype(quantization, before)}


def test_packed_weights_in_16_bit_storage_are_not_cast() -> None:
    quantization = Quantization(Scheme.NF4, quant_storage=DType.BFLOAT16)
    assert kbit_prepare_dtype(quantization, DType.BFLOAT16, quantized=True) is DType.BFLOAT16
    assert kbit_prepare_dtype(quantization, DType.BFLOAT16) is DType.FLOAT32
    assert kbit_prepare_dtype(quantization, DType.FLOAT8_E4M3FN) is DType.FLOAT8_E4M3FN


@pytest.mark.parametrize("quantization_name", ["nf4", "int8"])
def test_bias_after_the_first_forward(quantization_name: str) -> None:
    quantization = QUANTIZATIONS[quantization_name][0]
    if quantization.scheme is Scheme.INT8:
        layer: torch.nn.Linear = bnb.nn.Linear8bitLt(64, 32, has_fp16_weights=False)
    else:
        layer = bnb.nn.Linear4bit(64, 32, compute_dtype=torch.bfloat16, quant_type="nf4")
    layer = layer.to("cpu")
    layer.bias.requires_grad_(False)
    before = _dtype(layer.bias)
    layer(torch.randn(3, 64, dtype=torch.float16, requires_grad=True))
    assert _dtype(layer.bias) is quantized_module_bias_dtype(quantization, before, DType.FLOAT16)


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16])
def test_modules_kept_in_fp32(dtype: DType) -> None:
    model = CLASSES["t5"](CONFIGS["t5"])
    plan = model._get_dtype_plan(getattr(torch, dtype))
    for path, _ in model.named_parameters():
        expected = DType.FLOAT32 if any(name in path for name in plan) else dtype
        assert load_dtype(path, dtype, keep_in_fp32_modules=sorted(model._keep_in_fp32_modules)) is expected
    assert load_dtype("a.e_score_correction_bias", dtype, keep_in_fp32_modules_strict=["e_score_*"]) is DType.FLOAT32
    assert load_dtype("a.b", DType.FLOAT32, keep_in_fp32_modules_strict=["a"]) is DType.FLOAT32


ADAPTERS: dict[str, peft.PeftConfig] = {
    "lora": peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], modules_to_save=["lm_head"]),
    "lora-tokens": peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[1, 2]),
    "dora": peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True),
    "loha": peft.LoHaConfig(r=4, target_modules=["q_proj"]),
    "lokr": peft.LoKrConfig(r=4, target_modules=["q_proj"]),
    "adalora": peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=["q_proj"]),
    "ia3": peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
    "vera": peft.VeraConfig(r=4, target_modules=["q_proj"]),
    "oft": peft.OFTConfig(oft_block_size=4, target_modules=["q_proj"]),
    "ln-tuning": peft.LNTuningConfig(target_modules=["norm"]),
    "trainable-tokens": peft.TrainableTokensConfig(token_indices=[1], target_modules=["embed_tokens"]),
}


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16, DType.FLOAT32])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_dtypes(name: str, autocast: bool, dtype: DType) -> None:
    """The method creates its tensors in the model's dtype (autocast off); PEFT then casts some of them up."""
    created = _adapter_tensors(name, dtype, autocast=False)
    real = _adapter_tensors(name, dtype, autocast=autocast)
    peft_type = ADAPTERS[name].peft_type.value
    assert created.keys() == real.keys()
    for path, (before, in_tuner_layer) in created.items():
        ours = autocast_adapter_dtype(before, autocast=autocast, peft_type=peft_type, in_tuner_layer=in_tuner_layer)
        assert real[path][0] is ours, path


def _adapter_tensors(name: str, dtype: DType, *, autocast: bool) -> dict[str, tuple[DType, bool]]:
    """Trained parameters and floating buffers of the adapter: dtype, and whether a tuner layer holds them."""
    base = CLASSES["llama"](CONFIGS["llama"]).to(getattr(torch, dtype))
    model = peft.get_peft_model(base, ADAPTERS[name], autocast_adapter_dtype=autocast)
    tuner_paths = tuple(path for path, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    trained = {path: p for path, p in model.named_parameters() if p.requires_grad}
    trained |= {path: b for path, b in model.named_buffers() if ".default" in path and b.is_floating_point()}
    return {path: (_dtype(tensor), path.startswith(tuner_paths)) for path, tensor in trained.items()}
