"""Which modules an adapter config targets, by PEFT's own matching rules.

Sources (PEFT 0.21.2): tuners/tuners_utils.py, check_target_module_exists and _maybe_include_all_linear_layers;
utils/other.py, match_target_against_key and get_pattern_key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from memplan.architecture import Architecture, ModuleKind
from memplan.errors import InvalidValueError, closest

ALL_LINEAR = "all-linear"

# Regular expressions come from users; nobody's target list is longer than this.
_MAX_PATTERN_LENGTH = 4096

_SEQUENCE_CLASSIFIER_HEADS = ("score", "classifier")  # peft/utils/constants.py, SEQ_CLS_HEAD_NAMES

_LAYER_INDEX = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")
_PLAIN = re.compile(r"[\w.]+")


def module_paths(architecture: Architecture) -> tuple[str, ...]:
    """Every module path that owns or holds parameters, parents before children."""
    return tuple(sorted({*architecture.by_path, *architecture.containers}))


def compile_pattern(key: str, pattern: str) -> re.Pattern[str]:
    """Compile a user's regular expression.

    Raises:
        InvalidValueError: not a regular expression, or an absurdly long one.
    """
    if len(pattern) > _MAX_PATTERN_LENGTH:
        raise InvalidValueError(key, pattern, f"a regular expression of at most {_MAX_PATTERN_LENGTH} characters")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InvalidValueError(key, pattern, f"not a regular expression: {error}") from None


def ends_with_name(path: str, names: frozenset[str] | set[str]) -> bool:
    """Whether the path is one of `names` or ends with a dot and one of them."""
    if path in names:
        return True
    start = path.find(".")
    while start >= 0:
        if path[start + 1 :] in names:
            return True
        start = path.find(".", start + 1)
    return False


def pattern_value(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a path (`rank_pattern` and the like)."""
    if not patterns:
        return default
    place = _pattern_places(tuple(patterns)).first(path)
    return default if place is None else patterns[list(patterns)[place]]


def is_plain(pattern: str) -> bool:
    """Whether a regular expression is a module path: names with dots, each of which stands for any one character."""
    return _PLAIN.fullmatch(pattern) is not None


class _PatternPlaces:
    """Finds the first of many patterns that matches the end of a path.

    Paths written as patterns are looked up by their length and dots, so that thousands of them cost no more than a few.
    """

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._plain: dict[tuple[int, tuple[int, ...]], dict[str, int]] = {}
        self._others: list[tuple[int, re.Pattern[str]]] = []
        for place, pattern in enumerate(patterns):
            if is_plain(pattern):
                shape = (len(pattern), tuple(at for at, letter in enumerate(pattern) if letter == "."))
                self._plain.setdefault(shape, {}).setdefault(pattern, place)
            else:
                self._others.append((place, re.compile(rf"(.*\.)?({pattern})$")))

    def first(self, path: str) -> int | None:
        """The place of the first pattern that matches; None where none does."""
        found: list[int] = []
        for (length, dots), places in self._plain.items():
            start = len(path) - length
            if start < 0 or (start and path[start - 1] != "."):
                continue
            letters = list(path[start:])
            for at in dots:
                letters[at] = "."
            place = places.get("".join(letters))
            if place is not None:
                found.append(place)
        before = min(found, default=None)
        for place, pattern in self._others:
            if before is not None and place > before:
                break
            if pattern.match(path):
                return place
        return before


@lru_cache(maxsize=16)
def _pattern_places(patterns: tuple[str, ...]) -> _PatternPlaces:
    return _PatternPlaces(patterns)


def is_all_linear(targets: object) -> bool:
    """Whether `target_modules` is the shorthand, in any case."""
    return isinstance(targets, str) and targets.lower() == ALL_LINEAR


def all_linear(architecture: Architecture, task_type: str | None) -> list[str]:
    """Paths that `target_modules="all-linear"` means: linear layers, without the output embedding or a classifier head."""
    excluded = {architecture.output_embeddings}
    if architecture.output_embeddings is None and task_type == "SEQ_CLS":
        existing = {*architecture.by_path, *architecture.containers}
        excluded.add(next((name for name in _SEQUENCE_CLASSIFIER_HEADS if name in existing), None))
    return [
        module.path
        for module in architecture.registered
        if module.kind in (ModuleKind.LINEAR, ModuleKind.CONV1D) and module.path not in excluded
    ]


