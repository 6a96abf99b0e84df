"""Writing a recipe as a framework's config: a new file, or the least change of one that is there.

Whatever is written is read back before it is returned, and compared with the recipe key by key: what a framework cannot say
is an error that names the key, never a file that means something else.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memplan.documents import Syntax, parse, read_text, syntax_of
from memplan.errors import FileFormatError, InputError, UnknownNameError, UnsupportedError
from memplan.interop.edit import edited
from memplan.interop.keeping import completed, length_paths
from memplan.interop.reading import Reading
from memplan.interop.settings import LORA_DEFAULTS, SETTINGS
from memplan.recipe import Recipe
from memplan.resolve import Resolved, resolve

# Not a property of the run that a config describes, or implied by the framework.
_NOT_COMPARED = frozenset(
    {
        "gpu", "gpus", "expandable_segments", "empty_cache_steps", "torch_version", "stack_version", "target_length",
        "packed_text_tokens",
    }
)  # fmt: skip
# What the framework itself decides; reported, and refused only where the recipe's author said otherwise.
_IMPLIED = frozenset({
    "stack", "loss", "padding", "autocast_adapter_dtype", "prepare_model_for_kbit_training", "bnb_4bit_quant_storage",
    "bnb_4bit_compute_dtype",
})  # fmt: skip
# Of `eval_accumulation_steps` axolotl makes what it accumulates; elsewhere it is written.
_NEVER_REFUSED = frozenset({"stack", "loss", "padding", "eval_accumulation_steps"})
# Which follow the batch of training in some formats unless they are said.
_FOLLOWING = frozenset({("eval_batch_size",)})
_LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
# Formats that hold a part of a run only.
_PARTIAL = frozenset({"accelerate", "deepspeed"})
_ADAPTER_KEYS = (
    "peft_type", "r", "lora_dropout", "target_modules", "modules_to_save", "use_dora", "rank_pattern", "target_parameters",
    "layers_to_transform",
)  # fmt: skip

_HEADS: dict[str, str] = {
    "trl": "# trl sft --config FILE\n# Name the dataset: dataset_name.\n",
    "axolotl": "# axolotl train FILE\n# Name the data: datasets, dataset_prepared_path, output_dir.\n",
    "llamafactory": "# llamafactory-cli train FILE\n# Name the data: dataset, template, output_dir.\n",
    "torchtune": "# tune run lora_finetune_single_device --config FILE, or full_finetune_single_device\n"
    "# Name tokenizer, checkpointer, dataset, metric_logger and lr, as `tune cp` writes them.\n",
    "accelerate": "# accelerate launch --config_file FILE train.py\n",
    "deepspeed": "",
}
# What a launch needs beside the recipe.
_BESIDE: dict[str, dict[tuple[str, ...], Any]] = {"llamafactory": {("stage",): "sft", ("do_train",): True}}


@dataclass(frozen=True)
class Written:
    """A config that was written.

    Attributes:
        text: the whole file.
        to: its format.
        diff: unified diff against the file it was written into; empty for a new one, or where nothing changes.
        implied: what the framework decides otherwise than the recipe, in sentences.
        reading: the file as it reads back, for an estimate of what it really asks for.
    """

    text: str
    to: str
    diff: str = ""
    implied: tuple[str, ...] = ()
    reading: Reading | None = None


def write(recipe: Recipe | Mapping[str, Any], to: str, template: str | Path | None = None) -> Written:
    """A recipe as the config of a framework.

    Args:
        recipe: what is to run. Without a template its defaults are written out, so that a framework's own do not apply; in a
            template what the recipe does not say stays as it is. Or recipe keys that change what the template says.
        to: trl, axolotl, llamafactory, torchtune, accelerate or deepspeed.
        template: a config of that format; only the keys that the recipe changes are changed in its text.

    Raises:
        UnknownNameError: no such format.
        UnsupportedError: the recipe has something that the format cannot say.
        FileFormatError: the template cannot be read, is of another format, or cannot be changed in place.
        InputError: what the template keeps contradicts the recipe.
    """
    if to not in SETTINGS:
        raise UnknownNameError("export format", to, SETTINGS)
    if template is None:
        if not isinstance(recipe, Recipe):
            raise InputError("changes need a template", hint="give the config that they change, or a whole Recipe")
        return write_text(recipe, to)
    path = Path(template)
    text = read_text(path)
    _check_format(text, syntax_of(str(path)), to, str(path))
    if not isinstance(recipe, Recipe):
        recipe = _read(text, to, str(path)).recipe_with(**recipe)
    return write_text(recipe, to, text, str(path))


def write_text(recipe: Recipe, to: str, text: str | None = None, name: str | None = None) -> Written:
    """As `write`, into a text.

    Args:
        recipe: what is to run.
        to: the format.
        text: the config it is written into; None for a new one.
        name: of that file.
    """
    syntax: Syntax = "json" if to == "deepspeed" else "yaml"
    name = name or f"config.{syntax}"
    if text is None:
        resolved = resolve(recipe)
        settings = {**_BESIDE.get(to, {}), **SETTINGS[to](resolved.values)}
        said = {path: value for path, value in settings.items() if value is not None}
        text, before = _HEADS[to] + edited("", syntax, said, name), None
        notes = tuple(f"not written: {entry}" for entry in recipe.uncovered)
    else:
        syntax, before = syntax_of(name), text
        old = _read(text, to, name)
        whole, notes = completed(recipe, old, name)
        resolved = resolve(whole)
        settings = SETTINGS[to](resolved.values)
        changed = _changed(settings, old, to, resolved)
        text = edited(text, syntax, {path: value for path, value in changed.items() if path not in _FOLLOWING}, name)
        if not _FOLLOWING.isdisjoint(settings):  # what follows by itself is not said
            left = _changed(settings, _read(text, to, name), to, resolved)
            text = edited(text, syntax, {path: value for path, value in left.items() if path in _FOLLOWING}, name)
    reading = _read(text, to, name)
    implied = (*notes, *_compare(resolved, reading, to))
    diff = ""
    if before is not None and before != text:
        lines = difflib.unified_diff(before.splitlines(True), text.splitlines(True), name, name)
        diff = "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)
    return Written(text, to, diff, implied, reading)


def _check_format(text: str, syntax: Syntax, to: str, name: str) -> None:
    """Refuse to write one framework's keys into the config of another."""
    from memplan.interop.formats import detect

    try:
        found = detect(parse(text, syntax, name)).name
    except FileFormatError:
        return  # nothing to tell it by
    if found != to:
        raise FileFormatError(
            f"{name} is a config of {found}, not of {to}", hint=f"export to {found}, or to a new file"
        )


