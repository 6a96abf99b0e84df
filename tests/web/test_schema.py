"""The OpenAPI document says what is served, and its examples work."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from starlette.testclient import TestClient

import memplan
from memplan.errors import UnknownNameError
from memplan.recipe import Recipe
from memplan.web.components import components
from memplan.web.patterns import MAX_PATTERNS
from memplan.web.plans import PlanOptions
from memplan.web.problems import Problem
from memplan.web.recipes import MAX_LAYERS
from memplan.web.samples import CUT, cut
from memplan.web.schemas import ERROR_EXAMPLE, MODEL_EXAMPLE
from memplan.web.settings import Settings
from tests.web.fuzz import narrowed

ANSWERS = [
    ("/api/v1/estimate", "post"), ("/api/v1/plan", "post"), ("/api/v1/estimate/batch", "post"), ("/api/v1/check", "post"),
    ("/api/v1/models", "get"),
    ("/api/v1/models/{id}", "get"), ("/api/v1/gpus", "get"), ("/api/v1/methods", "get"), ("/api/v1/optimizers", "get"),
    ("/api/v1/accuracy", "get"), ("/healthz", "get"),
]  # fmt: skip


@pytest.fixture(scope="module")
def document(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def validator(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    return jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]})


def test_every_route_is_there(document: dict[str, Any]) -> None:
    assert [(path, method) for path, method, _ in operations(document)] == ANSWERS
    assert len({operation["operationId"] for _, _, operation in operations(document)}) == len(ANSWERS)


def test_it_is_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    for path, method, operation in operations(document):
        assert operation["summary"], (path, method)
        assert operation["description"], (path, method)
        assert operation["tags"], (path, method)


def test_references_lead_somewhere(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', text)):
        found = document
        for part in reference.split("/"):
            found = found[part]
    used = set(re.findall(r'"#/components/schemas/(\w+)', text))
    assert set(document["components"]["schemas"]) == used


def test_every_status_has_an_envelope(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        needed = {"405", "413", "414", "422", "429", "500", "503"} | ({"400", "415"} if method == "post" else set())
        assert needed <= set(operation["responses"]), (path, method)
        for status, answer in operation["responses"].items():
            assert "X-Request-ID" in answer["headers"]
            if int(status) >= 400:
                assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Error"}
    assert "404" in document["paths"]["/api/v1/models/{id}"]["get"]["responses"]


# -- samples ----------------------------------------------------------------------------------------------


def sample_of(operation: dict[str, Any]) -> Any:
    (content,) = operation["responses"]["200"]["content"].values()
    return content["examples"]["sample"]["value"]


@pytest.mark.parametrize(("path", "method"), ANSWERS)
def test_a_sample_of_every_answer_is_what_is_answered(
    client: TestClient, document: dict[str, Any], path: str, method: str
) -> None:
    operation = document["paths"][path][method]
    sample = sample_of(operation)
    if method == "post":
        first = next(iter(operation["requestBody"]["content"]["application/json"]["examples"].values()))
        answer = client.post(path, json=first["value"])
    else:
        answer = client.get(path.replace("{id}", MODEL_EXAMPLE))
    assert answer.status_code == 200
    if path.endswith("batch"):
        assert sample == answer.text
        assert len(sample.splitlines()) == 2
        return
    found = answer.json()
    assert sample == (found[:CUT] if isinstance(found, list) else cut(found) if path.endswith("accuracy") else found)
    assert sample
    (content,) = operation["responses"]["200"]["content"].values()
    validator(document, content["schema"]).validate(sample)


def test_a_sample_of_every_error_is_an_envelope(document: dict[str, Any]) -> None:
    check = validator(document, {"$ref": "#/components/schemas/Error"})
    for path, method, operation in operations(document):
        for status, answer in operation["responses"].items():
            if int(status) >= 400:
                samples = answer["content"]["application/json"]["examples"]
                assert samples, (path, method, status)
                for code, sample in samples.items():
                    check.validate(sample["value"])
                    assert sample["value"]["error"]["code"] == code


PROVOKED: list[tuple[str, str, str, dict[str, Any]]] = [
    ("estimate", "422", "unknown_recipe_key", {"json": {"model": "mistralai/Mistral-7B-v0.1", "bacth": 4}}),
    ("estimate", "422", "unknown_model", {"json": {"model": "mistral-8b"}}),
    ("estimate", "422", "unknown_parameter", {"json": {}, "params": {"verbose": "1"}}),
    ("estimate", "400", "invalid_json", {"content": b'{"model": ', "headers": {"Content-Type": "application/json"}}),
    ("estimate", "415", "unsupported_media_type", {"content": b"{}"}),
    ("estimate", "413", "body_too_large", {"content": b" " * (2**16 + 1)}),
    ("estimate_batch", "413", "body_too_large", {"content": b" " * (2**20 + 1)}),
    ("estimate", "414", "query_too_long", {"params": {"a": "a" * 4096}}),
    ("plan", "422", "invalid_input", {"json": {"model": "mistralai/Mistral-7B-v0.1"}}),
    ("estimate_batch", "422", "invalid_value", {"json": {"recipes": []}}),
    ("check", "422", "unknown_key", {"json": {"confg": {}}}),
    ("accuracy", "422", "unknown_parameter", {"params": {"verbose": "1"}}),
    ("accuracy", "422", "unknown_source", {"params": {"source": "t5"}}),
]


@pytest.mark.parametrize(("name", "status", "code", "request_"), PROVOKED)
def test_a_sample_of_an_error_is_what_is_answered(
    client: TestClient, document: dict[str, Any], name: str, status: str, code: str, request_: dict[str, Any]
) -> None:
    ((path, method, operation),) = (one for one in operations(document) if one[2]["operationId"] == name)
    answer = client.request(method.upper(), path, **request_)
    assert str(answer.status_code) == status
    sample = operation["responses"][status]["content"]["application/json"]["examples"][code]["value"]["error"]
    assert sample | {"request_id": ""} == answer.json()["error"] | {"request_id": ""}


def test_an_address_that_is_none_is_sampled(client: TestClient, document: dict[str, Any]) -> None:
    answers = document["paths"]["/api/v1/models/{id}"]["get"]["responses"]
    for path, method, status, code in (
        ("/api/v1/models/mistral-8b", "GET", "404", "unknown_model"),
        ("/api/v1/nothing", "GET", "404", "not_found"),
        ("/api/v1/models/gpt2", "POST", "405", "method_not_allowed"),
    ):
        sample = answers[status]["content"]["application/json"]["examples"][code]["value"]["error"]
        answer = client.request(method, path).json()["error"]
        assert sample | {"request_id": ""} == answer | {"request_id": ""}


def test_every_code_of_the_sources_is_documented(document: dict[str, Any]) -> None:
    """Codes of what only the command line does are left out: they never reach a client."""
    elsewhere = ("cli", "trace", "measure", "oom", "interop", "evidence/tracing.py", "budget/git.py", "budget/find.py",
                 "budget/action.py", "profiles.py")  # fmt: skip
    elsewhere_too = {"no_limit", "no_such_file"}  # of one check in a report, never of a request
    never_raised = {"error", "unknown_name"}  # of classes whose errors always have a code of their own
    code = document["components"]["schemas"]["Error"]["properties"]["error"]["properties"]["code"]
    check = jsonschema_rs.Draft202012Validator(code)
    folder = Path(memplan.__file__).parent
    found: set[str] = set()
    for file in sorted(folder.rglob("*.py")):
        if not str(file.relative_to(folder)).startswith(elsewhere):
            found |= set(_codes_in(ast.parse(file.read_text(encoding="utf-8"))))
    assert len(found) > 25
    assert [one for one in sorted(found - elsewhere_too - never_raised) if not check.is_valid(one)] == []


def _codes_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "default_code":
            yield ast.literal_eval(node.value)
        if not isinstance(node, ast.Call):
            continue
        name, arguments = getattr(node.func, "id", ""), node.args
        if name == "UnknownNameError" and isinstance(arguments[0], ast.Constant):
            yield UnknownNameError(arguments[0].value, "", ()).code
        elif name == "Problem" and len(arguments) > 1 and isinstance(arguments[1], ast.Constant):
            yield arguments[1].value
        elif name == "_refuse" and isinstance(arguments[0], ast.Constant):
            yield arguments[0].value
        for keyword in node.keywords:
            if (
                keyword.arg == "code"
                and isinstance(keyword.value, ast.Constant)
                and isinstance(keyword.value.value, str)
            ):
                yield keyword.value.value


def test_limits_are_documented(document: dict[str, Any]) -> None:
    text = document["info"]["description"]
    settings = Settings()
    for limit in (settings.max_depth, settings.max_checks, settings.max_explained, MAX_LAYERS, MAX_PATTERNS):
        assert re.search(rf"\b{limit:,}\b", text), limit
    assert "- body of a request: 64 KiB\n- body of a batch: 1 MiB\n" in text
    assert str(MAX_LAYERS) in document["components"]["schemas"]["Recipe"]["properties"]["model"]["description"]


def test_the_envelope_is_the_one_that_is_sent(document: dict[str, Any]) -> None:
    check = validator(document, {"$ref": "#/components/schemas/Error"})
    for problem in (Problem(422, "timeout", "message"), Problem(422, "unknown_model", "message", "hint", "field")):
        check.validate(json.loads(problem.body("id")))
    check.validate(ERROR_EXAMPLE)
    assert not check.is_valid({"error": {"code": "timeout", "message": "b"}})
    assert not check.is_valid({"error": {"code": "a", "message": "b", "request_id": "c"}})


def test_recipes_have_every_key(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert set(schemas["Recipe"]["properties"]) == {*Recipe.model_fields, "gradient_checkpointing"}
    assert set(schemas["PlanRequest"]["properties"]) == set(schemas["Recipe"]["properties"]) | set(
        PlanOptions.model_fields
    )
    assert not set(PlanOptions.model_fields) & set(Recipe.model_fields)
    for name, key in schemas["PlanRequest"]["properties"].items():
        assert key.get("description"), name
    assert schemas["BatchRequest"]["properties"]["recipes"]["maxItems"] == Settings().max_batch


def test_shapes_do_not_depend_on_who_asks_first() -> None:
    assert components() == components()


@pytest.mark.parametrize(("path", "method"), [one for one in ANSWERS if one[1] == "post"])
def test_examples_work(client: TestClient, document: dict[str, Any], path: str, method: str) -> None:
    operation = document["paths"][path][method]
    body = operation["requestBody"]["content"]["application/json"]
    (content,) = operation["responses"]["200"]["content"].values()
    check = validator(document, content["schema"])
    for example in body["examples"].values():
        validator(document, body["schema"]).validate(example["value"])
        response = client.post(path, json=example["value"])
        assert response.status_code == 200, response.text
        for text in response.text.splitlines() if path.endswith("batch") else [response.text]:
            answer = json.loads(text)
            check.validate(answer)
            assert "error" not in answer


@pytest.mark.parametrize("path", [path for path, method in ANSWERS if method == "get"])
def test_answers_are_what_is_written(client: TestClient, document: dict[str, Any], path: str) -> None:
    content = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
    query = "?by=gpu&source=fms" if path.endswith("accuracy") else ""
    response = client.get(path.replace("{id}", "mistralai/Mistral-7B-v0.1") + query)
    answer = response.json()
    validator(document, content["schema"]).validate(answer)
    for name in document["paths"][path]["get"]["responses"]["200"]["headers"]:
        assert name in response.headers


@pytest.mark.parametrize(
    "recipe",
    [
        {"model": "gpt2", "task": "feature-extraction"},
        {"model": "t5-small", "target_length": 16},
        {"model": "facebook/opt-125m", "method": "prompt_tuning", "num_virtual_tokens": 4, "gpu": "mi300x"},
        {"model": "mistral-7b-v0.1", "load_in_8bit": True, "method": "lora"},
    ],
    ids=lambda recipe: recipe["model"],
)  # fmt: skip
def test_estimates_of_all_kinds_are_what_is_written(client: TestClient, document: dict[str, Any], recipe: Any) -> None:
    response = client.post("/api/v1/estimate", json=recipe | {"sequence_length": 64})
    assert response.status_code == 200, response.text
    validator(document, {"$ref": "#/components/schemas/Estimate"}).validate(response.json())


def test_what_the_document_forbids_is_refused(client: TestClient, document: dict[str, Any]) -> None:
    check = validator(document, {"$ref": "#/components/schemas/Recipe"})
    for recipe in (
        {},
        {"model": 3},
        {"model": "gpt2", "bacth": 1},
        {"model": "gpt2", "lora_r": 0},
        {"model": "gpt2", "padding": 1},
    ):
        assert not check.is_valid(recipe)
        assert client.post("/api/v1/estimate", json=recipe).status_code == 422


def test_the_narrowed_document_of_the_fuzz_still_allows_the_examples(document: dict[str, Any]) -> None:
    narrow = narrowed(json.loads(json.dumps(document)))
    for schema in ("Recipe", "PlanRequest"):
        validator(narrow, {"$ref": f"#/components/schemas/{schema}"}).validate(
            document["components"]["schemas"][schema]["example"]
        )


# -- the reference page -----------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Addresses that a page loads or links to, ids, and what is not allowed under the policy."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src"):
                self.addresses.append(value or "")
            elif name == "id":
                self.ids.append(value or "")
            elif name == "style" or name.startswith("on"):
                self.inline.append(f"{tag} {name}")
        if tag == "style" or (tag == "script" and "src" not in dict(attrs)):
            self.inline.append(tag)


def test_the_reference_is_complete_and_loads_nothing_from_elsewhere(
    client: TestClient, document: dict[str, Any]
) -> None:
    response = client.get("/api/docs")
    assert response.headers["content-type"].startswith("text/html")
    page = _Page()
    page.feed(response.text)
    assert page.inline == []
    assert not [address for address in page.addresses if not address.startswith(("/", "#"))]
    assert not [address for address in page.addresses if address.startswith("#") and address[1:] not in page.ids]
    for path, _, operation in operations(document):
        assert path in response.text
        assert operation["operationId"] in page.ids
    assert len(response.content) < 100_000
