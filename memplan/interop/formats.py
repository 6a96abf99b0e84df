"""The formats that memplan reads: how each is told from the others, and by which reader it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from memplan.documents import Document
from memplan.errors import FileFormatError, UnknownNameError
from memplan.interop import accelerate, axolotl, llamafactory, peft, torchtitan, torchtune, trainer, trl
from memplan.interop.draft import Draft, Source
from memplan.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Format:
    """One kind of config file.

    Attributes:
        name: as `--format` takes it.
        title: for messages.
        recognise: whether a mapping has what only this format has.
        read: takes keys out of the source and puts recipe keys into the draft.
        harmless: keys that are known to have no bearing on memory though their names sound like it.
        framework: whose version `version=` means; empty where there is none.
    """

    name: str
    title: str
    recognise: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Source, Draft], None]
    harmless: frozenset[str] = frozenset()
    framework: str = ""


def _is_recipe(data: Mapping[str, Any]) -> bool:
    keys = {*Recipe.model_fields, "gradient_checkpointing"}
    return isinstance(data.get("recipe"), Mapping) or (set(data) <= keys and isinstance(data.get("model"), str))


def _read_nothing(source: Source, draft: Draft) -> None:
    raise AssertionError("recipe files are read by Recipe.from_file")


def _read_model_config(source: Source, draft: Draft) -> None:
    """The whole object is the model; it says more than a name in another file."""
    draft.keys["model"] = dict(source.data)
    draft.note(source, "model_type", "model")
    source.take_all()


def _is_model_config(data: Mapping[str, Any]) -> bool:
    return isinstance(data.get("model_type"), str) and any(key in data for key in _MODEL_SIZES)


_MODEL_SIZES = ("hidden_size", "n_embd", "d_model", "dim", "text_config", "num_hidden_layers")

FORMATS: tuple[Format, ...] = (
    Format("recipe", "memplan's own recipe", _is_recipe, _read_nothing),
    Format(
        "transformers",
        "transformers' TrainingArguments",
        lambda data: (
            "model_name_or_path" not in data
            and not trl.is_trl(data)
            and not llamafactory.is_llamafactory(data)
            and any(key in data for key in ("per_device_train_batch_size", "optim_target_modules", "adam_epsilon"))
        ),
        trainer.read,
        trainer.HARMLESS,
        "transformers",
    ),
    Format("peft", "PEFT's adapter_config.json", lambda data: "peft_type" in data, peft.read_adapter),
    Format(
        "bitsandbytes",
        "BitsAndBytesConfig",
        lambda data: "quant_method" in data or "_load_in_4bit" in data or "_load_in_8bit" in data,
        peft.read_bitsandbytes,
    ),
    Format("model-config", "a model's config.json", _is_model_config, _read_model_config),
    Format(
        "accelerate",
        "accelerate's YAML",
        lambda data: "compute_environment" in data or "distributed_type" in data,
        accelerate.read,
        accelerate.HARMLESS,
    ),
    Format(
        "deepspeed",
        "DeepSpeed's JSON",
        lambda data: "zero_optimization" in data or "train_micro_batch_size_per_gpu" in data,
        accelerate.read_deepspeed,
        accelerate.HARMLESS_DEEPSPEED,
    ),
    Format("axolotl", "axolotl's YAML", lambda data: "base_model" in data, axolotl.read, axolotl.HARMLESS, "axolotl"),
    Format(
        "llamafactory",
        "LLaMA-Factory's YAML",
        llamafactory.is_llamafactory,
        llamafactory.read,
        llamafactory.HARMLESS,
        "llamafactory",
    ),
    Format("trl", "TRL's command line YAML", trl.is_trl, trl.read, trl.HARMLESS, "trl"),
    Format("torchtune", "torchtune's YAML", torchtune.is_torchtune, torchtune.read, torchtune.HARMLESS, "torchtune"),
    Format(
        "torchtitan", "torchtitan's TOML", torchtitan.is_torchtitan, torchtitan.read, torchtitan.HARMLESS, "torchtitan"
    ),
)
_BY_NAME = {entry.name: entry for entry in FORMATS}


def format_names() -> tuple[str, ...]:
    """The names that `format=` takes."""
    return tuple(_BY_NAME)


def get_format(name: str) -> Format:
    """The format of a name.

    Raises:
        UnknownNameError: no such format.
    """
    folded = name.strip().lower().replace("_", "-")
    if folded not in _BY_NAME:
        raise UnknownNameError("format", name, _BY_NAME)
    return _BY_NAME[folded]


def detect(document: Document) -> Format:
    """The format of a document, from keys that only one format has.

    Raises:
        FileFormatError: none, or several.
    """
    data = document.data
    if not isinstance(data, Mapping):
        raise FileFormatError(f"{document.name} holds a {type(data).__name__}, not a mapping of recipe keys")
    if _is_recipe(data):
        return _BY_NAME["recipe"]
    found = [entry for entry in FORMATS if entry.recognise(data)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(entry.name for entry in found)
        raise FileFormatError(
            f"{document.name} could be any of {names}", hint="name its format with --format, or format= in Python",
            code="ambiguous_format",
        )  # fmt: skip
    if any(key in Recipe.model_fields for key in data):
        return _BY_NAME["recipe"]
    raise FileFormatError(
        f"{document.name} has none of the keys by which a config is recognised",
        hint=f"name its format with --format, or format= in Python: {', '.join(_BY_NAME)}",
        code="unknown_format",
    )