class Matcher:
    """Decides for each module path whether a resolved config targets it.

    Args:
        config: with `target_modules` as a list of names or a regular expression.
        modules_to_save: names that no adapter may touch.
    """

    def __init__(self, config: Mapping[str, Any], modules_to_save: Iterable[str] | None) -> None:
        targets = config.get("target_modules")
        excluded = config.get("exclude_modules")
        self._pattern = compile_pattern("peft.target_modules", targets) if isinstance(targets, str) else None
        self._names = frozenset(targets or ()) if not isinstance(targets, str) else frozenset()
        self._excluded_pattern = (
            compile_pattern("peft.exclude_modules", excluded) if isinstance(excluded, str) else None
        )
        self._excluded = frozenset(excluded or ()) if not isinstance(excluded, str) else frozenset()
        self._saved = [
            compile_pattern("peft.modules_to_save", rf"(^|.*\.){name}($|\..*)") for name in modules_to_save or ()
        ]
        indexes = config.get("layers_to_transform")
        self._indexes = (
            None if indexes is None or indexes == [] else {indexes} if isinstance(indexes, int) else set(indexes)
        )
        layers_pattern = config.get("layers_pattern") or []
        patterns = [layers_pattern] if isinstance(layers_pattern, str) else layers_pattern
        self._layer_patterns = [
            compile_pattern("peft.layers_pattern", rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.") for pattern in patterns
        ] or [_LAYER_INDEX]

    def excludes(self, path: str) -> bool:
        """Whether `exclude_modules` or `modules_to_save` keep the adapter off."""
        if self._excluded_pattern is not None and self._excluded_pattern.fullmatch(path):
            return True
        return ends_with_name(path, self._excluded) or any(pattern.match(path) for pattern in self._saved)

    def targets(self, path: str) -> bool:
        """Whether the adapter goes on the module at `path`."""
        if self.excludes(path):
            return False
        if self._pattern is not None:
            return self._pattern.fullmatch(path) is not None
        if path in self._names:
            return True
        if not ends_with_name(path, self._names):
            return False
        return self._indexes is None or self.layer_index(path) in self._indexes

    def layer_index(self, path: str) -> int | None:
        """The number of the layer that a path lies in, as PEFT reads it off; None where it finds none."""
        for pattern in self._layer_patterns:
            match = pattern.match(path)
            if match is not None:
                return int(match.group("idx"))
        return None


def no_layer(config: Mapping[str, Any], architecture: Architecture) -> InvalidValueError | None:
    """The error for `layers_to_transform` where modules of these names exist, in other layers only; None otherwise."""
    without = {key: value for key, value in config.items() if key not in ("layers_to_transform", "layers_pattern")}
    chosen = config.get("layers_to_transform")
    if chosen is None or chosen == []:
        return None
    matcher, whole = Matcher(config, ()), Matcher(without, ())
    named = [path for path in module_paths(architecture) if whole.targets(path)]
    if not named or any(matcher.targets(path) for path in named):
        return None
    layers = sorted({index for path in named if (index := matcher.layer_index(path)) is not None})
    if not layers:
        return InvalidValueError(
            "peft.layers_pattern", config.get("layers_pattern"), "no path of the target modules has it before a number"
        )
    return InvalidValueError(
        "peft.layers_to_transform", chosen, f"the target modules are in layers {layers[0]} to {layers[-1]}"
    )


def no_match(key: str, value: object, architecture: Architecture) -> InvalidValueError:
    """The error for names that match no module: what exists, and what was probably meant."""
    names = list(dict.fromkeys(module.name for module in architecture.modules if module.name))
    wanted = (
        [value] if isinstance(value, str) else [str(entry) for entry in value] if isinstance(value, Iterable) else []
    )
    near = list(dict.fromkeys(hit for name in wanted for hit in closest(name.rpartition(".")[2], names, limit=2)))
    hint = f"did you mean {', '.join(near[:4])}?\n" if near else ""
    shown = ", ".join(names[:24]) + (", ..." if len(names) > 24 else "")
    return InvalidValueError(
        key, value, f"no module of this {architecture.model_type} model matches", hint=f"{hint}its modules: {shown}"
    )
