"""A checkpoint as Trainer saves it, up to the host: whatever is copied on the device on the way.

Mirrors transformers 5.23 trainer.py (`_save_checkpoint`), modeling_utils.py (`save_pretrained`: the state dict is turned back
into the checkpoint's layout, and every tensor of a shard is made contiguous before the first is written), PEFT 0.21
peft_model.py (`save_pretrained`: the adapter alone), and torch.save of the optimizer's state dict. safetensors and torch.save
copy one storage after another to the host.

Known limits:
    One shard, as under `max_shard_size`'s 50 GB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from memplan.trace.spec import TraceSpec


def save(spec: TraceSpec, model: Any, optimizer: Any) -> None:
    """Model and optimizer, tensor by tensor, to the host."""
    shard = {name: tensor.contiguous() for name, tensor in _state_dict(spec, model).items()}
    for tensor in shard.values():
        tensor.to("cpu")
    del shard
    for tensor in _tensors(optimizer.state_dict()):
        tensor.to("cpu")


def _state_dict(spec: TraceSpec, model: Any) -> Mapping[str, torch.Tensor]:
    if spec.peft is not None:
        from peft import get_peft_model_state_dict

        found: Mapping[str, torch.Tensor] = get_peft_model_state_dict(model)
        return found
    from transformers.core_model_loading import revert_weight_conversion

    reverted: Mapping[str, torch.Tensor] = revert_weight_conversion(model, model.state_dict())
    return reverted


def _tensors(entry: Any) -> Iterator[torch.Tensor]:
    if isinstance(entry, torch.Tensor):
        yield entry
    elif isinstance(entry, Mapping):
        for value in entry.values():
            yield from _tensors(value)
    elif isinstance(entry, list | tuple):
        for value in entry:
            yield from _tensors(value)
