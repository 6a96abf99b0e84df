"""Computed answers, each computed once: kept ones are given again, and a question that is being answered is waited for.

Answers are the same bytes for the same question and version of memplan, so nothing ever has to be thrown away.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memplan.web.caching import Cache, etag_of
from memplan.web.problems import Problem, ProblemError
from memplan.web.tasks import Answer
from memplan.web.work import Work

_PROBLEM_BYTES = 1_000


@dataclass(slots=True)
class Kept:
    """An answer.

    Attributes:
        etag: of the answer; made when it is first asked for.
    """

    answer: Answer
    _etag: str = ""

    @property
    def etag(self) -> str:
        """`etag_of` the answer's bytes."""
        if not self._etag:
            self._etag = etag_of(self.answer.body)
        return self._etag


class Answers:
    """Answers of the computing processes, kept; and the problems that questions always have.

    Args:
        work: where they are computed.
        max_bytes: of the answers kept.
    """

    def __init__(self, work: Work, max_bytes: int) -> None:
        self.work = work
        self.cache: Cache[Kept | Problem] = Cache(max_bytes)
        self.hits = 0
        self._asked: dict[bytes, asyncio.Task[Kept | Problem]] = {}

    async def get(self, function: Callable[..., Answer], /, *args: Any, slow: bool = False) -> Kept:
        """What `function(*args)` answers, with its ETag.

        Args:
            function: of `memplan.web.tasks`.
            args: bytes, text and numbers.
            slow: whether it may take seconds; estimates do not wait for it then.

        Raises:
            ProblemError: the question is wrong, or there was no answer in time.
            WorkerBugError: a bug.
        """
        key = _key(function, args)
        kept = self.cache.get(key)
        if kept is not None:
            self.hits += 1
        else:
            kept = await self._asked_once(key, function, args, slow)
        if isinstance(kept, Problem):
            raise ProblemError(kept)
        return kept

    async def _asked_once(
        self, key: bytes, function: Callable[..., Answer], args: tuple[Any, ...], slow: bool
    ) -> Kept | Problem:
        task = self._asked.get(key)
        if task is None:
            task = asyncio.create_task(self._compute(key, function, args, slow))
            self._asked[key] = task
            task.add_done_callback(lambda done: self._finish(key, done))
        # One of those who wait may go away; the others still want the answer.
        return await asyncio.shield(task)

    def _finish(self, key: bytes, task: asyncio.Task[Kept | Problem]) -> None:
        del self._asked[key]
        if not task.cancelled():
            task.exception()  # seen, even where all who waited have gone

    async def _compute(
        self, key: bytes, function: Callable[..., Answer], args: tuple[Any, ...], slow: bool
    ) -> Kept | Problem:
        try:
            answer = await self.work.run(function, *args, slow=slow)
        except ProblemError as error:
            if error.problem.status >= 500:
                raise
            self.cache.put(key, error.problem, _PROBLEM_BYTES)
            return error.problem
        kept = Kept(answer)
        self.cache.put(key, kept, len(answer.body))
        return kept


def _key(function: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    digest = hashlib.sha256(function.__qualname__.encode())
    for argument in args:
        data = argument if isinstance(argument, bytes) else repr(argument).encode()
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.digest()
