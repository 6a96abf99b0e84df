"""memplan's own records (`memplan measure`), in the shape in which everybody's are scored.

`records/measured/` holds one file a run; there is none until a GPU has run a suite.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from memplan.errors import MemplanError
from memplan.evidence.records import Hardware, Level, Measured, Record, RecordFile, Source
from memplan.measure.record import MeasuredRecord, read_directory
from memplan.resolve import resolve

MEASURED_DIRECTORY = Path(__file__).resolve().parent / "records" / "measured"

_QUANTITIES = {
    Level.ALLOCATED: "torch.cuda.max_memory_allocated over load and all steps",
    Level.RESERVED: "torch.cuda.max_memory_reserved over load and all steps",
    Level.DEVICE: "highest reserved plus what NVML counts for the process beyond it after the last step",
}


def measured_file(directory: Path = MEASURED_DIRECTORY) -> RecordFile | None:
    """Every record of `directory` as one source called `measured`; None where there are none.

    Raises:
        FileFormatError: a file that is no record, or was edited.
    """
    records = read_directory(directory)
    if not records:
        return None
    return RecordFile(
        schema_version=1,
        name="measured",
        title="Runs of memplan measure",
        quantities=_QUANTITIES,
        records=tuple(as_records(records)),
    )


def as_records(records: Iterable[MeasuredRecord]) -> Iterable[Record]:
    """Each run as a record of the common shape, with the limit of its allocator where it had one."""
    for entry in records:
        died = entry.outcome == "out_of_memory"
        method, model = _method_and_model(entry)
        yield Record(
            id=f"measured/{entry.file_name.removesuffix('.json')}",
            source=Source(repo="memplan", path=f"evidence/records/measured/{entry.file_name}"),
            method=method,
            model=model,
            recipe=entry.recipe,
            measured=Measured()
            if died
            else Measured(
                allocated_bytes=entry.max_allocated_bytes,
                reserved_bytes=entry.max_reserved_bytes,
                device_bytes=entry.max_device_bytes,
            ),
            capacity_bytes=entry.capacity_bytes,
            hardware=Hardware(name=entry.environment.get("gpu", "")),
            versions={key: entry.environment[key] for key in ("torch", "transformers") if key in entry.environment},
            parameters=entry.parameters,
            outcome=entry.outcome,
            confidence="high",
            date=entry.date,
            group=entry.cell,
            note="; ".join(entry.notes),
        )


def _method_and_model(entry: MeasuredRecord) -> tuple[str, str]:
    model = entry.recipe.get("model")
    name = model if isinstance(model, str) else str((model or {}).get("model_type", ""))
    try:
        from memplan.recipe import Recipe

        return resolve(Recipe(**entry.recipe)).method, name
    except MemplanError:
        return str(entry.recipe.get("method", "full")), name


__all__ = ["MEASURED_DIRECTORY", "as_records", "measured_file"]
