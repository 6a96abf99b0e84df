"""The OpenAPI document: shapes taken from the models that are served, examples that are run by the tests.

Answers are sent as ready-made bytes; a test holds that what is sent is what is written here.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from memplan.cards import ModelCard, card_ids
from memplan.catalog.gpus import Gpu, list_gpus
from memplan.cli.recipe_help import RECIPE_HELP
from memplan.estimate import Estimate
from memplan.methods import list_methods
from memplan.optimizers.catalog import optimizer_rows
from memplan.recipe import Recipe

_REF = "#/components/schemas/{model}"
Schema = dict[str, Any]

RECIPE_EXAMPLE: Schema = {
    "model": "mistralai/Mistral-7B-v0.1",
    "method": "qlora",
    "lora_r": 16,
    "micro_batch_size": 4,
    "sequence_length": 2048,
    "optim": "paged_adamw_8bit",
    "gpu": "rtx-4090",
}
INLINE_EXAMPLE: Schema = {
    "model": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    },
    "method": "lora",
    "peft": {"r": 8, "target_modules": ["q_proj", "v_proj"]},
    "dtype": "bfloat16",
    "gpu": "rtx-3090",
}
ERROR_EXAMPLE: Schema = {
    "error": {
        "code": "unknown_recipe_key",
        "message": "unknown recipe key 'bacth'",
        "hint": "did you mean micro_batch_size?",
        "field": "bacth",
        "request_id": "9f86d081884c7d65",
    }
}

DESCRIPTION = """How much GPU memory a training run needs, where it goes, and whether it fits.

