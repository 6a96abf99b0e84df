"""Starts the worker process and reads its answer; the caller's process never imports torch for a trace."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from memplan.errors import MemplanError, UnsupportedError
from memplan.trace.answer import result_line
from memplan.trace.result import TraceResult
from memplan.trace.spec import TraceSpec

# Told how far a trace is: a fraction from 0 to 1, and what is running.
Progress = Callable[[float, str], None]
# What a line of progress on the worker's stderr begins with.
PROGRESS_MARK = "\x1eprogress "


class TraceFailedError(UnsupportedError):
    """The trace could not be finished. The message names the op and the module; there are no partial numbers."""

    default_code = "trace_failed"


def run(spec: TraceSpec, *, timeout_s: float | None = None, progress: Progress | None = None) -> TraceResult:
    """Traces `spec` in a process of its own; `progress` is told how far it is.

    Raises:
        TraceFailedError: the model, the method or an op cannot be traced, or the worker died.
        UnavailableError: torch, transformers, peft or a working shim is missing.
    """
    process = _start(spec.to_json(), timeout_s, progress)
    return read_answer(process.stdout, process.returncode, process.stderr)


def run_many(specs: Sequence[TraceSpec], *, timeout_s: float | None = None) -> list[TraceResult | MemplanError]:
    """Traces several specs in one worker, which imports torch once; a spec that fails gives its error.

    Raises:
        TraceFailedError: the worker died.
    """
    # Unsloth patches the libraries for good, and for the GPU that it finds.
    kinds = [(spec.stack == "unsloth", spec.gpu_arch if spec.stack == "unsloth" else None) for spec in specs]
    if len(set(kinds)) > 1:
        found: dict[int, TraceResult | MemplanError] = {}
        for kind in dict.fromkeys(kinds):
            places = [place for place, entry in enumerate(kinds) if entry == kind]
            found |= zip(places, run_many([specs[place] for place in places], timeout_s=timeout_s), strict=True)
        return [found[place] for place in range(len(specs))]
    request = "[" + ",".join(spec.to_json() for spec in specs) + "]"
    process = _start(request, timeout_s)
    lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
    if len(lines) != len(specs):
        return [read_answer("", process.returncode, process.stderr)]
    answers: list[TraceResult | MemplanError] = []
    for line in lines:
        try:
            answers.append(read_answer(line, 0, process.stderr))
        except MemplanError as error:
            answers.append(error)
    return answers


def _start(request: str, timeout_s: float | None, progress: Progress | None = None) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        # GPUs are hidden, so that a trace gives the same answer everywhere and takes no device memory.
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
        "BITSANDBYTES_NOWELCOME": "1",
    }
    command = [sys.executable, "-m", "memplan.trace.worker"]
    try:
        if progress is not None:
            return _followed(command, request, {**environment, "MEMPLAN_TRACE_PROGRESS": "1"}, timeout_s, progress)
        return subprocess.run(
            command, input=request, capture_output=True, text=True, env=environment, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise TraceFailedError(f"the trace did not finish within {timeout_s:g} s") from None


def _followed(
    command: list[str], request: str, environment: dict[str, str], timeout_s: float | None, progress: Progress
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run`, with the worker's lines of progress passed on while it runs."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
        assert stdin is not None
        assert stdout is not None
        assert stderr is not None
        told: list[str] = []
        answer: list[str] = []

        def follow() -> None:
            for line in stderr:
                if line.startswith(PROGRESS_MARK):
                    fraction, _, words = line.removeprefix(PROGRESS_MARK).strip().partition(" ")
                    progress(float(fraction), words)
                else:
                    told.append(line)

        threads = [
            threading.Thread(target=follow, daemon=True),
            threading.Thread(target=lambda: answer.append(stdout.read()), daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            stdin.write(request)
            stdin.close()
            process.wait(timeout_s)
        except BrokenPipeError:  # the worker died before it read; its exit code says more
            process.wait(timeout_s)
        except BaseException:
            process.kill()
            raise
        for thread in threads:
            thread.join()
        return subprocess.CompletedProcess(command, process.returncode, "".join(answer), "".join(told))


def read_answer(stdout: str, returncode: int, stderr: str) -> TraceResult:
    """The result in a worker's output, or the error it stands for."""
    line = result_line(stdout, returncode, stderr, TraceFailedError, died="the tracer's worker died")
    return TraceResult.from_json(line)
