"""The batch that a collator would hand to the model, on the device."""

from __future__ import annotations

from typing import Any

import torch

from memplan.trace import unsloth
from memplan.trace.spec import TraceSpec


def _limits(spec: TraceSpec, device: torch.device) -> dict[str, Any]:
    """Where texts begin and end, as TRL's collator finds it on the CPU; Trainer moves every key by itself."""
    found = {
        f"cu_seq_lens_{side}": torch.zeros(spec.packed_sequences + 1, dtype=torch.int32, device=device) for side in "qk"
    }
    indices = torch.zeros((1, spec.sequence), dtype=torch.int32, device=device)
    return found | {"max_length_q": spec.sequence, "max_length_k": spec.sequence, "seq_idx": indices}


def make_batch(spec: TraceSpec, model: Any, device: torch.device) -> dict[str, Any]:
    """`input_ids` [batch, sequence] int64, labels as the task wants them, and an attention mask where asked for."""
    shape = (spec.batch, spec.sequence)

    def tokens(size: tuple[int, ...]) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.int64, device=device)

    if spec.stack == "torchtune":  # data/_collate.py, padded_collate_sft: no mask, whatever is padded
        return {"tokens": tokens(shape), "labels": tokens(shape)}
    batch = {"input_ids": tokens(shape)}
    if spec.packing:
        batch["position_ids"] = tokens(shape)
    if spec.packing and spec.stack == "trl":
        batch |= _limits(spec, device)
    if spec.attention_mask or spec.padding:
        batch["attention_mask"] = torch.ones(shape, dtype=torch.int64, device=device)
        if spec.padding:
            batch["attention_mask"][:, -1:] = 0
    if spec.task == "seq2seq-lm":
        batch["labels"] = tokens((spec.batch, spec.target_sequence or spec.sequence))
    elif spec.task == "sequence-classification":
        batch["labels"] = tokens((spec.batch,))
    elif spec.task == "question-answering":
        batch["start_positions"], batch["end_positions"] = tokens((spec.batch,)), tokens((spec.batch,))
    elif spec.task != "feature-extraction":
        batch["labels"] = tokens(shape)
    if spec.stack == "unsloth":
        batch.update(unsloth.metadata(spec, device))
    if spec.peft is not None and spec.peft["peft_type"] in ("POLY", "MULTITASK_PROMPT_TUNING"):
        batch["task_ids"] = tokens((spec.batch,))
    return batch
