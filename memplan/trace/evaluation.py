"""Evaluation between two training steps as Trainer runs it, for traces and for measurements alike.

Mirrors transformers 5.23 trainer.py (`evaluation_loop`, `prediction_step`) with the library's own containers: what its
variables keep alive, and when they are assigned again, is part of what is traced.

Known limits:
    Trainer's counts of tokens and its padding across processes, some scalars on the device, are left out, as in the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils.operations import convert_to_fp32
from transformers.trainer_pt_utils import EvalLoopContainer, nested_detach

from memplan.trace.spec import TraceSpec

LABELS = ("labels", "start_positions", "end_positions")


def evaluation_loop(
    spec: TraceSpec,
    model: Any,
    device_type: str,
    make_batch: Callable[[int], dict[str, torch.Tensor]],
    empty_cache: Callable[[], None],
) -> None:
    """Every batch through the model without gradients; losses, and logits with labels where they are wanted, are collected.

    Args:
        spec: rows of each batch, and what is kept of it.
        model: in training; it is left in evaluation, from which the next training step takes it back.
        device_type: of autocast.
        make_batch: a batch of so many rows on the device.
        empty_cache: `torch.cuda.empty_cache`.
    """
    model.eval()
    all_losses, all_preds, all_labels = (EvalLoopContainer(True, padding_index=-100) for _ in range(3))
    for step, rows in enumerate(spec.eval_batches):
        inputs = make_batch(rows)
        losses, logits, labels = _prediction_step(spec, model, inputs, device_type)
        losses = losses.repeat(rows)
        all_losses.add(losses)
        if logits is not None:
            all_preds.add(logits)
        if labels is not None:
            all_labels.add(labels)
        if spec.eval_accumulation_steps and (step + 1) % spec.eval_accumulation_steps == 0:
            # `to_cpu_and_numpy`: the copies are on the host.
            all_losses.tensors = all_preds.tensors = all_labels.tensors = None
            del losses, logits, labels, inputs
            empty_cache()


def _prediction_step(
    spec: TraceSpec, model: Any, inputs: dict[str, torch.Tensor], device_type: str
) -> tuple[Any, Any, Any]:
    """The loss, and the model's other outputs with the labels unless `prediction_loss_only`."""
    labels = nested_detach(tuple(inputs[name] for name in LABELS if name in inputs))
    if len(labels) == 1:
        labels = labels[0]
    dtype = getattr(torch, spec.autocast) if spec.autocast else None
    ignored = [*getattr(model.config, "keys_to_ignore_at_inference", ["past_key_values"]), "loss"]
    with torch.no_grad():
        outputs = _forward(model, inputs, device_type, dtype)
        loss = outputs["loss"]
        loss = loss.detach().mean()
        logits = tuple(value for key, value in outputs.items() if key not in ignored)
    if spec.prediction_loss_only:
        return (loss, None, None)
    logits = nested_detach(logits)
    if len(logits) == 1:
        logits = logits[0]
    return (loss, logits, labels)


def _forward(model: Any, inputs: dict[str, torch.Tensor], device_type: str, dtype: torch.dtype | None) -> Any:
    # accelerate's `prepare_model` wraps forward into both: autocast, then float32 outputs.
    if dtype is None:
        return model(**inputs)
    with torch.autocast(device_type, dtype=dtype):
        outputs = model(**inputs)
    return convert_to_fp32(outputs)
