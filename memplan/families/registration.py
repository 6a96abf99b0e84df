"""The order in which model classes register their modules, where it is not that of their forward pass.

Source: `registration.toml`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def _table() -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    text = files("memplan.families").joinpath("registration.toml").read_text(encoding="utf-8")
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for row in tomllib.loads(text)["container"]:
        for model_type in row["models"]:
            found.setdefault(model_type, {})[row["name"]] = tuple(row["children"])
    return found


def registered_children(config: Mapping[str, Any]) -> Mapping[str, tuple[str, ...]]:
    """For containers of a config's model, by the end of their path: their children in order of registration."""
    parts = [value for value in config.values() if isinstance(value, Mapping) and "model_type" in value]
    found: dict[str, tuple[str, ...]] = {}
    for part in (config, *parts):
        found |= _table().get(str(part["model_type"]), {})
    return found
