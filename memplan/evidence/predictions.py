"""What memplan says about a record, by the analytic estimate or by the trace.

Estimates are made anew, unless the committed ones are asked for: `estimated.json` holds what the engine says about every
record, so that a service answers at once, and a test holds it to the engine. A trace takes seconds, so that those of
committed records are kept in `traced.json`, by the recipe; `python -m memplan.evidence trace` runs what is missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from memplan.catalog.calibration import run_of
from memplan.engine import estimate
from memplan.errors import MemplanError
from memplan.estimate import Fits, VerdictReport
from memplan.evidence.records import Level, Record
from memplan.recipe import Recipe
from memplan.resolve import resolve
from memplan.trace.estimate import unseen
from memplan.verdict import judge, upper_reserved_bytes

EngineName = Literal["estimate", "trace"]
TRACED_FILE = Path(__file__).resolve().parent / "traced.json"
ESTIMATED_FILE = Path(__file__).resolve().parent / "estimated.json"


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one recipe.

    Attributes:
        bytes: by level; empty where the recipe is not covered.
        not_covered: why there is no number; empty where there is.
        fits: the verdict on the recipe's GPU, or None without a GPU.
        upper_bytes: the verdict's upper bound at device level.
        upper_reserved_bytes: the part of it that torch's allocator may reserve.
    """

    bytes: Mapping[Level, int]
    not_covered: str = ""
    fits: Fits | None = None
    upper_bytes: int | None = None
    upper_reserved_bytes: int | None = None


def predict(record: Record, engine: EngineName, *, committed: bool = False) -> Prediction:
    """What `engine` says about `record`'s recipe.

    Args:
        record: whose recipe is asked about.
        engine: which answer.
        committed: whether an estimate is taken from `estimated.json`, and never made.
    """
    key = recipe_key(record)
    if engine == "trace":
        return _traced(key)
    if not committed:
        return _estimated(key)
    return _committed().get(_digest(key)) or Prediction({}, "not estimated yet")


def recipe_key(record: Record) -> str:
    """The recipe as canonical JSON: equal for runs of one configuration."""
    return json.dumps(dict(record.recipe), sort_keys=True)


@lru_cache(maxsize=4096)
def _estimated(key: str) -> Prediction:
    try:
        answer = estimate(**json.loads(key))
    except MemplanError as error:
        return Prediction({}, error.message)
    if answer.unsupported:
        return Prediction({}, "; ".join(answer.unsupported))
    return _judged(
        {
            Level.ALLOCATED: answer.peak.allocated_bytes,
            Level.RESERVED: answer.peak.reserved_bytes,
            Level.DEVICE: answer.peak.device_bytes,
        },
        answer.verdict_report,
    )


def _judged(found: Mapping[Level, int], verdict: VerdictReport | None) -> Prediction:
    if verdict is None:
        return Prediction(found)
    inside = upper_reserved_bytes(verdict)
    return Prediction(found, fits=verdict.fits, upper_bytes=verdict.upper_bytes, upper_reserved_bytes=inside)


# -- committed estimates ----------------------------------------------------------------------------------


def estimated_text(records: Iterable[Record]) -> str:
    """What `estimated.json` must hold for the usable ones among `records`: one line a recipe, by its digest."""
    found = {_digest(recipe_key(record)): predict(record, "estimate") for record in records if record.usable}
    rows = [json.dumps({"recipe": digest, **_entry(found[digest])}) for digest in sorted(found)]
    return '{"answers": [\n' + ",\n".join(rows) + "\n]}\n"


def _entry(answer: Prediction) -> dict[str, Any]:
    if answer.not_covered:
        return {"not_covered": answer.not_covered}
    entry: dict[str, Any] = {f"{level}_bytes": size for level, size in answer.bytes.items()}
    if answer.fits is not None:
        entry |= {"fits": answer.fits, "upper_bytes": answer.upper_bytes}
        entry |= {"upper_reserved_bytes": answer.upper_reserved_bytes}
    return entry


@lru_cache(maxsize=1)
def _committed() -> dict[str, Prediction]:
    data = json.loads(ESTIMATED_FILE.read_text(encoding="utf-8"))
    return {
        entry["recipe"]: Prediction({}, entry["not_covered"])
        if "not_covered" in entry
        else Prediction(
            {level: entry[f"{level}_bytes"] for level in Level},
            fits=Fits(entry["fits"]) if "fits" in entry else None,
            upper_bytes=entry.get("upper_bytes"),
            upper_reserved_bytes=entry.get("upper_reserved_bytes"),
        )
        for entry in data["answers"]
    }


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]


# -- traces -----------------------------------------------------------------------------------------------


def traced_answers() -> dict[str, dict[str, Any]]:
    """The committed traces by recipe: bytes by level or the reason of a failure, and the versions."""
    found = _traced_file()["answers"]
    assert isinstance(found, dict)
    return found


@lru_cache(maxsize=1)
def _traced_file() -> dict[str, Any]:
    if not TRACED_FILE.exists():
        return {"answers": {}}
    data: dict[str, Any] = json.loads(TRACED_FILE.read_text(encoding="utf-8"))
    data["answers"] = {json.dumps(entry.pop("recipe"), sort_keys=True): entry for entry in data["answers"]}
    return data


def _traced(key: str) -> Prediction:
    entry = traced_answers().get(key)
    if entry is None:
        return Prediction({}, "not traced yet")
    if "failed" in entry:
        return Prediction({}, entry["failed"])
    recipe = json.loads(key)
    mismatch = _other_attention(recipe, entry["versions"]["torch"])
    if mismatch:
        return Prediction({}, mismatch)
    found = {level: entry[f"{level}_bytes"] for level in Level}
    resolved = resolve(Recipe(**recipe), described_only=False)
    if resolved.gpu is None:
        return Prediction(found)
    run = run_of(resolved.values, str(resolved.config["model_type"]))
    missed = bool(resolved.uncovered or unseen(resolved))
    return _judged(found, judge(resolved.gpu, found[Level.RESERVED], missed, run))


def _other_attention(recipe: Mapping[str, Any], traced_under: str) -> str:
    """Why a trace does not answer a recipe that names its torch: what sdpa does with grouped heads changed in 2.14."""
    wanted = recipe.get("torch_version")
    traced = ".".join(traced_under.split(".")[:2])
    if wanted is None or wanted == traced or recipe.get("attn_implementation") != "sdpa":
        return ""
    return f"the recipe runs sdpa of torch {wanted}, and the trace ran under {traced}"


__all__ = [
    "ESTIMATED_FILE",
    "TRACED_FILE",
    "EngineName",
    "Prediction",
    "estimated_text",
    "predict",
    "recipe_key",
    "traced_answers",
]
