"""What a recipe holds that the step has no rule for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.architecture import ModuleKind
from memplan.blind_spots import blind_spots
from memplan.errors import UnsupportedError
from memplan.families import family_of
from memplan.methods import AddedKind
from memplan.prepare import Prepared
from memplan.quantization import Scheme
from memplan.recipe import Precision, Task
from memplan.resolve import Resolved
from memplan.step.attention_kernels import Kernel, choose_kernel
from memplan.unsupported.attention import head_size_of, unsupported_flash_attention
from memplan.unsupported.in_backward import unsupported_in_backward
from memplan.unsupported.losses import unsupported_losses
from memplan.unsupported.moments import (
    unplayed_growth,
    unsupported_generation,
    unsupported_initialisation,
    unsupported_merging,
    unsupported_saving,
)
from memplan.unsupported.offloading import unsupported_offloading
from memplan.unsupported.packing import unsupported_packing
from memplan.unsupported.stacks import unsupported_stacks

# Model types whose attention adds a trained bias to the scores.
RELATIVE_BIAS = frozenset({"t5", "mt5"})
# What the model only keeps to tie others to: untied, nothing computes with it.
IDLE_WHERE_UNTIED = {
    "bert": "cls.predictions.bias",
    "deberta-v2": "cls.predictions.bias",
    "roberta": "lm_head.bias",
    "xlm-roberta": "lm_head.bias",
    "bart": "model.shared.weight",
    "mbart": "model.shared.weight",
}


@dataclass(frozen=True, slots=True)
class Unsupported:
    """What no rule covers.

    Attributes:
        texts: for the user.
        step: whether it keeps the step from being walked at all.
    """

    texts: tuple[str, ...]
    step: bool


def unsupported_parts(resolved: Resolved, prepared: Prepared) -> Unsupported:
    """Everything in the recipe that the walk has no rule for; where there is any, no verdict says `fits`."""
    values = resolved.values
    model_type = str(resolved.config["model_type"])
    scheme = resolved.quantization.scheme if resolved.quantization is not None else None
    step: list[str] = []
    if model_type not in family_of(model_type).walked:
        step.append(
            f"the step of {model_type} models (activations, temporaries); parameters and model states are exact"
        )
    elif resolved.task not in family_of(model_type).walked_tasks:
        step.append(f"the step under a {resolved.task} head; parameters and model states are exact")
    elif model_type == "deberta-v2":
        step += _deberta(resolved.config, values["activation_checkpointing"])
    elif model_type == "falcon" and resolved.config["alibi"]:
        step.append("the step of falcon models with alibi; parameters and model states are exact")
    step += [f"the step of {resolved.method}: {text}" for text in prepared.adaptation.unwalked]
    if resolved.method == "adaption_prompt" and values.get("stack", "transformers") != "transformers":
        step.append(f"adaption prompts under stack={values['stack']}")
    if resolved.method == "glora" and model_type == "falcon":
        step.append("GLoRA on FalconLinear: PEFT takes no class but torch's own Linear")
    half_adapters = values.get("autocast_adapter_dtype") is False and (resolved.autocast or resolved.dtype).is_half
    if resolved.method == "hra" and resolved.autocast is not None and half_adapters:
        step.append("HRA's 16-bit vectors under autocast, which takes their norms in float32")
    if scheme is Scheme.INT8 and not family_of(model_type).walked_int8:
        step.append(f"the step of {model_type} on weights in 8 bits, whose biases take their inputs' type")
    copied = {entry.module for entry in prepared.adaptation.added if entry.kind is AddedKind.COPY}
    tied = {name.rpartition(".")[0] for pair in prepared.architecture.tied.items() for name in pair}
    if copied & tied:
        step.append(f"modules_to_save on a tied weight ({', '.join(sorted(copied & tied))})")
    step += _without_gradient_rule(model_type, prepared)
    if resolved.precision in (Precision.MASTER, Precision.MASTER_FP32_GRADS):
        step.append(f"the step under precision {resolved.precision}; model states are exact")
    if resolved.quantization is not None and not resolved.quantization.scheme.is_bitsandbytes:
        step.append(f"the step on {resolved.quantization.scheme} weights; their storage is exact")
    broken, unloaded = unsupported_initialisation(resolved, prepared)
    step += broken
    step += unsupported_stacks(resolved, prepared)
    step += unsupported_losses(resolved, prepared)
    step += unsupported_generation(resolved, prepared)
    step += unsupported_merging(resolved, prepared)
    step += unsupported_saving(resolved, prepared)
    step += unsupported_packing(resolved, prepared)
    step += unsupported_offloading(resolved)
    if resolved.quantization is not None and prepared.adaptation.added and _quantizes_new_head(resolved, prepared):
        # PEFT copies the quantized head, and autograd takes no integers.
        task = str(resolved.task).replace("-", " ")
        step.append(f"an adapter for {task} on quantized weights, which torch refuses in the traced run")
    if values["attn_implementation"] == "flash_attention_2":
        step += unsupported_flash_attention(resolved, prepared)
    if not prepared.state.parameters.trainable:
        step.append("a run that trains nothing")
    step += unsupported_in_backward(resolved, prepared)
    try:
        _ = prepared.optimizer_events
    except UnsupportedError as error:
        step.append(error.message)
    other = [*resolved.recipe.uncovered, *unloaded]
    if resolved.gpu is not None and resolved.gpu.vendor != "NVIDIA":
        other.append(f"the kernels of {resolved.gpu.name}: the step is walked with NVIDIA's")
    other += unplayed_growth(resolved)
    if _biased_under_cudnn(resolved, model_type):
        other.append(f"the position bias of {model_type} under cuDNN's attention kernel, which gives it no gradient")
    head_size = head_size_of(resolved.config)
    if (
        not step
        and head_size % 8
        and values["attn_implementation"] == "sdpa"
        and (resolved.autocast or resolved.dtype).is_half
    ):
        other.append(f"attention heads of {head_size} elements, which sdpa pads to a multiple of 8")
    if resolved.method == "bitfit" and resolved.task in (Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION):
        other.append("bitfit under a classification head: no trace confirms it")
    if values["gpus"] > 1:
        other.append(f"parallelism over {values['gpus']} GPUs: the figures are those of one GPU that holds everything")
    arrives = "quantization_config" in values and resolved.recipe.quantization_config is None
    if scheme is not None and scheme.is_bitsandbytes and arrives:
        other.append("a checkpoint that is quantized already: how it is loaded is confirmed by no trace")
    other += blind_spots(resolved.method, model_type, scheme, resolved.peft)
    return Unsupported((*step, *other), bool(step))


def _without_gradient_rule(model_type: str, prepared: Prepared) -> list[str]:
    """Trained parameters whose gradient no rule makes, or that never get one."""
    found = []
    trained = [entry for entry in prepared.state.stored if entry.trainable]
    idle = IDLE_WHERE_UNTIED.get(model_type)
    if idle not in prepared.architecture.tied.values() and any(entry.name == idle for entry in trained):
        found.append(
            f"the step of {model_type} models with tie_word_embeddings=false: {idle} is trained, and never gets a gradient"
        )
    quantized = {path for path, site in prepared.sites.items() if site.quantized is not None}
    biases = [entry.name for entry in trained if entry.name.removesuffix(".bias") in quantized]
    if biases:
        found.append(f"trained biases of quantized layers ({biases[0]})")
    return found


def _deberta(config: Mapping[str, Any], checkpointing: object) -> list[str]:
    """What of DeBERTa's second version is not walked: its third is."""
    found = []
    if config.get("conv_kernel_size"):
        found.append("the step of deberta-v2 models with a convolution; parameters and model states are exact")
    if not config["relative_attention"] or not config.get("share_att_key"):
        found.append("the step of deberta-v2 models without relative positions that share the content's projections")
    if "layer_norm" not in config.get("norm_rel_ebd", "none"):
        found.append("the step of deberta-v2 models whose relative embeddings are not normed")
    if config["position_biased_input"]:
        found.append("the step of deberta-v2 models that add positions to their input")
    if checkpointing == "reentrant":
        found.append(
            "reentrant checkpointing of deberta-v2 models, which pass their relative embeddings by keyword: torch refuses to "
            "go back through them twice"
        )
    return found


def _biased_under_cudnn(resolved: Resolved, model_type: str) -> bool:
    """Whether sdpa takes cuDNN's kernel for T5's attention, whose bias it knows no gradient of."""
    if model_type not in RELATIVE_BIAS or resolved.values["attn_implementation"] != "sdpa" or resolved.gpu is None:
        return False
    kernel = choose_kernel(
        resolved.autocast or resolved.dtype,
        resolved.config["d_kv"],
        has_mask=True,
        grouped=False,
        compute_capability=resolved.gpu.compute_capability or (0, 0),
        torch_version=(0, 0),
        dropout=resolved.config["dropout_rate"],
    )
    return kernel is Kernel.CUDNN


def _quantizes_new_head(resolved: Resolved, prepared: Prepared) -> bool:
    """Whether transformers replaces a classification head: it leaves the last parameter's module, known by its weight alone."""
    if resolved.task not in (Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION):
        return False
    heads = prepared.architecture.head_modules
    return any(
        len(module.parameters) > 1
        for module in prepared.architecture.modules
        if module.path.partition(".")[0] in heads and module.kind is ModuleKind.LINEAR
    )
