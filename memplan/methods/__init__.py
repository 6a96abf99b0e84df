"""Fine-tuning methods: what trains, what is added, and how the step changes.

adapt(architecture, method, peft, dtype=...)   the model under a method
canonical_method(name, peft)                   its name, or "did you mean"
list_methods()                                 all of them
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from memplan.architecture import Architecture
from memplan.dtypes import DType
from memplan.errors import InvalidValueError
from memplan.methods.adaptation import Adaptation, AddedBuffer, AddedKind, AddedParameter
from memplan.methods.registry import Method, canonical_method, get_method, list_methods

__all__ = [
    "Adaptation",
    "AddedBuffer",
    "AddedKind",
    "AddedParameter",
    "Method",
    "adapt",
    "canonical_method",
    "get_method",
    "list_methods",
]


@dataclass(frozen=True, eq=False)
class _Same:
    """An architecture as a cache key: `describe` returns one object for equal configs."""

    architecture: Architecture

    def __hash__(self) -> int:
        return id(self.architecture)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.architecture is self.architecture


def adapt(
    architecture: Architecture,
    method: str | None,
    peft: Mapping[str, Any] | None = None,
    *,
    dtype: DType = DType.FLOAT32,
    dtypes: Mapping[str, DType] | None = None,
    quantized: Collection[str] = (),
    quantized_dtype: DType = DType.FLOAT32,
    packed: bool = True,
    autocast_adapter_dtype: bool = True,
    trainable: tuple[str, ...] | None = None,
) -> Adaptation:
    """The model under a method, as `get_peft_model` (PEFT 0.21) builds it; cached by its arguments.

    Args:
        architecture: the base model with its head.
        method: any name that `canonical_method` knows; None: what `peft` says, else full fine-tuning.
        peft: content of an adapter_config.json, any part of it.
        dtype: of base parameters that are not quantized, as they stand when the method is applied.
        dtypes: exceptions to `dtype` by full parameter name.
        quantized: paths of modules whose weight is quantized.
        quantized_dtype: what PEFT creates adapters on them in: the compute dtype of 4-bit bitsandbytes layers, else
            float32.
        packed: whether quantized weights are packed in 4 bits; false for int8 and fp8, which keep the layer's shape.
        autocast_adapter_dtype: PEFT's argument of that name.
        trainable: patterns of parameters to train (see `memplan.methods.base.matches`); `full` only.

    Raises:
        UnknownNameError: an unknown method, `peft_type` or adapter key.
        InvalidValueError: targets that match nothing, a rank larger than the layer, and the like.
        UnsupportedError: a method or option that memplan has no count for.
    """
    name = canonical_method(method, peft)
    try:
        peft_json = json.dumps(peft, sort_keys=True, default=_plain) if peft else ""
    except TypeError as error:
        raise InvalidValueError("peft", peft, f"not what an adapter_config.json can hold: {error}") from None
    return _adapt(
        _Same(architecture),
        name,
        peft_json,
        dtype,
        tuple(sorted((dtypes or {}).items())),
        frozenset(quantized),
        quantized_dtype,
        packed,
        autocast_adapter_dtype,
        trainable,
    )


def _plain(value: object) -> object:
    if isinstance(value, set | frozenset | tuple):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


@lru_cache(maxsize=256)
def _adapt(
    same: _Same,
    method: str,
    peft_json: str,
    dtype: DType,
    dtypes: tuple[tuple[str, DType], ...],
    quantized: frozenset[str],
    quantized_dtype: DType,
    packed: bool,
    autocast: bool,
    trainable: tuple[str, ...] | None,
) -> Adaptation:
    # Imported here so that listing methods does not cost reading PEFT's tables.
    from memplan.methods import base, dispatch
    from memplan.methods.config import resolve_config
    from memplan.methods.state import ModelState

    architecture = same.architecture
    peft: dict[str, Any] = json.loads(peft_json) if peft_json else {}
    entry = get_method(method)
    if entry.peft_type is None:
        if peft:
            raise InvalidValueError("peft", peft, f"{method} takes no adapter config")
        if method == "bitfit" and trainable is None:
            return base.bitfit(architecture)
    if trainable is not None and method != "full":
        raise InvalidValueError("trainable", trainable, "only with method full; PEFT has modules_to_save and bias")
    if entry.peft_type is None:
        return base.full(architecture, trainable)
    config = resolve_config(method, peft, architecture.task)
    exceptions = dict(dtypes)
    state = ModelState(
        architecture,
        lambda name: exceptions.get(name, dtype),
        quantized,
        quantized_dtype,
        autocast=autocast,
        packed=packed,
    )
    return dispatch.apply(method, state, config)
