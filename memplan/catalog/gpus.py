"""The GPU catalog: what a card is sold with, and what a program can have of it.

The rows are `gpus.toml`, one a GPU, each with every reading behind its `usable_bytes`.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from memplan.errors import UnknownNameError
from memplan.units import GIB, MIB

_TABLE = Path(__file__).resolve().parent / "gpus.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, or several that report the same memory.

    Attributes:
        id: stable name in kebab-case, such as `rtx-4090`.
        name: what a human calls it.
        vendor: NVIDIA or AMD.
        architecture: the vendor's name of the generation.
        compute_capability: (major, minor); None for AMD.
        instruction_set: what kernels are compiled for, such as `sm_89` or `gfx942`.
        advertised_bytes: the number on the box, in units of 2**30 bytes.
        total_bytes: total of nvidia-smi (rocm-smi) under a current driver, part of which no program can use; None
            where it was not found.
        usable_bytes: the smallest total_memory that torch was seen to report; `fits` is judged on it.
        confidence: of usable_bytes: `high`, `medium` (recalled, or read where the GPU is not named), `low` (derived or
            estimated).
        aliases: other names that mean exactly this row, in kebab-case.
        sources: where each reading stands.
        note: what else a reader should know; may be empty.
        date: when the row was last looked at (ISO 8601).
    """

    id: str
    name: str
    vendor: Literal["NVIDIA", "AMD"]
    architecture: str
    compute_capability: tuple[int, int] | None
    instruction_set: str
    advertised_bytes: int
    total_bytes: int | None
    usable_bytes: int
    confidence: Literal["high", "medium", "low"]
    aliases: tuple[str, ...]
    sources: tuple[str, ...]
    note: str
    date: str


def get_gpu(name: str) -> Gpu:
    """The GPU that `name` names: an id, an alias, or the device name that torch reports.

    Case does not count, and blanks and underscores stand for hyphens (`RTX 4090` is `rtx-4090`); otherwise the match
    is exact.

    Raises:
        UnknownNameError: no such GPU; says which ids look like it.
    """
    gpu = _by_name().get(_folded(name))
    if gpu is None:
        raise UnknownNameError("GPU", name, (row.id for row in list_gpus()), show=60)
    return gpu


@lru_cache(maxsize=1)
def list_gpus() -> tuple[Gpu, ...]:
    """Every GPU of the catalog, in the order of the table (data centre first, newest first)."""
    with _TABLE.open("rb") as file:
        return tuple(_gpu(gpu_id, row) for gpu_id, row in tomllib.load(file).items())


def _gpu(gpu_id: str, row: dict[str, Any]) -> Gpu:
    capability = row.get("compute_capability")
    total_mib = row.get("total_mib")
    return Gpu(
        id=gpu_id,
        name=row["name"],
        vendor=row["vendor"],
        architecture=row["architecture"],
        compute_capability=(capability[0], capability[1]) if capability else None,
        instruction_set=f"sm_{capability[0]}{capability[1]}" if capability else row["instruction_set"],
        advertised_bytes=row["advertised_gb"] * GIB,
        total_bytes=None if total_mib is None else total_mib * MIB,
        usable_bytes=row["usable_bytes"],
        confidence=row["confidence"],
        aliases=tuple(row.get("aliases", ())),
        sources=tuple(row["sources"]),
        note=row.get("note", ""),
        date=row["date"],
    )


@lru_cache(maxsize=1)
def _by_name() -> dict[str, Gpu]:
    return {name: gpu for gpu in list_gpus() for name in (gpu.id, *gpu.aliases)}


def _folded(name: str) -> str:
    return "-".join(name.casefold().replace("_", " ").split())
