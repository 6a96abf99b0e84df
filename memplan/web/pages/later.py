"""A computing process of its own for the sections that a page loads after its answer.

A plan or a table of every method is dozens of estimates. In the process of the answers it would keep the next visitor
waiting, so there is another one, started by the first such section.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import FastAPI

from memplan.web.answers import Answers
from memplan.web.settings import Settings
from memplan.web.work import Work

# A first plan of a large model records dozens of steps.
TIMEOUT_SECONDS = 15.0


def add_later_work(app: FastAPI) -> None:
    """Give the application `state.later`, and end its process with the application."""
    settings: Settings = app.state.settings
    seconds = max(TIMEOUT_SECONDS, settings.timeout_seconds)
    work = Work(replace(settings, processes=1, timeout_seconds=seconds))
    app.state.later = Answers(work, settings.cache_bytes)
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[Any]:
        async with inner(application) as state:
            yield state
        work.stop()

    app.router.lifespan_context = lifespan
