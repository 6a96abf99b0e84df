"""Greedy generation between two training steps by the model's own `generate`, for traces and for measurements alike.

Under Trainer's autocast accelerate has wrapped the model's forward, so that every call of it runs under autocast and gives
float32 logits; PEFT's `generate` calls the base model, whose forward nobody wrapped.

Known limits:
    No row ends before `max_new_tokens`. Which tokens are generated changes no size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils.operations import convert_to_fp32

from memplan.trace.spec import TraceSpec


def generate(spec: TraceSpec, model: Any, device_type: str, inputs: dict[str, torch.Tensor]) -> None:
    """`model.generate` on a tokenizer's `inputs`, and what it gives back dropped.

    Args:
        spec: how many tokens.
        model: in training; it is left in evaluation.
        device_type: of autocast.
        inputs: the prompts on the device.
    """
    from transformers import GenerationConfig

    model.eval()
    greedy = GenerationConfig(
        max_new_tokens=spec.max_new_tokens,
        do_sample=False,
        use_cache=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with _wrapped(spec, model, device_type):
        model.generate(**inputs, generation_config=greedy)


@contextmanager
def _wrapped(spec: TraceSpec, model: Any, device_type: str) -> Iterator[None]:
    """accelerate's `prepare_model`, which sets the instance's own forward."""
    if not spec.autocast or spec.peft is not None:
        yield
        return
    forward, dtype = model.forward, getattr(torch, spec.autocast)

    def autocast_forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type, dtype=dtype):
            outputs = forward(*args, **kwargs)
        return convert_to_fp32(outputs)

    autocast_forward.__wrapped__ = forward  # type: ignore[attr-defined] # its signature is asked for
    model.forward = autocast_forward
    try:
        yield
    finally:
        del model.forward
