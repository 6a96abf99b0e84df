"""The JSON Schema of a budget file, for editors and for `memplan check --schema`.

A test holds it to `memplan.budget.config`.
"""

from __future__ import annotations

import json
from typing import Any

from memplan.budget.config import MAX_CHECKS, MAX_MESSAGE, MAX_NAME, RUN_KEYS, SCHEMA, Level, OnUncertain, Severity
from memplan.budget.quantity import SHARE_PATTERN, SIZE_PATTERN
from memplan.recipe import Recipe

_NAME = {"type": "string", "minLength": 1, "maxLength": MAX_NAME}
_SIZE = {"type": "string", "pattern": SIZE_PATTERN}
_SHARE = {"type": "string", "pattern": SHARE_PATTERN}


def config_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of what stands in a memplan.toml, or below `tool.memplan` in a pyproject.toml."""
    recipe = Recipe.model_json_schema()
    definitions = recipe.pop("$defs", {})
    recipe["properties"]["gradient_checkpointing"] = {
        "description": "old name of activation_checkpointing", **recipe["properties"]["activation_checkpointing"],
    }  # fmt: skip
    override = {**recipe, "title": "Override", "required": []}
    shared = {
        "override": {"$ref": "#/$defs/Override", "description": "recipe keys that replace what the files say"},
        "budget": {**_SIZE, "description": 'what the run may take at its level, e.g. "72 GiB"'},
        "gpu": {**_NAME, "description": "the card that it has to fit; `memplan gpus` lists them"},
        "level": _choice(Level, "of the budget and of max_increase; device unless given"),
        "headroom": {
            "anyOf": [{"const": "auto"}, _SIZE, _SHARE],
            "description": "between expected and upper bound; against a gpu it only widens the bound",
        },
        "max_increase": {
            "anyOf": [_plus(_SIZE), _plus(_SHARE)],
            "description": 'against the base: "1 GiB" or "+5%" of the peak before',
        },
        "severity": _choice(Severity, "warn reports without failing"),
        "on_uncertain": _choice(OnUncertain, "what becomes of an answer that is not certain; warn unless given"),
        "message": {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_MESSAGE,
            "description": "shown where it is not kept",
        },
    }
    path = {"type": "string", "minLength": 1}
    check = {
        "type": "object",
        "additionalProperties": False,
        "required": ["name"],
        "oneOf": [{"required": [key]} for key in RUN_KEYS],
        "properties": {
            "name": {**_NAME, "description": "unique; the base is compared by it"},
            "recipe": {"$ref": "#/$defs/Recipe"},
            "recipe_file": {**path, "description": "a file of recipe keys"},
            "config": {
                "anyOf": [path, {"type": "array", "items": path, "minItems": 1}],
                "description": "training config",
            },
            "format": {**_NAME, "description": "of the config; detected unless given"},
            "framework_version": {**_NAME, "description": "of the framework whose defaults apply"},
            **shared,
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "memplan budgets",
        "type": "object",
        "additionalProperties": False,
        "required": ["schema", "check"],
        "properties": {
            "schema": {"const": SCHEMA},
            "defaults": {"type": "object", "additionalProperties": False, "properties": shared},
            "check": {"type": "array", "minItems": 1, "maxItems": MAX_CHECKS, "items": {"$ref": "#/$defs/Check"}},
        },
        "$defs": {**definitions, "Recipe": recipe, "Override": override, "Check": check},
    }


def schema_text() -> str:
    """The schema as JSON."""
    return json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n"


def _choice(kind: type[Level] | type[Severity] | type[OnUncertain], text: str) -> dict[str, Any]:
    return {"enum": [str(member) for member in kind], "description": text}


def _plus(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "pattern": schema["pattern"].replace("^", r"^\+?", 1)}
