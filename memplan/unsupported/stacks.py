"""Which training loops are walked, for which runs: those that are equal to the trace of the loop's own library."""

from __future__ import annotations

from memplan.catalog.multiprocessors import multiprocessors
from memplan.dtypes import DType
from memplan.errors import UnsupportedError
from memplan.methods import get_method
from memplan.prepare import Prepared
from memplan.recipe import Attention, Loss, Precision, Stack, Task
from memplan.resolve import Resolved
from memplan.torchtune.models import component_builder, lora_arguments
from memplan.unsupported.losses import adapts_head
from memplan.unsupported.unsloth import unsupported_unsloth

# Model types whose step under TRL's SFTTrainer is equal to the trace (trl 1.16.0). Experts are not among them: the trainer
# adds their routers' loss.
TRL = frozenset(
    {
        "llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "gemma", "gemma2", "gemma3_text", "phi3", "olmo", "olmo2",
        "cohere", "starcoder2", "stablelm",
    }
)  # fmt: skip
TRL_VERSION = "1.16"
# Their attention does not pass on the limits of packed texts that TRL's collator makes.
DROPS_LIMITS = frozenset({"stablelm"})
# Model types whose step with Liger's layers is equal to the trace (liger-kernel 0.8.5), with its fused loss or their own.
LIGER = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"})
# Those for which Liger refuses its fused loss.
LIGER_WITHOUT_FUSED_LOSS = frozenset({"granite"})
LIGER_VERSION = "0.8"
TORCHTUNE_VERSION = "0.6"


def unsupported_stacks(resolved: Resolved, prepared: Prepared) -> list[str]:
    """What keeps the recipe's stack from being walked."""
    stack = resolved.values["stack"]
    if stack is Stack.TRANSFORMERS:
        return []
    if stack is Stack.TRL:
        return _trl(resolved, prepared)
    if stack is Stack.LIGER:
        return _liger(resolved, prepared)
    if stack is Stack.TORCHTUNE:
        return _torchtune(resolved)
    return unsupported_unsloth(resolved, prepared)


def _is_other(version: object, walked: str) -> bool:
    """Whether a recipe names a version that is no patch of the one that is walked."""
    return version is not None and ".".join(str(version).split(".")[:2]) != walked


def _liger(resolved: Resolved, prepared: Prepared) -> list[str]:
    values = resolved.values
    model_type, version = str(resolved.config["model_type"]), values.get("stack_version")
    found = []
    if _is_other(version, LIGER_VERSION):
        found.append(f"liger-kernel {version}: what is walked is {LIGER_VERSION}")
    if model_type not in LIGER | LIGER_WITHOUT_FUSED_LOSS or resolved.task is not Task.CAUSAL_LM:
        found.append(f"Liger's kernels in {model_type} models under a {resolved.task} head")
    if values["loss"] is Loss.FUSED_LINEAR and model_type in LIGER_WITHOUT_FUSED_LOSS:
        found.append(f"Liger's fused loss of {model_type} models, which Liger refuses: say loss=default")
    if values["loss"] is Loss.CHUNKED:
        found.append("the chunked loss with Liger's layers")
    if resolved.config.get("hidden_act") not in ("silu", "swish"):
        found.append(f"Liger's gated MLP with {resolved.config.get('hidden_act')}: it computes silu")
    norms = [entry.name for entry in prepared.state.stored if entry.trainable and "norm" in entry.name]
    if norms and multiprocessors(resolved.gpu) is None:
        found.append(
            f"the gradients of Liger's norms on {values['gpu']}: how many multiprocessors it has is not recorded"
        )
    if any("norm" in entry.module.rpartition(".")[2] for entry in prepared.adaptation.added):
        found.append("adapters on Liger's norms")
    if values["use_cache"]:
        found.append("use_cache with Liger's layers")
    if values.get("eval_strategy", "no") != "no":
        found.append("evaluation with Liger's layers")
    return found


