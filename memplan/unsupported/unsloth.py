"""For which runs Unsloth's training loop is walked: those that are equal to the trace of its own code (unsloth 2026.10.9).

What is walked is FastLanguageModel with LoRA adapters on all projections under SFTTrainer, whose batches Unsloth makes
padding-free: one row of texts. Padded batches run through layers that Unsloth compiles with torch.compile (its default with
torch 2.7 and later); what those allocate is decided by torch's compiler, and no trace sees it.
"""

from __future__ import annotations

from memplan.dtypes import DType
from memplan.prepare import Prepared
from memplan.quantization import Scheme
from memplan.recipe import Attention, Loss, Offloading, Precision, Task
from memplan.resolve import Resolved
from memplan.stack_defaults import OFFLOADS_FROM, UNSLOTH_LORA, UNSLOTH_MODEL_TYPES
from memplan.step.attention_kernels import Kernel, choose_kernel

VERSION = "2026.10.9"
TORCH_VERSION = "2.13"
# What Unsloth's functions take together: queries, keys and values, the output, and the MLP.
PROJECTIONS = frozenset(UNSLOTH_LORA["target_modules"])
_ROPE_TYPES = ("default", "llama3")
# What attention runs on by the GPU's generation; before Ampere it is xformers', on B200 not what torch chooses by itself.
_KERNELS = {8: Kernel.FLASH, 9: Kernel.CUDNN, 12: Kernel.FLASH}
_LEAST_MEMORY_BYTES = 6 * 2**30


def unsupported_unsloth(resolved: Resolved, prepared: Prepared) -> list[str]:
    """What keeps the recipe's step under Unsloth from being walked."""
    config = resolved.config
    model_type = str(config["model_type"])
    if model_type not in UNSLOTH_MODEL_TYPES or resolved.task is not Task.CAUSAL_LM:
        return [f"the step under stack unsloth of {model_type} models under a {resolved.task} head"]
    return [
        f"under stack unsloth: {text}"
        for text in (*_of_adapters(resolved, prepared), *_of_loop(resolved), *_of_attention(resolved))
    ]


def _of_adapters(resolved: Resolved, prepared: Prepared) -> list[str]:
    values, config, peft = resolved.values, resolved.config, resolved.peft
    found = []
    if resolved.method not in ("lora", "qlora"):
        found.append(f"method {resolved.method}; what is walked is lora and qlora")
    elif not _adapts_projections_alone(resolved, prepared):
        found.append("adapters elsewhere than on exactly " + ", ".join(sorted(PROJECTIONS)) + " of every layer")
    for key in (
        "lora_dropout",
        "use_dora",
        "lora_bias",
        "modules_to_save",
        "use_bdlora",
        "velora_config",
        "arrow_config",
    ):
        if peft.get(key):
            found.append(f"{key}={peft[key]}")
    if peft.get("bias", "none") != "none":
        found.append(f"bias={peft['bias']}")
    if peft.get("init_lora_weights", True) is not True:
        found.append(f"init_lora_weights={peft['init_lora_weights']}")
    if resolved.precision is not Precision.AMP or resolved.autocast is not DType.BFLOAT16:
        found.append(
            f"precision {resolved.precision} without bfloat16 autocast; what is walked is amp over bfloat16 weights"
        )
    if resolved.dtype is not DType.BFLOAT16:
        found.append(f"weights in {resolved.dtype}; what is walked is bfloat16")
    quantization = resolved.quantization
    if quantization is not None and (
        quantization.scheme is not Scheme.NF4 or quantization.compute_dtype is not DType.BFLOAT16
    ):
        found.append(
            f"{quantization.scheme} weights computed with in {quantization.compute_dtype}; what is walked is nf4 and bfloat16"
        )
    if values.get("prepare_model_for_kbit_training"):
        found.append("prepare_model_for_kbit_training, which its own get_peft_model does not call")
    if not values.get("autocast_adapter_dtype", True):
        found.append("adapters in 16 bits; it makes them float32")
    if config.get("attention_bias") or config.get("mlp_bias"):
        found.append("projections with biases")
    return found


def _adapts_projections_alone(resolved: Resolved, prepared: Prepared) -> bool:
    """Whether every layer has an adapter on each projection, and nothing else has one."""
    adapted = {site for site, entry in prepared.sites.items() if entry.adapter is not None}
    layers = resolved.config["num_hidden_layers"]
    on_layers = {path for path in adapted if path.rpartition(".")[2] in PROJECTIONS and ".layers." in path}
    return on_layers == adapted and len(adapted) == layers * len(PROJECTIONS)


def _of_loop(resolved: Resolved) -> list[str]:
    values = resolved.values
    found = []
    if str(values.get("stack_version") or VERSION) != VERSION:
        found.append(f"version {values['stack_version']}; what is walked is {VERSION}")
    if values["torch_version"] != TORCH_VERSION:
        found.append(f"torch {values['torch_version']}; what is walked is {TORCH_VERSION}")
    if not values["packing"]:
        found.append(
            "padded batches (packing=false), whose layers it compiles with torch.compile; what that allocates no trace sees"
        )
    if values["loss"] is not Loss.FUSED_LINEAR:
        found.append(f"the {values['loss']} loss; it computes its own, loss=fused_linear")
    mode, offloading = values["activation_checkpointing"], values.get("activation_offloading")
    if mode == "non-reentrant":
        found.append("non-reentrant checkpoints; use_gradient_checkpointing=True is reentrant")
    if offloading and (offloading != Offloading.HIDDEN_STATES or values["sequence_length"] < OFFLOADS_FROM):
        found.append(
            f"activation_offloading={offloading} of {values['sequence_length']} tokens, which it does not offload"
        )
    if values["sequence_length"] == 1:
        found.append("texts of one token, which leave nothing to predict")
    for key in ("use_cache", "keep_outputs", "merge_and_unload", "max_new_tokens"):
        if values.get(key):
            found.append(f"{key}={values[key]}")
    if values.get("eval_strategy", "no") != "no":
        found.append("evaluation")
    return found


def _of_attention(resolved: Resolved) -> list[str]:
    values, config, gpu = resolved.values, resolved.config, resolved.gpu
    found = []
    if values["attn_implementation"] != Attention.SDPA:
        found.append(
            f"attn_implementation={values['attn_implementation']}; what is walked is torch's own, attn_implementation=sdpa"
        )
    capability = (gpu.compute_capability if gpu is not None else None) or (8, 0)
    kernel = choose_kernel(
        DType.BFLOAT16,
        config["head_dim"],
        has_mask=False,
        grouped=False,
        compute_capability=capability,
        torch_version=(2, 13),
    )
    if config["head_dim"] % 8 or kernel is not _KERNELS.get(capability[0]):
        found.append(f"attention heads of {config['head_dim']} on compute capability {capability[0]}.{capability[1]}")
    if gpu is not None and gpu.usable_bytes < _LEAST_MEMORY_BYTES:
        found.append("less than 6 GiB of memory, with which its loss takes smaller pieces")
    window = config.get("sliding_window")
    if window is not None and values["sequence_length"] > window:
        found.append(f"texts beyond the window of {window} tokens")
    if config.get("hidden_act") not in ("silu", "swish"):
        found.append(f"the gated MLP with {config.get('hidden_act')}")
    rope = config["rope_parameters"]
    if rope.get("rope_type", "default") not in _ROPE_TYPES or rope.get("partial_rotary_factor", 1.0) != 1.0:
        found.append(f"rotary embeddings of type {rope.get('rope_type')}")
    return found
