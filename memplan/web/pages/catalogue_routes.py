"""The pages of what memplan knows."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from memplan.web.answers import Answers
from memplan.web.pages import tasks
from memplan.web.pages.responding import page, root_of
from memplan.web.tasks import Answer

router = APIRouter(include_in_schema=False, default_response_class=Response)


async def _known(request: Request, title: str, function: Callable[..., Answer], *args: str) -> Response:
    answers: Answers = request.app.state.answers
    kept = await answers.get(function, *args, root_of(request))
    return page(request, "known.html", title=title, body=Markup(kept.answer.body.decode()))


@router.get("/models")
async def models(request: Request) -> Response:
    """Every model card."""
    return await _known(request, "Models", tasks.models_html)


@router.get("/models/{card_id:path}")
async def model(request: Request, card_id: str) -> Response:
    """One model card."""
    return await _known(request, card_id, tasks.model_html, card_id)


@router.get("/gpus")
async def gpus(request: Request) -> Response:
    """Every GPU."""
    return await _known(request, "GPUs", tasks.gpu_catalogue_html)


@router.get("/methods")
async def methods(request: Request) -> Response:
    """Methods, precision policies and optimizers."""
    return await _known(request, "Methods", tasks.method_catalogue_html)


@router.get("/accuracy")
async def accuracy(request: Request) -> Response:
    """Predicted against measured."""
    return await _known(request, "Accuracy", tasks.accuracy_html)


@router.get("/accuracy/records")
async def records(request: Request) -> Response:
    """Every point of the plot as a row."""
    return await _known(request, "Every record", tasks.records_html)


@router.get("/about")
async def about(request: Request) -> Response:
    """How memplan counts."""
    return page(request, "about.html")
