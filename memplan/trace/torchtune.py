"""torchtune in a trace: its own model, made on the device as its single-device recipes make it, and their step.

`_loss_step` is the recipe's own. Its loop reads a data loader, so the lines of `train` that touch the device stand here.

Known limits:
    Scalars that a recipe only logs after an update are left out, and gradients that `clip_grad_norm` reports.
    Llama 3.1's scaled frequencies are computed one by one, in scalars that are gone when the model is there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Protocol

import torch
from torch import nn

from memplan.errors import UnsupportedError
from memplan.torchtune.models import component_builder, lora_arguments
from memplan.trace import versions
from memplan.trace.spec import LAYER_KEYS, Checkpointing, TraceSpec

_IGNORED = -100
# Loaded for `torchtune.modules.peft`, whose imports need it whatever is trained.
_TORCHAO = ("0.14", "0.15")


def install(spec: TraceSpec) -> None:
    """Makes torchtune usable.

    Raises:
        UnavailableError: torchtune or torchao is missing, or of a version that no trace was tested with.
        UnsupportedError: a run that torchtune's recipes do not make.
    """
    versions.check_package("torchtune", "0.6.1", "0.6.2", extra="torchtune==0.6.1")
    versions.check_package("torchao", *_TORCHAO, extra="torchao==0.14.0")
    refused = {
        f"a {spec.task} head": spec.task != "causal-lm",
        "reentrant checkpointing": spec.checkpointing is Checkpointing.REENTRANT,
        f"dtype={spec.dtype}": spec.dtype not in ("bfloat16", "float32"),
        "autocast": spec.autocast is not None,
        "a quantized base": spec.load_in_4bit or spec.load_in_8bit,
        "packed sequences": spec.packing,
        "chosen parameters": spec.trainable is not None,
        f"attn_implementation={spec.attn_implementation}": spec.attn_implementation
        != ("eager" if spec.model_config["model_type"] == "gemma2" else "sdpa"),
        f"the {spec.loss} loss": spec.loss == "fused_linear",
        "evaluation": bool(spec.eval_batches),
        "generation": bool(spec.max_new_tokens),
        "saving and merging": spec.saves or spec.merges,
        "kept outputs": bool(spec.keep_outputs),
    }
    found = [what for what, applies in refused.items() if applies]
    if found:
        raise UnsupportedError(f"a trace of torchtune does not cover {', '.join(found)}", code="not_traceable")


def build(spec: TraceSpec, device: torch.device) -> nn.Module:
    """The model as a recipe's `_setup_model` makes it; loading the checkpoint then copies into what is there."""
    config = dict(spec.model_config)
    if spec.num_layers is not None:
        config.update({key: spec.num_layers for key in LAYER_KEYS if key in config})
    builder = component_builder(config)
    name, arguments = builder.name, dict(builder.arguments)
    if spec.peft is not None:
        lora = lora_arguments(spec.peft, builder)
        name = f"lora_{name}"
        arguments |= {
            "lora_attn_modules": list(lora.attention), "apply_lora_to_mlp": lora.mlp, "lora_rank": lora.rank,
            "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "use_dora": lora.dora,
        }  # fmt: skip
        if builder.adapts_output:
            arguments["apply_lora_to_output"] = lora.output
    training, peft = import_module("torchtune.training"), import_module("torchtune.modules.peft")
    scaled = import_module("torchtune.models.llama3_1._position_embeddings").Llama3ScaledRoPE
    scaled.apply_scaling = lambda _self, freqs, *_: torch.empty_like(freqs)
    with training.set_default_dtype(getattr(torch, spec.dtype)), device:
        model: nn.Module = getattr(import_module(f"torchtune.models.{builder.name}"), name)(**arguments)
    if spec.peft is not None:
        peft.set_trainable_params(model, peft.get_adapter_params(model))
    if spec.checkpointing is not Checkpointing.NONE:
        layer = import_module("torchtune.modules").TransformerSelfAttentionLayer
        training.set_activation_checkpointing(model, auto_wrap_policy={layer})
    for module in model.modules():
        if hasattr(module, "initialize_dora_magnitude"):
            module.initialize_dora_magnitude()
    if spec.loss == "chunked":
        model.set_num_output_chunks(_loss(spec).num_output_chunks)
    return model


def base_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What is not an adapter's."""
    added = {id(entry) for entry in import_module("torchtune.modules.peft").get_adapter_params(model).values()}
    return [parameter for parameter in model.parameters() if id(parameter) not in added]


def _loss(spec: TraceSpec) -> Any:
    if spec.loss == "chunked":
        return import_module("torchtune.modules.loss").CEWithChunkedOutputLoss()
    return nn.CrossEntropyLoss()


@cache
def _loss_step() -> Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]:
    """`_loss_step` of the recipes, which are files of the distribution and no package; full and LoRA have the same."""
    module = torchtune_file("recipes/lora_finetune_single_device.py")
    step: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor] = module.LoRAFinetuneRecipeSingleDevice._loss_step
    return step


class Loop:
    """The variables of a recipe and of its `train`.

    Attributes:
        recipe: what `_loss_step` reads of the recipe.
        count: labels of the batch that are not ignored.
        num_tokens, running_loss: sums over the micro-batches of a step, from 0.
    """

    def __init__(self, spec: TraceSpec, model: nn.Module, device: torch.device) -> None:
        self.recipe = SimpleNamespace(
            _model=model,
            _loss_fn=_loss(spec),
            activations_handling_ctx=nullcontext(),
            ignore_labels_cache=torch.full((spec.batch, 1), _IGNORED, device=device),
        )
        self.count: Any = None
        self.num_tokens: Any = 0
        self.running_loss: Any = 0

    def scale_gradients(self, model: nn.Module) -> None:
        """To the mean over all tokens of the step."""
        import_module("torchtune.training").scale_grads(model, 1 / self.num_tokens)


class Held(Protocol):
    """Who keeps alive what the variables of `train` keep alive."""

    spec: TraceSpec
    device: torch.device
    batch: Any
    loss: Any
    loop: Any


def before_micro_step(held: Held, model: nn.Module, *, is_first: bool) -> Loop:
    """The loop's variables, made with the first batch: the recipe makes what is as long as a batch when it sets data up.

    Sums are set back when a step has been logged, here when the next one begins.
    """
    loop: Loop = held.loop if held.loop is not None else Loop(held.spec, model, held.device)
    if is_first:
        loop.num_tokens = loop.running_loss = 0
    return loop


def forward(held: Held) -> None:
    """A micro-step up to its backward; the names are bound in the recipe's order."""
    loop, batch = held.loop, held.batch
    loop.count = (batch["labels"] != _IGNORED).sum()
    loop.num_tokens += loop.count
    held.loss = _loss_step()(loop.recipe, batch) * loop.count
    loop.running_loss += held.loss


def torchtune_file(path: str) -> ModuleType:
    """One file of torchtune's distribution as a module by itself."""
    file = Path(str(distribution("torchtune").locate_file(path)))
    found = importlib.util.spec_from_file_location(f"_torchtune_{file.stem}", file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
