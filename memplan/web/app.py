"""The application: layers, routes, and what they share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from memplan import __version__
from memplan.web import api, pages
from memplan.web.answers import Answers
from memplan.web.document import openapi_document
from memplan.web.edge import Edge
from memplan.web.errors import add_error_handlers
from memplan.web.limits import Limits, RateLimit
from memplan.web.metrics import Metrics
from memplan.web.settings import Settings
from memplan.web.work import Work


def create_app(settings: Settings | None = None) -> FastAPI:
    """The service as an ASGI application.

    Args:
        settings: limits and switches; the defaults are fit for a public address behind a proxy.
    """
    settings = settings or Settings()
    work = Work(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        work.start()
        yield
        work.stop()

    app = FastAPI(
        title="memplan",
        version=__version__,
        openapi_url=None,  # ours has an ETag
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.settings = settings
    app.state.work = work
    app.state.answers = Answers(work, settings.cache_bytes)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    metrics = app.state.metrics = Metrics(app.state.answers) if settings.metrics else None
    add_error_handlers(app)
    app.add_middleware(Limits, settings=settings)
    if settings.rate_limit is not None:
        app.add_middleware(RateLimit, per_minute=settings.rate_limit)
    app.add_middleware(Edge, observe=metrics.observe if metrics is not None else None)
    app.include_router(api.router)
    app.include_router(api.service_router)
    if metrics is not None:
        app.include_router(api.metrics_router)
    pages.mount(app)
    return app


def _document(app: FastAPI) -> dict[str, Any]:
    from memplan.web.components import components

    if app.openapi_schema is None:
        app.openapi_schema = openapi_document(app, components())
    return app.openapi_schema
