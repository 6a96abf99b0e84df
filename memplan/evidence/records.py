"""Records of measured runs: the schema, and the files under `records/`, one a source.

A record is what somebody measured and published, with the run in recipe keys. Nothing in it is ever smoothed: what the
source leaves open is listed under `settled` with the value taken and the reason, and a record that cannot be scored says
why in `unusable`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from memplan.errors import FileFormatError, UnknownNameError
from memplan.recipe import Recipe

RECORDS_DIRECTORY = Path(__file__).resolve().parent / "records"
SCHEMA_VERSION = 1

Bytes = Annotated[int, Field(strict=True, gt=0)]


class Level(StrEnum):
    """Which of the estimate's levels a measured number is comparable with."""

    ALLOCATED = "allocated"
    RESERVED = "reserved"
    DEVICE = "device"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Model):
    """Where a number stands, for anybody to look it up.

    Attributes:
        repo: public repository (`owner/name`) or package.
        path: file in it.
        commit: of that file.
        where: row, cell or key in the file.
    """

    repo: str
    path: str = ""
    commit: str = ""
    where: str = ""


class Settled(_Model):
    """One thing that the source does not say, the value it was given, and why.

    Attributes:
        key: the recipe key, or in words what it concerns.
        value: what the recipe says; None where nothing had to be set.
        how: `stated` by the source's code or text, `identified` from the data as one of few discrete choices,
            `assumed` where neither decides.
        reason: why this value.
    """

    key: str
    value: Any
    how: Literal["stated", "identified", "assumed"]
    reason: str


class Measured(_Model):
    """Bytes of one GPU, by the level they are comparable with; the file says what exactly was read.

    Attributes:
        further: other readings of the same run, by name with the unit in it; never scored.
    """

    allocated_bytes: Bytes | None = None
    reserved_bytes: Bytes | None = None
    device_bytes: Bytes | None = None
    further: Mapping[str, int | float] = Field(default_factory=dict)

    def at(self, level: Level) -> int | None:
        """The bytes at `level`, or None where it was not read."""
        return {
            Level.ALLOCATED: self.allocated_bytes,
            Level.RESERVED: self.reserved_bytes,
            Level.DEVICE: self.device_bytes,
        }[level]


class Hardware(_Model):
    """The GPU as the source names it, and how many of them ran one model."""

    name: str
    count: int = 1


class Record(_Model):
    """One measured run.

    Attributes:
        recipe: recipe keys with everything that the source says and everything settled.
        settled: names of the file's `settled` entries that apply.
        outcome: `ok`, or `out_of_memory`, where the measured bytes are missing.
        capacity_bytes: limit that torch's allocator ran under (`set_per_process_memory_fraction`), or None.
        unusable: why the record cannot be scored; empty where it can.
        parameters: what the source counted, `total` and `trainable`, as far as it did.
        group: runs of one configuration share it.
    """

    id: str
    source: Source
    method: str
    model: str
    recipe: Mapping[str, Any]
    settled: tuple[str, ...] = ()
    measured: Measured
    hardware: Hardware
    versions: Mapping[str, str] = Field(default_factory=dict)
    parameters: Mapping[str, int] = Field(default_factory=dict)
    outcome: Literal["ok", "out_of_memory"] = "ok"
    capacity_bytes: Bytes | None = None
    confidence: Literal["high", "medium", "low"]
    date: str = ""
    group: str = ""
    note: str = ""
    unusable: str = ""

    @property
    def usable(self) -> bool:
        """Whether the record can be scored."""
        return not self.unusable

    def as_recipe(self) -> Recipe:
        """The recipe to predict.

        Raises:
            InputError: the keys are not a recipe; a committed record never raises.
        """
        return Recipe(**self.recipe)


class RecordFile(_Model):
    """All records of one source.

    Attributes:
        name: short name, which `memplan accuracy --source` takes.
        quantities: what was read at each level, exactly.
        settled: what the source leaves open, by a name that records refer to.
    """

    schema_version: Literal[1]
    name: str
    title: str
    quantities: Mapping[Level, str]
    settled: Mapping[str, Settled] = Field(default_factory=dict)
    records: tuple[Record, ...]

    @model_validator(mode="after")
    def _check(self) -> RecordFile:
        ids = [record.id for record in self.records]
        if len(set(ids)) != len(ids):
            raise ValueError("two records share an id")
        for record in self.records:
            missing = [name for name in record.settled if name not in self.settled]
            if missing:
                raise ValueError(f"{record.id} refers to {missing[0]!r}, which the file does not settle")
            for name in record.settled:
                entry = self.settled[name]
                if entry.value is not None and record.usable and record.recipe.get(entry.key) != entry.value:
                    raise ValueError(f"{record.id}: recipe key {entry.key} is not what {name!r} settles")
            for level in Level:
                if record.measured.at(level) is not None and level not in self.quantities:
                    raise ValueError(f"{record.id}: the file does not say what was read as {level}")
            if record.outcome == "ok" and record.usable and not any(record.measured.at(level) for level in Level):
                raise ValueError(f"{record.id} holds no measured bytes")
        return self


def read_records(path: Path) -> RecordFile:
    """The records in `path`.

    Raises:
        FileFormatError: not JSON, or not the schema; names the first place.
    """
    try:
        return RecordFile.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise FileFormatError(f"{path.name}: line {error.lineno} column {error.colno}: {error.msg}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise FileFormatError(f"{path.name}: {place}: {first['msg']}") from None


@lru_cache(maxsize=1)
def record_files() -> tuple[RecordFile, ...]:
    """Every committed file of records, by name, and memplan's own where there are any."""
    from memplan.evidence.measured import measured_file

    published = [read_records(path) for path in sorted(RECORDS_DIRECTORY.glob("*.json"))]
    own = measured_file()
    return tuple([*published, own] if own is not None else published)


def select_files(source: str | None = None) -> tuple[RecordFile, ...]:
    """The files of one source, or all.

    Raises:
        UnknownNameError: no such source.
    """
    files = record_files()
    if source is None:
        return files
    chosen = tuple(file for file in files if file.name == source)
    if not chosen:
        raise UnknownNameError("source", source, (file.name for file in files))
    return chosen


__all__ = [
    "Hardware",
    "Level",
    "Measured",
    "Record",
    "RecordFile",
    "Settled",
    "Source",
    "read_records",
    "record_files",
    "select_files",
]
