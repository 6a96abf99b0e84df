"""TRL's SFTTrainer in a trace: its own head and `compute_loss` run, its Triton kernels do nothing.

The trainer itself needs a dataset and a tokenizer; what `compute_loss` reads of it stands in `_Trainer`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch

from memplan.errors import UnsupportedError
from memplan.trace import versions
from memplan.trace.liger import silence_triton
from memplan.trace.spec import TraceSpec


def install(spec: TraceSpec) -> None:
    """Makes TRL usable.

    Raises:
        UnavailableError: TRL or triton is missing, or of a version that no trace was tested with.
        UnsupportedError: a run that SFTTrainer does not make.
    """
    versions.check_package("trl", "1.16", "1.17", extra="trl==1.16.0")
    versions.check_package("triton", "3.4", "4.0", extra="triton")
    if spec.task != "causal-lm":
        raise UnsupportedError(f"TRL's SFTTrainer trains causal language models, not {spec.task}", code="not_traceable")
    silence_triton()


def apply(spec: TraceSpec, model: Any) -> None:
    """What SFTTrainer does to the model: adapters of a quantized base in bfloat16, and its head on the base model."""
    if spec.load_in_4bit or spec.load_in_8bit:
        _cast_adapters(model)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    import_module("trl.trainer.utils").add_fused_lm_head(base, outputs=("log_probs", "entropy", "is_top1"))


def _cast_adapters(model: Any) -> None:
    """trl/trainer/sft_trainer.py, `__init__`: all but DoRA's magnitudes."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_magnitude_vector" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)


class _Trainer(SimpleNamespace):
    """What `SFTTrainer.compute_loss` reads of its trainer, in a run on one GPU with the defaults of SFTConfig."""

    def __init__(self, model: Any) -> None:
        super().__init__(
            model=model,
            aux_loss_enabled=False,
            accelerator=SimpleNamespace(parallelism_config=None, gather_for_metrics=lambda tensor: tensor),
            compute_loss_func=None,
            label_smoother=None,
            args=SimpleNamespace(loss_type="nll", average_tokens_across_devices=False),
            _metrics={"train": defaultdict(list)},
            _total_train_tokens=0,
            _tp_size=1,
        )


def compute_loss(model: Any, batch: dict[str, Any], run: Callable[..., Any]) -> torch.Tensor:
    """`SFTTrainer.compute_loss`; Trainer's count of tokens, a scalar on the device, is a number here.

    Args:
        model: the model.
        batch: what the collator made.
        run: the model's forward pass under autocast, as accelerate wraps it.
    """
    trainer = import_module("trl.trainer.sft_trainer").SFTTrainer
    count = batch["labels"].numel()
    loss: torch.Tensor = trainer.compute_loss(_Trainer(model), run, dict(batch), num_items_in_batch=count)
    return loss


# Values that it logs.
GUESSES: list[tuple[str, str, Any]] = [("trl/trainer/sft_trainer.py", "compute_loss", 1)]
