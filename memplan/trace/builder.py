"""Builds the real model as transformers loads it: on meta, then one parameter after another onto the device."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from memplan.errors import InvalidValueError, UnavailableError, UnknownNameError, UnsupportedError
from memplan.trace.patches import copy_attributes
from memplan.trace.quantized import QuantizedLoader
from memplan.trace.spec import LAYER_KEYS, TraceSpec

_AUTO_CLASSES = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "feature-extraction": "AutoModel",
}
# Values of the checkpoint that say nothing about the model's shape.
_DROPPED_KEYS = ("model_type", "torch_dtype", "dtype", "architectures", "transformers_version", "quantization_config")


def build_config(spec: TraceSpec) -> Any:
    """The transformers configuration of the spec, at full depth or at `spec.num_layers`.

    Raises:
        UnknownNameError: transformers does not know the model type.
        UnsupportedError: its class does not take the values.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = str(spec.model_config["model_type"])
    if model_type not in CONFIG_MAPPING:
        raise UnknownNameError("model_type", model_type, CONFIG_MAPPING, hint="the installed transformers has no other")
    known = CONFIG_MAPPING[model_type]
    values = {
        key: value
        for key, value in spec.model_config.items()
        # What the class derives by itself (Falcon's head_dim) cannot be given.
        if key not in _DROPPED_KEYS and not isinstance(getattr(known, key, None), property)
    }
    if spec.num_layers is not None:
        values = _with_layers(values, spec.num_layers)
    try:
        config = AutoConfig.for_model(model_type, **values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnsupportedError(
            f"transformers cannot configure this model: {type(error).__name__}: {error}", code="model_not_buildable"
        ) from None
    if spec.task in ("sequence-classification", "token-classification"):
        config.num_labels = spec.num_labels
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = 0
    _set_tokens(config)
    if hasattr(config, "use_cache"):
        if spec.checkpointing != "none":
            config.use_cache = False
        elif spec.use_cache is not None:
            config.use_cache = spec.use_cache
    return config


def _set_tokens(config: Any) -> None:
    """Ids of special tokens, which a recipe's config does not keep: any will do that the vocabulary has."""
    vocabulary = getattr(config, "vocab_size", None)
    pad = getattr(config, "pad_token_id", None)
    if isinstance(vocabulary, int) and isinstance(pad, int) and pad >= vocabulary:
        config.pad_token_id = 0
    if getattr(config, "is_encoder_decoder", False):
        for name in ("pad_token_id", "decoder_start_token_id"):
            if getattr(config, name, None) is None:
                setattr(config, name, 0)


def _with_layers(values: dict[str, Any], num_layers: int) -> dict[str, Any]:
    changed = dict(values)
    found = [key for key in LAYER_KEYS if key in values]
    if not found:
        raise InvalidValueError(
            "num_layers", num_layers, "only allowed for configurations with " + ", ".join(LAYER_KEYS)
        )
    for key in found:
        changed[key] = num_layers
    if "num_decoder_layers" in values:
        changed["num_decoder_layers"] = num_layers
    if isinstance(values.get("layer_types"), list):
        changed["layer_types"] = values["layer_types"][:num_layers]
    return changed


def build_on_meta(spec: TraceSpec, config: Any) -> nn.Module:
    """The model without storage, with the dtype of each parameter as `from_pretrained` would give it."""
    import transformers
    from transformers.initialization import no_init_weights

    auto = getattr(transformers, _AUTO_CLASSES[spec.task])
    dtype = getattr(torch, spec.dtype)
    try:
        with torch.device("meta"), no_init_weights():
            model: nn.Module = auto.from_config(config, dtype=dtype, attn_implementation=spec.attn_implementation)
    except ImportError as error:
        raise UnavailableError(f"transformers cannot build this model: {error}", code="missing_package") from None
    except ValueError as error:
        raise UnsupportedError(f"transformers cannot build this model: {error}", code="model_not_buildable") from None
    _keep_in_float32(model, dtype)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    if spec.model_config.get("tie_word_embeddings") is False:
        _keep_own_head(model)
    return model


def _keep_own_head(model: Any) -> None:
    """Undo the tie of the output embedding alone: T5's config forgets that its checkpoint has a head of its own."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if inputs is not None and outputs is not None and outputs.weight is inputs.weight:
        outputs.weight = nn.Parameter(torch.empty_like(inputs.weight), inputs.weight.requires_grad)


def _keep_in_float32(model: nn.Module, dtype: torch.dtype) -> None:
    # transformers/modeling_utils.py, _get_dtype_plan: the plain list counts for float16 only, the strict one for both.
    keep: set[str] = set()
    if dtype == torch.float16:
        keep |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    if dtype in (torch.float16, torch.bfloat16):
        keep |= set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if not keep:
        return
    pattern = re.compile("|".join(rf"(?:^|\.){re.escape(name)}(?:\.|$)" for name in sorted(keep)))
    for name, parameter in list(model.named_parameters()):
        if pattern.search(name) and parameter.is_floating_point():
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            module._parameters[leaf] = nn.Parameter(parameter.to(torch.float32), parameter.requires_grad)


def warmup_bytes(model: Any, device: torch.device, quantizer: QuantizedLoader | None) -> int:
    """Size of the one block, as large as the model, that loading allocates and frees at once.

    transformers/modeling_utils.py, caching_allocator_warmup: half as many float16 elements as the model has bytes.
    """
    from transformers.modeling_utils import get_total_byte_count

    kind = quantizer.quantizer if quantizer is not None else None
    total = sum(get_total_byte_count(model, dict.fromkeys(model.state_dict(), device), kind).values())
    return int(total // 2) * 2


def load(model: nn.Module, device: torch.device, quantizer: QuantizedLoader | None) -> Iterator[str]:
    """Gives every parameter and buffer its storage on `device`, module by module; yields each name.

    What the checkpoint does not have, its non-persistent buffers, comes last (transformers/modeling_utils.py,
    `_move_missing_keys_from_meta_to_device`).
    """
    tied: dict[int, nn.Parameter] = {}
    for name, module in list(model.named_modules()):
        prefix = f"{name}." if name else ""
        for leaf, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            done = tied.get(id(parameter))
            if done is None:
                if quantizer is not None and quantizer.handles(module, leaf):
                    done = quantizer.quantize(module, leaf, parameter, device)
                else:
                    done = _materialize(parameter, device)
                tied[id(parameter)] = done
                yield prefix + leaf
            module._parameters[leaf] = done
        yield from _load_buffers(module, prefix, device, persistent=True)
    for name, module in list(model.named_modules()):
        yield from _load_buffers(module, f"{name}." if name else "", device, persistent=False)
    if quantizer is not None:
        quantizer.finish(model)


def _load_buffers(module: nn.Module, prefix: str, device: torch.device, *, persistent: bool) -> Iterator[str]:
    for leaf, buffer in list(module._buffers.items()):
        if buffer is not None and (leaf not in module._non_persistent_buffers_set) is persistent:
            module._buffers[leaf] = torch.empty_strided(
                buffer.shape, buffer.stride(), dtype=buffer.dtype, device=device
            )
            yield prefix + leaf


def _materialize(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    data = torch.empty_strided(parameter.shape, parameter.stride(), dtype=parameter.dtype, device=device)
    done = nn.Parameter(data, parameter.requires_grad)
    copy_attributes(parameter, done)
    return done


def apply_checkpointing(spec: TraceSpec, model: Any) -> None:
    """`activation_checkpointing_enable` as Trainer calls it, before or after PEFT as Trainer users do."""
    if spec.checkpointing == "none":
        return
    options = {"use_reentrant": spec.checkpointing == "reentrant"}
    if spec.activation_offloading == "checkpoints":
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options, offload=True)
    elif hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:  # its name in the oldest of the transformers that are covered
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
