"""The config classes of transformers as data: fields, defaults, aliases and what may stand under each key.

The data are `memplan/catalog/config_defaults.toml` and `config_keys.toml`; each names its source in its head.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

_CATALOG = Path(__file__).resolve().parent.parent / "catalog"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigClass:
    """One config class of transformers, as far as it bears on memory.

    Attributes:
        model_type: `model_type` of the class, matched exactly.
        name: the Python class, for messages.
        part: stands only inside another config (a vision tower, say).
        defaults: every field with its class default; None where the class derives the value.
        aliases: other name of a field -> the field (`attribute_map`).
        extra: keys that are no field, but that the class or its modelling file reads.
        reads_head_dim: whether `head_dim` of a config counts; otherwise it is hidden_size // heads.
        heads_divide_width: the class refuses a hidden_size that is no multiple of the heads.
        rope_theta: `default_theta`, where the class has rotary embeddings.
        rope_type: `default_rope_type`: what the type "default" is called in this class.
        sub_configs: nested config key -> model_type that stands when the nested config names none.
        fixed_sub_configs: those of `sub_configs` whose class does not depend on the nested model_type.
        absent_sub_configs: nested config key -> what the class puts there when the nested config is missing.
        accepted: every key of a config that is looked at.
    """

    model_type: str
    name: str
    part: bool
    defaults: dict[str, Any]
    aliases: dict[str, str]
    extra: frozenset[str]
    reads_head_dim: bool
    heads_divide_width: bool
    rope_theta: float | dict[str, float] | None
    rope_type: str
    sub_configs: dict[str, str]
    fixed_sub_configs: frozenset[str]
    absent_sub_configs: dict[str, dict[str, Any]]
    accepted: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "accepted", frozenset(self.defaults) | frozenset(self.aliases) | self.extra)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyKinds:
    """What may stand under each key: its kind, the integer bounds of a kind, and whether null may."""

    kind_of: dict[str, str]
    bounds: dict[str, tuple[int, int]]
    or_null: frozenset[str]


@lru_cache(maxsize=1)
def _tables() -> dict[str, dict[str, Any]]:
    with (_CATALOG / "config_defaults.toml").open("rb") as file:
        return tomllib.load(file)


@lru_cache(maxsize=1)
def key_kinds() -> KeyKinds:
    """The table of kinds, parsed once."""
    with (_CATALOG / "config_keys.toml").open("rb") as file:
        table = tomllib.load(file)
    return KeyKinds(
        kind_of={key: kind for kind, keys in table["kinds"].items() for key in keys},
        bounds={kind: (low, high) for kind, (low, high) in table["bounds"].items()},
        or_null=frozenset(table["or_null"]),
    )


@lru_cache(maxsize=1)
def known_model_types() -> tuple[str, ...]:
    """Every `model_type` that a model of its own may have, sorted."""
    return tuple(sorted(name for name, row in _tables().items() if not row.get("part")))


@lru_cache(maxsize=1)
def known_part_types() -> tuple[str, ...]:
    """Every `model_type` that a nested config may have, sorted."""
    return tuple(sorted(name for name, row in _tables().items() if "sub_configs" not in row))


@cache
def config_class(model_type: str) -> ConfigClass:
    """The class of `model_type`, which must be a known one."""
    row = _tables()[model_type]
    extra = frozenset(row.get("extra", ()))
    defaults = {**row["defaults"], **dict.fromkeys(row.get("open", ()))}
    return ConfigClass(
        model_type=model_type,
        name=row["class"],
        part=row.get("part", False),
        defaults=defaults,
        aliases=row.get("aliases", {}),
        extra=extra,
        reads_head_dim="head_dim" in defaults or "head_dim" in extra or "head_dim" in row.get("aliases", ()),
        heads_divide_width=row.get("heads_divide_width", False),
        rope_theta=row.get("rope_theta"),
        rope_type=row.get("rope_type", "default"),
        sub_configs=row.get("sub_configs", {}),
        fixed_sub_configs=frozenset(row.get("fixed_sub_configs", ())),
        absent_sub_configs=row.get("absent_sub_configs", {}),
    )
