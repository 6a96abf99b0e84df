"""From a check to the recipe that is estimated: inline keys, a recipe file, or any training config.

A model that is a path is read from the same place as the other files and goes into the recipe as its config, so that a commit
is judged by the config.json that it had.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from memplan.budget.config import CheckSpec
from memplan.budget.files import Files
from memplan.cards import resolve_model
from memplan.documents import parse, syntax_of
from memplan.errors import FileFormatError, InputError, MemplanError, UnknownNameError
from memplan.recipe import Recipe, mapping_of
from memplan.report.wording import model_name

Accept = Callable[[Recipe], None]


@dataclass(frozen=True, slots=True)
class Run:
    """A recipe with what a report calls it.

    Attributes:
        model: name of the model, as the user wrote it.
        gpu: the GPU that it is judged on; None for none.
    """

    recipe: Recipe
    model: str

    @property
    def gpu(self) -> str | None:
        """The GPU of the recipe, which is also the one that is judged."""
        return self.recipe.gpu


def run_of(spec: CheckSpec, files: Files, accept: Accept | None = None) -> Run:
    """The run that a check is about.

    Args:
        spec: the check.
        files: where its files are.
        accept: called with the recipe before anything is computed; raises where it may not be.

    Raises:
        UnavailableError: a file is missing.
        InputError: a file or a recipe key is wrong.
    """
    override = dict(spec.override)
    if spec.gpu is not None and not spec.is_default_gpu:
        override["gpu"] = spec.gpu
    said = spec.recipe if spec.recipe is not None else _recipe_file(spec, files)
    if said is not None:
        return _finished({**said, **override}, (), spec, files, accept)
    reading = _reading(spec, files)
    keys = {**reading.keys, **override}
    # Raises where there is no model; says what is not covered.
    uncovered = reading.recipe_with(**_known(override)).uncovered
    return _finished(keys, uncovered, spec, files, accept)


def _known(override: Mapping[str, Any]) -> dict[str, Any]:
    Recipe(model="", **{key: value for key, value in override.items() if key != "model"})
    return dict(override)


def _recipe_file(spec: CheckSpec, files: Files) -> Mapping[str, Any] | None:
    """Keys of a recipe file; None where the check names configs, whose readers take a while to load."""
    if spec.format != "recipe":
        return None
    (path,) = spec.files
    return mapping_of(parse(files.read(path), syntax_of(path), path))


def _reading(spec: CheckSpec, files: Files) -> Any:
    from memplan import interop

    documents = [parse(files.read(path), syntax_of(path), path) for path in spec.files]
    return interop.read_documents(documents, spec.format, version=spec.framework_version)


def _finished(
    keys: dict[str, Any], uncovered: tuple[str, ...], spec: CheckSpec, files: Files, accept: Accept | None
) -> Run:
    if spec.is_default_gpu and keys.get("gpu") is None:
        keys["gpu"] = spec.gpu
    name = keys.get("model")
    if isinstance(name, str):
        keys["model"] = _located(name, files)
    recipe = Recipe(**keys).with_uncovered(uncovered)
    if accept is not None:
        accept(recipe)
    return Run(recipe, name if isinstance(name, str) else model_name({"model": recipe.model}))


def _located(model: str, files: Files) -> str | dict[str, Any]:
    """`model`, or the config in the file that it names.

    Raises:
        UnknownNameError: neither a card nor a file.
    """
    is_path = model.startswith(("./", "../", "/", "~")) or model.endswith((".json", "/"))
    if not is_path:
        try:
            return resolve_model(model, allow_paths=False).id
        except UnknownNameError as error:
            unknown: MemplanError = error
    for path in (model, posixpath.join(model, "config.json")):
        if files.has(path):
            data = parse(files.read(path), "json", path).data
            if not isinstance(data, dict):
                raise FileFormatError(f"{path} holds a {type(data).__name__}, not a model's config")
            return data
    if is_path:
        # Says that it is missing, with what it is relative to.
        files.read(model)
        raise InputError(f"{model} is no config.json")
    raise unknown
