"""Computing beside the event loop: a few processes, a bounded queue, and an end to every wait.

    answer = await app.state.work.run(function, *args)

`function` is a module-level function and everything in `args` and in the answer can be pickled. Deliberate errors arrive as
`ProblemError`. A job that takes too long ends with its process, and a new process takes its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from memplan.web.problems import Problem, ProblemError
from memplan.web.settings import Settings
from memplan.web.worker import HEAD_BYTES, READY, Bug, Reply, frame, frame_length

log = logging.getLogger("memplan.web")

Answer = TypeVar("Answer")

# A process starts in a fifth of a second, where nothing else wants the machine.
START_SECONDS = 20.0
# A process sees off its child in milliseconds.
END_SECONDS = 1.0

_RETRY = (("Retry-After", "1"),)
OVERLOADED = Problem(503, "overloaded", "too many requests wait for an answer", "try again in a moment", headers=_RETRY)
TIMEOUT = Problem(
    503,
    "timeout",
    "this answer takes longer than the service allows",
    "the limit guards a shared service: run `memplan` on your own machine for this recipe",
    headers=(("Retry-After", "60"),),
)


def checks_timeout(seconds: float) -> Problem:
    """`TIMEOUT` of a request of many checks."""
    return replace(
        TIMEOUT,
        message=f"these checks take longer than the {seconds:g} s that this service gives to one request",
        hint="send fewer checks in one request; `memplan check` on your own machine has no limit",
        field="config",
    )


LOST = Problem(
    503,
    "out_of_resources",
    "the process that computed this answer ended",
    "most likely it needed more memory than the service allows: run `memplan` on your own machine for this recipe",
    headers=(("Retry-After", "60"),),
)


class WorkerBugError(Exception):
    """A bug met in a computing process; the message is its traceback."""


class _Worker:
    """One computing process and the parent's end of its socket."""

    def __init__(self, max_resident_bytes: int, *, forks: bool) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            code = f"from memplan.web.worker import main; main({theirs.fileno()}, {max_resident_bytes}, forks={forks})"
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
            # -P: nothing is imported from the directory that the service happens to be started in.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # a group of its own, children included
            )
        ours.setblocking(False)
        self.socket = ours
        self.forks = forks
        self.is_ready = False

    async def ready(self) -> None:
        """Wait until it takes jobs."""
        await self._read(asyncio.get_running_loop(), len(READY))
        self.is_ready = True

    async def ask(self, job: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self.socket, job)
        head = await self._read(loop, HEAD_BYTES)
        return bytes(await self._read(loop, frame_length(bytes(head))))

    async def _read(self, loop: asyncio.AbstractEventLoop, size: int) -> bytearray:
        data = bytearray(size)
        view, filled = memoryview(data), 0
        while filled < size:
            count = await loop.sock_recv_into(self.socket, view[filled:])
            if not count:
                raise EOFError
            filled += count
        return data

    def end(self) -> None:
        self.socket.close()
        if self.forks:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_SECONDS)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class _Lane:
    """Processes that take jobs from one queue, first come first served.

    Args:
        processes: how many.
        max_waiting: jobs that may wait.
        max_resident_bytes: a process that has grown beyond is replaced.
        forks: whether each job is done by a child of the process.
        idle_seconds: after so long without a job its processes end, and start again with the next; None keeps them.
    """

    def __init__(
        self,
        processes: int,
        max_waiting: int,
        max_resident_bytes: int,
        *,
        forks: bool = False,
        idle_seconds: float | None = None,
    ) -> None:
        self.processes = processes
        self.forks = forks
        self.max_resident_bytes = max_resident_bytes
        self.max_waiting = max_waiting
        self.idle_seconds = idle_seconds
        self.waiters: deque[asyncio.Future[_Worker]] = deque()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        self._exchanges: set[asyncio.Task[Any]] = set()
        self._end: asyncio.TimerHandle | None = None
        self._stopped = False

    def start(self) -> None:
        while len(self._all) < self.processes:
            worker = _Worker(self.max_resident_bytes, forks=self.forks)
            self._all.add(worker)
            self._give(worker)

    def stop(self, *, same_loop: bool) -> None:
        self._stopped = True
        if same_loop:
            for exchange in self._exchanges:
                exchange.cancel()
            self._keep()
        self._end_all()

    async def run(self, job: bytes, deadline: float) -> Any:
        loop = asyncio.get_running_loop()
        self._keep()
        self.start()
        worker = await self._take(loop, deadline)
        # Who waits may go away; the process is free again when it has answered, and not before.
        exchange = loop.create_task(self._exchange(worker, job, deadline))
        self._exchanges.add(exchange)
        exchange.add_done_callback(self._finish)
        return await asyncio.shield(exchange)

    async def _exchange(self, worker: _Worker, job: bytes, deadline: float) -> Any:
        loop = asyncio.get_running_loop()
        try:
            if not worker.is_ready:
                began = loop.time()
                async with asyncio.timeout(START_SECONDS):
                    await worker.ready()
                deadline += loop.time() - began  # a job is not to blame for the start of its process
            async with asyncio.timeout_at(deadline):
                reply: Reply = pickle.loads(await worker.ask(job))
        except TimeoutError:
            self._replace(worker)
            return TIMEOUT
        except (EOFError, OSError):
            self._replace(worker)
            return LOST
        except BaseException:
            self._replace(worker)
            raise
        if reply.is_last:
            self._replace(worker)
        else:
            self._give(worker)
        return reply.value

    def _finish(self, exchange: asyncio.Task[Any]) -> None:
        self._exchanges.discard(exchange)
        if self.idle_seconds is not None and not self._exchanges and not self.waiters and not self._stopped:
            self._keep()
            self._end = asyncio.get_running_loop().call_later(self.idle_seconds, self._end_all)

    def _keep(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None

    def _end_all(self) -> None:
        self._idle.clear()
        while self._all:
            self._all.pop().end()

    async def _take(self, loop: asyncio.AbstractEventLoop, deadline: float) -> _Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.process.poll() is None:
                return worker
            self._replace(worker)  # ended by somebody else
        if len(self.waiters) >= self.max_waiting:
            raise ProblemError(OVERLOADED)
        waiter: asyncio.Future[_Worker] = loop.create_future()
        self.waiters.append(waiter)
        try:
            async with asyncio.timeout_at(deadline):
                return await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                self._give(waiter.result())
            else:
                with contextlib.suppress(ValueError):
                    self.waiters.remove(waiter)
            if isinstance(error, TimeoutError):
                raise ProblemError(OVERLOADED) from None
            raise

    def _give(self, worker: _Worker) -> None:
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(worker)
                return
        self._idle.append(worker)

    def _replace(self, worker: _Worker) -> None:
        self._all.discard(worker)
        worker.end()
        if not self._stopped:
            self.start()


class Work:
    """The computing processes of one service, in two lanes. Belongs to one event loop at a time.

    Estimates take milliseconds; a search over many recipes takes seconds and has a process of its own, so that estimates do
    not wait for it.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._make_lanes()

    def _make_lanes(self) -> None:
        limits = self.settings.max_waiting, self.settings.max_process_bytes
        self._lane = _Lane(self.settings.processes, *limits)
        self._slow_lane = _Lane(1, *limits, forks=True, idle_seconds=self.settings.slow_idle_seconds)

    def start(self) -> None:
        """Start the processes; `run` does it where nobody did."""
        self._loop = asyncio.get_running_loop()
        self._lane.start()

    def stop(self) -> None:
        """End the processes."""
        same_loop = self._loop is asyncio.get_running_loop()
        self._loop = None
        for lane in (self._lane, self._slow_lane):
            lane.stop(same_loop=same_loop)
        self._make_lanes()

    @property
    def waiting(self) -> int:
        """Requests that wait for a process."""
        return len(self._lane.waiters) + len(self._slow_lane.waiters)

    async def run(
        self,
        function: Callable[..., Answer],
        /,
        *args: Any,
        slow: bool = False,
        timeout_seconds: float | None = None,
    ) -> Answer:
        """What `function(*args)` returns, computed in another process.

        Args:
            function: of a module, not nested.
            args: plain values.
            slow: whether it may take seconds; others do not wait for it then.
            timeout_seconds: for waiting and computing together; by default that of the settings.

        Raises:
            ProblemError: a deliberate error, or no answer in time.
            WorkerBugError: any other exception.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self.stop()
            self.start()
        lane = self._slow_lane if slow else self._lane
        usual = self.settings.slow_timeout_seconds if slow else self.settings.timeout_seconds
        deadline = loop.time() + (usual if timeout_seconds is None else timeout_seconds)
        answer: Answer = await lane.run(frame((function, args)), deadline)
        if isinstance(answer, Problem):
            if answer.status >= 500:
                log.warning("%s: %s", function.__name__, answer.message)
            raise ProblemError(answer)
        if isinstance(answer, Bug):
            raise WorkerBugError(answer.traceback)
        return answer
