"""`memplan explain-oom`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from memplan.cli.estimate import JsonOption, MarkdownOption, check_formats
from memplan.cli.output import write_json, write_report
from memplan.errors import FileFormatError
from memplan.recipe import Recipe

MAX_BYTES = 16 * 2**20

LogArgument = Annotated[str, typer.Argument(metavar="FILE|-", help="A log with the traceback; - reads stdin.")]


def explain_oom(
    recipe: Recipe | None,
    log: LogArgument,
    *,
    as_json: JsonOption = False,
    markdown: MarkdownOption = False,
) -> int:
    """What a PyTorch out-of-memory error was: which tensor, fragmentation or true lack, and what to change.

    The tensor and the change need the recipe: --recipe FILE, or recipe options as for estimate.

    Exit code 0: explained. 2: the file holds no such error, or the recipe is wrong.
    """
    from memplan.oom import explain
    from memplan.report.oom import oom_json, oom_report

    check_formats(as_json, markdown)
    found = explain(_text(log), recipe)
    if as_json:
        write_json(oom_json(found))
    else:
        write_report(oom_report(found), markdown=markdown)
    return 0


def _text(log: str) -> str:
    try:
        data = sys.stdin.buffer.read() if log == "-" else Path(log).read_bytes()
    except OSError as error:
        raise FileFormatError(f"{log}: {error.strerror}") from None
    # The end of a log is where the run died.
    return data[-MAX_BYTES:].decode("utf-8", errors="replace")
