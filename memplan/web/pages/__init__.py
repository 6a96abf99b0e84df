"""The HTML pages: a form whose address is its state, the answer, and what memplan knows.

Importing this imports no web framework: the computing processes take their jobs from modules below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI


def mount(app: FastAPI) -> None:
    """Add the pages, their static files and their way of showing errors to the application."""
    from memplan.web.pages.catalogue_routes import router as catalogue_router
    from memplan.web.pages.responding import error_page, static_files
    from memplan.web.pages.routes import router

    app.include_router(router)
    app.include_router(catalogue_router)
    app.mount("/static", static_files())
    app.state.error_page = error_page
