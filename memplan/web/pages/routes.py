"""The page at `/`, its fragments, and the pages that hold a fragment for those without scripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter
from markupsafe import Markup
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from memplan.cards import card_ids
from memplan.catalog.gpus import get_gpu
from memplan.errors import MemplanError
from memplan.report.wording import model_name
from memplan.web.answers import Answers
from memplan.web.pages import tasks
from memplan.web.pages.examples import EXAMPLES
from memplan.web.pages.fields import fill
from memplan.web.pages.keys import Mistake, Query, query_of, read_query
from memplan.web.pages.mistakes import NO_MODEL, mistake_of, needed, shown, wrong_names
from memplan.web.pages.responding import page, root_of
from memplan.web.problems import Problem, ProblemError
from memplan.web.settings import Settings
from memplan.web.tasks import Answer

router = APIRouter(include_in_schema=False, default_response_class=Response)

_WORDS = {"fits": "Fits", "uncertain": "Uncertain", "does_not_fit": "Does not fit"}
FRAGMENTS: Mapping[str, Callable[..., Answer]] = {
    "changes": tasks.changes_html,
    "gpus": tasks.gpus_html,
    "methods": tasks.methods_html,
}
_PAGES = {
    "/changes": ("What would fit", tasks.changes_html),
    "/on-every-gpu": ("On every GPU", tasks.gpus_html),
    "/with-every-method": ("With every method", tasks.methods_html),
    "/receipt": ("Every byte at the peak", tasks.receipt_html),
}


@router.get("/")
async def home(request: Request) -> Response:
    """The form, and the answer where a model is named."""
    raw = request.scope["query_string"]
    query = read_query(raw)
    if not query.mistakes and not _submitted_without_model(raw, query):
        canonical = query_of(query.keys)
        if parse_qsl(raw.decode("ascii"), keep_blank_values=True) != parse_qsl(canonical):
            return RedirectResponse(f"{root_of(request)}/" + (f"?{canonical}" if canonical else ""), 303)
    answer, mistakes = await _answered(request, raw, query)
    status = 422 if mistakes else 200
    return page(request, "home.html", status, **_form(query, mistakes, answer))


@router.get("/fragments/answer")
async def answer_fragment(request: Request) -> Response:
    """The answer alone; 422 with what has to change first."""
    raw = request.scope["query_string"]
    query = read_query(raw)
    answer, mistakes = await _answered(request, raw, query)
    return page(request, "answer_box.html", 422 if mistakes else 200, **_box(query, mistakes, answer))


@router.get("/fragments/{name}")
async def later_fragment(request: Request, name: str) -> Response:
    """A section that the page loads when it is looked at."""
    if name not in FRAGMENTS:
        raise ProblemError(Problem(404, "not_found", "there is nothing at this address"))
    try:
        body = await _computed(request, FRAGMENTS[name], _checked(request))
    except ProblemError as error:
        return page(request, "fragment_failed.html", error.problem.status, problem=error.problem)
    return Response(body, media_type="text/html")


async def fragment_page(request: Request) -> Response:
    """A section of the answer as a page of its own."""
    title, function = _PAGES[request.scope["route"].path]
    query = _checked(request)
    body = await _computed(request, function, query)
    return page(request, "fragment_page.html", title=title, body=Markup(body), query=query_of(query.keys))


for _path in _PAGES:
    router.add_api_route(_path, fragment_page, methods=["GET"])


@router.post("/read")
async def read(request: Request) -> Response:
    """Put a pasted or uploaded config into the address."""
    settings: Settings = request.app.state.settings
    name = "the text"
    try:
        async with request.form(max_files=1, max_fields=4, max_part_size=settings.max_upload_bytes) as form:
            state, text, file = str(form.get("state") or ""), form.get("text"), form.get("file")
            if isinstance(file, UploadFile) and file.size:
                name = (file.filename or "the file")[:80]
                text = (await file.read()).decode("utf-8", "replace")
    except HTTPException as error:
        raise ProblemError(Problem(400, "invalid_body", str(error.detail))) from None
    query = read_query(state.encode("ascii", "replace"))
    pasted = text.strip() if isinstance(text, str) else ""
    if not pasted:
        return _unread(request, query, "paste a config, or choose a file", "")
    try:
        answers: Answers = request.app.state.answers
        kept = await answers.get(tasks.read_upload, pasted, name, state, settings.max_query_bytes)
    except ProblemError as error:
        said = error.problem
        return _unread(request, query, f"{said.message}. {said.hint}".rstrip(". ") + ".", pasted)
    return RedirectResponse(f"{root_of(request)}/?{kept.answer.body.decode()}", 303)


def _unread(request: Request, query: Query, message: str, pasted: str) -> Response:
    shown_text = pasted if len(pasted) <= 20_000 else ""
    title = "This config cannot be read · memplan"
    context = _form(query, (), None) | {
        "title": title, "paste_open": True, "paste_error": message, "pasted": shown_text,
    }  # fmt: skip
    return page(request, "home.html", 422, **context)


def _checked(request: Request) -> Query:
    """The query of an address that has no form to say what is wrong.

    Raises:
        ProblemError: something is.
    """
    query = read_query(request.scope["query_string"])
    mistakes = query.mistakes or ((NO_MODEL,) if "model" not in query.keys else ())
    if mistakes:
        first = mistakes[0]
        raise ProblemError(Problem(422, "invalid_value", first.message, first.hint, first.key))
    return query


async def _answered(request: Request, raw: bytes, query: Query) -> tuple[Answer | None, tuple[Mistake, ...]]:
    mistakes = (*query.mistakes, *wrong_names(query))
    if mistakes:
        return None, mistakes
    if "model" not in query.keys:
        return None, (NO_MODEL,) if _submitted_without_model(raw, query) else ()
    try:
        answers: Answers = request.app.state.answers
        kept = await answers.get(tasks.answer_html, query_of(query.keys), root_of(request))
    except ProblemError as error:
        if error.problem.status >= 500:
            raise
        return None, (mistake_of(error.problem),)
    return kept.answer, ()


async def _computed(request: Request, function: Callable[..., Answer], query: Query) -> str:
    """A section; dozens of estimates, which the answers of others do not wait for."""
    answers: Answers = request.app.state.answers
    kept = await answers.get(function, query_of(query.keys), root_of(request), slow=True)
    return kept.answer.body.decode()


def _submitted_without_model(raw: bytes, query: Query) -> bool:
    """Whether the form was sent with its first input empty; a link that names a GPU alone is no mistake."""
    return "model" not in query.keys and any(part.partition(b"=")[0] == b"model" for part in raw.split(b"&"))


def _box(query: Query, mistakes: tuple[Mistake, ...], answer: Answer | None) -> dict[str, Any]:
    """What stands beside the form: what has to change first, the answer, or examples."""
    return {
        "title": _title(query, mistakes, answer),
        "word": _WORDS.get(answer.fits, "Needs") if answer is not None else "",
        "needed": needed(len(mistakes)),
        "mistakes": shown(mistakes, query),
        "query": query_of(query.keys),
        "answer": Markup(answer.body.decode()) if answer is not None else "",
        "examples": EXAMPLES,
    }


def _form(query: Query, mistakes: tuple[Mistake, ...], answer: Answer | None) -> dict[str, Any]:
    """The form and what stands beside it."""
    box = _box(query, mistakes, answer)
    return box | {
        "form": fill(_texts(query), box["mistakes"]),
        "models": card_ids(),
        "paste_open": False,
        "paste_error": "",
        "pasted": "",
    }


def _texts(query: Query) -> dict[str, str]:
    """What the inputs hold: the user's text, and where it names an entry of a select, the entry's value."""
    texts = dict(query.texts)
    if "gpu" in texts:
        with suppress(MemplanError):
            texts["gpu"] = get_gpu(texts["gpu"]).id
    return texts


def _title(query: Query, mistakes: tuple[Mistake, ...], answer: Answer | None) -> str:
    """Of the page; a script that puts another answer into it takes its title, too."""
    if mistakes:
        return f"{needed(len(mistakes))} to change first · memplan"
    if answer is None:
        return "memplan: will this training run fit?"
    word = _WORDS.get(answer.fits, "Needs")
    parts = (model_name(query.keys), query.keys.get("method"), query.keys.get("gpu"))
    return f"{word}: {', '.join(str(part) for part in parts if part)} · memplan"
