"""The OpenAPI document says what is served, and its examples work."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import jsonschema_rs
import pytest
from starlette.testclient import TestClient

from memplan.recipe import Recipe
from memplan.web.components import components
from memplan.web.plans import PlanOptions
from memplan.web.problems import Problem
from memplan.web.schemas import ERROR_EXAMPLE
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


def test_the_envelope_is_the_one_that_is_sent(document: dict[str, Any]) -> None:
    check = validator(document, {"$ref": "#/components/schemas/Error"})
    for problem in (Problem(422, "code", "message"), Problem(422, "code", "message", "hint", "field")):
        check.validate(json.loads(problem.body("id")))
    check.validate(ERROR_EXAMPLE)
    assert not check.is_valid({"error": {"code": "a", "message": "b"}})


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
