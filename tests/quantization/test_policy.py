"""Which modules are quantized, against transformers' own quantizers on models of many families and tasks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import peft
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.integrations.finegrained_fp8 import FP8Experts, FP8Linear
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from memplan.errors import UnsupportedError
from memplan.quantization import (
    ModelOutline,
    ModuleKind,
    Quantization,
    Scheme,
    default_skip_modules,
    gptq_block_prefix,
    is_quantized,
    is_replaced,
    is_skipped,
    skip_patterns,
)

DECODER = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
           "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}  # fmt: skip
ENCODER = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
           "num_attention_heads": 2, "pad_token_id": 0}  # fmt: skip
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "pad_token_id": 0}
OPT = {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
BLOOM = {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 2}
T5 = {"vocab_size": 64, "d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 2, "num_heads": 2}
BART = {"vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}  # fmt: skip
DISTILBERT = {"vocab_size": 64, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}
MOE = {**DECODER, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama-causal": ("LlamaConfig", "LlamaForCausalLM", DECODER),
    "llama-tied": ("LlamaConfig", "LlamaForCausalLM", {**DECODER, "tie_word_embeddings": True}),
    "llama-sequence": ("LlamaConfig", "LlamaForSequenceClassification", DECODER),
    "llama-token": ("LlamaConfig", "LlamaForTokenClassification", DECODER),
    "qwen2-causal": ("Qwen2Config", "Qwen2ForCausalLM", DECODER),
    "gemma2-causal": ("Gemma2Config", "Gemma2ForCausalLM", DECODER),
    "gemma2-sequence": ("Gemma2Config", "Gemma2ForSequenceClassification", DECODER),
    "mixtral-causal": ("MixtralConfig", "MixtralForCausalLM", MOE),
    "qwen3-moe-causal": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", MOE),
    "gpt-oss-causal": ("GptOssConfig", "GptOssForCausalLM", MOE),
    "gpt2-causal": ("GPT2Config", "GPT2LMHeadModel", GPT2),
    "gpt2-sequence": ("GPT2Config", "GPT2ForSequenceClassification", GPT2),
    "gpt-neox-causal": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {**ENCODER}),
    "falcon-causal": ("FalconConfig", "FalconForCausalLM", ENCODER),
    "bloom-causal": ("BloomConfig", "BloomForCausalLM", BLOOM),
    "opt-causal": ("OPTConfig", "OPTForCausalLM", OPT),
    "opt-projected": ("OPTConfig", "OPTForCausalLM", {**OPT, "word_embed_proj_dim": 16}),
    "opt-sequence": ("OPTConfig", "OPTForSequenceClassification", OPT),
    "bert-sequence": ("BertConfig", "BertForSequenceClassification", ENCODER),
    "bert-masked": ("BertConfig", "BertForMaskedLM", ENCODER),
    "distilbert-sequence": ("DistilBertConfig", "DistilBertForSequenceClassification", DISTILBERT),
    "roberta-sequence": ("RobertaConfig", "RobertaForSequenceClassification", ENCODER),
    "roberta-masked": ("RobertaConfig", "RobertaForMaskedLM", ENCODER),
    "deberta-sequence": ("DebertaV2Config", "DebertaV2ForSequenceClassification", ENCODER),
    "modernbert-sequence": ("ModernBertConfig", "ModernBertForSequenceClassification", ENCODER),
    "t5-seq2seq": ("T5Config", "T5ForConditionalGeneration", T5),
    "t5-gated-untied": ("T5Config", "T5ForConditionalGeneration",
                        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "t5-sequence": ("T5Config", "T5ForSequenceClassification", T5),
    "bart-seq2seq": ("BartConfig", "BartForConditionalGeneration", BART),
    "bart-sequence": ("BartConfig", "BartForSequenceClassification", BART),
    "vit-image": ("ViTConfig", "ViTForImageClassification", {"hidden_size": 32, "intermediate_size": 64,
                  "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}),
}  # fmt: skip

BITSANDBYTES_QUANTIZERS: dict[Scheme, tuple[type[HfQuantizer], dict[str, Any], type[nn.Module]]] = {
    Scheme.NF4: (Bnb4BitHfQuantizer, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, bnb.nn.Linear4bit),
    Scheme.INT8: (Bnb8BitHfQuantizer, {"load_in_8bit": True}, bnb.nn.Linear8bitLt),
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _build(name: str) -> transformers.PreTrainedModel:
    config, model, sizes = MODELS[name]
    with torch.device("meta"):
        return getattr(transformers, model)(getattr(transformers, config)(**sizes))  # type: ignore[no-any-return]


def _kind(path: str, module: nn.Module) -> ModuleKind:
    if path.endswith(".experts"):
        return ModuleKind.EXPERTS
    if isinstance(module, Conv1D):
        return ModuleKind.CONV1D
    if isinstance(module, nn.Embedding):
        return ModuleKind.EMBEDDING
    if isinstance(module, nn.Linear):
        return ModuleKind.LINEAR if type(module) is nn.Linear else ModuleKind.LINEAR_SUBCLASS
    return ModuleKind.OTHER


def _outline(model: transformers.PreTrainedModel) -> ModelOutline:
    head = model.get_output_embeddings()
    ties = model.all_tied_weights_keys
    return ModelOutline(
        last_parameter=[name for name, _ in model.named_parameters()][-1],
        output_embedding=next((path for path, module in model.named_modules() if module is head), None)
        if head
        else None,
        tied_parameters=(*ties, *ties.values()),
        keep_in_fp32_modules=tuple(model._keep_in_fp32_modules or ()),
    )


def _ours(quantization: Quantization, model: transformers.PreTrainedModel) -> set[str]:
    patterns = skip_patterns(quantization, _outline(model))
    return {
        path for path, module in model.named_modules() if is_replaced(quantization, path, _kind(path, module), patterns)
    }


def _theirs(quantizer: HfQuantizer, model: transformers.PreTrainedModel, classes: Any) -> set[str]:
    quantizer.preprocess_model(model, device_map={"": "cpu"})
    return {path for path, module in model.named_modules() if isinstance(module, classes)}


@pytest.mark.parametrize("scheme", BITSANDBYTES_QUANTIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_bitsandbytes_replaces_the_same_modules(name: str, scheme: Scheme) -> None:
    model = _build(name)
    quantizer, options, module_class = BITSANDBYTES_QUANTIZERS[scheme]
    ours = _ours(Quantization(scheme), model)
    config = transformers.BitsAndBytesConfig(**options)
    assert ours == _theirs(quantizer(config, pre_quantized=False), model, module_class)
    # Every linear layer of Falcon is a FalconLinear, a subclass of nn.Linear: none is replaced.
    assert bool(ours) is (name != "falcon-causal")


@pytest.mark.parametrize(
    "skip", [[], ["lm_head"], ["q_proj"], ["model.layers.1"], ["mlp"], ["layers.1"], [r"model.layers.\d.mlp", "score"]]
)
@pytest.mark.parametrize("name", ["llama-causal", "llama-sequence", "t5-seq2seq", "opt-causal"])
def test_given_modules_replace_the_default(name: str, skip: list[str]) -> None:
    model = _build(name)
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skip)
    ours = _ours(Quantization(Scheme.FP4, skip_modules=tuple(skip)), model)
    assert ours == _theirs(Bnb4BitHfQuantizer(config, pre_quantized=False), model, bnb.nn.Linear4bit)


def test_what_the_rules_mean_for_heads() -> None:
    nf4 = Quantization(Scheme.NF4)
    assert "score" not in _ours(nf4, _build("llama-sequence"))
    assert "classifier" in _ours(nf4, _build("bert-sequence"))
    assert {"classifier", "pre_classifier"} <= _ours(nf4, _build("distilbert-sequence"))
    assert "lm_head" not in _ours(nf4, _build("llama-causal"))
    assert "lm_head" in _ours(Quantization(Scheme.NF4, skip_modules=("q_proj",)), _build("llama-causal"))
    assert not any(path.endswith(".wo") for path in _ours(nf4, _build("t5-seq2seq")))
    assert not any("experts" in path for path in _ours(nf4, _build("mixtral-causal")))


@pytest.mark.parametrize("skip", [None, ["q_proj"]])
@pytest.mark.parametrize("name", ["llama-causal", "llama-tied", "mixtral-causal", "qwen3-moe-causal", "bert-sequence"])
def test_fp8_replaces_the_same_modules(name: str, skip: list[str] | None) -> None:
    model = _build(name)
    config = transformers.FineGrainedFP8Config(modules_to_not_convert=skip)
    ours = _ours(Quantization(Scheme.FP8, skip_modules=tuple(skip) if skip else None), model)
    assert ours == _theirs(FineGrainedFP8HfQuantizer(config, pre_quantized=False), model, (FP8Linear, FP8Experts))


@pytest.mark.parametrize("skip", [None, ["q_proj"]])
@pytest.mark.parametrize("name", MODELS)
def test_awq_adds_to_the_default(name: str, skip: list[str] | None) -> None:
    model = _build(name)
    theirs = HfQuantizer.get_modules_to_not_convert(model, skip, model._keep_in_fp32_modules, add_default_skips=True)
    ours = skip_patterns(Quantization(Scheme.AWQ, skip_modules=tuple(skip) if skip else None), _outline(model))
    assert set(ours) == set(theirs)
    if skip is None and not model._keep_in_fp32_modules:
        assert set(default_skip_modules(_outline(model))) == set(theirs)


@pytest.mark.parametrize(
    ("name", "block"),
    [("llama-causal", "model.layers"), ("gpt2-causal", "transformer.h"), ("opt-causal", "model.decoder.layers"),
     ("gpt-neox-causal", "gpt_neox.layers")],
)  # fmt: skip
def test_gptq_quantizes_the_blocks_only(name: str, block: str) -> None:
    modules = dict(_build(name).named_modules())
    assert gptq_block_prefix(modules) == block
    quantization = Quantization(Scheme.GPTQ)
    quantized = {
        path for path, module in modules.items()
        if is_replaced(quantization, path, _kind(path, module), (), gptq_block=block)
    }  # fmt: skip
    assert quantized == {path for path, module in modules.items()
                         if path.startswith(block) and isinstance(module, (nn.Linear, Conv1D))}  # fmt: skip
    with pytest.raises(UnsupportedError):
        is_replaced(quantization, f"{block}.0.mlp", ModuleKind.LINEAR, ())


def test_gptq_without_known_blocks_is_refused() -> None:
    with pytest.raises(UnsupportedError):
        gptq_block_prefix(["encoder", "encoder.0"])


PARTS = ("model", "layers", "layer", "0", "1", "11", "fc1", "xfc1", "mlp")
PATHS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=5)
SKIPS = ("layer.1", "layers", "fc1", "layers.*", "mlp|fc1", "model.layers.1", r"layer\d")
PATTERNS = st.lists(st.sampled_from(SKIPS), max_size=3)


@given(PATHS.map(".".join), PATTERNS)
def test_pattern_semantics(path: str, patterns: list[str]) -> None:
    assert is_skipped(path, patterns) is not should_convert_module(path, patterns)


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        ("llama-causal", "LlamaForCausalLM"),
        ("llama-tied", "LlamaForCausalLM"),
        ("llama-causal", "LlamaForSequenceClassification"),
        ("bert-masked", "BertForSequenceClassification"),
        ("bert-sequence", "BertForSequenceClassification"),
        ("gpt2-causal", "GPT2LMHeadModel"),
        ("mixtral-causal", "MixtralForCausalLM"),
        ("t5-seq2seq", "T5ForConditionalGeneration"),
    ],
)
@pytest.mark.parametrize("scheme", BITSANDBYTES_QUANTIZERS)
def test_loaded_checkpoints_hold_the_same_quantized_weights(
    tmp_path: Path, saved: str, loaded: str, scheme: Scheme
) -> None:
    """The whole way: a checkpoint on disk, `from_pretrained` with a BitsAndBytesConfig, real packed weights."""
    config_class, model_class, sizes = MODELS[saved]
    config = getattr(transformers, config_class)(**sizes)
    original = getattr(transformers, model_class)(config)
    original.save_pretrained(tmp_path)
    options = BITSANDBYTES_QUANTIZERS[scheme][1]
    load: Callable[..., Any] = getattr(transformers, loaded).from_pretrained
    model = load(tmp_path, quantization_config=transformers.BitsAndBytesConfig(**options), dtype=torch.bfloat16)
    theirs = {name.removesuffix(".weight") for name, parameter in model.named_parameters()
              if isinstance(parameter, (bnb.nn.Params4bit, bnb.nn.Int8Params))}  # fmt: skip

    with torch.device("meta"):
        outline_model = getattr(transformers, loaded)(config)
    in_checkpoint = set(original.state_dict())
    quantization = Quantization(scheme)
    patterns = skip_patterns(quantization, _outline(outline_model))
    ours = {
        path
        for path, module in outline_model.named_modules()
        if is_quantized(
            quantization, path, _kind(path, module), patterns, in_checkpoint=f"{path}.weight" in in_checkpoint
        )
    }
    assert ours == theirs
    assert ours


@pytest.mark.parametrize(("skip", "works"), [(None, False), (["classifier", "pre_classifier"], True)])
def test_a_new_head_that_is_not_skipped_keeps_its_dtype_and_cannot_run(
    tmp_path: Path, skip: list[str] | None, works: bool
) -> None:
    """DistilBERT with two labels from a base checkpoint in 4 bit, with PEFT's copy of the head."""
    transformers.DistilBertModel(transformers.DistilBertConfig(**DISTILBERT)).save_pretrained(tmp_path)
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skip)
    model = transformers.DistilBertForSequenceClassification.from_pretrained(
        tmp_path, quantization_config=config, dtype=torch.bfloat16
    )
    patterns = skip_patterns(Quantization(Scheme.FP4, skip_modules=tuple(skip) if skip else None), _outline(model))
    for path in ("classifier", "pre_classifier"):
        assert is_replaced(Quantization(Scheme.FP4), path, ModuleKind.LINEAR, patterns) is not works
        assert not is_quantized(Quantization(Scheme.FP4), path, ModuleKind.LINEAR, patterns, in_checkpoint=False)
        assert model.get_submodule(path).weight.dtype is torch.bfloat16

    model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    lora = peft.LoraConfig(r=8, lora_alpha=32, target_modules=["q_lin", "v_lin"], task_type="SEQ_CLS")
    model = peft.get_peft_model(model, lora).train()  # in eval mode bitsandbytes repacks weights for some CPUs
    batch = {"input_ids": torch.arange(4)[None], "labels": torch.tensor([1])}
    if works:
        model(**batch).loss.backward()
    else:
        with pytest.raises(AssertionError):
            model(**batch)
