"""What the API answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import memplan
from memplan.cards import card_ids
from memplan.catalog.gpus import list_gpus
from memplan.cli.app import app as command_line
from memplan.methods import list_methods
from memplan.optimizers.catalog import optimizer_rows
from memplan.planner import plan
from tests.web.models import SMALL

RECIPES: list[dict[str, Any]] = [
    {"model": "mistralai/Mistral-7B-v0.1", "method": "qlora", "gpu": "rtx-4090", "optim": "paged_adamw_8bit"},
    {"model": "mistral-7b-v0.1", "method": "lora", "peft": {"r": 8, "target_modules": ["q_proj"]}, "gpu": "RTX 4090"},
    {"model": SMALL, "sequence_length": 16, "gradient_checkpointing": True, "target_modules": None},
    {"model": "google-bert/bert-base-uncased", "sequence_length": 64},
    {"model": SMALL, "method": "lora", "activation_checkpointing": "reentrant", "gpus": 2, "gpu": "t4"},
]
WRONG = {"model": SMALL, "bacth": 1}


def post(client: TestClient, path: str, body: Any) -> Any:
    return client.post(f"/api/v1/{path}", json=body)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command writes on stdout."""
    command_line(list(arguments), standalone_mode=False)
    return capsys.readouterr().out


def as_file(recipe: dict[str, Any], folder: Path) -> str:
    file = folder / "recipe.json"
    file.write_text(json.dumps(recipe), encoding="utf-8")
    return str(file)


# -- estimates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: str(recipe["model"])[:24])
def test_an_estimate_is_what_the_command_line_writes(
    client: TestClient, recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    response = post(client, "estimate", recipe)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert response.text == printed(capsys, "estimate", as_file(recipe, tmp_path), "--json")


def test_the_same_question_has_the_same_bytes(client: TestClient) -> None:
    body = json.dumps(RECIPES[0])
    headers = {"Content-Type": "application/json"}
    kept = client.app.state.answers  # type: ignore[attr-defined]
    first = client.post("/api/v1/estimate", content=body, headers=headers).content
    hits = kept.hits
    assert client.post("/api/v1/estimate", content=body, headers=headers).content == first
    assert kept.hits == hits + 1
    reordered = json.dumps(dict(reversed(RECIPES[0].items())), indent=4)
    assert client.post("/api/v1/estimate", content=reordered, headers=headers).content == first
    assert kept.hits == hits + 1


def test_a_wrong_question_is_wrong_every_time(client: TestClient) -> None:
    first, second = (post(client, "estimate", WRONG) for _ in range(2))
    assert first.status_code == second.status_code == 422
    assert first.json()["error"]["request_id"] != second.json()["error"]["request_id"]
    assert first.json()["error"]["message"] == second.json()["error"]["message"]


def test_what_no_rule_covers_never_fits(client: TestClient) -> None:
    answer = post(client, "estimate", {"model": SMALL, "stack": "unsloth", "gpu": "h200"}).json()
    assert answer["unsupported"]
    assert answer["verdict"]["fits"] == "uncertain"


# -- batches ----------------------------------------------------------------------------------------------


def test_a_batch_answers_line_by_line(client: TestClient) -> None:
    recipes = [*RECIPES[:3], WRONG, 3, None, {"model": "/etc/passwd"}, RECIPES[3]]
    response = post(client, "estimate/batch", {"recipes": recipes})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert [line["index"] for line in lines] == list(range(len(recipes)))
    assert [line["error"]["code"] if "error" in line else "" for line in lines] == [
        "", "", "", "unknown_recipe_key", "invalid_value", "invalid_value", "unknown_model", "",
    ]  # fmt: skip
    for line, recipe in zip(lines, recipes, strict=True):
        if "estimate" in line:
            assert line["estimate"] == post(client, "estimate", recipe).json()
        else:
            assert line["error"]["request_id"] == response.headers["x-request-id"]


def test_a_thousand_recipes_are_one_batch(client: TestClient) -> None:
    recipes = [{"model": SMALL, "sequence_length": 16 + number % 3} for number in range(1000)]
    lines = post(client, "estimate/batch", {"recipes": recipes}).text.splitlines()
    assert len(lines) == 1000
    assert json.loads(lines[999])["estimate"]["recipe"]["sequence_length"] == 16


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "no list"), ({"recipes": []}, "no list"), ({"recipes": {}}, "no list"), ([], "a list"),
        ({"recipes": [{}], "more": 1}, "'more'"), ({"recipes": [{"model": "gpt2"}] * 1001}, "1001 recipes"),
    ],
)  # fmt: skip
def test_a_batch_has_one_key_and_an_end(client: TestClient, body: Any, message: str) -> None:
    response = post(client, "estimate/batch", body)
    assert response.status_code == 422
    assert message in response.json()["error"]["message"]


