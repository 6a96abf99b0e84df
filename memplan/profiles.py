"""The user's own cards: what `memplan calibrate` measured on them, kept on this machine and used by its command line.

A profile holds the CUDA context of a process on that very card and how far runs on it exceeded their estimates. Nothing
here is in force until `use_local` is called, so that a service or a test never depends on the machine it runs on.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from memplan.catalog.calibration import LOCAL_ROWS, Row, RunKind
from memplan.catalog.cuda_context import LOCAL_CONTEXTS, ContextFact
from memplan.errors import FileFormatError
from memplan.local_data import profiles_directory


class ProfiledRun(BaseModel):
    """One cell that was measured, for the reader."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: str
    kind: RunKind
    family: str
    predicted_reserved_bytes: int
    measured_reserved_bytes: int


class Profile(BaseModel):
    """What was measured on one card.

    Attributes:
        gpu: the catalog's id.
        device: the name that torch reports.
        date: day of the measurement (ISO 8601).
        total_bytes: what torch sees of the card.
        context_bytes: device use beside torch's allocator, the largest of the runs; None where the driver was not read.
        rows: worked out from `runs`, as `memplan.catalog.calibration.Row`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    gpu: str
    device: str
    date: str
    driver: str = ""
    torch: str = ""
    total_bytes: int
    context_bytes: int | None
    runs: tuple[ProfiledRun, ...]
    rows: tuple[dict[str, Any], ...]

    def as_rows(self) -> tuple[Row, ...]:
        """The rows that verdicts use."""
        return tuple(
            Row(**{**row, "kind": RunKind(row["kind"]), "families": tuple(row["families"])}) for row in self.rows
        )


def write_profile(profile: Profile) -> Path:
    """Keep a profile, in the place of an older one of the same card."""
    path = profiles_directory() / f"{profile.gpu}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(profile.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return path


def read_profile(path: Path) -> Profile:
    """The profile in `path`.

    Raises:
        FileFormatError: not a profile.
    """
    try:
        profile = Profile.model_validate(json.loads(path.read_text(encoding="utf-8")))
        profile.as_rows()
    except (OSError, json.JSONDecodeError, ValidationError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FileFormatError(
            f"{path} is not a profile: {reason}",
            hint="delete it, or run memplan calibrate again",
            code="broken_profile",
        ) from None
    return profile


def use_local() -> list[Profile]:
    """Put every profile of this machine in force: contexts and margins of its cards.

    Raises:
        FileFormatError: a file that is no profile.
    """
    directory = profiles_directory()
    if not directory.is_dir():
        return []
    found = [read_profile(path) for path in sorted(directory.glob("*.json"))]
    for profile in found:
        use(profile)
    return found


def use(profile: Profile) -> None:
    """Put one profile in force."""
    LOCAL_ROWS[profile.gpu] = profile.as_rows()
    if profile.context_bytes is not None:
        LOCAL_CONTEXTS[profile.gpu] = ContextFact(
            expected_bytes=profile.context_bytes,
            low_bytes=profile.context_bytes,
            high_bytes=profile.context_bytes,
            source=f"memplan calibrate on this card, {profile.date}, driver {profile.driver}, torch {profile.torch}",
            certainty="exact",
            date=profile.date,
        )


def forget() -> None:
    """Put every profile out of force."""
    LOCAL_ROWS.clear()
    LOCAL_CONTEXTS.clear()


def row_values(row: Row) -> dict[str, Any]:
    """A row as plain JSON values."""
    return {**dataclasses.asdict(row), "kind": str(row.kind), "families": list(row.families)}
