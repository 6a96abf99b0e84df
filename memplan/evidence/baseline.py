"""What the records may not get worse than: medians, 95th percentiles and wrong verdicts, as they were when last accepted.

`baseline.json` is committed. `python -m memplan.evidence baseline` tightens it where the code has become better; making it
looser is an edit by hand, which a reviewer sees.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memplan.evidence.scoring import Scores, score, summaries

BASELINE_FILE = Path(__file__).resolve().parent / "baseline.json"
# Errors are kept as percent with four digits; a difference below the last digit is no change.
_DIGITS = 4
_SLACK_PERCENT = 10**-_DIGITS

Baseline = dict[str, Any]


def current(scores: Scores | None = None) -> Baseline:
    """The figures of the code as it is, by `source level engine`."""
    found = scores if scores is not None else score(engine="both")
    errors = {
        f"{row.source} {row.level} {row.engine}": {
            "records": row.records,
            "median_percent": round(100 * row.median, _DIGITS),
            "p95_percent": round(100 * row.p95, _DIGITS),
        }
        for row in summaries(found.scored)
    }
    return {"wrong_fits": found.wrong_fits, "errors": errors}


def committed() -> Baseline:
    """What `baseline.json` holds."""
    baseline: Baseline = json.loads(BASELINE_FILE.read_text(encoding="utf-8"))
    return baseline


def regressions(now: Baseline, before: Baseline) -> list[str]:
    """What got worse, in sentences: errors, fewer records scored, wrong verdicts, a group that is gone."""
    found = []
    if now["wrong_fits"] > before["wrong_fits"]:
        found.append(f"{now['wrong_fits']} wrong fits, {before['wrong_fits']} before")
    for key, old in before["errors"].items():
        new = now["errors"].get(key)
        if new is None:
            found.append(f"{key}: no record is scored any more, {old['records']} before")
            continue
        if new["records"] < old["records"]:
            found.append(f"{key}: {new['records']} records scored, {old['records']} before")
        # With more records than before, other runs stand behind the figures: they are compared where the runs are the same.
        if new["records"] == old["records"]:
            for name in ("median_percent", "p95_percent"):
                if new[name] > old[name] + _SLACK_PERCENT:
                    found.append(f"{key}: {name.replace('_percent', '')} {new[name]} %, {old[name]} % before")
    return found


def tightened(now: Baseline, before: Baseline) -> Baseline:
    """The better of both for every group; a group with more records than before starts anew."""
    errors = {}
    for key, new in now["errors"].items():
        old = before["errors"].get(key)
        if old is None or new["records"] > old["records"]:
            errors[key] = new
        else:
            errors[key] = {**old, **{name: min(old[name], new[name]) for name in ("median_percent", "p95_percent")}}
    kept = {key: old for key, old in before["errors"].items() if key not in errors}
    return {
        "wrong_fits": min(now["wrong_fits"], before["wrong_fits"]),
        "errors": dict(sorted({**kept, **errors}.items())),
    }


def write_baseline() -> Baseline:
    """Tighten the committed file; returns what it holds then."""
    now = current()
    found = tightened(now, committed()) if BASELINE_FILE.exists() else now
    BASELINE_FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


__all__ = ["BASELINE_FILE", "committed", "current", "regressions", "tightened", "write_baseline"]
