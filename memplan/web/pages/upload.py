"""What somebody pasted or uploaded, as recipe keys for the address. Runs in a computing process.

A model's config.json becomes `model` with the keys that its architecture depends on and no others; everything else that
`memplan.interop` reads (adapter_config.json, training arguments, TRL's YAML, a recipe) becomes the keys it means. What no
key can say cannot be in an address and is refused, never dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote_plus

from memplan import interop
from memplan.documents import parse_json
from memplan.errors import FileFormatError, InputError, MemplanError
from memplan.model_config import normalise_config
from memplan.recipe import Recipe
from memplan.web.pages.keys import query_of, read_query
from memplan.web.tasks import Answer

# Longer lists of labels say no more than their number.
_MOST_LABELS = 16
# Keys of the state that an adapter's own file replaces as a whole.
_OF_AN_ADAPTER = ("method", "peft", "lora_r", "lora_dropout", "target_modules", "num_virtual_tokens")


def read_upload(text: str, name: str, state: str, max_query_bytes: int) -> Answer:
    """The canonical query of the state with what the text says.

    Args:
        text: of the file.
        name: of the file; its ending says how it is written.
        state: the query of the page it was sent from.
        max_query_bytes: longest query that the service takes.

    Raises:
        FileFormatError: the text cannot be read, or is no config that memplan knows.
        InputError: it says what an address cannot hold.
    """
    found = keys_of(text, name)
    before = read_query(state.encode("ascii", "replace"))
    replaced = {*found, *(_OF_AN_ADAPTER if {"peft", "method"} & set(found) else ())}
    query = query_of({**{key: value for key, value in before.keys.items() if key not in replaced}, **found})
    for key, text in before.texts.items():
        if key not in before.keys and key not in replaced:  # a mistake that the page shows, and must not lose
            query += f"&{key}={quote_plus(text)}"
    if len(query) > max_query_bytes:
        raise InputError(
            f"this config takes {len(query):,} characters of an address, and the service allows {max_query_bytes:,}",
            hint="POST it to /api/v1/estimate, or use `memplan estimate --model FILE` on your own machine",
        )
    return Answer(query.encode())


def keys_of(text: str, name: str) -> dict[str, Any]:
    """Recipe keys that a config file means.

    Raises:
        FileFormatError, InputError: as `read_upload`.
    """
    is_json = text.lstrip().startswith(("{", "["))
    if is_json:
        data = parse_json(text, name)
        if isinstance(data, dict) and "model_type" in data and not set(data) & {"recipe", "peft_type", "model"}:
            return {"model": shortest_config(data)}
    try:
        reading = interop.read_text(text, name=name, syntax="json" if is_json else "yaml")
    except FileFormatError:
        raise
    except MemplanError as error:
        raise FileFormatError(error.message, hint=error.hint) from None
    if reading.uncovered:
        raise InputError(
            "the config says what an address cannot hold: " + "; ".join(reading.uncovered[:3]),
            hint="`memplan estimate FILE` on your own machine reads it with everything that it says",
        )
    found = {key: value for key, value in reading.keys.items() if key in Recipe.model_fields and value is not None}
    if not found:
        raise FileFormatError(
            f"{name} holds nothing that a recipe needs",
            hint="a config.json has model_type, an adapter_config.json has peft_type",
        )
    return found


def shortest_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config.json without which it would describe another model.

    Raises:
        InputError: as `memplan.model_config.normalise_config`.
    """
    full = normalise_config(raw)
    short = dict(raw)
    labels = short.get("id2label")
    if isinstance(labels, dict) and len(labels) > _MOST_LABELS:
        del short["id2label"]
        short["num_labels"] = len(labels)
    for key in list(short):
        if key == "model_type":
            continue
        without = {name: value for name, value in short.items() if name != key}
        if _describes(without, full):
            short = without
        elif isinstance(short[key], dict):
            for name in list(short[key]):
                inner = {inner_key: value for inner_key, value in short[key].items() if inner_key != name}
                if _describes({**short, key: inner}, full):
                    short = {**short, key: inner}
    return short


def _describes(config: Mapping[str, Any], full: Mapping[str, Any]) -> bool:
    try:
        return normalise_config(config) == full
    except InputError:
        return False