def test_a_batch_may_be_larger_than_a_recipe_but_not_without_end(client: TestClient) -> None:
    start, end = b'{"recipes": [' + json.dumps({"model": SMALL, "sequence_length": 16}).encode(), b"]}"
    headers = {"Content-Type": "application/json"}
    fits = start + b" " * 200_000 + end
    assert client.post("/api/v1/estimate/batch", content=fits, headers=headers).status_code == 200
    too_large = start + b" " * 1_100_000 + end
    assert client.post("/api/v1/estimate/batch", content=too_large, headers=headers).status_code == 413


# -- plans ------------------------------------------------------------------------------------------------

PLANNED = {"model": SMALL, "method": "lora", "sequence_length": 512, "micro_batch_size": 8, "gpu": "t4"}


def test_a_plan_is_what_the_command_line_writes(
    client: TestClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    response = post(client, "plan", PLANNED)
    assert response.status_code == 200
    assert response.text == printed(capsys, "plan", as_file(PLANNED, tmp_path), "--json")


def test_a_plan_takes_what_the_planner_takes(client: TestClient) -> None:
    options = {
        "budget_bytes": 3 * 2**30, "keep": ["sequence_length"], "highest_tier": 2, "max_changes": 2,
        "largest": ["batch"], "prices": {"rtx 4090": 0.35}, "lengths": {"100": 5, "700": 1},
    }  # fmt: skip
    response = post(client, "plan", PLANNED | options)
    assert response.status_code == 200, response.text
    own = plan(**PLANNED, **(options | {"lengths": {100: 5, 700: 1}}))
    assert response.text == own.to_json() + "\n"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("keep", "micro_batch_size"), ("keep", ["bacth"]), ("keep", [1]), ("allow", {}), ("highest_tier", 5),
        ("highest_tier", "2"), ("max_changes", 7), ("max_changes", True), ("max_changes", 1.0), ("largest", ["bacth"]),
        ("largest", "batch"), ("prices", {"rtx-4090": 0}), ("prices", {"rtx-4090": "1"}), ("prices", {"nope": 1}),
        ("prices", [1]), ("lengths", []), ("lengths", [0]), ("lengths", {"0": 1}), ("lengths", {"08": 1}),
        ("lengths", [1] * 5001), ("budget_bytes", "20GiB"), ("budget_bytes", 1.5), ("budget_bytes", 1),
    ],
)  # fmt: skip
def test_options_of_a_plan_are_read_strictly(client: TestClient, key: str, value: Any) -> None:
    response = post(client, "plan", PLANNED | {key: value})
    assert response.status_code == 422, response.text


def test_a_plan_needs_a_limit(client: TestClient) -> None:
    error = post(client, "plan", {"model": SMALL}).json()["error"]
    assert error["field"] == "gpu"
    assert post(client, "plan", {"model": SMALL, "budget_bytes": 2**33, "sequence_length": 16}).status_code == 200


def test_a_mistyped_option_of_a_plan_says_what_was_meant(client: TestClient) -> None:
    assert "keep" in post(client, "plan", PLANNED | {"kepe": []}).json()["error"]["hint"]


