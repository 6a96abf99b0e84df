"""From a name and options to an optimizer."""

from __future__ import annotations

import re
from functools import lru_cache

from memplan.errors import InvalidValueError, UnknownNameError, UnsupportedError
from memplan.optimizers.adafactor import Adafactor, TorchAdafactor
from memplan.optimizers.adamw_variants import AnyPrecisionAdamW, GrokAdamW, StableAdamW
from memplan.optimizers.base import Optimizer
from memplan.optimizers.bitsandbytes import BitsAndBytes
from memplan.optimizers.catalog import OptimizerRow, optimizer_rows
from memplan.optimizers.lomo import AdaLomo, Lomo
from memplan.optimizers.low_rank import Apollo, GaLoreAdafactor, GaLoreAdamW, GaLoreAdamW8bit
from memplan.optimizers.muon import Muon
from memplan.optimizers.options import WITHOUT_EFFECT, as_number, frozen_options, parse_optim_args
from memplan.optimizers.schedule_free import ScheduleFree
from memplan.optimizers.torch_optim import SGD, Adagrad, Adam, RMSprop
from memplan.optimizers.torchao import TorchAoAdamW

_LAYOUTS: dict[str, type[Optimizer]] = {
    "adafactor": Adafactor,
    "adagrad": Adagrad,
    "adalomo": AdaLomo,
    "adam": Adam,
    "anyprecision": AnyPrecisionAdamW,
    "apollo": Apollo,
    "bitsandbytes": BitsAndBytes,
    "galore_adafactor": GaLoreAdafactor,
    "galore_adamw": GaLoreAdamW,
    "galore_adamw_8bit": GaLoreAdamW8bit,
    "grokadamw": GrokAdamW,
    "lomo": Lomo,
    "muon": Muon,
    "rmsprop": RMSprop,
    "schedule_free": ScheduleFree,
    "sgd": SGD,
    "stable_adamw": StableAdamW,
    "torch_adafactor": TorchAdafactor,
    "torchao": TorchAoAdamW,
}
_TORCH_VERSION = re.compile(r"(\d+)\.(\d+)(?:[.a+].*)?", re.ASCII)


def optimizer_names(*, supported_only: bool = False) -> tuple[str, ...]:
    """Every name of the catalog, in its order; `supported_only` leaves out those that are refused."""
    return tuple(name for name, row in optimizer_rows().items() if not (supported_only and row.unsupported))


def get_optimizer(name: str, *, optim_args: str | None = None, **options: object) -> Optimizer:
    """The optimizer of that name, as `TrainingArguments(optim=name)` would make it.

    Args:
        name: a name of transformers' `OptimizerNames`, or one of memplan's own (`adam`, `muon`, ...).
        optim_args: `TrainingArguments.optim_args`, read as transformers reads it for this name.
        **options: what changes memory (`weight_decay`, `amsgrad`, `momentum`, `rank`,
            `optim_target_modules`, `implementation`, ...); hyperparameters without effect on memory are
            accepted and left aside. They win over `optim_args`.

    Raises:
        UnknownNameError: no such optimizer, or an option that it does not have.
        InvalidValueError: an option with a value it cannot have.
        UnsupportedError: the optimizer is known and has no rule, or fails in the library.
    """
    try:
        return _get_optimizer(name, optim_args or "", frozen_options(options))
    except TypeError as error:
        raise InvalidValueError("optimizer options", options, f"plain values only ({error})") from None


@lru_cache(maxsize=512)
def _get_optimizer(name: str, optim_args: str, options: tuple[tuple[str, object], ...]) -> Optimizer:
    row = optimizer_rows().get(name)
    if row is None:
        raise UnknownNameError("optimizer", name, optimizer_rows(), show=60)
    if row.unsupported:
        raise UnsupportedError(f"optimizer {name!r} is not supported: {row.unsupported}", hint=f"source: {row.source}")
    cls = _LAYOUTS[row.layout]
    converters = {"weight_decay": as_number, **cls.OPTIONS}
    chosen = dict(row.fixed) | _read_optim_args(row, optim_args)
    allowed = set(converters) - dict(row.fixed).keys()
    for key, value in options:
        if key in allowed:
            chosen[key] = value
        elif key not in WITHOUT_EFFECT:
            raise UnknownNameError(f"option of {name}", key, allowed | WITHOUT_EFFECT)
    fields = {key: converters[key](key, value) for key, value in chosen.items()}
    if "implementation" in fields:
        fields["path"] = fields.pop("implementation")
    return cls(row, **fields)  # type: ignore[arg-type]  # every value went through its converter


def _read_optim_args(row: OptimizerRow, text: str) -> dict[str, object]:
    """The entries of `optim_args` that change memory.

    `weight_decay` is not among them: the Trainer's parameter groups carry their own, which wins.
    """
    entries: dict[str, object] = {}
    for key, value in parse_optim_args(text).items():
        if key not in row.optim_args:
            raise UnknownNameError(
                "optim_args key", key, row.optim_args, hint=f"transformers reads no other for optim={row.name}"
            )
        if key in _LAYOUTS[row.layout].OPTIONS:
            entries[key] = value
    return entries


def default_optimizer(torch_version: str) -> str:
    """Default of `TrainingArguments.optim`: `adamw_torch_fused` from torch 2.8 on, before it `adamw_torch`.

    Source: transformers/training_args.py, `TrainingArguments.default_optim`, transformers 5.23.

    Args:
        torch_version: such as "2.13.0" or "2.8.0+cu128".

    Raises:
        InvalidValueError: not a version.
    """
    match = _TORCH_VERSION.fullmatch(torch_version)
    if match is None:
        raise InvalidValueError("torch_version", torch_version, 'a version such as "2.13.0"')
    return "adamw_torch_fused" if (int(match[1]), int(match[2])) >= (2, 8) else "adamw_torch"
