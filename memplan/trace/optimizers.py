"""Optimizers by transformers' `optim` names, built by the code that Trainer uses.

transformers/trainer_optimizer.py, `_OPTIMIZER_HANDLERS` (5.23); `Trainer.create_optimizer` for the parameter groups.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from memplan.errors import UnavailableError, UnknownNameError, UnsupportedError
from memplan.trace import in_backward
from memplan.trace.spec import TraceSpec

# Variants that Trainer reaches only through optim_args or not at all, and training loops use directly.
_TORCH_VARIANTS: dict[str, dict[str, Any]] = {
    "adamw_torch_foreach": {"foreach": True},
    "adamw_torch_for_loop": {"foreach": False},
}

# Names of bitsandbytes' optimizers without a word of it: those with states in 8 bits, and what it alone has.
_BITSANDBYTES = re.compile(r"(adamw|rmsprop_bnb|lion|ademamix)_8bit|(lion|ademamix)(_32bit)?")

# Part of an optimizer's name -> the module that transformers imports for it, and the package that holds it.
_PACKAGES: dict[str, tuple[str, str]] = {
    "stable_adamw": ("optimi", "torch-optimi"),
    "galore": ("galore_torch", "galore-torch"),
    "adamw_torch_8bit": ("torchao", "torchao"),
    "adamw_torch_4bit": ("torchao", "torchao"),
    "schedule_free": ("schedulefree", "schedulefree"),
    "apollo": ("apollo_torch", "apollo-torch"),
    "lomo": ("lomo_optim", "lomo-optim"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "anyprecision": ("torchdistx", "git+https://github.com/pytorch/torchdistx"),
    "apex": ("apex", "git+https://github.com/NVIDIA/apex"),
    "bnb": ("bitsandbytes", "bitsandbytes"),
    "paged": ("bitsandbytes", "bitsandbytes"),
}


def _check_installed(optim: str) -> None:
    """Refuses an optimizer whose package is missing.

    Raises:
        UnavailableError: names the package and the command that installs it.
    """
    for part, (module, package) in _PACKAGES.items():
        named = part in optim or (module == "bitsandbytes" and _BITSANDBYTES.fullmatch(optim))
        if named and find_spec(module) is None:
            raise UnavailableError(
                f"optim={optim} needs the package {package.rpartition('/')[2]}, which is not installed",
                hint=f'pip install "{package}"',
                code="missing_package",
            )


def build(spec: TraceSpec, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that `spec.optim` names, over the trainable parameters of `model`.

    Raises:
        UnknownNameError: no such optimizer.
        UnavailableError: an optimizer whose package is not installed.
        UnsupportedError: an optimizer that one process cannot build.
    """
    if spec.optim == "muon":
        return MuonWithAdamW(parameter_groups(spec, model), model, spec.optim_args)
    if spec.optim in _TORCH_VARIANTS:
        cls, kwargs = torch.optim.AdamW, {"lr": 5e-5, **_TORCH_VARIANTS[spec.optim]}
    else:
        cls, kwargs = _class_and_arguments(spec, model)
    # Trainer.create_optimizer (5.23): what a handler names stands in the groups' place.
    given = [kwargs.pop(key) for key in ("params", "model", "optimizer_dict") if key in kwargs]
    try:
        if spec.optimizer_in_backward:
            return _one_for_each(cls, kwargs, model)
        optimizer: torch.optim.Optimizer = cls(given[-1] if given else parameter_groups(spec, model), **kwargs)
    except (ImportError, ValueError) as error:
        raise _not_buildable(spec.optim, error) from None
    if callable(getattr(optimizer, "train", None)):
        optimizer.train()  # Trainer.training_step, of schedule-free optimizers
    if spec.weight_decay_groups and "bitsandbytes" in str(cls) and kwargs.get("optim_bits") == 8:
        _keep_embeddings_in_32_bits(model)
    return optimizer


def _not_buildable(optim: str, error: Exception) -> UnsupportedError:
    return UnsupportedError(f"optim={optim} cannot be built: {error}", code="optimizer_not_buildable")


