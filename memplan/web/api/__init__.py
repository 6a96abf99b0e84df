"""The REST API under `/api/v1`."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

router = APIRouter()
health_router = APIRouter()


@health_router.get("/healthz", tags=["service"])
async def healthz() -> Response:
    """Whether the service answers."""
    return Response(b'{"status":"ok"}\n', media_type="application/json", headers={"Cache-Control": "no-store"})
