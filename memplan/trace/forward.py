"""A micro-step's forward pass as Trainer runs it, for traces and for measurements alike."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Protocol

import torch
from accelerate.utils.operations import convert_to_fp32

from memplan.trace import trl
from memplan.trace.spec import TraceSpec


class Held(Protocol):
    """Who keeps alive what Trainer's frames keep alive."""

    spec: TraceSpec
    batch: Any
    outputs: Any
    loss: Any


def forward(held: Held, model: Any, scaler: Any, device_type: str) -> None:
    """The loss of `held.batch`, divided by the micro-steps and scaled, into `held.loss`; outputs stay where the spec says.

    The order in which names are bound is the order in which the tensors of the micro-step before are freed.
    """
    spec = held.spec
    dtype = getattr(torch, spec.autocast) if spec.autocast else None

    def run(**inputs: Any) -> Any:
        with torch.autocast(device_type, dtype=dtype) if dtype else nullcontext():
            return model(**inputs)

    if spec.stack == "trl":
        # Its loss is already divided by the tokens of all micro-steps.
        loss = trl.compute_loss(model, held.batch, run)
        held.loss = scaler.scale(loss) if scaler is not None else loss
        return
    outputs = run(**held.batch)
    if spec.stack == "unsloth":
        # Its loss, too, is already divided by the tokens of all micro-steps.
        held.loss = outputs.loss
        return
    if spec.outputs_fp32:
        outputs = convert_to_fp32(outputs)
    loss = outputs.loss
    if spec.keep_outputs:
        held.outputs = outputs
    del outputs
    if spec.gradient_accumulation_steps > 1:
        loss = loss / spec.gradient_accumulation_steps
    held.loss = scaler.scale(loss) if scaler is not None else loss
