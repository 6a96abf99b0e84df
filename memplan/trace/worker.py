"""The process in which a trace runs: a spec as JSON on stdin, a result as one line of JSON on stdout.

`python -m memplan.trace.worker < spec.json`. Exit code 3 with `{"error": ...}` where the trace cannot be finished.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import Any

from memplan.errors import MemplanError, UnavailableError
from memplan.trace.shim import Shim
from memplan.trace.spec import TraceSpec


def main() -> int:
    """Runs one trace."""
    answer = os.dup(1)
    # Libraries print to stdout; only the answer may.
    os.dup2(2, 1)
    spec = TraceSpec.from_json(sys.stdin.read())
    try:
        line = trace(spec).to_json()
        code = 0
    except MemplanError as error:
        kind = "unavailable" if isinstance(error, UnavailableError) else "unsupported"
        code, line = 3, _error(kind, error.code, error.message, error.hint)
    except Exception as error:
        code, line = 3, _error("unsupported", "trace_failed", *_explain(error))
    with os.fdopen(answer, "w") as stream:
        stream.write(line + "\n")
    sys.stdout.flush()
    sys.stderr.flush()
    # Skips destructors of a process full of fake CUDA state.
    os._exit(code)


def trace(spec: TraceSpec) -> Any:
    """Traces in this process, which must not have imported torch yet."""
    started = time.perf_counter()
    shim = Shim()
    shim.prepare()
    import torch

    shim.activate(torch)
    from memplan.trace.session import trace_in_process

    imported = time.perf_counter()
    return trace_in_process(spec, shim_kind=shim.kind, import_seconds=imported - started)


def _error(kind: str, code: str, message: str, hint: str) -> str:
    return json.dumps({"error": {"kind": kind, "code": code, "message": message, "hint": hint}})


def _explain(error: Exception) -> tuple[str, str]:
    where = getattr(error, "memplan_where", "")
    message = f"{type(error).__name__}: {error}".strip()
    if where:
        message = f"the trace stopped at {where}: {message}"
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    hint = " <- ".join(f"{frame.filename.split('site-packages/')[-1]}:{frame.lineno}" for frame in reversed(frames))
    return message[:2000], hint


if __name__ == "__main__":
    raise SystemExit(main())
