"""Mistakes as a page shows them: beside their fields, and with links that mend them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from memplan.cards import card_ids, resolve_model
from memplan.catalog.gpus import get_gpu, list_gpus
from memplan.errors import MemplanError, closest
from memplan.methods import canonical_method, list_methods
from memplan.optimizers.catalog import optimizer_rows
from memplan.recipe import Recipe
from memplan.web.hints import LISTED_AT, over_rest
from memplan.web.pages.fields import all_fields
from memplan.web.pages.keys import Mistake, Query, query_of
from memplan.web.problems import Problem

_LONGEST_LIST = 160
# What people set before they say that the method is LoRA.
_OF_LORA = ("peft", "lora_r", "lora_dropout", "target_modules")

NO_MODEL = Mistake(
    "model", "no model is named", "type a name such as mistralai/Mistral-7B-v0.1, or paste a config.json"
)


@dataclass(frozen=True, slots=True)
class Shown(Mistake):
    """A mistake with links, each (what it does, query)."""

    remedies: tuple[tuple[str, str], ...] = ()


def mistake_of(problem: Problem) -> Mistake:
    """A refusal of the engine beside the field that it is about."""
    key = problem.field.partition(".")[0]
    return Mistake(key if key in Recipe.model_fields else "", problem.message, for_the_page(problem.hint))


def for_the_page(hint: str) -> str:
    """A hint of memplan's errors without what the form shows anyway: long lists, and where they can be had."""
    lines = over_rest(hint).split("\n")
    kept = [line for line in lines if not (line.startswith("allowed: ") and len(line) > _LONGEST_LIST)]
    kept = [line for line in kept if not line.startswith(("`memplan ", LISTED_AT))]
    if len(kept) < len(lines) and any(line.startswith(f"{LISTED_AT}models") for line in lines):
        kept.append("For any other model, paste its config.json here.")
    return " ".join(kept)


def needed(count: int) -> str:
    """How many things need to change, as the start of a sentence."""
    return "One thing needs" if count == 1 else f"{count} things need"


def wrong_names(query: Query) -> tuple[Mistake, ...]:
    """Every name that is none, so that all of them are told at once."""
    found = []
    checks: tuple[tuple[str, Callable[[Any], object]], ...] = (
        ("model", lambda name: resolve_model(name, allow_paths=False)),
        ("method", canonical_method),
        ("gpu", get_gpu),
    )
    for key, check in checks:
        if key in query.keys:
            try:
                check(query.keys[key])
            except MemplanError as error:
                found.append(Mistake(key, error.message, for_the_page(error.hint)))
    return tuple(found)


def shown(mistakes: tuple[Mistake, ...], query: Query) -> tuple[Shown, ...]:
    """Mistakes with links that mend them, in the order of the form; first what is no field's."""
    places = {field.key: place for place, field in enumerate(all_fields())}
    return tuple(
        Shown(entry.key, entry.message, entry.hint, tuple(_remedies(entry, query.keys, query.texts)))
        for entry in sorted(mistakes, key=lambda entry: places.get(entry.key, -1))
    )


def _remedies(mistake: Mistake, keys: Mapping[str, Any], texts: Mapping[str, str]) -> list[tuple[str, str]]:
    key = mistake.key
    found = []
    if mistake.message.startswith("unknown ") and key in texts:
        for name in closest(texts[key], _names(key)):
            found.append((f"use {name}", query_of({**keys, key: name})))
    if key in _OF_LORA and "method" not in keys:
        found += [(f"use method {name}", query_of({**keys, "method": name})) for name in ("lora", "qlora")]
    if key in texts and key != "model":
        found.append((f"leave {key} out", query_of({name: value for name, value in keys.items() if name != key})))
    return found


def _names(key: str) -> list[str]:
    if key == "model":
        return list(card_ids())
    if key == "gpu":
        return [gpu.id for gpu in list_gpus()]
    if key == "method":
        return [method.name for method in list_methods()]
    return list(optimizer_rows()) if key == "optim" else []
