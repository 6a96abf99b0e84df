"""Estimates, one or a batch of them, and plans."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from memplan.web import tasks
from memplan.web.answers import Answers
from memplan.web.api.requests import json_body_of
from memplan.web.errors import INTERNAL, request_id_of
from memplan.web.metrics import Metrics
from memplan.web.problems import Problem, ProblemError
from memplan.web.schemas import BATCH_EXAMPLES, PLAN_EXAMPLES, RECIPE_EXAMPLES, ref, request_body, responses_of
from memplan.web.settings import Settings
from memplan.web.work import TIMEOUT, WorkerBugError

log = logging.getLogger("memplan.web")
router = APIRouter(prefix="/api/v1", tags=["answers"])

_NO_STORE = {"Cache-Control": "no-store"}


@router.post(
    "/estimate",
    operation_id="estimate",
    summary="Estimate one run",
    response_class=Response,
    responses=responses_of(
        "POST", ref("Estimate"), "The estimate, byte for byte what `memplan estimate --json` writes."
    ),
    openapi_extra=request_body(
        ref("Recipe"),
        RECIPE_EXAMPLES,
        "A recipe: flat keys, the same as everywhere in memplan.",
    ),
)
async def estimate(request: Request) -> Response:
    """How much memory a run needs, where it goes and when; and whether it fits, where a GPU is named."""
    return await answered(request, tasks.estimate_body)


async def answered(
    request: Request, function: Callable[..., tasks.Answer], *limits: int, slow: bool = False
) -> Response:
    """What a function of `memplan.web.tasks` answers to the body of a POST, counted.

    Args:
        request: the request.
        function: takes the body, how deep its JSON may be, and `limits`.
        limits: more of the settings.
        slow: whether it may take seconds.
    """
    body = await json_body_of(request)
    settings: Settings = request.app.state.settings
    answers: Answers = request.app.state.answers
    answer = (await answers.get(function, body, settings.max_depth, *limits, slow=slow)).answer
    count(request, answer)
    return Response(answer.body, media_type="application/json", headers=_NO_STORE)


def count(request: Request, answer: tasks.Answer) -> None:
    """Count what an answer says, where anybody counts."""
    metrics: Metrics | None = request.app.state.metrics
    if metrics is not None:
        metrics.count(answer)


@router.post(
    "/plan",
    operation_id="plan",
    summary="Make a run fit",
    response_class=Response,
    responses=responses_of("POST", ref("Plan"), "The plan, byte for byte what `memplan plan --json` writes."),
    openapi_extra=request_body(
        ref("PlanRequest"),
        PLAN_EXAMPLES,
        "A recipe's flat keys, and beside them what the planner is told. It needs `gpu` or `budget_bytes`.",
    ),
)
async def plan(request: Request) -> Response:
    """What to change so that a run fits a GPU or a budget, least painful first; each change with its own full estimate."""
    return await answered(request, tasks.plan_body, slow=True)


@router.post(
    "/estimate/batch",
    operation_id="estimate_batch",
    summary="Estimate many runs",
    response_class=StreamingResponse,
    responses=responses_of(
        "POST",
        ref("BatchLine"),
        "One JSON object a line, in the order of the recipes, each sent as soon as it is known.",
        media_type="application/x-ndjson",
    ),
    openapi_extra=request_body(ref("BatchRequest"), BATCH_EXAMPLES, "Up to 1000 recipes."),
)
async def estimate_batch(request: Request) -> Response:
    """The estimates of up to 1000 recipes. A recipe that is wrong has an error on its line; the others are answered."""
    body = await json_body_of(request)
    settings: Settings = request.app.state.settings
    recipes = await request.app.state.work.run(tasks.batch_recipes, body, settings.max_depth, settings.max_batch)
    return StreamingResponse(_lines(request, recipes), media_type="application/x-ndjson", headers=_NO_STORE)


async def _lines(request: Request, recipes: list[bytes | Problem]) -> AsyncIterator[bytes]:
    settings: Settings = request.app.state.settings
    answers: Answers = request.app.state.answers
    request_id = request_id_of(request.scope)
    deadline = asyncio.get_running_loop().time() + settings.batch_timeout_seconds

    async def answer(recipe: bytes | Problem) -> tasks.Answer | Problem:
        if isinstance(recipe, Problem):
            return recipe
        if asyncio.get_running_loop().time() >= deadline:
            return TIMEOUT
        try:
            return (await answers.get(tasks.estimate_line, recipe)).answer
        except ProblemError as error:
            return error.problem
        except WorkerBugError:
            log.exception("bug in a batch, request %s", request_id)
            return INTERNAL

    def line(index: int, found: tasks.Answer | Problem) -> bytes:
        if isinstance(found, tasks.Answer):
            count(request, found)
            return tasks.batch_line(index, found)
        entry = {"index": index} | found.entry(request_id)
        return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    # As many at once as there are processes: other requests take their turns between the lines of a batch.
    ahead: deque[asyncio.Task[tasks.Answer | Problem]] = deque()
    sent = 0
    try:
        for recipe in recipes:
            ahead.append(asyncio.create_task(answer(recipe)))
            if len(ahead) >= settings.processes:
                yield line(sent, await ahead.popleft())
                sent += 1
        while ahead:
            yield line(sent, await ahead.popleft())
            sent += 1
    finally:
        for task in ahead:
            task.cancel()
