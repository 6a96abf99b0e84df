"""What a worker process answers: a result as one line of JSON, or the error that stands in its place."""

from __future__ import annotations

import json
import traceback

from memplan.errors import MemplanError, UnavailableError

_TAIL_LINES = 12


def error_line(kind: str, code: str, message: str, hint: str) -> str:
    """The line of a worker that has no result; `kind` is `unavailable` or says that it failed."""
    return json.dumps({"error": {"kind": kind, "code": code, "message": message, "hint": hint}})


def innermost_frames(error: BaseException, count: int) -> str:
    """Where an error comes from, innermost first, without the path of the environment."""
    frames = traceback.extract_tb(error.__traceback__)[-count:]
    return " <- ".join(f"{frame.filename.split('site-packages/')[-1]}:{frame.lineno}" for frame in reversed(frames))


def result_line(
    stdout: str, returncode: int, stderr: str, failed: type[MemplanError], *, died: str, code: str | None = None
) -> str:
    """The result in a worker's output.

    Args:
        stdout: everything that the worker wrote; its last line is the answer.
        returncode: how it ended; negative for a signal.
        stderr: its end is the hint where there is no answer.
        failed: the error that stands for every refusal but a missing package.
        died: what to say where there is no answer.
        code: of that error.

    Raises:
        UnavailableError: the worker says that something is missing.
        MemplanError: of the class `failed`: it could not finish, or died.
    """
    line = stdout.rstrip("\n").rpartition("\n")[2]
    if line.startswith('{"error"'):
        error = json.loads(line)["error"]
        kind = UnavailableError if error["kind"] == "unavailable" else failed
        raise kind(error["message"], hint=error.get("hint", ""), code=error.get("code"))
    if line.startswith("{"):
        return line
    tail = "\n".join(stderr.strip().splitlines()[-_TAIL_LINES:])
    reason = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    raise failed(f"{died} ({reason})", hint=tail, code=code)
