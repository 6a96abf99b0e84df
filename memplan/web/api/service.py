"""The service itself: is it there, what does it offer, how busy is it."""

from __future__ import annotations

import copy
import json
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import Response

from memplan import __version__
from memplan.web import tasks
from memplan.web.api.requests import query_of
from memplan.web.caching import conditional
from memplan.web.document import add_samples, openapi_document
from memplan.web.metrics import MEDIA_TYPE, Metrics
from memplan.web.schemas import ref, responses_of
from memplan.web.settings import Settings

router = APIRouter(tags=["service"])
metrics_router = APIRouter(tags=["service"])


@router.get(
    "/healthz",
    operation_id="healthz",
    summary="Is it there?",
    response_class=Response,
    responses=responses_of("GET", ref("Health"), "It answers.", fresh=True),
)
async def healthz(request: Request) -> Response:
    """Whether the service answers. Computes nothing, so that it answers however busy the service is."""
    query_of(request)
    body = json.dumps({"status": "ok", "version": __version__}).encode() + b"\n"
    return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> Response:
    """The API, described."""
    query_of(request)
    app = request.app
    if not hasattr(app.state, "openapi_body"):
        document = await sampled_document_of(app)
        app.state.openapi_body = json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"
    return conditional(request, app.state.openapi_body, "application/json")


async def document_of(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of the application without samples, made once."""
    if app.openapi_schema is None:
        app.openapi_schema = openapi_document(app, await app.state.work.run(tasks.components))
    return app.openapi_schema


async def sampled_document_of(app: FastAPI) -> dict[str, Any]:
    """The same with a sample of every answer and of every error."""
    answers, problems = await app.state.work.run(tasks.samples, slow=True)
    document = copy.deepcopy(await document_of(app))
    counted: Metrics | None = app.state.metrics
    settings: Settings = app.state.settings
    add_samples(document, answers, problems, settings, counted.exposition().decode() if counted is not None else "")
    return document


@metrics_router.get(
    "/metrics",
    operation_id="metrics",
    summary="Count",
    response_class=Response,
    responses=responses_of(
        "GET", {"type": "string"}, "Counters in Prometheus' text format.", media_type="text/plain", fresh=True
    ),
)
async def metrics(request: Request) -> Response:
    """What the service did since it started. Only where it was started with `--metrics`."""
    query_of(request)
    counted: Metrics = request.app.state.metrics
    return Response(counted.exposition(), media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})
