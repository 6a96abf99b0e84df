"""What memplan knows: models, GPUs, methods, optimizers, and how good its answers are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from memplan.web import tasks
from memplan.web.answers import Answers
from memplan.web.api.requests import query_of
from memplan.web.caching import conditional
from memplan.web.schemas import MODEL_EXAMPLE, listing, ref, responses_of

router = APIRouter(prefix="/api/v1", tags=["catalogue"])


async def _kept(request: Request, function: Callable[..., tasks.Answer], *args: str) -> Response:
    answers: Answers = request.app.state.answers
    kept = await answers.get(function, *args)
    return conditional(request, kept.answer.body, "application/json", etag=kept.etag)


@router.get(
    "/models",
    operation_id="models",
    summary="List models",
    response_class=Response,
    responses=responses_of("GET", listing("ModelEntry"), "Every model card, by id."),
)
async def models(request: Request) -> Response:
    """Checkpoints whose architecture memplan knows, with exact parameter counts."""
    query_of(request)
    return await _kept(request, tasks.models)


@router.get(
    "/models/{id:path}",
    operation_id="model",
    summary="Show a model",
    response_class=Response,
    responses=responses_of("GET", ref("Model"), "The card.", also=(404,)),
    openapi_extra={
        "parameters": [
            {
                "name": "id",
                "in": "path",
                "required": True,
                "description": "An id such as `mistralai/Mistral-7B-v0.1`, its slash as it is or as %2F; or a short name.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 200},
                "example": MODEL_EXAMPLE,
            }
        ]
    },
)
async def model(request: Request) -> Response:
    """One model card: its config, exact counts and where they come from, and what its weights take by storage."""
    query_of(request)
    return await _kept(request, tasks.model, request.path_params["id"])


@router.get(
    "/gpus",
    operation_id="gpus",
    summary="List GPUs",
    response_class=Response,
    responses=responses_of("GET", listing("Gpu"), "Every GPU."),
)
async def gpus(request: Request) -> Response:
    """GPUs: what is advertised, and what a program can have of it."""
    query_of(request)
    return await _kept(request, tasks.gpus)


@router.get(
    "/methods",
    operation_id="methods",
    summary="List methods",
    response_class=Response,
    responses=responses_of("GET", listing("Method"), "Every method."),
)
async def methods(request: Request) -> Response:
    """Fine-tuning methods."""
    query_of(request)
    return await _kept(request, tasks.methods)


@router.get(
    "/optimizers",
    operation_id="optimizers",
    summary="List optimizers",
    response_class=Response,
    responses=responses_of("GET", listing("Optimizer"), "Every optimizer."),
)
async def optimizers(request: Request) -> Response:
    """Optimizers by the names of transformers' `optim`, with the state that each keeps a parameter."""
    query_of(request)
    return await _kept(request, tasks.optimizers)


def _parameter(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


@router.get(
    "/accuracy",
    operation_id="accuracy",
    summary="Show the accuracy",
    response_class=Response,
    responses=responses_of("GET", ref("Accuracy"), "Summaries, and every scored record."),
    openapi_extra={
        "parameters": [
            _parameter("source", "A source of records; by default all.", {"type": "string", "minLength": 1}),
            _parameter(
                "by",
                "One summary for each of these.",
                {"enum": ["source", "method", "family", "gpu", "precision"], "type": "string"},
            ),
            _parameter("engine", "Which answer is scored.", {"enum": ["estimate", "trace", "both"], "type": "string"}),
        ]
    },
)
async def accuracy(request: Request) -> Response:
    """How far estimates are from measured runs, on the records that come with memplan."""
    query = query_of(request, ("source", "by", "engine"))
    names = (query.get(key, "") for key in ("source", "by", "engine"))
    return await _kept(request, tasks.accuracy, *names)