# -- what memplan knows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["models", "gpus", "methods", "optimizers"])
def test_lists_are_what_the_command_line_writes(
    client: TestClient, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert client.get(f"/api/v1/{name}").text == printed(capsys, name, "--json")


def test_lists_are_complete(client: TestClient) -> None:
    found = {name: client.get(f"/api/v1/{name}").json() for name in ("models", "gpus", "methods", "optimizers")}
    assert [one["id"] for one in found["models"]] == list(card_ids())
    assert [one["id"] for one in found["gpus"]] == [gpu.id for gpu in list_gpus()]
    assert [one["name"] for one in found["methods"]] == [method.name for method in list_methods()]
    assert [one["name"] for one in found["optimizers"]] == list(optimizer_rows())


@pytest.mark.parametrize(
    "address",
    ["mistralai/Mistral-7B-v0.1", "mistralai%2FMistral-7B-v0.1", "MISTRALAI/mistral-7b-V0.1", "mistral-7b-v0.1"],
)
def test_a_model_has_its_slash_in_either_way(
    client: TestClient, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    response = client.get(f"/api/v1/models/{address}")
    assert response.text == printed(capsys, "models", "mistralai/Mistral-7B-v0.1", "--json")
    assert response.json()["parameters"] == 7_241_732_096


def test_an_unknown_model_is_not_found_with_a_suggestion(client: TestClient) -> None:
    response = client.get("/api/v1/models/mistralai/Mistral-7B-v0.11")
    assert response.status_code == 404
    assert "mistralai/Mistral-7B-v0.1" in response.json()["error"]["hint"]


def test_accuracy_is_what_the_command_line_writes(client: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    response = client.get("/api/v1/accuracy?source=fms&by=method")
    assert response.status_code == 200
    assert response.text == printed(capsys, "accuracy", "--source", "fms", "--by", "method", "--json")


def test_health_names_the_version(client: TestClient) -> None:
    response = client.get("/healthz")
    assert response.json() == {"status": "ok", "version": memplan.__version__}
    assert response.headers["cache-control"] == "no-store"


# -- answers that need not be sent again ------------------------------------------------------------------

KEPT = [
    "/api/v1/models",
    "/api/v1/models/gpt2",
    "/api/v1/gpus",
    "/api/v1/methods",
    "/api/v1/optimizers",
    "/openapi.json",
]


@pytest.mark.parametrize("path", [*KEPT, "/api/docs"])
def test_a_client_that_has_the_bytes_gets_none(client: TestClient, path: str) -> None:
    response = client.get(path)
    etag = response.headers["etag"]
    assert "max-age" in response.headers["cache-control"]
    for names in (etag, f"W/{etag}", f'"other", {etag}', "*", f'"a,b",{etag}'):
        again = client.get(path, headers={"If-None-Match": names})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
        assert again.headers["x-request-id"]
    for names in ('"other"', "", etag.strip('"'), etag[:-2] + '"'):
        assert client.get(path, headers={"If-None-Match": names}).status_code == 200


def test_etags_are_the_same_in_every_process(client: TestClient) -> None:
    code = f"""
from starlette.testclient import TestClient
from memplan.web.app import create_app
with TestClient(create_app()) as client:
    print(*(client.get(path).headers["etag"] for path in {KEPT!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PYTHONHASHSEED": "7"},
    )
    assert done.stdout.split() == [client.get(path).headers["etag"] for path in KEPT]


def test_errors_are_not_kept(client: TestClient) -> None:
    for path in ("/nowhere", "/api/v1/models/nope", "/api/v1/gpus?x=1"):
        assert client.get(path).headers["cache-control"] == "no-store"


# -- addresses and methods --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/api/v1", "/api/v1/", "/api/v2/estimate", "/api/v1/gpus/", "/api/v1/estimate/", "/api/v1/nowhere", "/healthz/x"],
)
def test_there_is_nothing_elsewhere(client: TestClient, path: str) -> None:
    response = client.get(path, headers={"Accept": "application/json"})
    assert response.status_code == 404
    if path.startswith("/api/"):
        assert response.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "estimate", "POST"), ("PUT", "plan", "POST"), ("POST", "gpus", "GET"), ("DELETE", "models/gpt2", "GET")],
)
def test_other_methods_are_named(client: TestClient, method: str, path: str, allowed: str) -> None:
    response = client.request(method, f"/api/v1/{path}")
    assert response.status_code == 405
    assert response.json()["error"]["code"] == "method_not_allowed"
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/healthz", "/api/v1/gpus", "/nowhere", "/", "/api/docs"])
def test_a_head_has_the_headers_of_a_get(client: TestClient, path: str) -> None:
    got, headed = client.get(path), client.head(path)
    assert headed.status_code == got.status_code
    assert headed.content == b""
    differ = {"x-request-id", "content-length"} if got.status_code == 404 else {"x-request-id"}
    assert {name: value for name, value in headed.headers.items() if name not in differ} == {
        name: value for name, value in got.headers.items() if name not in differ
    }


def test_a_head_of_what_takes_a_post_is_refused(client: TestClient) -> None:
    assert client.head("/api/v1/estimate").status_code == 405
