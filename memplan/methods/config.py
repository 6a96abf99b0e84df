"""Adapter configs: PEFT's keys and defaults, checked and filled in as PEFT's config classes do it.

Source: memplan/catalog/peft_configs.json, written from the dataclasses of PEFT 0.21.2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from memplan.errors import InputError, InvalidValueError, UnknownNameError
from memplan.methods.registry import get_method
from memplan.recipe import Task

_TABLE = Path(__file__).resolve().parents[1] / "catalog" / "peft_configs.json"

# peft/utils/peft_types.py, TaskType: get_peft_model picks its wrapper by it. Other tasks get the plain PeftModel.
TASK_TYPES: dict[str, str] = {
    Task.CAUSAL_LM: "CAUSAL_LM",
    Task.SEQ2SEQ_LM: "SEQ_2_SEQ_LM",
    Task.SEQUENCE_CLASSIFICATION: "SEQ_CLS",
    Task.TOKEN_CLASSIFICATION: "TOKEN_CLS",
    Task.FEATURE_EXTRACTION: "FEATURE_EXTRACTION",
}
_ALL_TASK_TYPES = (*TASK_TYPES.values(), "QUESTION_ANS")

# Sizes that PEFT's layers need to be positive integers; None and 0 are left to each method.
_POSITIVE = (
    "r",
    "init_r",
    "target_r",
    "num_virtual_tokens",
    "n_frequency",
    "block_size",
    "vector_length",
    "num_vectors",
)
_BIAS = ("none", "all")


@lru_cache(maxsize=1)
def tables() -> dict[str, Any]:
    """The whole of peft_configs.json."""
    data: dict[str, Any] = json.loads(_TABLE.read_text(encoding="utf-8"))
    return data


def config_class(peft_type: str) -> str:
    """Name of PEFT's config class, such as `LoraConfig`."""
    return str(tables()["configs"][peft_type]["class"])


def default_target_modules(peft_type: str, model_type: str) -> list[str] | str | None:
    """PEFT's own `target_modules` for a model type; None where PEFT asks the user."""
    mapping = tables()["target_modules_of"].get(peft_type)
    found: list[str] | str | None = tables()["target_modules"][mapping].get(model_type) if mapping else None
    return found


def resolve_config(method: str, peft: Mapping[str, Any] | None, task: str) -> dict[str, Any]:
    """The adapter config with every default filled in.

    Args:
        method: canonical name of a PEFT method.
        peft: keys of the config class, as adapter_config.json holds them. `inference_mode` is what saving an adapter
            writes and does not matter for training.
        task: the model's task; gives `task_type` where `peft` does not hold it.

    Raises:
        UnknownNameError: a key that the config class does not have.
        InvalidValueError: a value that the config class or its layers refuse.
        InputError: the method's name and `peft` set one key to different values.
    """
    entry = get_method(method)
    assert entry.peft_type is not None
    given = dict(peft or {})
    fields = tables()["configs"][entry.peft_type]["fields"]
    for key in given:
        if key not in fields:
            raise UnknownNameError(f"key of {config_class(entry.peft_type)}", key, fields, show=0)
        _check_kind(key, given[key], fields[key])
    for key, value in entry.options.items():
        if key in given and given[key] != value and key != "loftq_config":
            raise InputError(
                f"method = {method!r} means {key} = {value!r}, but peft.{key} = {given[key]!r}",
                hint=f"use method = 'lora', or leave {key} out",
            )
    config = {**fields, "task_type": TASK_TYPES.get(task), **entry.options, **given}
    config["peft_type"] = entry.peft_type
    config["inference_mode"] = False
    _check(config)
    return config


def _check_kind(key: str, value: Any, default: Any) -> None:
    """Refuses words where PEFT's default is a switch or a number; initialisations may be named instead of switched."""
    if value is None or key.startswith("init_"):
        return
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise InvalidValueError(f"peft.{key}", value, "true or false")
    elif isinstance(default, int | float) and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InvalidValueError(f"peft.{key}", value, "a number")


def _check(config: dict[str, Any]) -> None:
    if config["task_type"] is not None and config["task_type"] not in _ALL_TASK_TYPES:
        raise UnknownNameError("task_type", str(config["task_type"]), _ALL_TASK_TYPES)
    for key in _POSITIVE:
        value = config.get(key)
        if value is None or (key == "r" and value == 0 and config["peft_type"] == "OFT"):
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidValueError(f"peft.{key}", value, "a positive integer")
    for key in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern", "target_parameters"):
        _check_names(config, key)
    bias = config.get("bias", "none")
    if bias not in _BIAS and not (isinstance(bias, str) and bias.endswith("_only")):
        raise InvalidValueError("peft.bias", bias, "none, all, or a method's own such as lora_only")
    if isinstance(config.get("target_modules"), str):
        for key in ("layers_to_transform", "layers_pattern"):
            if config.get(key) is not None:
                raise InvalidValueError(f"peft.{key}", config[key], "it needs target_modules as a list of names")
    if config.get("layers_pattern") and config.get("layers_to_transform") is None:
        raise InvalidValueError("peft.layers_pattern", config["layers_pattern"], "it needs layers_to_transform")
    if config.get("lora_bias") and (config.get("use_dora") or config.get("init_lora_weights") not in (True, False)):
        raise InvalidValueError(
            "peft.lora_bias", True, "only without use_dora and with init_lora_weights true or false"
        )


def _check_names(config: dict[str, Any], key: str) -> None:
    value = config.get(key)
    if value is None:
        return
    text_allowed = key in ("target_modules", "exclude_modules", "layers_pattern")
    if isinstance(value, str):
        if not text_allowed:
            raise InvalidValueError(f"peft.{key}", value, "a list of names")
        return
    if not isinstance(value, list | tuple | set | frozenset) or not all(
        isinstance(name, str) and name for name in value
    ):
        raise InvalidValueError(
            f"peft.{key}", value, "a list of names" + (" or a regular expression" if text_allowed else "")
        )
    config[key] = sorted(value) if isinstance(value, set | frozenset) else list(value)
