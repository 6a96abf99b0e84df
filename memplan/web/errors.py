"""How every error of the service becomes the one envelope of `memplan.web.problems`."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from memplan.errors import MemplanError
from memplan.web.problems import Problem, ProblemError, problem_of


def request_id_of(scope: Scope) -> str:
    """The id that `memplan.web.edge` gave the request."""
    return str(scope.get("state", {}).get("request_id", ""))


def problem_response(scope: Scope, problem: Problem) -> Response:
    """The envelope as a response."""
    headers = {"Cache-Control": "no-store", **dict(problem.headers)}
    return Response(problem.body(request_id_of(scope)), problem.status, headers, "application/json")


async def send_problem(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer from a middleware."""
    await problem_response(scope, problem)(scope, receive, send)


_MESSAGES = {
    404: ("not_found", "there is nothing at this address", "see /api/docs for what there is"),
    405: ("method_not_allowed", "this address does not answer to this method", "the Allow header says which it takes"),
}


def problem_of_http(error: HTTPException) -> Problem:
    """What the router's own refusals are answered."""
    code, message, hint = _MESSAGES.get(
        error.status_code, ("http_error", str(error.detail) or HTTPStatus(error.status_code).phrase, "")
    )
    return Problem(error.status_code, code, message, hint, headers=tuple((error.headers or {}).items()))


INTERNAL = Problem(
    500, "internal_error", "memplan failed on this request", "this is a bug: please report it with the request_id"
)


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error in the envelope; pages may show it in their own way (`app.state.error_page`)."""

    def answer(request: Request, problem: Problem) -> Response:
        page = getattr(app.state, "error_page", None)
        if page is not None and not is_api(request.scope):
            response: Response = page(request, problem)
            return response
        return problem_response(request.scope, problem)

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, ProblemError)
        return answer(request, error.problem)

    async def on_memplan(request: Request, error: Exception) -> Response:
        assert isinstance(error, MemplanError)
        return answer(request, problem_of(error))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return answer(request, problem_of_http(error))

    app.add_exception_handler(ProblemError, on_problem)
    app.add_exception_handler(MemplanError, on_memplan)
    app.add_exception_handler(HTTPException, on_http)


def route_path(scope: Scope) -> str:
    """The path below where the service is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path[len(root) :] if root and (path == root or path.startswith(root + "/")) else path


def is_api(scope: Scope) -> bool:
    """Whether the address belongs to the API and its errors to programs."""
    path = route_path(scope)
    return (path.startswith("/api/") and path != "/api/docs") or path in ("/healthz", "/metrics", "/openapi.json")
