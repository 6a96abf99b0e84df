"""The config of a model type that no family describes: plain values only, for the trace of the real model.

Whatever stands in a config.json is somebody else's file. Numbers, flags, words and lists or objects of them describe
sizes and are kept; what names code, files or repositories (`auto_map`, kernels of the Hub, paths) is dropped at every
level and never followed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from memplan.errors import InvalidValueError
from memplan.model_config.schema import key_kinds
from memplan.model_config.values import check_json_data, check_value

_KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}", re.ASCII)
_DROPPED = frozenset(
    {
        # Code, files and repositories.
        "auto_map", "custom_pipelines", "trust_remote_code", "name_or_path", "attn_implementation",
        "experts_implementation", "backbone", "base_model_name_or_path",
        # Labels in words, and what only generation reads.
        "id2label", "label2id", "task_specific_params", "generation_config", "transformers_version",
    }
)  # fmt: skip
# Beyond any size of a model; the longest contexts have 10 million positions.
_LARGEST_INTEGER = 2**31 - 1
# What a layer list or a layer count may cost.
_MOST_LAYERS = 1024


def plain_values(raw: Mapping[str, Any], *, path: str = "") -> dict[str, Any]:
    """The entries of `raw` that are plain values.

    Args:
        raw: the object of a config.json, or one nested in it.
        path: what stands before a key in messages.

    Raises:
        InvalidValueError: a value that is no JSON data of modest size, or a number beyond what its key may hold.
    """
    found: dict[str, Any] = {}
    for key, value in raw.items():
        if key in _DROPPED or not isinstance(key, str) or not _KEY.fullmatch(key):
            continue
        if isinstance(value, Mapping):
            found[key] = plain_values(check_json_data(path + key, value), path=f"{path}{key}.")
            continue
        found[key] = check_json_data(path + key, value)
        _check_size(key, value, path)
    return found


def _check_size(key: str, value: Any, path: str) -> None:
    kinds = key_kinds()
    if key in kinds.kind_of and kinds.kind_of[key] in kinds.bounds and isinstance(value, int):
        check_value(key, value, path=path)
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int) and abs(number) > _LARGEST_INTEGER:
            raise InvalidValueError(path + key, number, f"at most {_LARGEST_INTEGER}")
    if re.search(r"layers?$", key) and isinstance(value, int) and value > _MOST_LAYERS:
        raise InvalidValueError(path + key, value, f"at most {_MOST_LAYERS} layers")
