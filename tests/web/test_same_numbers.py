"""The same recipe has the same numbers in Python, on the command line, over REST and on the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from starlette.testclient import TestClient

import memplan
from memplan.cli.app import app as command_line
from memplan.estimate import Estimate
from memplan.report.wording import gib
from tests.web.models import SMALL

RECIPES: dict[str, dict[str, Any]] = {
    "qlora": {
        "model": "mistralai/Mistral-7B-v0.1", "method": "qlora", "peft": {"r": 16, "target_modules": "all-linear"},
        "micro_batch_size": 4, "sequence_length": 512, "optim": "paged_adamw_8bit", "activation_checkpointing": True,
        "gpu": "rtx-4090",
    },
    "full in mixed precision": {
        "model": "HuggingFaceTB/SmolLM2-135M", "dtype": "float32", "precision": "amp", "micro_batch_size": 3,
        "sequence_length": 256, "max_grad_norm": 0, "gradient_accumulation_steps": 4, "gpu": "t4",
    },
    "a config of one's own": {
        "model": SMALL, "method": "lora", "lora_r": 4, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"],
        "sequence_length": 32, "attn_implementation": "eager", "padding": True, "gpu": "h100",
    },
    "not covered": {"model": SMALL, "stack": "unsloth", "load_in_4bit": False, "gpu": "rtx-3090", "sequence_length": 64},
    "LLM.int8": {
        "model": "facebook/opt-125m", "method": "lora", "load_in_8bit": True, "llm_int8_skip_modules": ["lm_head"],
        "sequence_length": 64, "micro_batch_size": 2, "gpu": "a100-40gb", "expandable_segments": True,
    },
    "an older name": {
        "model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "gradient_checkpointing": "reentrant", "optim": "adafactor",
        "sequence_length": 128, "gpu": "l4",
    },
}  # fmt: skip


def words(value: Any) -> str:
    """A value as the command line and an address write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def options(recipe: dict[str, Any]) -> Iterator[str]:
    for key, value in recipe.items():
        name = key.replace("_", "-")
        if value is False:
            yield f"--no-{name}"
        elif value is True:
            yield f"--{name}"
        else:
            yield from (f"--{name}", words(value))


class Numbers(HTMLParser):
    """Every `<data data-name="..." data-bytes="...">` of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: dict[str, set[int]] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if "data-bytes" in given:
            assert given["data-bytes"] is not None
            self.found.setdefault(given.get("data-name") or "", set()).add(int(given["data-bytes"]))


@pytest.fixture(params=list(RECIPES))
def recipe(request: pytest.FixtureRequest) -> dict[str, Any]:
    return RECIPES[request.param]


@pytest.fixture
def own(recipe: dict[str, Any]) -> Estimate:
    """What Python says."""
    return memplan.estimate(**recipe)


def test_on_the_command_line(recipe: dict[str, Any], own: Estimate, capsys: pytest.CaptureFixture[str]) -> None:
    command_line(["estimate", *options(recipe), "--json"], standalone_mode=False)
    assert capsys.readouterr().out == own.to_json() + "\n"


def test_over_rest(client: TestClient, recipe: dict[str, Any], own: Estimate) -> None:
    response = client.post("/api/v1/estimate", json=recipe)
    assert response.text == own.to_json() + "\n"


def test_in_a_batch(client: TestClient, recipe: dict[str, Any], own: Estimate) -> None:
    response = client.post("/api/v1/estimate/batch", json={"recipes": [recipe]})
    assert json.loads(response.text)["estimate"] == json.loads(own.to_json())


def test_on_the_page(client: TestClient, recipe: dict[str, Any], own: Estimate) -> None:
    response = client.get("/", params={key: words(value) for key, value in recipe.items()})
    assert response.status_code == 200
    shown = Numbers(response.text).found
    peak = own.peak
    assert shown["device"] == {peak.device_bytes}
    assert shown["live"] == {peak.live_bytes}
    for entry in own.components:
        assert shown[entry.component] == {entry.bytes}
    if not own.unsupported:
        assert shown["allocated"] == {peak.allocated_bytes}
        assert shown["reserved"] == {peak.reserved_bytes}
    verdict = own.verdict()
    # What is not covered has no upper bound: the page says so instead.
    for number in (verdict.usable_bytes, verdict.expected_bytes, *(() if own.unsupported else (verdict.upper_bytes,))):
        assert gib(number) in response.text
    assert f'data-fits="{verdict.fits}"' in response.text
