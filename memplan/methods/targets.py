"""Which modules an adapter config targets, by PEFT's own matching rules.

Sources (PEFT 0.21.2): tuners/tuners_utils.py, check_target_module_exists and _maybe_include_all_linear_layers;
utils/other.py, match_target_against_key and get_pattern_key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from memplan.architecture import Architecture, ModuleKind
from memplan.errors import InvalidValueError, closest

ALL_LINEAR = "all-linear"

# Regular expressions come from users; nobody's target list is longer than this.
_MAX_PATTERN_LENGTH = 4096

_SEQUENCE_CLASSIFIER_HEADS = ("score", "classifier")  # peft/utils/constants.py, SEQ_CLS_HEAD_NAMES

_LAYER_INDEX = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")


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
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


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
        return self._indexes is None or self._layer_index(path) in self._indexes

    def _layer_index(self, path: str) -> int | None:
        for pattern in self._layer_patterns:
            match = pattern.match(path)
            if match is not None:
                return int(match.group("idx"))
        return None


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
