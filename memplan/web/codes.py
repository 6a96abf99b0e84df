"""Every `error.code` of the API, and what it means. A test holds the table to the sources.

Codes are stable. Names of a closed set have one code a set; keys of an adapter's config and options of an optimizer have one
a class or optimizer, `unknown_key_of_loraconfig`, `unknown_option_of_adafactor`.
"""

from __future__ import annotations

from memplan.recipe import Recipe
from memplan.recipe_text import choices_of

OF_THE_REQUEST = {
    "invalid_encoding": "the body is not UTF-8",
    "invalid_json": "the body is not strict JSON",
    "invalid_body": "the body is JSON, and no object of keys",
    "not_found": "there is nothing at this address",
    "method_not_allowed": "the address does not answer to this method",
    "body_too_slow": "the body took too long to arrive",
    "body_too_large": "the body is larger than allowed",
    "path_too_long": "the path is longer than allowed",
    "query_too_long": "the query is longer than allowed",
    "unsupported_media_type": "the body is not sent as application/json",
    "unknown_parameter": "the address has no such query parameter",
    "too_many_requests": "the rate limit is used up",
}
OF_THE_QUESTION = {
    "invalid_input": "the keys contradict each other, or one is missing",
    "invalid_value": "a key has a value that it cannot have",
    "invalid_file": "a text that was sent cannot be read as what it should be",
    "unsupported": "valid, and memplan has no rule for it",
    "unavailable": "something that the answer needs is missing here",
    "unknown_recipe_key": "no such recipe key",
    "unknown_key": "no such key in a budget file or around recipes",
    "unknown_model": "no such model",
    "unknown_model_type": "no such architecture",
    "unknown_gpu": "no such GPU",
    "unknown_method": "no such fine-tuning method",
    "unknown_peft_method": "no such PEFT method",
    "unknown_peft_type": "no such peft_type",
    "unknown_optimizer": "no such optimizer",
    "unknown_optim_args_key": "the optimizer takes no such argument",
    "unknown_dtype": "no such type of numbers",
    "unknown_task_type": "no such task_type",
    "unknown_quantity": "the planner finds no largest value of this",
    "unknown_component": "no such component of memory",
    "unknown_source": "no such source of measured records",
    "unknown_group": "records are not grouped by this",
    "unknown_engine": "no such engine",
    "unknown_level": "no such level of memory",
    "unknown_severity": "no such severity of a check",
    "unknown_on_uncertain": "no such way of taking what is uncertain",
    "unknown_format": "no such format of a file",
    "unknown_framework": "no such framework",
}
OF_THE_SERVICE = {
    "overloaded": "too many requests wait for an answer",
    "timeout": "the answer takes longer than the service allows",
    "out_of_resources": "the answer takes more memory than the service allows",
    "internal_error": "a bug in memplan",
}
PATTERN = "^unknown_(key|option)_of_[a-z0-9_]+$"


def codes() -> dict[str, str]:
    """Every code with its meaning, but those of `PATTERN`."""
    of_values = {f"unknown_{key}": f"no such {key}" for key in Recipe.model_fields if choices_of(key)}
    return OF_THE_REQUEST | of_values | OF_THE_QUESTION | OF_THE_SERVICE
