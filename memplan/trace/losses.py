"""Losses that a library puts in the place of the model's own: Liger's fused one, torchtune's over chunks, TRL's."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from memplan.errors import UnsupportedError
from memplan.trace import liger, torchtune, trl, unsloth, versions
from memplan.trace.attention import AttentionChooser
from memplan.trace.spec import TraceSpec

_IGNORED = -100


def install(spec: TraceSpec, attention: AttentionChooser) -> None:
    """Makes the libraries of the spec's loss and layers usable.

    Raises:
        UnavailableError: one is missing, or of a version that no trace was tested with.
    """
    liger.restore()
    if spec.liger_kernels or spec.loss == "fused_linear":
        liger.install(spec)
    if spec.stack == "torchtune":
        torchtune.install(spec)
    elif spec.stack == "unsloth":
        unsloth.install(spec, attention)
    elif spec.stack == "trl":
        trl.install(spec)
    elif spec.loss == "chunked":
        versions.check_package("torchtune", "0.6.1", "0.6.2", extra="torchtune==0.6.1")


def apply(spec: TraceSpec, model: Any) -> None:
    """Patches the loaded model, with its adapters, as the library does.

    Raises:
        UnsupportedError: the library does not know the model or its head.
    """
    if spec.liger_kernels or spec.loss == "fused_linear":
        liger.apply(spec, model)
    if spec.stack == "trl":
        trl.apply(spec, model)
    elif spec.loss == "chunked":
        if spec.task != "causal-lm":
            raise UnsupportedError(f"the chunked loss is one over tokens, not of {spec.task}", code="not_traceable")
        _compute_in_chunks(model)


def guesses(spec: TraceSpec) -> list[tuple[str, str, Any]]:
    """Values that follow from the spec where a library asks for them."""
    found = liger.guesses(spec) if spec.loss == "fused_linear" else []
    return found + (trl.GUESSES if spec.stack == "trl" else [])


def equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    """`torch.equal` on CUDA, for tensors that are: `eq(self, src).all().item()` (aten native/cuda/Equal.cpp)."""
    torch.eq(first, second).all()
    return True


def _compute_in_chunks(model: Any) -> None:
    """torchtune's output and loss on a transformers model.

    As in torchtune 0.6.1: modules/transformer.py, `TransformerDecoder.chunked_output`, and the single-device recipes'
    `_loss_step`, where labels are shifted and the logits go before backward.
    """
    loss_fn = _chunked_loss()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model

    def forward(self: nn.Module, labels: torch.Tensor, **inputs: Any) -> CausalLMOutput:
        hidden = self.base_model(**inputs).last_hidden_state
        logits = [self.lm_head(chunk) for chunk in hidden.chunk(loss_fn.num_output_chunks, dim=1)]
        labels = torch.hstack((labels[..., 1:], labels.new_full((labels.shape[0], 1), _IGNORED)))
        loss = loss_fn(logits, labels)
        del logits
        return CausalLMOutput(loss=loss)

    base.forward = MethodType(forward, base)


def _chunked_loss() -> Any:
    """`CEWithChunkedOutputLoss` from its own file: torchtune as a whole cannot be imported without torchao."""
    return torchtune.torchtune_file("torchtune/modules/loss/ce_chunked_output_loss.py").CEWithChunkedOutputLoss()
