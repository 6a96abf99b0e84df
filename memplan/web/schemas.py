"""What the API's description says of every operation: requests that work, answers, statuses and headers.

Answers are sent as ready-made bytes; a test holds that what is sent is what is written here.
"""

from __future__ import annotations

from typing import Any, Literal

REF = "#/components/schemas/{model}"
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
RECIPE_EXAMPLES: Schema = {"QLoRA on a 24 GB card": RECIPE_EXAMPLE, "a model of one's own": INLINE_EXAMPLE}
PLAN_EXAMPLES: Schema = {
    "for a GPU": RECIPE_EXAMPLE | {"micro_batch_size": 16},
    "the batch stays": RECIPE_EXAMPLE | {"micro_batch_size": 16, "keep": ["micro_batch_size"]},
}
BATCH_EXAMPLES: Schema = {"two runs": {"recipes": [RECIPE_EXAMPLE, INLINE_EXAMPLE]}}
MODEL_EXAMPLE = "mistralai/Mistral-7B-v0.1"
_SFT = {"name": "sft", "config": "configs/sft.json", "budget": "20 GiB", "gpu": "rtx-4090"}
_SFT_TEXT = '{"model": "mistralai/Mistral-7B-v0.1", "method": "qlora", "sequence_length": 2048}'
CHECK_EXAMPLES: Schema = {
    "a run in the budget file": {
        "config": {"schema": 1, "check": [{"name": "qlora-7b", "recipe": RECIPE_EXAMPLE, "budget": "20 GiB"}]}
    },
    "a config, against what it was": {
        "config": {"schema": 1, "check": [_SFT | {"max_increase": "+5%"}]},
        "files": {"configs/sft.json": _SFT_TEXT.replace("2048", "4096")},
        "base": {"config": {"schema": 1, "check": [_SFT]}, "files": {"configs/sft.json": _SFT_TEXT}},
    },
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
    return {"$ref": REF.format(model=model)}


def listing(model: str) -> Schema:
    """An array of a component."""
    return {"type": "array", "items": ref(model)}


def responses_of(
    method: Literal["GET", "POST"],
    schema: Schema,
    description: str,
    *,
    media_type: str = "application/json",
    also: tuple[int, ...] = (),
    fresh: bool = False,
) -> dict[Any, Any]:
    """The `responses` of an operation: its answer and every error that it can give.

    Args:
        method: GET answers have an ETag, POST answers do not.
        schema: of the answer.
        description: of the answer.
        media_type: of the answer.
        also: further statuses.
        fresh: whether a GET is never kept.
    """
    is_get = method == "GET"
    is_kept = is_get and not fresh
    found: dict[Any, Any] = {
        200: {
            "description": description,
            "content": {media_type: {"schema": schema}},
            "headers": _REQUEST_ID_HEADER | (_ETAG_HEADERS if is_kept else {}),
        }
    }
    for status in (*(_GET_STATUSES if is_get else _POST_STATUSES), *also):
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
        "content": {"application/json": {"schema": ref("Error")}},
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
