"""Writes memplan/catalog/peft_configs.json from the installed PEFT: `python tests/methods/peft_tables.py`."""

from __future__ import annotations

import dataclasses
import enum
import json
import typing
from pathlib import Path
from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import constants

PATH = Path(__file__).resolve().parents[2] / "memplan" / "catalog" / "peft_configs.json"

SUPPLIED_BY_PEFT = {"peft_type", "peft_version"}


def plain(value: Any) -> Any:
    """`value` as JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key: plain(entry) for key, entry in dataclasses.asdict(value).items()}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(plain(entry) for entry in value)
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    return value


def config_defaults() -> dict[str, dict[str, Any]]:
    """By PEFT type: the config class and the default of each of its fields, as a fresh instance holds them."""
    found = {}
    for peft_type, cls in sorted(PEFT_TYPE_TO_CONFIG_MAPPING.items()):
        fields: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name in SUPPLIED_BY_PEFT:
                fields[field.name] = None
            elif field.default is not dataclasses.MISSING:
                fields[field.name] = plain(field.default)
            elif field.default_factory is not dataclasses.MISSING:
                fields[field.name] = plain(field.default_factory())
            else:
                fields[field.name] = None
        found[str(peft_type.value)] = {"class": cls.__name__, "fields": fields}
    return found


def target_modules() -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Distinct mappings of model types to default target modules by a name, and each PEFT type's mapping."""
    mappings: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    by_content: dict[str, str] = {}
    assert peft.__version__.startswith("0.21."), peft.__version__
    order = ["LORA", *sorted(str(entry.value) for entry in PEFT_TYPE_TO_TUNER_MAPPING)]
    tuners = {str(key.value): tuner for key, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()}
    for peft_type in dict.fromkeys(order):
        mapping = typing.cast("dict[str, Any] | None", getattr(tuners[peft_type], "target_module_mapping", None))
        if not mapping:
            continue
        content = json.dumps(plain(mapping), sort_keys=True)
        if content not in by_content:
            by_content[content] = peft_type
            mappings[peft_type] = plain(mapping)
        names[peft_type] = by_content[content]
    mappings["IA3"] = plain(constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING)
    names["IA3"] = "IA3"
    mappings["IA3_FEEDFORWARD"] = plain(constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING)
    return mappings, names


def renamed_experts() -> dict[str, dict[str, Any]]:
    """By model type: how PEFT turns module names of transformers 4 into expert parameters of transformers 5."""
    from peft.utils import transformers_weight_conversion as conversion

    found = {}
    for model_type, base in conversion._MODEL_TO_CONVERSION_PATTERN.items():
        targets = conversion._MOE_TARGET_MODULE_MAPPING.get(base)
        fused = conversion._MOE_FUSED_TARGETS.get(base)
        if targets and fused and conversion.get_checkpoint_conversion_mapping(model_type) is not None:
            found[model_type] = {"parameters": targets, "fused": fused}
    return found


def tables() -> dict[str, Any]:
    mappings, names = target_modules()
    return {
        "source": "peft 0.21.2: dataclass fields of each config class in peft/tuners/*/config.py; "
        "target_module_mapping of each tuner, from peft/utils/constants.py; "
        "peft/utils/transformers_weight_conversion.py with transformers 5.23",
        "date": "2026-11-24",
        "configs": config_defaults(),
        "renamed_experts": renamed_experts(),
        "target_modules_of": names,
        "target_modules": mappings,
    }


def render() -> str:
    """One line a config class and a model type, so that a new PEFT gives a readable diff."""
    data = tables()
    lines = ["{"]
    lines.append(f'  "source": {json.dumps(data["source"])},')
    lines.append(f'  "date": {json.dumps(data["date"])},')
    lines.append('  "configs": {')
    entries = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in data["configs"].items()]
    lines.append(",\n".join(entries) + "\n  },")
    lines.append('  "renamed_experts": {')
    entries = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in data["renamed_experts"].items()]
    lines.append(",\n".join(entries) + "\n  },")
    lines.append(f'  "target_modules_of": {json.dumps(data["target_modules_of"])},')
    lines.append('  "target_modules": {')
    blocks = []
    for name, mapping in data["target_modules"].items():
        rows = ",\n".join(f"      {json.dumps(key)}: {json.dumps(value)}" for key, value in mapping.items())
        blocks.append(f"    {json.dumps(name)}: {{\n{rows}\n    }}")
    lines.append(",\n".join(blocks) + "\n  }\n}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PATH.write_text(render(), encoding="utf-8")
