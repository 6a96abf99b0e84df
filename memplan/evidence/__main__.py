"""`python -m memplan.evidence` regenerates what is committed beside the records.

table                   ACCURACY.md, and estimated.json behind the page of the service
baseline                tightens baseline.json, which CI compares with
calibration             memplan/catalog/calibration.toml, the margins of verdicts
trace [--source NAME]   traces what has no answer yet
"""

from __future__ import annotations

import argparse
import sys

from memplan.errors import MemplanError
from memplan.evidence.accuracy import write_accuracy_page
from memplan.evidence.baseline import write_baseline
from memplan.evidence.calibration import write_calibration


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m memplan.evidence", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("table", help="regenerate ACCURACY.md and estimated.json")
    actions.add_parser("baseline", help="tighten baseline.json")
    actions.add_parser("calibration", help="regenerate the margins of verdicts")
    tracing = actions.add_parser("trace", help="trace the records' recipes (needs the trace extra)")
    tracing.add_argument("--source", help="only this source of records")
    tracing.add_argument("--again", action="store_true", help="also those that have an answer")
    options = parser.parse_args()
    if options.action == "table":
        write_accuracy_page()
        return 0
    if options.action == "baseline":
        write_baseline()
        return 0
    if options.action == "calibration":
        write_calibration()
        return 0
    from memplan.evidence.tracing import trace_records

    try:
        trace_records(
            options.source, again=options.again, progress=lambda line: print(line, file=sys.stderr, flush=True)
        )
    except MemplanError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
