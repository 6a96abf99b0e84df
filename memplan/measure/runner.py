"""One process a cell, with a time limit; the next process is started ahead, so that its imports cost no GPU time."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from memplan.errors import UnsupportedError
from memplan.measure.result import MeasureOptions, MeasureResult
from memplan.trace.answer import result_line
from memplan.trace.spec import TraceSpec

DEFAULT_TIMEOUT_S = 180.0


class MeasureFailedError(UnsupportedError):
    """A cell that could not be measured: not buildable, killed, or out of time. Never a number."""

    default_code = "measure_failed"


class Runner:
    """Runs cells one after another; a context manager, so that a waiting process never outlives it."""

    def __init__(self, *, ahead: bool = False) -> None:
        self._ahead = ahead
        self._waiting: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process that waits."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.kill()
            waiting.communicate()

    def run(self, spec: TraceSpec, options: MeasureOptions, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> MeasureResult:
        """Measure `spec` in a process of its own.

        Raises:
            MeasureFailedError: it could not be built, it died, or its time was over.
            UnavailableError: no GPU, or a package is missing.
        """
        special = environment_of(spec)
        process = self._next(special)
        if self._ahead and not special:
            self._waiting = _start({})
        request = json.dumps({"spec": dataclasses.asdict(spec), "options": dataclasses.asdict(options)})
        try:
            out, err = process.communicate(request + "\n", timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise MeasureFailedError(
                f"the measurement did not finish within {timeout_s:g} s", code="measure_timeout"
            ) from None
        return read_answer(out, process.returncode, err)

    def _next(self, special: Mapping[str, str]) -> subprocess.Popen[str]:
        if special or self._waiting is None or self._waiting.poll() is not None:
            return _start(special)
        waiting, self._waiting = self._waiting, None
        return waiting


def environment_of(spec: TraceSpec) -> dict[str, str]:
    """Variables that must stand before torch is imported."""
    return {"PYTORCH_ALLOC_CONF": "expandable_segments:True"} if spec.expandable_segments else {}


def _start(special: Mapping[str, str]) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": "ignore",
        "TOKENIZERS_PARALLELISM": "false",
        **special,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "memplan.measure.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def read_answer(stdout: str, returncode: int, stderr: str) -> MeasureResult:
    """The result in a worker's output, or the error it stands for."""
    died = "the process of the measurement died"
    return MeasureResult.from_json(
        result_line(stdout, returncode, stderr, MeasureFailedError, died=died, code="measure_died")
    )
