"""`python -m memplan.measure HISTORY.json`: the trace of the same run beside it, allocation by allocation.

HISTORY.json is what `memplan measure RECIPE --history HISTORY.json` wrote. The trace runs under the versions installed
here: compare under the same ones as the measurement, which the file names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from memplan.errors import FileFormatError, MemplanError
from memplan.measure.history import compare_history, history_text
from memplan.measure.result import MeasureResult
from memplan.trace.runner import run
from memplan.trace.spec import TraceSpec


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m memplan.measure", description=__doc__)
    parser.add_argument("history", type=Path)
    options = parser.parse_args(argv)
    try:
        measured = _read(options.history)
        traced = run(TraceSpec.from_dict(measured.spec))
        sys.stdout.write(history_text(compare_history(measured, traced)))
    except MemplanError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    for package in ("torch", "transformers", "peft"):
        here, there = traced.versions.get(package), measured.environment.get(package)
        if here != there:
            sys.stderr.write(f"note: measured with {package} {there}, traced with {here}\n")
    return 0


def _read(path: Path) -> MeasureResult:
    try:
        return MeasureResult.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileFormatError(f"{path} is not a measured history: {error}") from None


if __name__ == "__main__":
    raise SystemExit(main())
