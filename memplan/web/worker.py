"""A computing process: takes jobs from its parent over a socket, one at a time, until the parent is gone.

Answers are computed apart from the process that speaks HTTP, so that whatever a recipe makes of the engine (a pattern that
backtracks for minutes, a config that fills the memory) can be ended by ending the process, which no thread allows.

A process for jobs of seconds forks a child for each: what a search over hundreds of recipes leaves in memory goes with it.

The socket is one of a pair that the parent made: nobody else can write to it. What a client sent travels through it as
plain bytes and text.
"""

from __future__ import annotations

import contextlib
import gc
import math
import mmap
import os
import pickle
import signal
import socket
import struct
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memplan.errors import MemplanError
from memplan.web.problems import ProblemError, problem_of

# Address space. An estimate needs well under a tenth of it beyond what the interpreter maps.
MAX_MEMORY_BYTES = 2 * 2**30
_LENGTH = struct.Struct("!Q")
_PAGE_BYTES = mmap.PAGESIZE


READY = b"\x06"


@dataclass(frozen=True, slots=True)
class Bug:
    """An exception that nobody raised on purpose."""

    traceback: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What a process sends back.

    Attributes:
        is_last: whether the process wants to be replaced.
    """

    value: Any
    is_last: bool


def frame(value: Any) -> bytes:
    """`value` as one message."""
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


def frame_length(head: bytes) -> int:
    """The number of bytes that follow the head of a message."""
    return int(_LENGTH.unpack(head)[0])


HEAD_BYTES = _LENGTH.size


def answer(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """What `function` returns, or the `Problem` or `Bug` that it ended with."""
    try:
        return function(*args)
    except ProblemError as error:
        return error.problem
    except MemplanError as error:
        return problem_of(error)
    except MemoryError:
        raise
    except Exception:
        return Bug(traceback.format_exc())


def serve(connection: socket.socket, max_resident_bytes: int, *, forks: bool = False) -> None:
    """Answer jobs until the other end is closed.

    Says first that it is there; and with an answer that it is the last, where the process has grown.

    Args:
        connection: to the parent.
        max_resident_bytes: beyond, the process wants to be replaced.
        forks: whether each job is done by a child.
    """
    connection.sendall(READY)
    with connection.makefile("rb") as stream:
        while len(head := stream.read(HEAD_BYTES)) == HEAD_BYTES:
            job = stream.read(frame_length(head))
            if forks:
                _in_child(connection, job)
            else:
                _reply(connection, job, max_resident_bytes)


def _reply(connection: socket.socket, job: bytes, max_resident_bytes: float) -> None:
    function, args = pickle.loads(job)
    value = answer(function, args)
    connection.sendall(frame(Reply(value, is_last=resident_bytes() > max_resident_bytes)))


def _in_child(connection: socket.socket, job: bytes) -> None:
    """Reply from a child.

    Raises:
        SystemExit: the child died, and with it the reply: the parent sees that the connection ends.
    """
    global _child
    _child = child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with contextlib.suppress(BaseException):
            _reply(connection, job, math.inf)
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    _child = 0
    if status:
        raise SystemExit(1)


_child = 0


def _end_with_child(*_: object) -> None:
    """On SIGTERM: end the child and see it off, which nobody else would."""
    if _child:
        os.kill(_child, signal.SIGKILL)
        os.waitpid(_child, 0)
    os._exit(0)


def resident_bytes() -> int:
    """Memory of this process; 0 where the system does not say."""
    try:
        with Path("/proc/self/statm").open("rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def main(descriptor: int, max_resident_bytes: int, *, forks: bool = False) -> None:
    """Run as the child of `memplan.web.work`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end ends this process
    with contextlib.suppress(ImportError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    import memplan.engine  # noqa: F401  the first answer should not wait for it

    if forks:
        from memplan.web.tasks import preload

        signal.signal(signal.SIGTERM, _end_with_child)
        preload()
        gc.collect()
        gc.freeze()  # a collection in a child would copy every page that it looks at
    with socket.socket(fileno=descriptor) as connection, contextlib.suppress(ConnectionError):
        serve(connection, max_resident_bytes, forks=forks)
