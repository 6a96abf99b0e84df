"""The choices that decide which kernels a step runs: attention, precision, checkpointing, mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memplan.dtypes import DType
from memplan.optimizers import Optimizer


@dataclass(frozen=True, slots=True)
class StepSettings:
    """How one step is executed.

    Attributes:
        batch, sequence: shape of the token batch, [B, S].
        target_sequence: decoder length of encoder-decoder models.
        autocast: dtype of `torch.autocast("cuda")`, or None.
        attn_implementation: `eager`, `sdpa` or `flash_attention_2`.
        checkpointing: None, `non-reentrant` or `reentrant`.
        offloading: what waits for backward in host memory (`memplan.resolve_offloading`), or None.
        padding: the batch holds padding, so an attention mask reaches the kernels.
        compute_capability: (major, minor) of the GPU; decides the attention kernel and workspaces.
        torch_version: (major, minor); decides which kernels take grouped heads.
        workspace_bytes: what cuBLAS takes at a thread's first matrix product, and keeps.
        workspace_is_loaded: loading made matrix products in the thread that runs forward.
        keep_outputs: the caller keeps the model's outputs (logits) until the next ones take their name, or (`backward`)
            until backward has ended.
        use_cache: the model builds and returns past key/values.
        input_require_grads: `enable_input_require_grads` was called, as PEFT does with checkpointing.
        micro_batches: micro-batches of one optimizer step; with more than one the loss is divided by their number.
        accumulating: this is not the first of them: gradients exist.
        grad_scaler: the loss is scaled (`torch.amp.GradScaler`), as under float16 autocast.
        labels_by_row: one label for each sequence instead of one for each token.
        virtual_tokens: positions that a prompt method puts in front of every sequence.
        packing: the batch is one row of several texts, told apart by position ids that come with it.
        packed_text_tokens: of how many tokens a text of that row is, on average.
        flash_dtype: what flash_attention_2 casts float32 inputs to.
        attention_mask: the batch holds a mask of ones, as TRL's collator makes it.
        stack: whose training loop computes the loss (`transformers`, `trl` or `torchtune`).
        adapters: the model is built with adapters in its layers, as torchtune builds it.
        liger_kernels: norms, gated MLP and rotary embedding are Liger's.
        multiprocessors: of the GPU.
        offloads_hidden_states: Unsloth's checkpoints keep their layer's input in host memory.
        opening: this is a run's first pass, where that goes otherwise than in all others.
        small_card: the GPU has no more than 24.5 GiB, by which Unsloth's loss chooses.
        loss: the model's own (`default`), Liger's `fused_linear` or torchtune's `chunked`.
        in_backward: the optimizer, where it steps inside backward.
    """

    batch: int
    sequence: int
    target_sequence: int = 0
    autocast: DType | None = None
    attn_implementation: str = "sdpa"
    checkpointing: str | None = None
    offloading: str | None = None
    padding: bool = False
    compute_capability: tuple[int, int] = (8, 0)
    torch_version: tuple[int, int] = (2, 13)
    workspace_bytes: int = 0
    workspace_is_loaded: bool = False
    keep_outputs: bool | Literal["backward"] = False
    use_cache: bool = False
    input_require_grads: bool = False
    virtual_tokens: int = 0
    micro_batches: int = 1
    accumulating: bool = False
    grad_scaler: bool = False
    labels_by_row: bool = False
    packing: bool = False
    packed_text_tokens: int = 32
    flash_dtype: DType = DType.BFLOAT16
    attention_mask: bool = False
    stack: str = "transformers"
    adapters: bool = False
    liger_kernels: bool = False
    multiprocessors: int = 108
    offloads_hidden_states: bool = False
    opening: bool = False
    small_card: bool = False
    loss: str = "default"
    in_backward: Optimizer | None = None
