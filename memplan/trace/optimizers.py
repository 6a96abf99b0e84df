"""Optimizers by transformers' `optim` names, built as Trainer builds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from memplan.errors import UnknownNameError

Factory = Callable[[Iterable[Any]], torch.optim.Optimizer]


def _adamw(**kwargs: Any) -> Factory:
    return lambda params: torch.optim.AdamW(params, lr=1e-4, **kwargs)


OPTIMIZERS: dict[str, Factory] = {
    "adamw_torch": _adamw(),
    "adamw_torch_fused": _adamw(fused=True),
    "adamw_torch_foreach": _adamw(foreach=True),
    "adamw_torch_for_loop": _adamw(foreach=False),
    "sgd": lambda params: torch.optim.SGD(params, lr=1e-4),
}


def build(name: str, params: Iterable[Any]) -> torch.optim.Optimizer:
    """The optimizer that `optim=name` names.

    Raises:
        UnknownNameError: no such optimizer.
    """
    factory = OPTIMIZERS.get(name)
    if factory is None:
        raise UnknownNameError("optimizer", name, OPTIMIZERS)
    return factory(params)
