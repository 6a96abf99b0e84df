"""The report of a reading: the recipe, and what became of every key of the files."""

from __future__ import annotations

from typing import Any

from memplan.interop.reading import Reading
from memplan.report.tree import Block, Bullets, Column, Facts, Headline, Paragraph, Report, Table
from memplan.report.wording import counted, value_text


def reading_report(reading: Reading) -> Report:
    """What was read."""
    names = ", ".join(dict.fromkeys(entry.file for entry in reading.used))
    blocks: list[Block] = [Headline("Read", f"{names or 'nothing'} as {reading.format}")]
    blocks.append(Facts(tuple((key, value_text(value)) for key, value in reading.keys.items()), "Recipe"))
    if reading.unsupported:
        blocks.append(Bullets("Not covered: no answer about this run is `fits`", reading.unsupported, "unsure"))
    if reading.open_length:
        blocks.append(Bullets("To be given", (reading.open_length,), "unsure"))
    if reading.unknown_memory_like:
        blocks.append(Bullets("Unknown, and sounds like memory", reading.unknown_memory_like, "unsure"))
    if reading.used:
        rows = tuple((entry.key, value_text(entry.value), entry.recipe_key, entry.place) for entry in reading.used)
        columns = (Column("key"), Column("value", fit="wrap"), Column("became"), Column("where", fit="wrap"))
        blocks.append(Table(columns, rows, title="Used"))
    if reading.defaults:
        default_rows = tuple(
            (entry.key, value_text(entry.value), f"{entry.framework} {entry.version_range}", entry.source)
            for entry in reading.defaults
        )
        default_columns = (Column("key"), Column("value"), Column("of"), Column("source", fit="wrap"))
        blocks.append(Table(default_columns, default_rows, title="Defaults"))
    if reading.ignored:
        count = counted(len(reading.ignored), "key")
        blocks.append(Paragraph(f"{count} without any bearing on memory: {', '.join(reading.ignored)}."))
    return Report(tuple(blocks))


def reading_json(reading: Reading) -> dict[str, Any]:
    """The same as JSON values."""
    return {
        "schema_version": 1,
        "format": reading.format,
        "recipe": dict(reading.keys),
        "used": [
            {"key": e.key, "recipe_key": e.recipe_key, "value": e.value, "file": e.file, "line": e.line}
            for e in reading.used
        ],
        "defaults": [
            {
                "key": e.key,
                "recipe_key": e.recipe_key,
                "value": e.value,
                "framework": e.framework,
                "versions": e.version_range,
                "source": e.source,
            }
            for e in reading.defaults
        ],
        "ignored": list(reading.ignored),
        "unknown_memory_like": list(reading.unknown_memory_like),
        "unsupported": list(reading.unsupported),
        "open_length": reading.open_length,
    }