def _read(text: str, to: str, name: str) -> Reading:
    from memplan.interop import read_text as read_config

    return read_config(text, to, name)


def _changed(
    settings: Mapping[tuple[str, ...], Any], old: Reading, to: str, new: Resolved
) -> dict[tuple[str, ...], Any]:
    """The settings that differ from those of the recipe that the file holds."""
    try:
        keys = dict(old.keys)
        if to in _PARTIAL or keys.get("model") is None:
            # The rest of the run is in other files: taken as it is planned.
            keys = {**new.recipe.said(), **keys}
        if old.open_length and new.recipe.sequence_length is not None:
            # Another length than the planned one, so that it is written.
            keys["sequence_length"] = 2 if new.values["sequence_length"] == 1 else 1
        before = SETTINGS[to](resolve(Recipe(**keys)).values)
    except (InputError, UnsupportedError):
        before = {}  # the file holds what this table cannot say or no recipe can: everything is set
        if old.open_length and new.recipe.sequence_length is None:
            before = {path: settings[path] for path in length_paths(SETTINGS[to], new)}
    return {path: value for path, value in settings.items() if path not in before or before[path] != value}


def _compare(resolved: Resolved, reading: Reading, to: str) -> tuple[str, ...]:
    """Refuse what was not understood on the way back; returns what the framework implies.

    Raises:
        UnsupportedError: a key of the recipe reads back as something else.
    """
    keys = dict(reading.keys)
    if to in _PARTIAL:
        wanted = {key: resolved.values.get(key) for key in keys}
        found = keys
    else:
        found = dict(resolve(Recipe(**keys)).values)
        wanted = dict(resolved.values)
    implied = []
    for key in dict.fromkeys((*wanted, *found)):
        mine, theirs = _normal(key, wanted.get(key)), _normal(key, found.get(key))
        if key in _NOT_COMPARED or mine == theirs:
            continue
        if key == "max_eval_samples":
            implied.append(f"max_eval_samples = {mine} is not written: what {to} evaluates is its data's to say")
            continue
        if key in _NEVER_REFUSED or (key in _IMPLIED and resolved.sources.get(key) != "user"):
            implied.append(f"{key} is {theirs} in {to}, not {mine}")
            continue
        raise UnsupportedError(
            f"{to} cannot say {key} = {mine!r}: it would be read back as {theirs!r}",
            hint=f"change {key}, or export to another format",
            code="not_exportable",
        )
    return tuple(implied)


def _normal(key: str, value: Any) -> Any:
    """A value without its spelling."""
    if key == "save_strategy":
        return str(value or "no")
    if key == "activation_checkpointing" and value is True:
        return "non-reentrant"
    if key == "peft" and isinstance(value, Mapping):
        given = {**LORA_DEFAULTS, **value}
        if isinstance(given.get("target_modules"), list | tuple) and set(given["target_modules"]) == _LINEAR:
            given["target_modules"] = "all-linear"  # of the models whose names these are
        return {
            name: sorted(given[name]) if isinstance(given[name], list | tuple) else given[name]
            for name in _ADAPTER_KEYS
            if given.get(name) not in (None, False, {}, [])
        }
    if key == "method" and value in ("qlora", "dora", "lora"):
        return "lora"  # the adapter and the quantization are compared by themselves
    if isinstance(value, tuple | list):
        return sorted(map(str, value))
    return str(value) if isinstance(value, str) else value
