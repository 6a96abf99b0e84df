"""Recipes from objects of transformers, PEFT and bitsandbytes, read by attribute: none of these libraries is imported.

An object is whatever has the attributes: the libraries' own classes, mappings, `types.SimpleNamespace`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

from memplan.errors import InputError
from memplan.interop import peft, trainer, trl
from memplan.interop.draft import Draft, Source
from memplan.interop.reading import Reading
from memplan.interop.settle import settle

_DEEPEST = 16


def read_objects(
    *,
    model_config: Any = None,
    training_args: Any = None,
    peft_config: Any = None,
    quantization_config: Any = None,
    version: str | None = None,
) -> Reading:
    """The objects of one run as a recipe.

    Args:
        model_config: `model.config`, a mapping as in config.json, or a model's name.
        training_args: a TrainingArguments, or TRL's SFTConfig.
        peft_config: a LoraConfig or any other config of PEFT.
        quantization_config: a BitsAndBytesConfig, or another `quantization_config`.
        version: of transformers or TRL, where defaults moved.

    Raises:
        InputError: nothing is given, a value cannot stand there, or two objects contradict each other.
    """
    draft, formats = Draft(), []
    draft.facts["objects"] = True
    if isinstance(model_config, str):
        draft.keys["model"] = model_config
    elif model_config is not None:
        source = _source("model_config", model_config)
        if "model_type" not in source.data:
            raise InputError("model_config has no model_type", hint="give model.config, or the object of a config.json")
        draft.keys["model"] = dict(source.data)
        draft.note(source, "model_type", "model")
        formats.append("model-config")
    if training_args is not None:
        formats.append(
            _read_training(training_args, draft, version, has_config=isinstance(draft.keys.get("model"), dict))
        )
    if peft_config is not None:
        source = _source("peft_config", peft_config)
        if "peft_type" not in source.data:
            raise InputError(
                "peft_config has no peft_type", hint="give the config itself, such as model.peft_config['default']"
            )
        peft.read_adapter(source, draft)
        formats.append("peft")
    if quantization_config is not None:
        source = _source("quantization_config", quantization_config)
        peft.read_bitsandbytes(source, draft)
        draft.sort_rest(source, frozenset())
        if isinstance(draft.keys.get("model"), dict):
            draft.keys["model"].pop("quantization_config", None)  # the same one, as from_pretrained leaves it
        formats.append("bitsandbytes")
    if not formats and "model" not in draft.keys:
        raise InputError(
            "no object is given", hint="for example from_objects(model_config=model.config, training_args=args)"
        )
    settle(draft)
    return draft.reading(formats or ["model"])


def _read_training(training_args: Any, draft: Draft, version: str | None, *, has_config: bool) -> str:
    source = _source("training_args", training_args)
    is_trl = trl.is_trl(source.data)
    if version:
        draft.versions["trl" if is_trl else "transformers"] = version
    if has_config:
        draft.keys["dtype"] = "auto"  # a model's config says what its weights were loaded in
    (trl if is_trl else trainer).read(source, draft)
    draft.sort_rest(source, trl.HARMLESS if is_trl else trainer.HARMLESS)
    for name, text in (("world_size", "processes"), ("n_gpu", "GPUs in one process (nn.DataParallel)")):
        count = _attribute(training_args, name)
        if isinstance(count, int) and count > 1:
            if name == "world_size":
                draft.keys["gpus"] = count
            draft.unsupported.append(f"training_args.{name} = {count}: {count} {text}")
    return "trl" if is_trl else "transformers"


def _attribute(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(name)
    try:
        return getattr(value, name, None)
    except Exception:  # a property that needs what is not installed here
        return None


def _source(name: str, value: Any) -> Source:
    data = plain(value)
    if not isinstance(data, Mapping):
        raise InputError(f"{name} is a {type(value).__name__}, which has no attributes to read")
    return Source(name, data, {})


def plain(value: Any, depth: int = 0) -> Any:
    """`value` as JSON would hold it: enums by value, dtypes by name, sets sorted, objects as their attributes.

    Raises:
        InputError: nested too deeply.
    """
    if depth > _DEEPEST:
        raise InputError("an object is nested too deeply to be read")
    if isinstance(value, Enum):
        return plain(value.value, depth + 1)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(plain(key, depth + 1)): plain(entry, depth + 1) for key, entry in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, list | tuple):
        return [plain(entry, depth + 1) for entry in value]
    if str(value).startswith("torch."):
        return str(value).removeprefix("torch.")
    return {name: plain(entry, depth + 1) for name, entry in _attributes(value).items()}


def _attributes(value: Any) -> dict[str, Any]:
    """Public attributes: what its class says belongs to it, else what it holds."""
    to_dict = getattr(value, "to_dict", None)
    if callable(to_dict) and not isinstance(value, type):
        found = to_dict()
        if isinstance(found, Mapping):
            return {str(key): entry for key, entry in found.items()}
    names: Iterable[str] = getattr(type(value), "__dataclass_fields__", None) or getattr(value, "__dict__", {})
    found = {name: getattr(value, name) for name in names if not name.startswith("_") and hasattr(value, name)}
    for name in ("model_type", "peft_type", "quant_method"):  # class attributes of configs
        if name not in found and getattr(value, name, None) is not None:
            found[name] = getattr(value, name)
    return {name: entry for name, entry in found.items() if not callable(entry)}
