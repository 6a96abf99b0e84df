"""What the API tells a client who made a mistake: keys and addresses, never options and commands of a terminal."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from memplan.web.hints import over_rest

RUN = {"model": "openai-community/gpt2", "method": "lora", "sequence_length": 64, "gpu": "t4"}
TERMINAL = re.compile(r"(^|\s|`)--[a-z]|`memplan (?!.*on your own machine)")
WRONG: list[dict[str, Any]] = [
    {},
    {"model": "gpt"},
    {"model": "./config.json"},
    {"model": {"model_type": "falcon_h9"}},
    {"model": {"model_type": "llama"}},
    RUN | {"bacth": 1},
    RUN | {"method": "lorra"},
    RUN | {"optim": "adam"},
    RUN | {"optim_args": {"betta": 1}},
    RUN | {"gpu": "rtx-4099"},
    RUN | {"dtype": "int4"},
    RUN | {"precision": "mixed"},
    RUN | {"peft": {"rank": 4}},
    RUN | {"target_modules": ["q_proj"]},
    RUN | {"target_modules": "(a+)+$"},
    RUN | {"lora_r": 4, "method": "full"},
    RUN | {"sequence_length": 10**6},
    RUN | {"load_in_4bit": True, "load_in_8bit": True},
    RUN | {"method": "qlora", "load_in_4bit": False},
    RUN | {"task": "summarization"},
    RUN | {"num_virtual_tokens": 4},
    RUN | {"quantization_config": {"load_in_4bit": True, "bits": 3}},
    RUN | {"stack": "axolotl"},
    RUN | {"attn_implementation": "flash"},
    RUN | {"torch_version": "1.0"},
]


@pytest.mark.parametrize("recipe", WRONG, ids=lambda recipe: json.dumps(recipe)[-40:])
def test_hints_speak_of_keys(client: TestClient, recipe: dict[str, Any]) -> None:
    answers = [client.post("/api/v1/estimate", json=recipe), client.post("/api/v1/plan", json=recipe)]
    for answer in answers:
        if answer.status_code != 200:  # some are only unusual
            error = answer.json()["error"]
            assert not TERMINAL.search(error["message"] + "\n" + error.get("hint", "")), error
    config = {"schema": 1, "check": [{"name": "a", "recipe": recipe, "gpu": "t4", "max_increase": "1 GiB"}]}
    text = client.post("/api/v1/check", json={"config": config}).text
    assert not re.search(r"(\s|\(|`)--[a-z]", text), text


def test_at_least_most_of_them_are_mistakes(client: TestClient) -> None:
    statuses = [client.post("/api/v1/estimate", json=recipe).status_code for recipe in WRONG]
    assert statuses.count(422) > len(WRONG) - 6


def test_a_file_without_a_model_is_told_of_keys(client: TestClient) -> None:
    config = {"schema": 1, "check": [{"name": "a", "config": "train.yaml", "gpu": "t4"}]}
    files = {"train.yaml": "per_device_train_batch_size: 4\nbf16: true\noutput_dir: out\n"}
    (check,) = client.post("/api/v1/check", json={"config": config, "files": files}).json()["checks"]
    assert check["status"] == "error"
    assert "--" not in check["problem"]["hint"]


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        (
            "`memplan models` lists all 130 cards",
            "GET /api/v1/models lists all 130 cards; any other model is sent as the object of its config.json",
        ),
        ("leave out --lora-r, or name --method lora", "leave out lora_r, or name method lora"),
        ("`memplan trace` answers", "`memplan trace` on your own machine answers"),
        ("run `memplan` on your own machine", "run `memplan` on your own machine"),
        ("`memplan check` on your own machine takes 500", "`memplan check` on your own machine takes 500"),
        ("a --- b, x--y and -r stay", "a --- b, x--y and -r stay"),
    ],
)
def test_words(hint: str, said: str) -> None:
    assert over_rest(hint) == said
