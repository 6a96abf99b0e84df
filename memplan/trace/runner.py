"""Starts the worker process and reads its answer; the caller's process never imports torch for a trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from memplan.errors import MemplanError, UnavailableError, UnsupportedError
from memplan.trace.result import TraceResult
from memplan.trace.spec import TraceSpec


class TraceFailedError(UnsupportedError):
    """The trace could not be finished. The message names the op and the module; there are no partial numbers."""

    default_code = "trace_failed"


def run(spec: TraceSpec, *, timeout_s: float | None = None) -> TraceResult:
    """Traces `spec` in a process of its own.

    Raises:
        TraceFailedError: the model, the method or an op cannot be traced, or the worker died.
        UnavailableError: torch, transformers, peft or a working shim is missing.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
        "BITSANDBYTES_NOWELCOME": "1",
    }
    command = [sys.executable, "-m", "memplan.trace.worker"]
    try:
        process = subprocess.run(
            command,
            input=spec.to_json(),
            capture_output=True,
            text=True,
            env=environment,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TraceFailedError(f"the trace did not finish within {timeout_s:g} s") from None
    return read_answer(process.stdout, process.returncode, process.stderr)


def read_answer(stdout: str, returncode: int, stderr: str) -> TraceResult:
    """The result in a worker's output, or the error it stands for."""
    line = stdout.rstrip("\n").rpartition("\n")[2]
    if returncode == 0 and line.startswith("{"):
        return TraceResult.from_json(line)
    if line.startswith("{"):
        error = json.loads(line)["error"]
        kind: type[MemplanError] = UnavailableError if error["kind"] == "unavailable" else TraceFailedError
        raise kind(error["message"], hint=error.get("hint", ""), code=error.get("code"))
    tail = "\n".join(stderr.strip().splitlines()[-12:])
    reason = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    raise TraceFailedError(f"the tracer's worker died ({reason})", hint=tail)
