"""`memplan serve` in a process of its own, on a free port of the loopback."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_READY = re.compile(r"memplan serves (http://\S+?)/ ")
_TIMEOUT_SECONDS = 60
# A service that waits for its answers however busy the machine is: for tests of what it answers, not of when.
PATIENT = """
from memplan.web.server import Settings, serve
serve(Settings(timeout_seconds=120, slow_timeout_seconds=120, batch_timeout_seconds=120), host="127.0.0.1", port=0)
"""


@dataclass
class Service:
    """A running service.

    Attributes:
        url: without a slash at the end.
        start_seconds: from the start of the process until it listened.
        log: the last lines on stderr.
    """

    process: subprocess.Popen[str]
    url: str = ""
    start_seconds: float = 0.0
    log: deque[str] = field(default_factory=lambda: deque(maxlen=2000))

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2].partition("/")[0])

    def processes(self) -> list[int]:
        """The service's process and all below it."""
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def rss_bytes(self) -> list[int]:
        """Resident memory of each of its processes; what they share is counted in each."""
        found = []
        for pid in self.processes():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                status = Path(f"/proc/{pid}/status").read_text()
                size = re.search(r"VmRSS:\s+(\d+) kB", status)  # one that has ended holds none
                found.append(int(size[1]) * 1024 if size else 0)
        return found

    def pss_bytes(self) -> list[int]:
        """Memory of each of its processes; what they share is counted once among them."""
        found = []
        for pid in self.processes():
            with contextlib.suppress(FileNotFoundError, PermissionError, ProcessLookupError):
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                size = re.search(r"^Pss:\s+(\d+) kB", rollup, re.M)
                found.append(int(size[1]) * 1024 if size else 0)
        return found

    def cpu_seconds(self) -> list[float]:
        """Processor time of each of its processes so far."""
        found = []
        for pid in self.processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found.append((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"))
        return found


@contextlib.contextmanager
def running_service(*options: str, patient: bool = False) -> Iterator[Service]:
    """A service; ended on the way out.

    Args:
        options: of `memplan serve`.
        patient: instead, a service without deadlines that a busy machine could miss.
    """
    started = time.perf_counter()
    usual = ["-m", "memplan", "serve", "--port", "0", *options]
    command = [sys.executable, *(["-c", PATIENT] if patient else usual)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    service = Service(process)
    ready = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            service.log.append(line)
            found = _READY.search(line)
            if found:
                service.url = found[1]
                service.start_seconds = time.perf_counter() - started
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        if not ready.wait(_TIMEOUT_SECONDS) or not service.url:
            raise RuntimeError("the service did not start:\n" + "".join(service.log))
        yield service
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(5)
        assert process.stderr is not None
        process.stderr.close()
