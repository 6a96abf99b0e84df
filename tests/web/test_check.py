"""Budgets judged over HTTP: what the command line says, and nothing but what was sent."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from memplan.cli.app import app as command_line
from memplan.units import GIB
from memplan.web.app import create_app
from memplan.web.settings import Settings

SMALL = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 97,
}  # fmt: skip
RUN = {"model": "openai-community/gpt2", "method": "lora", "sequence_length": 128}


def budgets(*checks: dict[str, Any], **top: Any) -> dict[str, Any]:
    return {"schema": 1, "check": [{"name": f"run-{number}"} | one for number, one in enumerate(checks)]} | top


def ask(client: TestClient, body: Any) -> Any:
    return client.post("/api/v1/check", json=body)


def report(client: TestClient, config: dict[str, Any], **more: Any) -> Any:
    response = ask(client, {"config": config, **more})
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    return response.json()


def error(client: TestClient, body: Any) -> Any:
    response = ask(client, body)
    assert response.status_code == 422, response.text
    return response.json()["error"]


# -- what is judged ---------------------------------------------------------------------------------------


def test_it_is_what_the_command_line_writes(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "model: openai-community/gpt2\nsequence_length: 128\nmicro_batch_size: 4\n"
    (tmp_path / "memplan.toml").write_text(
        'schema = 1\n[[check]]\nname = "run-0"\nrecipe_file = "r.yaml"\ngpu = "t4"\n'
        '[[check]]\nname = "run-1"\nrecipe_file = "r.yaml"\nbudget = "1 GiB"\nmessage = "ask first"\n',
        encoding="utf-8",
    )
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    command_line(["check", "--json"], standalone_mode=False)
    printed = capsys.readouterr().out
    file = {"recipe_file": "r.yaml"}
    config = budgets(file | {"gpu": "t4"}, file | {"budget": "1 GiB", "message": "ask first"})
    sent = ask(client, {"config": config, "files": {"r.yaml": text}}).text
    assert sent.startswith("{\n")
    assert sent.endswith("}\n")

    def without_places(text: str) -> str:
        text = text.replace(" is given (--base)", " is given")  # an option is the command line's
        return re.sub(r"checks: check\[\d\](\.\w+)?|memplan\.toml:\d+|\"(checks|memplan\.toml)\"", "HERE", text)

    assert without_places(sent) == without_places(printed)


def test_within_over_and_uncertain(client: TestClient) -> None:
    found = report(
        client,
        budgets(
            {"recipe": RUN, "gpu": "rtx-4090"},
            {"recipe": RUN | {"micro_batch_size": 32}, "budget": "4 GiB", "severity": "warn"},
            {"recipe": RUN | {"stack": "unsloth"}, "gpu": "rtx-4090"},
        ),
    )
    assert [one["status"] for one in found["checks"]] == ["within", "over", "uncertain"]
    assert [one["outcome"] for one in found["checks"]] == ["pass", "warn", "warn"]
    assert (found["verdict"], found["exit_code"]) == ("warn", 0)
    within, over, uncertain = found["checks"]
    assert within["limits"][0]["upper_bytes"] <= within["limits"][0]["limit_bytes"]
    assert over["limits"][0]["limit_bytes"] == 4 * GIB < over["expected_bytes"]
    assert over["suggestion"]["upper_bytes"] <= 4 * GIB
    assert uncertain["unsupported"]


def test_over_and_uncertain_have_the_exit_codes_of_the_command(client: TestClient) -> None:
    over = report(client, budgets({"recipe": RUN, "budget": "100 MiB"}))
    assert (over["verdict"], over["exit_code"]) == ("over", 1)
    strict = {"recipe": RUN | {"stack": "unsloth"}, "gpu": "rtx-4090", "on_uncertain": "fail"}
    uncertain = report(client, budgets(strict))
    assert (uncertain["verdict"], uncertain["exit_code"]) == ("uncertain", 3)


def test_growth_against_what_was_sent_as_the_base(client: TestClient) -> None:
    config = budgets({"config": "sft.json", "max_increase": "+5%"})
    texts = [json.dumps(RUN | {"micro_batch_size": size}) for size in (1, 16)]
    base = {"config": budgets({"config": "sft.json", "budget": "70 GiB"}), "files": {"sft.json": texts[0]}}
    found = report(client, config, files={"sft.json": texts[1]}, base=base)
    (one,) = found["checks"]
    assert (one["status"], found["exit_code"], found["base"]) == ("grew", 1, {"ref": "base", "commit": ""})
    assert [change["key"] for change in one["growth"]["why"]["changed"]] == ["micro_batch_size"]
    assert one["growth"]["after_bytes"] - one["growth"]["before_bytes"] == one["growth"]["why"]["change_bytes"]
    same = report(client, config, files={"sft.json": texts[0]}, base=base)
    assert (same["checks"][0]["status"], same["exit_code"]) == ("within", 0)
    alone = report(client, config, files={"sft.json": texts[1]})
    assert alone["base"] is None
    assert alone["checks"][0]["growth"]["base"] == "none"


# -- what is not ------------------------------------------------------------------------------------------


def test_a_file_that_was_not_sent_is_missing(client: TestClient, tmp_path: Path) -> None:
    there = tmp_path / "r.json"
    there.write_text(json.dumps(RUN), encoding="utf-8")
    found = report(client, budgets(*({"config": path, "gpu": "t4"} for path in ("sft.yaml", str(there)))))
    assert found["exit_code"] == 4
    assert [one["problem"]["code"] for one in found["checks"]] == ["no_such_file"] * 2
    assert "sft.yaml" in found["checks"][0]["problem"]["message"]


def test_a_model_is_never_a_path(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SMALL), encoding="utf-8")
    names = [str(tmp_path), f"{tmp_path}/config.json", "./tests", "../main", "~", "/proc/self", "tests"]
    checks = [{"recipe": RUN | {"model": name}, "gpu": "t4"} for name in names]
    checks += [{"recipe": RUN, "override": {"model": name}, "gpu": "t4"} for name in names]
    checks += [{"config": "r.json", "gpu": "t4"}, {"recipe_file": "r.json", "gpu": "t4"}]
    found = report(client, budgets(*checks), files={"r.json": json.dumps(RUN | {"model": str(tmp_path)})})
    assert {one["status"] for one in found["checks"]} == {"error"}
    assert {one["problem"]["code"] for one in found["checks"]} == {"no_such_file", "unknown_model"}
    assert {one["expected_bytes"] for one in found["checks"]} == {None}
    base = {"config": budgets({"recipe": RUN | {"model": str(tmp_path)}})}
    compared = report(client, budgets({"recipe": RUN, "gpu": "t4", "max_increase": "1 MiB"}), base=base)
    assert compared["checks"][0]["growth"]["base"] == "failed"
    assert compared["checks"][0]["status"] == "uncertain"


def test_a_model_may_be_a_file_that_was_sent(client: TestClient) -> None:
    run = {"model": "./small", "sequence_length": 16}
    found = report(
        client, budgets({"recipe": run, "gpu": "t4"}), files={"small/config.json": json.dumps(SMALL | {"n": 1})}
    )
    inline = report(client, budgets({"recipe": run | {"model": SMALL}, "gpu": "t4"}))
    assert found["checks"][0]["peak"] == inline["checks"][0]["peak"]


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (RUN | {"target_modules": "(a+)+$"}, "repeated groups"),
        ({"model": SMALL | {"num_hidden_layers": 129}}, "128 layers"),
        (RUN | {"bacth": 1}, "unknown recipe key 'bacth'"),
        (RUN | {"model": "openai-community/gpt3"}, "unknown model"),
        ({}, "model is missing"),
    ],
)  # fmt: skip
def test_a_recipe_that_is_refused_is_the_error_of_its_check(
    client: TestClient, recipe: dict[str, Any], message: str
) -> None:
    good = {"recipe": RUN, "gpu": "t4"}
    text = {"r.json": json.dumps(recipe)}
    found = report(
        client, budgets({"recipe": recipe, "gpu": "t4"}, {"recipe_file": "r.json", "gpu": "t4"}, good), files=text
    )
    assert [one["status"] for one in found["checks"]] == ["error", "error", "within"]
    assert found["exit_code"] == 2
    for one in found["checks"][:2]:
        assert message in one["problem"]["message"]


def test_texts_that_are_no_text_are_the_error_of_their_check(client: TestClient) -> None:
    files = {
        "half.json": '{"model": {"model_type": "gpt2", "_name_or_path": "\\ud800"}}',
        "half.yaml": 'model: gpt2\n"\\udfff": 1\n',
        "twice.json": '{"model": "gpt2", "model": "gpt2"}',
        "broken.yaml": "model: [",
        "list.toml": "a = [1]",
    }
    found = report(client, budgets(*({"recipe_file": path, "gpu": "t4"} for path in files)), files=files)
    assert [one["status"] for one in found["checks"]] == ["error"] * len(files)
    for one, path in zip(found["checks"], files, strict=True):
        assert path in one["problem"]["message"] or path == "list.toml"


# -- errors of the request --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "field", "code", "hint"),
    [
        ({"confg": {}}, "confg", "unknown_key", "config"),
        ({"config": budgets({"recipe": RUN, "budgt": "1 GiB"})}, "config", "unknown_key", "budget"),
        ({"config": budgets({"recipe": RUN}, default={})}, "config", "unknown_key", "defaults"),
        ({"config": budgets({"recipe": RUN}), "base": {"file": {}}}, "base.file", "unknown_key", "files"),
        ({"config": budgets({"recipe": RUN}), "base": {"config": {}}}, "base.config", "invalid_input", "schema = 1"),
        ({"config": budgets({"recipe": RUN, "budget": "20 G"})}, "config", "invalid_value", "GiB"),
        ({"config": budgets({"recipe": RUN, "level": "devise"})}, "config", "unknown_level", "device"),
        ({"config": budgets({"recipe": RUN, "level": None})}, "config", "unknown_level", "device"),
        (
            {"config": budgets({"recipe": RUN, "budget": "1 GiB"}, defaults={"budget": "1"})},
            "config",
            "invalid_value",
            "GiB",
        ),
        ({"config": budgets({"recipe": None})}, "config", "invalid_value", ""),
        ({"config": {"schema": 1}}, "config", "invalid_input", "[[check]]"),
        ({}, "config", "invalid_value", ""),
        ({"config": budgets({"recipe": RUN}), "files": []}, "files", "invalid_value", ""),
        ({"config": budgets({"recipe": RUN}), "files": {"a": 1}}, "files.a", "invalid_value", ""),
        ({"config": budgets({"recipe": RUN}), "files": {"a": "", "./a": ""}}, "files", "invalid_value", ""),
        ({"config": budgets({"recipe": RUN}), "base": 1}, "base", "invalid_value", ""),
        ([], "", "invalid_body", "object"),
    ],
)  # fmt: skip
def test_a_wrong_request_says_what_is_wrong(client: TestClient, body: Any, field: str, code: str, hint: str) -> None:
    found = error(client, body)
    assert (found.get("field", ""), found["code"]) == (field, code)
    assert hint in found.get("hint", "")


def test_checks_have_an_end(client: TestClient) -> None:
    most = Settings().max_checks
    run = {"recipe": {"model": SMALL, "sequence_length": 16}, "gpu": "t4"}
    assert len(report(client, budgets(*[run] * most))["checks"]) == most
    many = budgets(*[run] * (most + 1))
    assert f"at most {most} checks" in error(client, {"config": many})["message"]
    assert error(client, {"config": budgets(run), "base": {"config": many}})["field"] == "base.config"


def test_checks_that_take_too_long_say_so(client: TestClient) -> None:
    with TestClient(create_app(Settings(slow_timeout_seconds=0.001))) as hurried:
        response = ask(hurried, {"config": budgets(*[{"recipe": RUN, "gpu": "t4"}] * 3)})
    found = response.json()["error"]
    assert (response.status_code, found["code"], found["field"]) == (503, "timeout", "config")
    assert "0.001 s that this service gives" in found["message"]
    assert "send fewer checks" in found["hint"]
    sample = client.get("/openapi.json").json()["paths"]["/api/v1/check"]["post"]["responses"]["503"]["content"]
    shown = sample["application/json"]["examples"]["timeout"]["value"]["error"]
    assert found["message"] == shown["message"].replace("20 s", "0.001 s")
    assert found["hint"] == shown["hint"]


def test_only_so_many_changes_are_explained(client: TestClient) -> None:
    """The work of one request is bounded, however many keys changed."""
    changed = {"micro_batch_size": 2, "sequence_length": 64, "optim": "sgd", "padding": True, "lora_r": 4}
    run = {"gpu": "t4", "max_increase": "9 GiB"}
    count = Settings().max_explained // 8 + 1  # five keys take eight estimates
    now = budgets(*[run | {"recipe": RUN | changed}] * count)
    found = report(client, now, base={"config": budgets(*[run | {"recipe": RUN}] * count)})
    explained = [len(one["growth"]["why"]["attributions"]) for one in found["checks"]]
    assert explained[-2:] == [5, 0]
    assert "ask for fewer checks" in found["checks"][-1]["growth"]["why"]["notes"][-1]
    assert found["checks"][-1]["status"] == found["checks"][0]["status"]


def test_a_body_has_the_usual_limits(client: TestClient) -> None:
    files = {"r.json": " " * (64 * 1024)}
    assert ask(client, {"config": budgets({"recipe": RUN}), "files": files}).status_code == 413
    headers = {"Content-Type": "application/json"}
    twice = client.post("/api/v1/check", content=b'{"config": {}, "config": {}}', headers=headers)
    assert (twice.status_code, twice.json()["error"]["code"]) == (400, "invalid_json")
    assert client.post("/api/v1/check", content=b"{}").status_code == 415
    assert client.get("/api/v1/check").status_code == 405
