"""Model cards: the architecture facts of published checkpoints, and what `model=` in a recipe may name.

A card is one JSON file in `model_cards/`, named after the checkpoint with `--` for the slash. `resolve_model` reads the
one file that it needs; the list of ids comes from the file names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from memplan.errors import FileFormatError, InvalidValueError, UnavailableError, UnknownNameError, closest
from memplan.model_config import normalise_config as normalise_config
from memplan.model_config import read_config_file


class ModelCard(BaseModel):
    """What is known of one checkpoint, and how well.

    Attributes:
        id: repository id on the Hugging Face Hub, in its own spelling.
        config: the architecture keys of its config.json.
        parameters: exact number of parameters of `model_class` built from `config`, tied weights counted once.
        persistent_buffer_elements: elements of buffers that are saved with the weights.
        model_class: the class of transformers that was counted.
        auto_class: the Auto class that loads it.
        published_parameters: what others publish; a text such as "3.51B" where only a rounded figure exists.
        published_evidence: where that number stands.
        source: where `config` comes from and what it was compared with.
        confidence: `medium` where no exact published count exists.
        fields_count_cannot_prove: keys of `config` that a parameter count says nothing about.
        of_those_cross_checked: those among them that another published table confirms.
        note: anything a reader should know before trusting the numbers.
        stored_dtype_note: where the published weights are stored in another type than `torch_dtype`.
        text_only_parameters: parameters of the language model in an image-text checkpoint.
        vision_and_projector_parameters: the rest of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str = Field(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")
    config: dict[str, Any]
    parameters: PositiveInt
    persistent_buffer_elements: NonNegativeInt
    model_class: str
    auto_class: str
    published_parameters: PositiveInt | str
    published_evidence: str
    source: str
    confidence: Literal["high", "medium"]
    fields_count_cannot_prove: list[str]
    of_those_cross_checked: list[str]
    note: str = ""
    stored_dtype_note: str = ""
    text_only_parameters: PositiveInt | None = None
    vision_and_projector_parameters: PositiveInt | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ResolvedModel:
    """A model that a recipe names.

    Compared and hashed by identity, so that it can key a cache. A card always resolves to the same object: do not
    change its `config`.

    Attributes:
        id: the card's id, the path as given, or `<model_type> (inline config)`.
        config: complete architecture keys (see `memplan.model_config.normalise_config`).
        source: where the config came from.
        card: the card, if it came from one.
    """

    id: str
    config: dict[str, Any]
    source: Literal["card", "file", "inline"]
    card: ModelCard | None = None

    @property
    def name(self) -> str:
        """The short name: what stands after the last slash of the id."""
        return self.id.rstrip("/").rsplit("/", 1)[-1]


def resolve_model(
    model: str | os.PathLike[str] | Mapping[str, Any], *, allow_paths: bool = True, described_only: bool = True
) -> ResolvedModel:
    """The model that `model` names.

    Args:
        model: a card id or its short name (both case-insensitive: `mistralai/Mistral-7B-v0.1`, `mistral-7b-v0.1`),
            a path to a config.json or to a directory that holds one, or the object of a config.json. A text that
            is both a card and a relative path is the card; `./` in front makes it the path.
        allow_paths: whether a text may name a file; false where the text comes from the network.
        described_only: refuse a model type that memplan has no family for.

    Raises:
        UnknownNameError: no such card and no such path, or a `model_type` that memplan does not know.
        FileFormatError: a path that cannot be read as a config.json.
        InvalidValueError: a value in the config that cannot stand there.
    """
    if isinstance(model, Mapping):
        config = normalise_config(model, described_only=described_only)
        return ResolvedModel(id=f"{config['model_type']} (inline config)", config=config, source="inline")
    if isinstance(model, os.PathLike) and allow_paths:
        return _from_path(os.fspath(model), described_only)
    if not isinstance(model, str) or not model.strip():
        path = "a path to a config.json, " if allow_paths else ""
        raise InvalidValueError("model", model, f"a model id, {path}or an object as in a config.json")
    name = model.strip()
    card_id = _find_card(name)
    if card_id is not None:
        return _from_card(card_id)
    if allow_paths and (_looks_like_path(name) or _exists(name)):
        return _from_path(name, described_only)
    raise _unknown(name, allow_paths=allow_paths)


def _unknown(name: str, *, allow_paths: bool) -> UnknownNameError:
    shown = name if len(name) <= 120 else name[:117] + "..."
    hints = []
    if not closest(shown, card_ids()):
        # "llama3" is no part of "Llama-3.1-8B" until the punctuation is gone.
        wanted = "".join(filter(str.isalnum, shown.casefold()))
        places = [("".join(filter(str.isalnum, one.casefold().split("/")[1])).find(wanted), one) for one in card_ids()]
        alike = [one for place, one in sorted(places) if wanted and place >= 0]
        if alike:
            hints.append("did you mean " + " or ".join(alike[:3]) + "?")
    hints.append(f"`memplan models` lists all {len(card_ids())} cards")
    if allow_paths:
        hints.append("or give the path of a config.json, or of a directory that holds one")
    return UnknownNameError("model", shown, card_ids(), hint="\n".join(hints))


@lru_cache(maxsize=1)
def card_ids() -> tuple[str, ...]:
    """The id of every card, sorted without regard to case."""
    return tuple(sorted(_card_files(), key=str.casefold))


@cache
def load_card(card_id: str) -> ModelCard:
    """The card with exactly this id.

    Raises:
        UnknownNameError: there is none.
    """
    file = _card_files().get(card_id)
    if file is None:
        raise UnknownNameError("model", card_id, card_ids())
    return ModelCard.model_validate_json(file.read_bytes())


@lru_cache(maxsize=1)
def _card_files() -> dict[str, Path]:
    package = Path(__file__).resolve().parent
    # A wheel carries the cards inside the package, a checkout beside it (pyproject.toml, force-include).
    for directory in (package / "model_cards", package.parent / "model_cards"):
        if directory.is_dir():
            return {file.stem.replace("--", "/", 1): file for file in directory.glob("*.json")}
    raise UnavailableError("the model cards are missing from this installation", hint="install memplan again")


@lru_cache(maxsize=1)
def _ids_by_folded_name() -> dict[str, str | None]:
    """Folded id or short name -> id; None for a short name that several cards share."""
    by_name: dict[str, str | None] = {}
    for card_id in card_ids():
        short = card_id.split("/", 1)[1].casefold()
        by_name[short] = None if short in by_name else card_id
    by_name.update({card_id.casefold(): card_id for card_id in card_ids()})
    return by_name


def _find_card(name: str) -> str | None:
    folded = name.casefold()
    by_name = _ids_by_folded_name()
    if folded in by_name and by_name[folded] is None:
        sharing = [card_id for card_id in card_ids() if card_id.casefold().endswith("/" + folded)]
        raise InvalidValueError("model", name, "a full id where several share a short name: " + ", ".join(sharing))
    return by_name.get(folded)


def _looks_like_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~")) or name in (".", "..") or name.endswith((".json", "/"))


@cache
def _from_card(card_id: str) -> ResolvedModel:
    card = load_card(card_id)
    return ResolvedModel(id=card.id, config=normalise_config(card.config), source="card", card=card)


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # longer than a file name may be
        return False


def _from_path(name: str, described_only: bool) -> ResolvedModel:
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        raise FileFormatError(f"{name} does not exist", hint="there is no such user") from None
    config = normalise_config(read_config_file(path), described_only=described_only)
    return ResolvedModel(id=name, config=config, source="file")