Every size is an integer of bytes. An answer to the same request is the same bytes as long as the version stays the same.
Unknown keys, keys given twice, and numbers in quotes are refused: a mistake never becomes the answer to another question.
Every answer carries an `X-Request-ID`: the one sent, where it is 1 to 64 letters, digits, dots, dashes and underscores, or a
new one. Every error is one envelope, `{"error": {"code", "message", "hint"?, "field"?, "request_id"}}`; `code` is stable.
"""

_STATUS_TEXT = {
    304: "The client has these bytes already (`If-None-Match`).",
    400: "The body is not UTF-8, not strict JSON (a key twice, NaN, a number out of range, too deep), or cannot be read.",
    404: "There is nothing at this address.",
    405: "The address does not answer to this method; the Allow header says which it takes.",
    408: "The body took too long to arrive.",
    413: "The body is larger than allowed.",
    414: "The path or the query is longer than allowed.",
    415: "The body is not sent as application/json.",
    422: "The request is understood and wrong: `message` says what, `hint` what is allowed, `field` which key.",
    429: "Too many requests from this client; Retry-After says how many seconds to wait. Only where a rate limit is set.",
    500: "A bug in memplan.",
    503: "No answer in time, or too many requests wait; Retry-After says when to try again.",
}
_GET_STATUSES = (304, 405, 408, 413, 414, 422, 429, 500, 503)
_POST_STATUSES = (400, 405, 408, 413, 414, 415, 422, 429, 500, 503)

_REQUEST_ID_HEADER = {
    "X-Request-ID": {
        "description": "The id that the log has.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
        "required": True,
    }
}
_ETAG_HEADERS = {
    "ETag": {"description": "Of exactly these bytes.", "schema": {"type": "string"}, "required": True},
    "Cache-Control": {"description": "How long they may be kept.", "schema": {"type": "string"}, "required": True},
}
_RETRY_HEADER = {
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}, "required": True}
}


def ref(model: str) -> Schema:
    """A reference to a component."""
    return {"$ref": _REF.format(model=model)}


def listing(model: str) -> Schema:
    """An array of a component."""
    return {"type": "array", "items": ref(model)}


def responses_of(method: str, schema: Schema, description: str, *, example: Any = None, **more: Any) -> dict[Any, Any]:
    """The `responses` of an operation: its answer and every error that it can give.

    Args:
        method: GET answers have an ETag, POST answers do not.
        schema: of the answer.
        description: of the answer.
        example: of the answer.
        more: `media_type` where the answer is not JSON; `also`, further statuses; `fresh`, a GET that is never kept.
    """
    is_get = method == "GET"
    is_kept = is_get and not more.get("fresh")
    content: Schema = {"schema": schema} | ({"example": example} if example is not None else {})
    found: dict[Any, Any] = {
        200: {
            "description": description,
            "content": {more.get("media_type", "application/json"): content},
            "headers": _REQUEST_ID_HEADER | (_ETAG_HEADERS if is_kept else {}),
        }
    }
    for status in (*(_GET_STATUSES if is_get else _POST_STATUSES), *more.get("also", ())):
        if status != 304 or is_kept:
            found[status] = _problem(status)
    return dict(sorted(found.items()))


def _problem(status: int) -> Schema:
    headers = dict(_REQUEST_ID_HEADER)
    if status == 304:
        return {"description": _STATUS_TEXT[status], "headers": headers | _ETAG_HEADERS}
    if status == 429:
        headers |= _RETRY_HEADER
    return {
        "description": _STATUS_TEXT[status],
        "content": {"application/json": {"schema": ref("Error"), "example": ERROR_EXAMPLE}},
        "headers": headers,
    }


def request_body(schema: Schema, examples: dict[str, Any], description: str) -> Schema:
    """The `requestBody` of an operation; `examples` by what they show."""
    return {
        "requestBody": {
            "required": True,
            "description": description,
            "content": {
                "application/json": {
                    "schema": schema,
                    "examples": {name: {"summary": name, "value": value} for name, value in examples.items()},
                }
            },
        }
    }


# -- components -------------------------------------------------------------------------------------------


@cache
def components() -> dict[str, Schema]:
    """Every schema by its name."""
    found: dict[str, Schema] = {"Error": _error_schema()}
    found["Recipe"] = _recipe_schema(found)
    found["Estimate"] = _lifted(Estimate.model_json_schema(mode="serialization", ref_template=_REF), found)
    found["Estimate"]["required"] = sorted(found["Estimate"]["properties"])
    found["ModelEntry"] = _entry(
        id={"type": "string"},
        parameters={"type": "integer", "minimum": 1},
        model_class={"type": "string"},
        confidence={"enum": ["high", "medium"]},
    )
    card = _lifted(ModelCard.model_json_schema(mode="serialization", ref_template=_REF), found)
    card["properties"]["weights_bytes"] = {
        "type": "object",
        "additionalProperties": {"type": "integer"},
        "description": "Bytes of the base weights, quantization state included, by how they are stored.",
    }
    card["required"] = sorted(card["properties"])
    found["Model"] = card
    found["Gpu"] = _lifted(TypeAdapter(Gpu).json_schema(mode="serialization", ref_template=_REF), found)
    found["Method"] = _entry(
        name={"type": "string"},
        description={"type": "string"},
        peft_type={"type": ["string", "null"]},
        options={"type": "object", "description": "What the name sets in the adapter config."},
        aliases={"type": "array", "items": {"type": "string"}},
    )
    text = {"type": "string"}
    per_parameter = {"type": ["number", "null"], "description": "Of a large float32 matrix; null where it is refused."}
    found["Optimizer"] = _entry(
        name=text,
        origin=text,
        library=text,
        cls=text,
        implementation=text,
        layout=text,
        source=text,
        date=text,
        fixed={"type": "object", "description": "Options that the name itself settles."},
        optim_args={"type": "array", "items": text},
        updates_in_backward={"type": "boolean"},
        unsupported={"type": "string", "description": "Why the name is refused; empty where it is not."},
        device_bytes_per_parameter=per_parameter,
        host_bytes_per_parameter=per_parameter,
    )
    found["Accuracy"] = _accuracy_schema()
    found["BatchRequest"] = _entry(recipes={"type": "array", "items": ref("Recipe"), "minItems": 1, "maxItems": 1000})
    found["BatchLine"] = {
        "description": "One line of the answer to a batch: the estimate of a recipe, or its error.",
        "oneOf": [
            _entry(index={"type": "integer", "minimum": 0}, estimate=ref("Estimate")),
            _entry(
                index={"type": "integer", "minimum": 0}, error={"$ref": "#/components/schemas/Error/properties/error"}
            ),
        ],
    }
    found["Health"] = _entry(status={"const": "ok"}, version={"type": "string"})
    return dict(sorted(found.items()))


def _entry(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": sorted(properties), "additionalProperties": False}


def _lifted(schema: Schema, into: dict[str, Schema]) -> Schema:
    """`schema` with its definitions moved to the components, and docstrings cut to their first sentence."""
    into.update({name: _plain(one) for name, one in schema.pop("$defs", {}).items()})
    return _plain(schema)


def _plain(schema: Schema) -> Schema:
    text = schema.get("description", "")
    if text:
        schema["description"] = text.partition("\n\n")[0].replace("\n", " ")
    schema.pop("title", None)
    for one in schema.get("properties", {}).values():
        one.pop("title", None)
    return schema


def _error_schema() -> Schema:
    properties: dict[str, Schema] = {
        "code": {"type": "string", "pattern": "^[a-z0-9_]+$", "description": "Stable; what a program should look at."},
        "message": {"type": "string", "description": "What was found and what is wrong with it."},
        "hint": {"type": "string", "description": "What is allowed, or what to do."},
        "field": {"type": "string", "description": "The key at fault."},
        "request_id": {"type": "string", "description": "The answer's X-Request-ID."},
    }
    inner = _entry(**properties) | {"required": ["code", "message", "request_id"]}
    return _entry(error=inner) | {"description": "The one error envelope.", "example": ERROR_EXAMPLE}


def _recipe_schema(into: dict[str, Schema]) -> Schema:
    schema = _lifted(Recipe.model_json_schema(ref_template=_REF), into)
    properties = schema["properties"]
    for keys in RECIPE_HELP.values():
        for key, text in keys.items():
            properties[key]["description"] = text
            properties[key].pop("default", None)
    properties["model"] = {
        "description": "A model's id or short name (GET /api/v1/models), or the object of a config.json. Never a path.",
        "anyOf": [
            {"type": "string", "minLength": 1, "maxLength": 200, "examples": list(card_ids()[:5])},
            {"type": "object", "required": ["model_type"], "properties": {"model_type": {"type": "string"}}},
        ],
    }
    properties["method"]["examples"] = [method.name for method in list_methods()]
    properties["optim"]["examples"] = list(optimizer_rows())
    properties["gpu"]["examples"] = [gpu.id for gpu in list_gpus()]
    properties["peft"]["description"] = "What an adapter_config.json holds."
    properties["quantization_config"]["description"] = "A quantization_config as transformers writes it."
    properties["optim_args"]["description"] = "Options of the optimizer."
    properties["gradient_checkpointing"] = properties["activation_checkpointing"] | {
        "description": "Older name of activation_checkpointing.",
        "deprecated": True,
    }
    schema["description"] = "A training run. Every key but `model` may be left out; null means the same."
    schema["example"] = RECIPE_EXAMPLE
    return schema


def _accuracy_schema() -> Schema:
    text: Schema
    number: Schema
    count: Schema
    text, number, count = {"type": "string"}, {"type": "number"}, {"type": "integer"}
    engine: Schema = {"enum": ["estimate", "trace"]}
    size: Schema = {"type": "integer", "minimum": 0}
    verdicts = _entry(fits=count, uncertain=count, does_not_fit=count)
    summary: Schema = {
        "source": text, "group": text, "level": text, "engine": engine, "records": count, "median": number,
        "p95": number, "worst": number, "under": number,
    }  # fmt: skip
    record: Schema = {
        "source": text, "id": text, "group": text, "level": text, "engine": engine, "predicted_bytes": size,
        "measured_bytes": size, "error": number,
    }  # fmt: skip
    schema = _entry(
        schema_version=count,
        by={"enum": ["source", "method", "family", "gpu", "precision", None]},
        summaries={"type": "array", "items": _entry(**summary)},
        verdicts=_entry(wrong_fits=count, finished=verdicts, out_of_memory=verdicts),
        records={"type": "array", "items": _entry(**record)},
        not_scored={"type": "array", "items": _entry(source=text, id=text, engine=engine, reason=text)},
    )
    return schema | {"description": "Predictions against measured peaks; error = (predicted - measured) / measured."}


# -- the document -----------------------------------------------------------------------------------------


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """The whole document of an application."""
    document = get_openapi(
        title="memplan",
        version=app.version,
        summary="GPU memory of training runs",
        description=DESCRIPTION,
        routes=app.routes,
        tags=[
            {"name": "answers", "description": "What a run needs."},
            {"name": "catalogue", "description": "What memplan knows."},
            {"name": "service", "description": "The service itself."},
        ],
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        servers=[{"url": app.root_path or "/"}],
    )
    document["components"] = {"schemas": components()}
    return document
