"""What to trace: one flat, frozen description that crosses the process boundary as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from memplan.errors import InvalidValueError, UnknownNameError


class Checkpointing(StrEnum):
    """`gradient_checkpointing_kwargs={"use_reentrant": ...}` of transformers, or no checkpointing at all."""

    NONE = "none"
    REENTRANT = "reentrant"
    NON_REENTRANT = "non-reentrant"


class GpuArch(StrEnum):
    """CUDA compute capability: what decides which attention kernel and which cuBLAS workspace a step gets."""

    SM75 = "sm75"
    SM80 = "sm80"
    SM86 = "sm86"
    SM89 = "sm89"
    SM90 = "sm90"
    SM100 = "sm100"
    SM120 = "sm120"

    @property
    def capability(self) -> tuple[int, int]:
        """(major, minor), as `torch.cuda.get_device_capability` returns it."""
        digits = self.value.removeprefix("sm")
        return int(digits[:-1]), int(digits[-1])


class AttentionBackend(StrEnum):
    """The kernel behind `F.scaled_dot_product_attention`; `AUTO` chooses as CUDA would."""

    AUTO = "auto"
    FLASH = "flash"
    EFFICIENT = "efficient"
    CUDNN = "cudnn"
    MATH = "math"


TASKS = (
    "causal-lm", "masked-lm", "seq2seq-lm", "sequence-classification", "token-classification", "question-answering",
    "feature-extraction",
)  # fmt: skip

DTYPES = ("float32", "bfloat16", "float16")
# Names under which configurations hold their number of layers.
LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


# The version whose source `memplan/trace/flash_attn.py` follows.
FLASH_ATTN_VERSION = "2.8.3"


@dataclass(frozen=True, kw_only=True)
class TraceSpec:
    """One training run to trace. Names and defaults are those of transformers, PEFT and bitsandbytes.

    Attributes:
        model_config: the dict of a `config.json` (needs `model_type`).
        task: which head; decides the auto class and the shape of the labels.
        peft: the dict of an `adapter_config.json` (needs `peft_type`), or None for full fine-tuning.
        trainable: without `peft`, patterns of the parameters to train (`memplan.methods.base.matches`); None trains all.
        dtype: the dtype the base weights are loaded in.
        autocast: the dtype of `torch.autocast("cuda")` around the forward pass, or None.
        grad_scaler: whether `torch.amp.GradScaler` scales the loss (Trainer's `fp16=True`).
        load_in_4bit, load_in_8bit: bitsandbytes quantization of the base weights at load.
        bnb_4bit_compute_dtype: None means transformers' default, float32.
        bnb_4bit_quant_storage: the dtype of packed weights.
        llm_int8_skip_modules: modules that are not quantized, in 4 bits either; None leaves out the output embedding.
        llm_int8_outlier_columns: how many input columns LLM.int8 treats as outliers (data dependent on a real GPU).
        prepare_for_kbit_training: call `peft.prepare_model_for_kbit_training` after a quantized load.
        optim: a name of `transformers.TrainingArguments.optim`, or adamw_torch_foreach, adamw_torch_for_loop.
        optimizer_in_backward: one optimizer for each parameter, which steps inside backward.
        weight_decay_groups: two parameter groups as Trainer makes them, instead of one.
        batch, sequence: shape of `input_ids`; for encoder-decoder models `target_sequence` is the labels' length
            (default: `sequence`).
        checkpointing: activation checkpointing, per decoder layer.
        activation_offloading: what of the activations waits for backward in host memory: what transformers' checkpoints keep,
            or what TRL's manager is given.
        padding: whether the batch holds padding, so that the attention mask cannot be dropped.
        attention_mask: whether an `attention_mask` is passed at all (collators do).
        packing: whether the batch is one row of several texts, told apart by `position_ids` (`batch` is 1 then).
        packed_sequences: how many texts share the row.
        attn_implementation: what `from_pretrained` is given.
        attention_backend: override of the kernel that scaled_dot_product_attention would choose.
        max_grad_norm: gradient clipping, 0 for none.
        keep_outputs: whether the model's outputs (the logits) stay until the next ones take their name, or (`backward`) until
            backward has ended.
        outputs_fp32: whether the outputs are cast to float32 by accelerate (`prepare_model` with mixed precision).
        use_cache: `config.use_cache` during training; None leaves the configuration's own value.
        expandable_segments: allocator mode of the replay.
        empty_cache_steps: `torch.cuda.empty_cache()` after every so many updates, gradients still there; 0 for never.
        stack: whose training loop computes the loss: transformers' Trainer, TRL's SFTTrainer with its fused head,
            torchtune's recipes on torchtune's own model, or Unsloth's.
        offloads_hidden_states: whether Unsloth's checkpoints keep their layer's input in host memory.
        gpu_memory_bytes: by which Unsloth's loss chooses how it computes.
        loss: the model's own (`default`), Liger's `fused_linear`, or torchtune's `chunked`.
        liger_kernels: whether Trainer patches the layers with Liger's kernels (`use_liger_kernel`).
        multiprocessors: streaming multiprocessors of the GPU; Liger's norms sum their weight's gradient in so many rows.
        warmup: whether loading calls transformers' `caching_allocator_warmup`.
        eval_batches: rows of each batch of an evaluation after every step; none for no evaluation.
        prediction_loss_only: whether an evaluation keeps losses alone, not logits and labels.
        eval_accumulation_steps: after how many of its batches an evaluation moves what it keeps to the host, 0 for never.
        max_new_tokens: how many tokens are generated greedily after every step, 0 for none.
        prompt_batch, prompt_length: shape of the prompts that they follow.
        saves: whether a checkpoint is saved after every step.
        merges: whether `merge_and_unload` is called after the last step.
    """

    model_config: Mapping[str, Any]
    task: str = "causal-lm"
    num_labels: int = 2
    peft: Mapping[str, Any] | None = None
    trainable: Sequence[str] | None = None
    autocast_adapter_dtype: bool = True
    dtype: str = "bfloat16"
    autocast: str | None = None
    grad_scaler: bool = False
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_compute_dtype: str | None = None
    bnb_4bit_quant_storage: str = "uint8"
    llm_int8_skip_modules: Sequence[str] | None = None
    llm_int8_threshold: float = 6.0
    llm_int8_outlier_columns: int = 0
    prepare_for_kbit_training: bool = True
    optim: str = "adamw_torch"
    optim_args: Mapping[str, Any] = field(default_factory=dict)
    optimizer_in_backward: bool = False
    weight_decay_groups: bool = False
    batch: int = 1
    sequence: int = 128
    target_sequence: int | None = None
    gradient_accumulation_steps: int = 1
    checkpointing: Checkpointing = Checkpointing.NONE
    activation_offloading: Literal["none", "checkpoints", "saved-tensors"] = "none"
    padding: bool = False
    attention_mask: bool = False
    packing: bool = False
    packed_sequences: int = 2
    attn_implementation: str = "sdpa"
    attention_backend: AttentionBackend = AttentionBackend.AUTO
    gpu_arch: GpuArch = GpuArch.SM80
    max_grad_norm: float = 0.0
    keep_outputs: bool | Literal["backward"] = False
    outputs_fp32: bool = False
    use_cache: bool | None = None
    stack: Literal["transformers", "trl", "torchtune", "unsloth"] = "transformers"
    offloads_hidden_states: bool = False
    gpu_memory_bytes: int = 80 * 2**30
    loss: Literal["default", "fused_linear", "chunked"] = "default"
    liger_kernels: bool = False
    multiprocessors: int = 108
    num_steps: int = 2
    expandable_segments: bool = False
    warmup: bool = True
    empty_cache_steps: int = 0
    eval_batches: Sequence[int] = ()
    prediction_loss_only: bool = True
    eval_accumulation_steps: int = 0
    max_new_tokens: int = 0
    prompt_batch: int = 0
    prompt_length: int = 0
    saves: bool = False
    merges: bool = False
    num_layers: int | None = None
    train_mode: bool = True
    device: Literal["cuda", "cpu"] = "cuda"

    def __post_init__(self) -> None:
        if "model_type" not in self.model_config:
            raise InvalidValueError("model_config", sorted(self.model_config), "a config.json with its model_type")
        if self.task not in TASKS:
            raise UnknownNameError("task", self.task, TASKS)
        for name in ("dtype", "autocast", "bnb_4bit_compute_dtype"):
            value = getattr(self, name)
            if value is not None and value not in DTYPES:
                raise UnknownNameError("dtype", value, DTYPES, hint=f"given as {name}")
        for name in ("batch", "sequence", "gradient_accumulation_steps", "num_steps"):
            if getattr(self, name) < 1:
                raise InvalidValueError(name, getattr(self, name), "a positive integer")
        object.__setattr__(self, "eval_batches", tuple(self.eval_batches))
        if self.load_in_4bit and self.load_in_8bit:
            raise InvalidValueError("load_in_8bit", True, "only one of load_in_4bit and load_in_8bit")
        if self.peft is not None and "peft_type" not in self.peft:
            raise InvalidValueError("peft", dict(self.peft), "an adapter_config.json with its peft_type")
        for name, kind in _ENUMS.items():
            try:
                object.__setattr__(self, name, kind(getattr(self, name)))
            except ValueError:
                raise UnknownNameError(name, str(getattr(self, name)), [*kind]) from None
        if self.attn_implementation == "flash_attention_2":
            self._check_flash_attention()

    @property
    def updates_in_backward(self) -> bool:
        """Whether gradients are used and dropped inside backward."""
        return self.optimizer_in_backward or self.optim in ("lomo", "adalomo") or self.optim.endswith("_layerwise")

    def _check_flash_attention(self) -> None:
        # flash_attn/flash_attn_interface.py (2.8) and csrc/flash_attn/flash_api.cpp: "FlashAttention only supports Ampere
        # GPUs or newer", "FlashAttention only support fp16 and bf16 data type".
        key, (major, minor) = "attn_implementation", self.gpu_arch.capability
        if (major, minor) < (8, 0):
            raise InvalidValueError(
                key,
                self.attn_implementation,
                f"the package flash-attn needs compute capability 8.0 or later, and this GPU has {major}.{minor}",
                hint="use sdpa or eager",
            )
        if self.dtype == "float32" and self.autocast is None and not (self.load_in_4bit or self.load_in_8bit):
            raise InvalidValueError(
                key,
                self.attn_implementation,
                "the package flash-attn computes in float16 and bfloat16, and this run computes in float32",
                hint="use sdpa, bfloat16 weights, or autocast",
            )

    @property
    def has_loftq(self) -> bool:
        """Whether the adapter is made by LoftQ, which quantizes weights on the way."""
        return self.peft is not None and self.peft.get("init_lora_weights") == "loftq"

    def to_json(self) -> str:
        """The spec as one JSON object; `from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TraceSpec:
        """A spec from a mapping of its fields.

        Raises:
            UnknownNameError: a key that is not a field.
        """
        known = {entry.name for entry in dataclasses.fields(cls)}
        for key in data:
            if key not in known:
                raise UnknownNameError("trace option", key, known)
        return cls(**data)

    @classmethod
    def from_json(cls, text: str) -> TraceSpec:
        """The spec that `to_json` wrote."""
        return cls.from_dict(json.loads(text))


_ENUMS: dict[str, type[StrEnum]] = {
    "checkpointing": Checkpointing,
    "attention_backend": AttentionBackend,
    "gpu_arch": GpuArch,
}
