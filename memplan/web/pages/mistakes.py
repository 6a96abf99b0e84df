"""Mistakes as a page shows them: beside their fields, and with links that mend them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memplan.cards import card_ids
from memplan.catalog.gpus import list_gpus
from memplan.errors import closest
from memplan.methods import list_methods
from memplan.optimizers.catalog import optimizer_rows
from memplan.recipe import Recipe
from memplan.web.pages.keys import Mistake, Query, query_of
from memplan.web.problems import Problem

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
    return Mistake(key if key in Recipe.model_fields else "", problem.message, problem.hint.replace("\n", "; "))


def shown(mistakes: tuple[Mistake, ...], query: Query) -> tuple[Shown, ...]:
    """Mistakes with links that mend them."""
    return tuple(
        Shown(entry.key, entry.message, entry.hint, tuple(_remedies(entry, query.keys, query.texts)))
        for entry in mistakes
    )


def _remedies(mistake: Mistake, keys: Mapping[str, Any], texts: Mapping[str, str]) -> list[tuple[str, str]]:
    key = mistake.key
    found = []
    if mistake.message.startswith("unknown ") and key in texts:
        for name in closest(texts[key], _names(key)):
            found.append((f"use {name}", query_of({**keys, key: name})))
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
