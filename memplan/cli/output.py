"""Where answers go: JSON and reports to stdout, everything else to stderr; rich only where somebody looks."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from memplan.errors import MemplanError

if TYPE_CHECKING:
    from memplan.report import Report


_NARROWEST = 40


def write_json(value: Any) -> None:
    """`value` as JSON, alone on stdout."""
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    write_text(text + "\n")


def write_report(report: Report, *, markdown: bool = False) -> None:
    """A report: in colour on a terminal, as plain text where stdout is piped."""
    if markdown:
        from memplan.report.markdown import to_markdown

        write_text(to_markdown(report))
    elif is_terminal():
        from memplan.report.terminal import print_report

        print_report(report, sys.stdout)
    else:
        from memplan.report.plain import to_text

        write_text(to_text(report))


def write_text(text: str) -> None:
    """`text` on stdout. A reader that has gone, as in `memplan gpus | head`, is no error and changes no exit code."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_error(error: MemplanError) -> None:
    """What is wrong and what would be right, on stderr."""
    write_message(error.message, error.hint)


def write_message(message: str, hint: str = "", *, kind: str = "error") -> None:
    """`error: ...`, with the hint indented below it; broken at the width of a terminal."""
    lines = [f"{kind}: {message}", *(f"  {line}" for line in hint.splitlines())]
    if sys.stderr.isatty():
        width = max(shutil.get_terminal_size().columns, _NARROWEST)
        lines = [textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False) for line in lines]
    sys.stderr.write("".join(f"{line}\n" for line in lines))


def is_terminal() -> bool:
    """Whether stdout is a terminal that understands more than text."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