def _torchtune(resolved: Resolved) -> list[str]:
    """Everything that is not what torchtune's single-device recipes do with a model of its own."""
    values, version = resolved.values, resolved.values.get("stack_version")
    found, attention = [], "sdpa"
    if _is_other(version, TORCHTUNE_VERSION):
        found.append(f"torchtune {version}: what is walked are the recipes of {TORCHTUNE_VERSION}")
    try:
        builder = component_builder(resolved.config)
        attention = builder.attention
        if resolved.method != "full":
            lora_arguments({"peft_type": get_method(resolved.method).peft_type, **resolved.peft}, builder)
        if values["sequence_length"] > builder.arguments["max_seq_len"]:
            found.append(f"sequences beyond the {builder.arguments['max_seq_len']} positions of torchtune's model")
    except UnsupportedError as error:
        found.append(error.message)
    if resolved.quantization is not None:
        found.append("a quantized base under torchtune: its NF4 weights are torchao's, not those of bitsandbytes")
    beside = {
        f"a {resolved.task} head": resolved.task is not Task.CAUSAL_LM,
        f"precision={resolved.precision}: its recipes know no autocast": resolved.precision
        not in (Precision.PURE, Precision.FP32),
        "float16, which its recipes refuse": resolved.dtype is DType.FLOAT16,
        "parameters chosen by trainable": values.get("trainable") is not None,
        "adapters in another type than the model's (autocast_adapter_dtype)": resolved.method != "full"
        and values["autocast_adapter_dtype"]
        and resolved.dtype is not DType.FLOAT32,
        "reentrant checkpointing": values["activation_checkpointing"] == "reentrant",
        f"attn_implementation={values['attn_implementation']}: its attention is {attention}": values[
            "attn_implementation"
        ]
        != attention,
        "packed sequences, whose block masks go to flex_attention": bool(values["packing"]),
        "the fused_linear loss": values["loss"] is Loss.FUSED_LINEAR,
        "kept outputs": bool(values["keep_outputs"]),
        "use_cache": bool(values["use_cache"]),
        "evaluation": values.get("eval_strategy", "no") != "no",
        "saving (save_strategy), which copies weights on the device as it converts them": values.get(
            "save_strategy", "no"
        )
        != "no",
        "merging (merge_and_unload)": bool(values.get("merge_and_unload")),
    }
    return [*found, *(f"{what} under torchtune" for what, applies in beside.items() if applies)]


def _trl(resolved: Resolved, prepared: Prepared) -> list[str]:
    values = resolved.values
    model_type, version = str(resolved.config["model_type"]), values.get("stack_version")
    found = []
    if _is_other(version, TRL_VERSION):
        found.append(f"TRL {version}: what is walked is the SFTTrainer of {TRL_VERSION}")
    if values["loss"] is not Loss.CHUNKED:
        found.append(
            f"the {values['loss']} loss under TRL, whose SFTTrainer always puts its own fused head on the model"
        )
    if model_type not in TRL or resolved.task is not Task.CAUSAL_LM:
        found.append(f"TRL's SFTTrainer on {model_type} models under a {resolved.task} head")
    if resolved.quantization is not None and not _is_trl_qlora(resolved):
        found.append(
            "a quantized base under TRL other than 4-bit weights computed with in bfloat16 under LoRA, without "
            "prepare_model_for_kbit_training and with autocast_adapter_dtype=false: SFTTrainer makes adapters bfloat16"
        )
    if values["sequence_length"] == 1:
        found.append("sequences of one token under TRL: they leave nothing to predict")
    window = resolved.config.get("sliding_window")
    layer_types = resolved.config.get("layer_types") or ["sliding_attention"]
    slides = window is not None and "sliding_attention" in layer_types
    if slides and values["sequence_length"] >= window and values["activation_checkpointing"]:
        found.append(f"checkpointed sequences beyond the window of {window} tokens under TRL")
    if (
        values["packing"]
        and model_type in DROPS_LIMITS
        and values["attn_implementation"] == Attention.FLASH_ATTENTION_2
    ):
        found.append(f"packed sequences of {model_type} models under TRL, whose limits their attention is not handed")
    if values["keep_outputs"]:
        found.append("kept outputs under TRL, whose compute_loss keeps none")
    if prepared.adaptation.virtual_tokens:
        found.append(f"the virtual tokens of {resolved.method} under TRL")
    if adapts_head(prepared):
        found.append("an adapter on lm_head under TRL, whose fused head multiplies with the base weight")
    if values.get("eval_strategy", "no") != "no":
        found.append("evaluation under TRL")
    return found


def _is_trl_qlora(resolved: Resolved) -> bool:
    values, quantization = resolved.values, resolved.quantization
    return (
        quantization is not None
        and quantization.scheme.is_4bit_bitsandbytes
        and quantization.compute_dtype is DType.BFLOAT16
        and not values["prepare_model_for_kbit_training"]
        and not values["autocast_adapter_dtype"]
        and resolved.method in ("lora", "qlora")
        and not resolved.peft.get("use_dora")
    )
