"""The process in which a trace runs: a spec as JSON on stdin, a result as one line of JSON on stdout.

`python -m memplan.trace.worker < spec.json`. Exit code 3 with `{"error": ...}` where the trace cannot be finished.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time

from memplan.errors import MemplanError, UnavailableError
from memplan.trace import versions
from memplan.trace.answer import error_line, innermost_frames
from memplan.trace.result import TraceResult
from memplan.trace.shim import Shim
from memplan.trace.spec import TraceSpec


def main() -> int:
    """Runs one trace, or one after another for a JSON list of specs (one line of answer each)."""
    answer = os.dup(1)
    # Libraries print to stdout; only the answer may.
    os.dup2(2, 1)
    asked = json.loads(sys.stdin.read())
    specs = [TraceSpec.from_dict(entry) for entry in (asked if isinstance(asked, list) else [asked])]
    code = 0
    with os.fdopen(answer, "w") as stream:
        shim, started = Shim(), time.perf_counter()
        for spec in specs:
            line, failed = _answer(spec, shim, started)
            code = code or failed
            stream.write(line + "\n")
            stream.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    # Skips destructors of a process full of fake CUDA state.
    os._exit(code)


def _answer(spec: TraceSpec, shim: Shim, started: float) -> tuple[str, int]:
    try:
        return trace(spec, shim, started).to_json(), 0
    except MemplanError as error:
        kind = "unavailable" if isinstance(error, UnavailableError) else "unsupported"
        return error_line(kind, error.code, error.message, error.hint), 3
    except ImportError as error:
        if error.name is None or isinstance(error, ModuleNotFoundError):
            # A library asks for a package of its own choice, such as scikit-learn for AdaMSS.
            hint = f'pip install "{error.name.partition(".")[0]}"' if error.name else _pip_command(str(error))
            return error_line("unavailable", "missing_package", _explain(error)[0], hint), 3
        return error_line("unsupported", "trace_failed", *_explain(error)), 3
    except Exception as error:
        return error_line("unsupported", "trace_failed", *_explain(error)), 3


def trace(spec: TraceSpec, shim: Shim, started: float) -> TraceResult:
    """Traces in this process, which must not have imported torch before the first call."""
    versions.check(bitsandbytes=spec.load_in_4bit or spec.load_in_8bit or spec.has_loftq)
    if not shim.active:
        shim.prepare()
        import torch

        shim.activate(torch)
    from memplan.trace.session import trace_in_process

    return trace_in_process(spec, shim_kind=shim.kind, import_seconds=time.perf_counter() - started)


def _pip_command(message: str) -> str:
    """The command in a library's message, or one for the package that its first word names."""
    found = re.search(r"pip install [^`'\"\n]+", message)
    word = re.match(r"[`']?([A-Za-z0-9_.-]+)[`']? (?:is|must be|needs to be) ", message)
    package = f'pip install "{word.group(1)}"' if word else "install the package that the message names"
    return found.group().strip() if found else package


def _explain(error: Exception) -> tuple[str, str]:
    where = getattr(error, "memplan_where", "")
    message = f"{type(error).__name__}: {error}".strip()
    if where:
        message = f"the trace stopped at {where}: {message}"
    return message[:2000], innermost_frames(error, 4)


if __name__ == "__main__":
    raise SystemExit(main())
