"""The API's reference as a page of our own: made from the OpenAPI document, without scripts, from no other host."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from memplan.web.api.requests import query_of
from memplan.web.api.service import document_of
from memplan.web.codes import PATTERN, codes
from memplan.web.document import INTRODUCTION, limits_of
from memplan.web.pages.responding import page

router = APIRouter(include_in_schema=False)

_JSON = "application/json"
_PREFIX = "#/components/schemas/"


@dataclass(frozen=True, slots=True)
class Key:
    """One key of an object, or one parameter."""

    name: str
    kind: str
    text: str
    required: bool


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one address, as the page shows it.

    Attributes:
        shape: component that the body has; empty where there is no body.
        answer: what a good answer is, in words.
        curl: a command that works.
    """

    id: str
    method: str
    path: str
    summary: str
    text: str
    parameters: tuple[Key, ...]
    shape: str
    answer: str
    answer_type: str
    curl: str
    statuses: tuple[tuple[str, str], ...]


def operations_of(document: Mapping[str, Any], url: str) -> list[Operation]:
    """Every operation of an OpenAPI document.

    Args:
        document: of this service.
        url: where the service is, for the commands.
    """
    return [
        _operation(path, method.upper(), found, url)
        for path, methods in document["paths"].items()
        for method, found in methods.items()
    ]


def _operation(path: str, method: str, found: Mapping[str, Any], url: str) -> Operation:
    parameters = found.get("parameters", ())
    body = found.get("requestBody", {}).get("content", {}).get(_JSON, {})
    good = found["responses"]["200"]
    media_type, content = next(iter(good["content"].items()))
    address = path
    for one in parameters:
        address = address.replace("{" + one["name"] + "}", str(one.get("example", "")))
    command = f"curl -s {shlex.quote(url + address)}"
    if body:
        example = next(iter(body["examples"].values()))["value"]
        command += f" \\\n  -H 'Content-Type: {_JSON}' \\\n  -d {shlex.quote(json.dumps(example, indent=2))}"
    return Operation(
        id=found["operationId"],
        method=method,
        path=path,
        summary=found["summary"],
        text=found.get("description", ""),
        parameters=tuple(
            Key(one["name"], kind_of(one["schema"]), one.get("description", ""), one["required"]) for one in parameters
        ),
        shape=body.get("schema", {}).get("$ref", "").removeprefix(_PREFIX),
        answer=good["description"],
        answer_type=f"{media_type}, {kind_of(content['schema'])}",
        curl=command,
        statuses=tuple((status, one["description"]) for status, one in found["responses"].items() if status != "200"),
    )


def keys_of(schema: Mapping[str, Any]) -> Iterator[Key]:
    """The keys of an object's schema."""
    required = schema.get("required", ())
    for name, one in schema.get("properties", {}).items():
        yield Key(name, kind_of(one), one.get("description", ""), name in required)


def kind_of(schema: Mapping[str, Any]) -> str:
    """What may stand there, in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "enum" in schema:
        return " | ".join(json.dumps(one) for one in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return " or ".join(dict.fromkeys(kind_of(one) for one in schema[word] if one.get("type") != "null"))
    kind = schema.get("type", "any")
    if isinstance(kind, list):
        kind = " or ".join(one for one in kind if one != "null")
    if kind == "array":
        return f"list of {kind_of(schema.get('items', {}))}"
    limits = (
        schema.get("minimum", schema.get("exclusiveMinimum")),
        schema.get("maximum", schema.get("exclusiveMaximum")),
    )
    if limits[0] is not None and limits[1] is not None:
        return f"{kind} from {limits[0]:,} to {limits[1]:,}"
    return str(kind)


@router.get("/api/docs")
async def docs(request: Request) -> Response:
    """The reference."""
    query_of(request)
    document = await document_of(request.app)
    url = str(request.base_url).rstrip("/")
    schemas = document["components"]["schemas"]
    operations = operations_of(document, url)
    return page(
        request,
        "api_docs.html",
        intro=INTRODUCTION.strip().split("\n\n"),
        limits=limits_of(request.app.state.settings),
        operations=operations,
        statuses=sorted({pair for one in operations for pair in one.statuses}),
        codes=codes(),
        pattern=PATTERN.strip("^$"),
        shapes={name: list(keys_of(schema)) for name, schema in schemas.items() if schema.get("properties")},
    )
