"""The HTML pages."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI

router = APIRouter()


def mount(app: FastAPI) -> None:
    """Add the pages and their static files to the application."""
    app.include_router(router)
