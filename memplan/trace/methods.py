"""Applies a PEFT method exactly as a training script does."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from memplan.errors import InvalidValueError, UnknownNameError
from memplan.methods.base import matches
from memplan.trace import builder, unsloth
from memplan.trace.quantized import quantized_hidden, quantizing
from memplan.trace.spec import TraceSpec

if TYPE_CHECKING:
    from memplan.trace.labels import Labels

_TASK_TYPES = {
    "causal-lm": "CAUSAL_LM",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
    "feature-extraction": "FEATURE_EXTRACTION",
}


def apply_method(spec: TraceSpec, model: Any, labels: Labels) -> nn.Module:
    """The trainable model: `model` itself, or PEFT's wrapper around it, with checkpointing switched on."""
    if spec.peft is None:
        if spec.trainable is not None:
            _train_only(spec.trainable, model)
        builder.apply_checkpointing(spec, model)
        return model
    if spec.stack == "unsloth":
        options = {key: value for key, value in spec.peft.items() if key != "peft_type"}
        return unsloth.apply_method(spec, model, options, labels.before_method)
    import peft

    quantized = spec.load_in_4bit or spec.load_in_8bit
    if quantized and spec.prepare_for_kbit_training:
        checkpointing = spec.checkpointing != "none"
        kwargs = {"use_reentrant": spec.checkpointing == "reentrant"} if checkpointing else None
        with quantized_hidden(model):
            model = peft.prepare_model_for_kbit_training(
                model, use_gradient_checkpointing=checkpointing, gradient_checkpointing_kwargs=kwargs
            )
        # peft/utils/other.py, auto_clear_cache: torch.cuda.empty_cache() after the casts to float32.
        labels.cache_emptied()
        if spec.activation_offloading != "none":
            builder.apply_checkpointing(spec, model)  # Trainer switches checkpointing on again, with its own arguments
    else:
        builder.apply_checkpointing(spec, model)
        if spec.checkpointing != "none":
            # Trainer and TRL call this for PEFT with checkpointing; without it the first layer's input has no gradient.
            model.enable_input_require_grads()
    labels.before_method(model)
    config = build_peft_config(spec)
    with _loftq(labels) if spec.has_loftq else nullcontext():
        wrapped = peft.get_peft_model(model, config, autocast_adapter_dtype=spec.autocast_adapter_dtype)
    if not quantized:
        _move_buffers(wrapped, next(model.parameters()).device)
    return wrapped


@contextmanager
def _loftq(labels: Labels) -> Iterator[None]:
    """LoftQ quantizes on the way, and empties the cache before each time (peft/utils/loftq_utils.py)."""
    from peft.utils import loftq_utils

    original = loftq_utils.clear_device_cache
    loftq_utils.clear_device_cache = labels.cache_emptied
    try:
        with quantizing():
            yield
    finally:
        loftq_utils.clear_device_cache = original


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    """What PEFT left in host memory, as Trainer moves it with the model; not with bitsandbytes' (`Trainer.__init__`)."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device.type == "cpu":
                module._buffers[name] = buffer.to(device)


def _train_only(patterns: Sequence[str], model: nn.Module) -> None:
    """Freezes what the last pattern that names a parameter does not choose; a tied weight is named by each of its names."""
    wanted: dict[nn.Parameter, bool] = dict.fromkeys(model.parameters(), False)
    named = list(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        for name, parameter in named:
            if matches(pattern.removeprefix("!"), name):
                wanted[parameter] = not pattern.startswith("!")
    for parameter, is_trained in wanted.items():
        parameter.requires_grad_(is_trained)


@contextmanager
def _scipy_there() -> Iterator[None]:
    """PEFT asks for scipy before LoftQ, and no longer uses it (peft/tuners/lora/config.py, 0.21)."""
    missing = importlib.util.find_spec("scipy") is None
    if missing:
        sys.modules["scipy"] = importlib.util.module_from_spec(ModuleSpec("scipy", None))
    try:
        yield
    finally:
        if missing:
            del sys.modules["scipy"]


def build_peft_config(spec: TraceSpec) -> Any:
    """The PEFT configuration object of `spec.peft`.

    Raises:
        UnknownNameError: an unknown `peft_type` or an option that its config class does not have.
    """
    import dataclasses

    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    assert spec.peft is not None
    options = {key: value for key, value in spec.peft.items() if key != "peft_type"}
    kinds = {str(kind.value): cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    cls = kinds.get(str(spec.peft["peft_type"]).upper())
    if cls is None:
        raise UnknownNameError("PEFT method", str(spec.peft["peft_type"]), kinds)
    known = {entry.name for entry in dataclasses.fields(cls)}
    for key in list(options):
        if key not in known:
            raise UnknownNameError(f"option of {cls.__name__}", key, known)
    options.setdefault("task_type", _TASK_TYPES.get(spec.task))
    for key in ("auto_mapping", "revision", "peft_version", "base_model_name_or_path"):
        options.pop(key, None)
    options["inference_mode"] = False
    try:
        with _scipy_there() if spec.has_loftq else nullcontext():
            return cls(**options)
    except ValueError as error:
        raise InvalidValueError("peft", dict(spec.peft), str(error)) from None