def _one_for_each(cls: Any, kwargs: Mapping[str, Any], model: nn.Module) -> in_backward.OneForEach:
    """One optimizer a parameter, stepping inside backward; nobody registers embeddings with bitsandbytes."""
    if "bitsandbytes" in str(cls):
        import bitsandbytes

        bitsandbytes.optim.GlobalOptimManager.get_instance().initialize()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return in_backward.OneForEach({parameter: cls([parameter], **kwargs) for parameter in trained})


def _class_and_arguments(spec: TraceSpec, model: nn.Module) -> tuple[Any, dict[str, Any]]:
    """The optimizer's class and its arguments, by transformers' handler of that name."""
    from transformers.trainer_optimizer import _OPTIMIZER_HANDLERS, OptimizerContext
    from transformers.training_args import OptimizerNames

    names = {str(entry.value): entry for entry in OptimizerNames}
    if spec.optim not in names:
        raise UnknownNameError("optimizer", spec.optim, [*names, *_TORCH_VARIANTS, "muon"])
    handler = _OPTIMIZER_HANDLERS.get(names[spec.optim])
    if handler is None:
        raise UnsupportedError(f"transformers has no single-process optimizer for optim={spec.optim}")
    _check_installed(spec.optim)
    # training_args.py: the defaults that the handlers read.
    args = SimpleNamespace(
        optim=spec.optim, learning_rate=5e-5, adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8, weight_decay=0.0,
        optim_target_modules=None, gradient_accumulation_steps=spec.gradient_accumulation_steps, warmup_steps=0,
    )  # fmt: skip
    context = OptimizerContext(
        args=args,
        model=model,
        optimizer_kwargs={"lr": args.learning_rate},
        adam_kwargs={"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon},
        optim_args={str(key): str(value) for key, value in spec.optim_args.items()},
    )
    try:
        found: tuple[Any, dict[str, Any]] = handler(context)
    except (ImportError, ValueError) as error:
        raise _not_buildable(spec.optim, error) from None
    return found


class MuonWithAdamW(torch.optim.Optimizer):  # type: ignore[misc]
    """torch.optim.Muon for hidden matrices and torch.optim.AdamW for the rest, one after the other, as Muon's docs ask.

    Args:
        groups: parameter groups, as dicts or one list of parameters.
        model: whose embeddings and output embedding are no hidden matrices.
        options: of Muon.
    """

    def __init__(self, groups: list[Any], model: nn.Module, options: Mapping[str, Any]) -> None:
        super().__init__(groups, {})
        outside = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
        if head is not None:
            outside.add(id(head.weight))

        def part(hidden: bool) -> list[dict[str, Any]]:
            return [
                {"params": [p for p in group["params"] if (p.ndim == 2 and id(p) not in outside) is hidden],
                 "weight_decay": 0.0}
                for group in self.param_groups
            ]  # fmt: skip

        self.parts: list[torch.optim.Optimizer] = []
        kinds: list[tuple[Any, bool, dict[str, Any]]] = [
            (torch.optim.Muon, True, dict(options)),
            (torch.optim.AdamW, False, {}),
        ]
        for kind, hidden, given in kinds:
            found = part(hidden)
            if any(group["params"] for group in found):
                self.parts.append(kind(found, lr=5e-5, **given))

    def step(self, closure: Any = None) -> None:
        """Both steps; states are those of either."""
        for optimizer in self.parts:
            optimizer.step(closure)
            self.state.update(optimizer.state)


def _keep_embeddings_in_32_bits(model: nn.Module) -> None:
    # Trainer.create_optimizer (5.23).
    import bitsandbytes

    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    # It knows parameters by their addresses, which those of an earlier trace in this process had as well.
    manager.initialize()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})


def parameter_groups(spec: TraceSpec, model: nn.Module) -> list[Any]:
    """All trainable parameters, or Trainer's two groups (with and without weight decay)."""
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not spec.weight_decay_groups:
        return [parameter for _, parameter in trainable]
    from transformers.trainer_pt_utils import get_parameter_names

    # Trainer.get_decay_parameter_names.
    forbidden = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    decay = set(get_parameter_names(model, [nn.LayerNorm], forbidden))
    return [
        {"params": [parameter for name, parameter in trainable if name in decay], "weight_decay": 0.0},
        {"params": [parameter for name, parameter in trainable if name not in decay], "weight_decay": 0.0},
    ]
