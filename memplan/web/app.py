"""The application: layers, routes, and what they share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from memplan import __version__
from memplan.web import api, pages
from memplan.web.edge import Edge
from memplan.web.errors import add_error_handlers
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
        docs_url=None,
        redoc_url=None,
        root_path=settings.root_path,
        lifespan=lifespan,
    )
    app.state.settings = settings
    app.state.work = work
    add_error_handlers(app)
    app.add_middleware(Edge)
    app.include_router(api.router, prefix="/api/v1")
    app.include_router(api.health_router)
    pages.mount(app)
    return app
