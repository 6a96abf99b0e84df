"""Budgets of memory, judged."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from memplan.web import tasks
from memplan.web.api.estimates import answered
from memplan.web.problems import ProblemError
from memplan.web.schemas import CHECK_EXAMPLES, ref, request_body, responses_of
from memplan.web.settings import Settings
from memplan.web.work import TIMEOUT, checks_timeout

router = APIRouter(prefix="/api/v1", tags=["answers"])


@router.post(
    "/check",
    operation_id="check",
    summary="Judge memory budgets",
    response_class=Response,
    responses=responses_of(
        "POST",
        ref("CheckReport"),
        "The report, as `memplan check --json` writes it. `exit_code` is what the command would exit with: 0 within, 1 over, "
        "2 wrong input, 3 uncertain, 4 a file was not sent.",
    ),
    openapi_extra=request_body(
        ref("CheckRequest"),
        CHECK_EXAMPLES,
        "A budget file as JSON, the texts of the files that it names, and the same of a state to compare with.",
    ),
)
async def check(request: Request) -> Response:
    """Which runs are within their budgets, which are over, uncertain or grew, and why; nothing but what is sent is read."""
    settings: Settings = request.app.state.settings
    try:
        return await answered(request, tasks.check_body, settings.max_checks, settings.max_explained, slow=True)
    except ProblemError as error:
        if error.problem is not TIMEOUT:
            raise
        raise ProblemError(checks_timeout(settings.slow_timeout_seconds)) from None
