"""What a budget file says, checked key by key; every complaint has the file and the line.

schema = 1

[defaults]                       any key of a check but its name and its run
on_uncertain = "warn"

[[check]]
name = "sft-8b"
config = "configs/sft.yaml"      or recipe_file = "...", or recipe = { model = "...", ... }
override = { gpus = 1 }          recipe keys that replace what the file says
budget = "72 GiB"                what the run may take at `level`
gpu = "h100-sxm-80gb"            the card that it has to fit
level = "device"                 of the budget: allocated, reserved or device
headroom = "auto"                between expected and upper bound: auto, a size or a share
max_increase = "+5%"             against the base, at `level`
severity = "error"               or warn: reported, never failing
on_uncertain = "warn"            fail, warn or pass
message = "..."                  shown where the check is not within its limits
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from memplan.budget.quantity import Amount, parse_amount, parse_increase, parse_size
from memplan.budget.table import Table
from memplan.documents import Document
from memplan.errors import InputError, UnknownNameError
from memplan.units import MIB

SCHEMA = 1
MAX_CHECKS = 500
MAX_NAME = 100
MAX_MESSAGE = 1000


class Level(StrEnum):
    """Which peak a budget is about."""

    ALLOCATED = "allocated"
    RESERVED = "reserved"
    DEVICE = "device"


class Severity(StrEnum):
    """Whether a check that is over its limits fails."""

    ERROR = "error"
    WARN = "warn"


class OnUncertain(StrEnum):
    """What becomes of a check whose answer is not certain."""

    FAIL = "fail"
    WARN = "warn"
    PASS = "pass"


RUN_KEYS = ("recipe", "recipe_file", "config")
SHARED_KEYS = (
    "override", "budget", "gpu", "level", "headroom", "max_increase", "severity", "on_uncertain", "message",
)  # fmt: skip
CHECK_KEYS = ("name", *RUN_KEYS, "format", "framework_version", *SHARED_KEYS)
TOP_KEYS = ("schema", "defaults", "check")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSpec:
    """One check.

    Attributes:
        place: file and line of the check.
        recipe: inline keys; None where files are named.
        files: the recipe file, or the config files of one run.
        format: of the file, where it is named; `recipe` for a `recipe_file`.
        override: recipe keys that replace what the files say.
        budget: as written; empty without one.
        headroom: None for auto.
        max_increase: None without one.
        places: file and line of each key, also of those from [defaults].
        is_default_gpu: whether `gpu` is from [defaults], which a recipe's own GPU precedes.
    """

    name: str
    place: str = ""
    recipe: Mapping[str, Any] | None = None
    files: tuple[str, ...] = ()
    format: str | None = None
    framework_version: str | None = None
    override: Mapping[str, Any] = field(default_factory=dict)
    budget: str = ""
    budget_bytes: int | None = None
    gpu: str | None = None
    is_default_gpu: bool = False
    level: Level = Level.DEVICE
    headroom: Amount | None = None
    max_increase: Amount | None = None
    severity: Severity = Severity.ERROR
    on_uncertain: OnUncertain = OnUncertain.WARN
    message: str = ""
    places: Mapping[str, str] = field(default_factory=dict)


def specs_of(document: Document, at: tuple[str, ...] = ()) -> tuple[CheckSpec, ...]:
    """The checks of a budget file.

    Args:
        document: the file.
        at: where in it the budgets stand, such as `("tool", "memplan")`.

    Raises:
        InputError: an unknown key, a value that cannot stand there, or a check without a name or a run; with file and line.
    """
    data = document.data
    for key in at:
        data = data[key]
    top = Table(document, at, data, TOP_KEYS, "the budget file")
    schema = top.data.get("schema")
    if schema is None:
        raise InputError(f"{document.name}: schema is missing", hint=f"the first line is: schema = {SCHEMA}")
    if isinstance(schema, bool) or schema != SCHEMA:
        raise top.wrong("schema", f"only {SCHEMA} is known to this version of memplan")
    defaults = Table(document, (*at, "defaults"), top.data.get("defaults", {}), SHARED_KEYS, "[defaults]")
    defaults.mapping("override")
    _limits(_Shared(defaults, defaults))  # also what every check says otherwise has to be right
    checks = top.data.get("check")
    if not isinstance(checks, list) or not checks:
        raise InputError(f"{document.name}: there is no [[check]]", hint='for example: [[check]] with name = "sft"')
    if len(checks) > MAX_CHECKS:
        raise InputError(f"{document.name}: {len(checks)} checks are more than {MAX_CHECKS}")
    found: list[CheckSpec] = []
    for index, entry in enumerate(checks):
        table = Table(document, (*at, "check", index), entry, CHECK_KEYS, "[[check]]")
        spec = _spec(table, defaults)
        twin = next((other for other in found if other.name == spec.name), None)
        if twin is not None:
            raise InputError(f"{table.place('name')}: the name {spec.name!r} is taken by the check at {twin.place}")
        found.append(spec)
    return tuple(found)


def _spec(table: Table, defaults: Table) -> CheckSpec:
    name = table.text("name", MAX_NAME)
    if name is None:
        raise InputError(f"{table.place()}: a [[check]] has no name", hint='for example: name = "sft"')
    recipe, files, file_format = _run(table, name)
    return CheckSpec(
        name=name,
        place=table.place(),
        recipe=recipe,
        files=files,
        format=file_format,
        framework_version=table.text("framework_version", MAX_NAME),
        override={**(defaults.mapping("override") or {}), **(table.mapping("override") or {})},
        is_default_gpu="gpu" in defaults.data and "gpu" not in table.data,
        **_limits(_Shared(table, defaults)),
        places={**{key: defaults.place(key) for key in defaults.data}, **{key: table.place(key) for key in table.data}},
    )


def _limits(found: _Shared) -> dict[str, Any]:
    """What a check says of limits and outcomes, by the attributes of `CheckSpec`."""
    budget = found.parsed("budget", lambda value, key: (parse_size(value, key, least_bytes=MIB), value.strip()))
    return {
        "budget": budget[1] if budget else "",
        "budget_bytes": budget[0] if budget else None,
        "gpu": found.table("gpu").text("gpu", MAX_NAME),
        "level": found.choice("level", Level, Level.DEVICE),
        "headroom": None if found.value("headroom") == "auto" else found.parsed("headroom", parse_amount),
        "max_increase": found.parsed("max_increase", parse_increase),
        "severity": found.choice("severity", Severity, Severity.ERROR),
        "on_uncertain": found.choice("on_uncertain", OnUncertain, OnUncertain.WARN),
        "message": found.table("message").text("message", MAX_MESSAGE, lines=True) or "",
    }


def _run(table: Table, name: str) -> tuple[Mapping[str, Any] | None, tuple[str, ...], str | None]:
    """Inline keys, files and their format."""
    runs = [key for key in RUN_KEYS if key in table.data]
    if len(runs) != 1:
        raise InputError(
            f"{table.place()}: the check {name!r} has {' and '.join(runs) or 'nothing'} to estimate",
            hint='give one of: recipe = {...}, recipe_file = "...", config = "..."',
        )
    key = runs[0]
    file_format = table.text("format", MAX_NAME)
    if key != "config" and file_format is not None:
        raise table.wrong("format", "it names the format of a config; a recipe has memplan's own")
    if key == "recipe":
        return table.mapping(key), (), None
    value = table.data[key]
    files = value if isinstance(value, list) and key == "config" else [value]
    if not files or not all(isinstance(file, str) and file.strip() and file.isprintable() for file in files):
        raise table.wrong(key, "the path of a file" + (", or a list of paths" if key == "config" else ""))
    if file_format is not None and len(files) > 1:
        raise table.wrong("format", "it names the format of one file; leave it out, formats are detected")
    return None, tuple(files), "recipe" if key == "recipe_file" else file_format


E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Shared:
    """Keys that a check takes from [defaults] where it does not say them."""

    check: Table
    defaults: Table

    def table(self, key: str) -> Table:
        return self.check if key in self.check.data else self.defaults

    def value(self, key: str) -> Any:
        return self.table(key).data.get(key)

    def parsed(self, key: str, parse: Callable[[Any, str], T]) -> T | None:
        if key not in self.table(key).data:
            return None
        try:
            return parse(self.value(key), key)
        except InputError as error:
            raise self.table(key).at(key, error) from None

    def choice(self, key: str, kind: type[E], default: E) -> E:
        if key not in self.table(key).data:
            return default
        value = self.value(key)
        if not isinstance(value, str) or value not in list(kind):
            raise self.table(key).at(key, UnknownNameError(key, str(value), list(kind)))
        return kind(value)
