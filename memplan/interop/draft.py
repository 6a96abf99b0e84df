"""How a file is read: a `Source` that keys are taken out of, and a `Draft` that recipe keys are put into.

What no reader took is sorted into harmless and memory-like when the file is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memplan.documents import line_of
from memplan.errors import FileFormatError, InputError
from memplan.interop.defaults import framework_default
from memplan.interop.names import is_memory_like, is_off, nearest
from memplan.interop.reading import DefaultUsed, Reading, UsedKey
from memplan.recipe import Recipe

_MISSING = object()
_MOST_SUGGESTIONS = 20


class Source:
    """One mapping of a file, with typed access; remembers which keys were asked for.

    A key whose value is null counts as absent, as it does for every framework that memplan reads.
    """

    def __init__(self, name: str, data: Mapping[str, Any], lines: Mapping[tuple[str | int, ...], int]) -> None:
        self.name = name
        self.data = data
        self.lines = lines
        self.path: tuple[str, ...] = ()
        self.taken: set[str] = set()
        self.children: dict[str, Source] = {}

    def has(self, key: str) -> bool:
        """Whether the key is there and not null; does not take it."""
        return self.data.get(key) is not None

    def get(self, key: str) -> Any:
        """The value of the key, or None; takes it."""
        self.taken.add(key)
        return self.data.get(key)

    def take(self, *keys: str) -> None:
        """Mark keys as known, whatever they hold."""
        self.taken.update(keys)

    def take_all(self) -> None:
        """Mark every key of this mapping as known."""
        self.take(*map(str, self.data))

    def sub(self, key: str) -> Source:
        """The mapping below the key; empty where there is none.

        Raises:
            FileFormatError: the value is no mapping.
        """
        if key in self.children:
            return self.children[key]
        value = self.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise self.wrong(key, "a mapping")
        child = Source(self.name, value or {}, self.lines)
        child.path = (*self.path, key)
        self.children[key] = child
        return child

    def full(self, key: str) -> str:
        """The key with those around it: `zero_optimization.stage`."""
        return ".".join((*self.path, key))

    def line(self, key: str) -> int:
        """1-based line of the key, or of the nearest one around it; 0 where unknown."""
        return line_of(self.lines, (*self.path, key))

    def place(self, key: str) -> str:
        """`file:line`."""
        line = self.line(key)
        return f"{self.name}:{line}" if line else self.name

    def wrong(self, key: str, allowed: str) -> FileFormatError:
        """The error of a value that cannot stand there."""
        shown = repr(self.data.get(key))
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return FileFormatError(
            f"{self.place(key)}: {self.full(key)} = {shown} is not allowed: {allowed}", code="invalid_value"
        )

    def integer(self, key: str) -> int | None:
        """A whole number, also as `5e8` or as digits in quotes."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value) < 20:
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, "a whole number")
        return value

    def number(self, key: str) -> float | None:
        """A number, also in quotes: YAML reads `2e-4` as text."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                raise self.wrong(key, "a number") from None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number")
        return float(value)

    def flag(self, key: str) -> bool | None:
        """True or false, also in quotes."""
        value = self.get(key)
        if isinstance(value, str) and value.strip().lower() in ("true", "false"):
            return value.strip().lower() == "true"
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str) -> str | None:
        """A text."""
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def names(self, key: str) -> list[str] | str | None:
        """A text, or a list of texts."""
        value = self.get(key)
        if isinstance(value, tuple):
            value = list(value)
        if value is None or isinstance(value, str):
            return value
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a name or a list of names")
        return value


@dataclass
class Draft:
    """A recipe while files are being read.

    Attributes:
        versions: version of each framework whose defaults are asked for, where it was said.
    """

    versions: dict[str, str] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    used: list[UsedKey] = field(default_factory=list)
    defaults: dict[str, DefaultUsed] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unsupported: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    follows: dict[str, str] = field(default_factory=dict)
    _first: dict[str, UsedKey] = field(default_factory=dict)
    _noted: set[tuple[str, str, str]] = field(default_factory=set)

    def use(self, source: Source, key: str, recipe_key: str, value: Any = _MISSING) -> None:
        """Let `key` decide `recipe_key`; without `value` its own value is taken.

        Raises:
            InputError: another file decided it otherwise.
        """
        raw = source.get(key)
        value = raw if value is _MISSING else value
        if value is None or (recipe_key == "model" and isinstance(self.keys.get("model"), dict)):
            return
        before = self._first.get(recipe_key)
        if before is not None and self.keys.get(recipe_key, value) != value:
            raise InputError(
                f"{recipe_key} is said twice: {before.key} = {before.value!r} ({before.place}) and "
                f"{source.full(key)} = {raw!r} ({source.place(key)})",
                hint="the run can have only one of them: change one file",
            )
        self.keys[recipe_key] = value
        self.defaults = {name: entry for name, entry in self.defaults.items() if entry.recipe_key != recipe_key}
        self.note(source, key, recipe_key)

    def note(self, source: Source, key: str, recipe_key: str) -> None:
        """Record that `key` had a part in `recipe_key`."""
        if key not in source.data:  # what is wrong is that it is not there
            return
        raw = source.get(key)
        place = (source.name, source.full(key), recipe_key)
        if place not in self._noted:
            self._noted.add(place)
            self.used.append(UsedKey(source.full(key), recipe_key, raw, source.name, source.line(key)))
            self._first.setdefault(recipe_key, self.used[-1])

    def default(self, framework: str, key: str, recipe_key: str) -> Any:
        """The framework's default of `key`, recorded as having decided `recipe_key`; the caller stores it."""
        found = framework_default(framework, key, self.versions.get(framework))
        self.defaults[f"{framework}.{key}"] = DefaultUsed(
            key, recipe_key, found.value, framework, found.versions, found.source
        )
        return found.value

    def follow(self, recipe_key: str, leader: str) -> None:
        """Let the framework make `recipe_key` what `leader` is, which has a value already."""
        self.keys[recipe_key] = self.keys[leader]
        self.follows[recipe_key] = leader

    def use_or_default(self, source: Source, key: str, recipe_key: str, framework: str) -> Any:
        """The value of `key`, of the type that the framework's default has, or that default, as `recipe_key`."""
        if source.has(key):
            kind = type(framework_default(framework, key).value)
            readers = {bool: source.flag, int: source.integer, float: source.number, str: source.text}
            self.use(source, key, recipe_key, readers[kind](key))
        elif recipe_key not in self.keys:
            source.take(key)
            self.keys[recipe_key] = self.default(framework, key, recipe_key)
        return self.keys[recipe_key]

    def refuse(self, source: Source, key: str, text: str) -> None:
        """Report what `key` asks for as unsupported."""
        self.note(source, key, "unsupported")
        self.unsupported.append(f"{source.place(key)}: {text}")

    def refuse_all(self, source: Source, texts: Mapping[str, str], *off: str) -> None:
        """Report as unsupported what each key of `texts` asks for, unless it is absent, empty, false or a word of `off`."""
        for key, text in texts.items():
            if source.get(key) not in (None, False, "", [], {}, *off):
                self.refuse(source, key, text)

    def sort_rest(self, source: Source, harmless: frozenset[str]) -> None:
        """Sort the keys that no reader took, in this mapping and those entered below it."""
        for key, value in source.data.items():
            if not isinstance(key, str):
                raise FileFormatError(f"{source.name}: the key {key!r} is not text")
            if key in source.taken:
                continue
            if key in harmless or is_off(value) or not is_memory_like(key):
                self.ignored.append(source.full(key))
            else:
                meant = nearest(key, source.taken) if len(self.unknown) < _MOST_SUGGESTIONS else ""
                self.unknown.append(f"{source.place(key)}: {source.full(key)}{meant}")
        for child in source.children.values():
            self.sort_rest(child, harmless)

    def _open_length(self) -> str:
        if "sequence_length" in self.keys or not ("open_length" in self.facts or "loop" in self.facts):
            return ""
        why = self.facts.get("open_length", "no file says how long sequences are")
        return f"{why}: the longest one decides, give its sequence_length"

    def reading(self, formats: Sequence[str]) -> Reading:
        """What was read."""
        order = [*(key for key in Recipe.model_fields if key in self.keys), *self.keys]
        return Reading(
            keys={key: self.keys[key] for key in order},
            format=" + ".join(dict.fromkeys(formats)),
            used=tuple(self.used),
            defaults=tuple(self.defaults.values()),
            ignored=tuple(dict.fromkeys(self.ignored)),
            unknown_memory_like=tuple(dict.fromkeys(self.unknown)),
            unsupported=tuple(dict.fromkeys(self.unsupported)),
            open_length=self._open_length(),
            follows=dict(self.follows),
        )
