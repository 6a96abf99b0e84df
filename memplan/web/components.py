"""Every shape that the API sends and takes, from the models that are served, with their docstrings' first sentences.

Runs in a computing process: nothing here has to be loaded to answer over HTTP.
"""

from __future__ import annotations

from functools import cache

from pydantic import TypeAdapter

from memplan.budget.result import CheckReport
from memplan.budget.schema import config_schema
from memplan.cards import ModelCard, card_ids
from memplan.catalog.gpus import Gpu, list_gpus
from memplan.estimate import Estimate
from memplan.methods import list_methods
from memplan.optimizers.catalog import optimizer_rows
from memplan.planner import Plan
from memplan.recipe import Recipe
from memplan.recipe_help import RECIPE_HELP
from memplan.web.codes import PATTERN, codes
from memplan.web.plans import PlanOptions
from memplan.web.recipes import MAX_LAYERS
from memplan.web.schemas import CHECK_EXAMPLES, ERROR_EXAMPLE, RECIPE_EXAMPLE, REF, Schema, ref
from memplan.web.settings import Settings


@cache
def components() -> dict[str, Schema]:
    """Every schema by its name."""
    found: dict[str, Schema] = {"Error": _error_schema()}
    found["Recipe"] = _recipe_schema(found)
    found["Estimate"] = _lifted(Estimate.model_json_schema(mode="serialization", ref_template=REF), found)
    found["Estimate"]["required"] = sorted(found["Estimate"]["properties"])
    found["Plan"] = _lifted(Plan.model_json_schema(mode="serialization", ref_template=REF), found)
    found["PlanRequest"] = _plan_request_schema(found)
    found["ModelEntry"] = _entry(
        id={"type": "string"},
        parameters={"type": "integer", "minimum": 1},
        model_class={"type": "string"},
        confidence={"enum": ["high", "medium"]},
    )
    card = _lifted(ModelCard.model_json_schema(mode="serialization", ref_template=REF), found)
    card["properties"]["weights_bytes"] = {
        "type": "object",
        "additionalProperties": {"type": "integer"},
        "description": "Bytes of the base weights, quantization state included, by how they are stored.",
    }
    card["required"] = sorted(card["properties"])
    found["Model"] = card
    found["Gpu"] = _lifted(TypeAdapter(Gpu).json_schema(mode="serialization", ref_template=REF), found)
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
    items = {"anyOf": [ref("Recipe"), {}]}
    found["BatchRequest"] = _entry(
        recipes={
            "type": "array",
            "items": items,
            "minItems": 1,
            "maxItems": 1000,
            "description": "Recipes; one that is wrong has an error on its line, and the others are answered.",
        }
    )
    found["BatchLine"] = {
        "description": "One line of the answer to a batch: the estimate of a recipe, or its error.",
        "oneOf": [
            _entry(index={"type": "integer", "minimum": 0}, estimate=ref("Estimate")),
            _entry(
                index={"type": "integer", "minimum": 0}, error={"$ref": "#/components/schemas/Error/properties/error"}
            ),
        ],
    }
    found["CheckReport"] = _lifted(CheckReport.model_json_schema(mode="serialization", ref_template=REF), found)
    found |= _check_request_schemas()
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
    known: Schema = {"enum": list(codes())}
    others: Schema = {"pattern": PATTERN}
    properties: dict[str, Schema] = {
        "code": {"type": "string", "anyOf": [known, others], "description": "Stable; what a program should look at."},
        "message": {"type": "string", "description": "What was found and what is wrong with it."},
        "hint": {"type": "string", "description": "What is allowed, or what to do."},
        "field": {"type": "string", "description": "The key at fault."},
        "request_id": {"type": "string", "description": "The answer's X-Request-ID."},
    }
    inner = _entry(**properties) | {"required": ["code", "message", "request_id"]}
    return _entry(error=inner) | {"description": "The one error envelope.", "example": ERROR_EXAMPLE}


def _recipe_schema(into: dict[str, Schema]) -> Schema:
    schema = _lifted(Recipe.model_json_schema(ref_template=REF), into)
    properties = schema["properties"]
    for keys in RECIPE_HELP.values():
        for key, text in keys.items():
            properties[key]["description"] = text
            properties[key].pop("default", None)
    properties["model"] = {
        "description": "A model's id or short name (GET /api/v1/models), or the object of a config.json, of at most "
        f"{MAX_LAYERS} layers in all its towers. Never a path.",
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


def _plan_request_schema(into: dict[str, Schema]) -> Schema:
    options = _lifted(PlanOptions.model_json_schema(ref_template=REF), into)
    recipe = into["Recipe"]
    return recipe | {
        "description": "A recipe, and what the planner is told.",
        "properties": recipe["properties"] | options["properties"],
        "example": RECIPE_EXAMPLE,
    }


def _check_request_schemas() -> dict[str, Schema]:
    """The shapes of a budget file; a recipe that is wrong is an error of its check alone, so any object is taken."""
    config = config_schema()
    check = config["$defs"]["Check"]
    recipe: Schema = {"anyOf": [ref("Recipe"), {"type": "object"}]}
    override: Schema = {"type": "object", "description": "Recipe keys that replace what the files say."}
    check["properties"] |= {"recipe": recipe, "override": override}
    check["description"] = "One check of a budget file: a run and its limits."
    config["properties"]["defaults"]["properties"]["override"] = override
    config["properties"]["check"] |= {"items": ref("BudgetCheck"), "maxItems": Settings().max_checks}
    files: Schema = {
        "type": "object",
        "additionalProperties": {"type": "string"},
        "description": "Texts of the recipe files, training configs and config.json that checks name, by path.",
    }
    content = {"config": ref("Budgets"), "files": files}
    base = _entry(**content) | {
        "required": ["config"],
        "description": "The state to compare with: `max_increase` is judged.",
    }
    return {
        "BudgetCheck": check,
        "Budgets": {
            "description": "What a memplan.toml holds.",
            **{key: config[key] for key in ("type", "additionalProperties", "required", "properties")},
        },
        "CheckRequest": _entry(**content, base={"anyOf": [base, {"type": "null"}]})
        | {"required": ["config"], "example": next(iter(CHECK_EXAMPLES.values()))},
    }


def _open(**properties: Schema) -> Schema:
    """An object that may hold more than this: what is measured grows."""
    return {"type": "object", "properties": properties, "required": sorted(properties)}


def _accuracy_schema() -> Schema:
    text: Schema
    number: Schema
    count: Schema
    text, number, count = {"type": "string"}, {"type": "number"}, {"type": "integer"}
    engine: Schema = {"enum": ["estimate", "trace"]}
    size: Schema = {"type": "integer", "minimum": 0}
    verdicts = _open(fits=count, uncertain=count, does_not_fit=count)
    summary: Schema = {
        "source": text, "group": text, "level": text, "engine": engine, "records": count, "median": number,
        "p95": number, "worst": number, "under": number,
    }  # fmt: skip
    record: Schema = {
        "source": text, "id": text, "group": text, "level": text, "engine": engine, "predicted_bytes": size,
        "measured_bytes": size, "error": number,
    }  # fmt: skip
    schema = _open(
        schema_version=count,
        by={"enum": ["source", "method", "family", "gpu", "precision", None]},
        summaries={"type": "array", "items": _open(**summary)},
        verdicts=_open(wrong_fits=count, finished=verdicts, out_of_memory=verdicts),
        records={"type": "array", "items": _open(**record)},
        not_scored={"type": "array", "items": _open(source=text, id=text, engine=engine, reason=text)},
    )
    return schema | {"description": "Predictions against measured peaks; error = (predicted - measured) / measured."}
