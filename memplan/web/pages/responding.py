"""Templates as answers, static files, and errors as pages."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from memplan.web.caching import conditional
from memplan.web.errors import request_id_of, route_path
from memplan.web.pages.rendering import STATIC, render, static_digest
from memplan.web.problems import Problem

_ONE_YEAR = "public, max-age=31536000, immutable"


def root_of(request: Request) -> str:
    """Where a proxy mounts the service, without a slash at the end."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def page(request: Request, template: str, status: int = 200, /, **context: Any) -> Response:
    """A template as an answer."""
    html = render(template, root=root_of(request), here=route_path(request.scope), **context).encode()
    if status == 200 and request.method == "GET":
        return conditional(request, html, "text/html", 0)
    return Response(html, status, {"Cache-Control": "no-store"}, "text/html")


def error_page(request: Request, problem: Problem) -> Response:
    """An error for a human."""
    answer = page(request, "error.html", problem.status, problem=problem, request_id=request_id_of(request.scope))
    answer.headers.update(dict(problem.headers))
    return answer


class _Static(StaticFiles):
    """Files under addresses that hold their digest are kept by browsers for good."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        answer = await super().get_response(path, scope)
        version = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("v", [""])[0]
        is_exact = answer.status_code == 200 and version == static_digest(path)
        answer.headers["Cache-Control"] = _ONE_YEAR if is_exact else "no-cache"
        return answer


def static_files() -> StaticFiles:
    """The application that serves `memplan/web/static`."""
    return _Static(directory=STATIC)
