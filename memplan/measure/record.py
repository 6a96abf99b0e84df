"""Committed records of measured runs: one JSON file a run, immutable, named after what it holds.

The file's name ends in the first digits of the SHA-256 of its own canonical content, so that an edited record is refused
when it is read. A run on the CPU is never a record.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memplan.errors import FileFormatError, InputError
from memplan.measure.result import MeasureResult

SCHEMA_VERSION = 1
_DIGITS = 12

Bytes = Annotated[int, Field(strict=True, ge=0)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Phase(_Model):
    """Counters of one phase, as `memplan.measure.result.PhaseReading` has them."""

    step: int
    phase: str
    peak_allocated_bytes: Bytes
    end_allocated_bytes: Bytes
    peak_reserved_bytes: Bytes
    end_reserved_bytes: Bytes
    peak_active_bytes: Bytes
    peak_requested_bytes: Bytes | None = None


class Predicted(_Model):
    """What the analytic engine had said when the run was made: for the reader, never for scoring."""

    allocated_bytes: Bytes
    reserved_bytes: Bytes
    upper_reserved_bytes: Bytes | None = None
    memplan: str = ""


class MeasuredRecord(_Model):
    """One measured run.

    Attributes:
        cell: name of the suite's cell, or of the recipe's file.
        suite: where the cell stands; empty for a run outside of a suite.
        recipe: recipe keys as they were given, the GPU included.
        capacity_bytes: limit on the allocator, or None.
        used_before_bytes, own_bytes, context_bytes: of the card, by the driver; see `DeviceReading`.
        death: where and how an out-of-memory run ended.
        repeat: number among repeats of the same cell.
        date: day of the run (ISO 8601).
    """

    schema_version: Literal[1] = 1
    cell: str
    suite: str = ""
    recipe: Mapping[str, Any]
    outcome: Literal["ok", "out_of_memory"]
    capacity_bytes: Bytes | None = None
    max_allocated_bytes: Bytes
    max_reserved_bytes: Bytes
    max_device_bytes: Bytes | None = None
    phases: tuple[Phase, ...]
    resident: Mapping[str, Bytes]
    parameters: Mapping[str, int]
    used_before_bytes: Bytes | None = None
    own_bytes: Bytes | None = None
    context_bytes: int | None = None
    torch_total_bytes: Bytes
    nvml_total_bytes: Bytes | None = None
    host_peak_bytes: Bytes
    paged_bytes: Bytes = 0
    death: Mapping[str, Any] | None = None
    environment: Mapping[str, str]
    statistics: Mapping[str, int] = Field(default_factory=dict)
    predicted: Predicted | None = None
    repeat: int = 0
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = Field(default_factory=dict)
    date: str

    def canonical(self) -> str:
        """The record as JSON with sorted keys: what is written, and what is hashed."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1, ensure_ascii=False) + "\n"

    @property
    def digest(self) -> str:
        """First hexadecimal digits of the SHA-256 of `canonical`."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:_DIGITS]

    @property
    def file_name(self) -> str:
        """`<cell>-<repeat>-<digest>.json`."""
        return f"{self.cell}-{self.repeat}-{self.digest}.json"


def make_record(
    result: MeasureResult,
    recipe: Mapping[str, Any],
    *,
    cell: str,
    suite: str = "",
    date: str,
    predicted: Predicted | None = None,
) -> MeasuredRecord:
    """The record of a finished or dead run on a GPU.

    Raises:
        InputError: the run was on the CPU, or holds no phase.
    """
    if result.options.device != "cuda" or "gpu" not in result.environment:
        raise InputError("only a run on a GPU is a record", hint="--device cpu is for testing", code="not_a_record")
    device = result.device
    return MeasuredRecord(
        cell=cell,
        suite=suite,
        recipe=dict(recipe),
        outcome=result.outcome,
        capacity_bytes=result.options.capacity_bytes,
        max_allocated_bytes=result.max_allocated_bytes,
        max_reserved_bytes=result.max_reserved_bytes or 0,
        max_device_bytes=result.max_device_bytes,
        phases=tuple(Phase(**{key: getattr(entry, key) for key in Phase.model_fields}) for entry in result.phases),
        resident=dict(result.resident),
        parameters=dict(result.parameters),
        used_before_bytes=device.used_before_bytes,
        own_bytes=device.own_bytes,
        context_bytes=device.context_bytes,
        torch_total_bytes=device.torch_total_bytes or 0,
        nvml_total_bytes=device.nvml_total_bytes,
        host_peak_bytes=result.host_peak_bytes,
        paged_bytes=result.paged_bytes,
        death=_death(result),
        environment=dict(result.environment),
        statistics=dict(result.statistics),
        predicted=predicted,
        repeat=result.options.repeat,
        notes=result.notes,
        seconds=dict(result.seconds),
        date=date,
    )


def _death(result: MeasureResult) -> dict[str, Any] | None:
    death = result.death
    if death is None:
        return None
    keys = ("where", "step", "phase", "message")
    return {**{key: getattr(death, key) for key in keys}, "frames": list(death.frames)}


def write_record(record: MeasuredRecord, directory: Path) -> Path:
    """Write one file; an equal one that is there stays as it is."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / record.file_name
    if not path.exists():
        path.write_text(record.canonical(), encoding="utf-8")
    return path


def read_record(path: Path) -> MeasuredRecord:
    """The record in `path`.

    Raises:
        FileFormatError: not a record, or one whose content is not what its name says.
    """
    record = parse_record(path.read_text(encoding="utf-8"), path.name)
    if path.name != record.file_name:
        raise FileFormatError(
            f"{path.name}: its content has the digest {record.digest}",
            hint="a record is never edited: restore the file, or measure again",
        )
    return record


def parse_record(text: str, name: str) -> MeasuredRecord:
    """The record in a text; `name` is for messages.

    Raises:
        FileFormatError: not a record.
    """
    try:
        return MeasuredRecord.model_validate(json.loads(text))
    except json.JSONDecodeError as error:
        raise FileFormatError(f"{name}: line {error.lineno} column {error.colno}: {error.msg}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the record"
        raise FileFormatError(f"{name}: {place}: {first['msg']}") from None


def read_directory(directory: Path) -> tuple[MeasuredRecord, ...]:
    """Every record in `directory`, by file name; none where there is no such directory."""
    return tuple(read_record(path) for path in sorted(directory.glob("*.json")))


# -- bundles: what comes back from a machine that gives few files back -------------------------------------


def append_to_bundle(record: MeasuredRecord, bundle: Path) -> None:
    """One more line of a JSONL bundle, flushed, so that a killed run keeps what it has."""
    with bundle.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record.model_dump(mode="json"), sort_keys=True, ensure_ascii=False) + "\n")


def read_bundle(bundle: Path) -> Iterator[MeasuredRecord]:
    """The records of a bundle; a last line that was cut off is left out.

    Raises:
        FileFormatError: no such file, or another line that is no record.
    """
    try:
        lines = bundle.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise FileFormatError(f"{bundle}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield parse_record(line, f"{bundle.name}:{number}")
        except FileFormatError:
            if number == len(lines):  # no line break behind it: the run was killed while it wrote
                return
            raise


def unpack(bundle: Path, directory: Path) -> list[Path]:
    """Write every record of `bundle` as a file of its own.

    Raises:
        FileFormatError: the bundle is broken.
    """
    return [write_record(record, directory) for record in read_bundle(bundle)]


def recorded_cells(records: Iterable[MeasuredRecord]) -> set[tuple[str, int]]:
    """(cell, repeat) of what is already measured."""
    return {(record.cell, record.repeat) for record in records}
