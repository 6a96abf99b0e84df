"""`memplan models`, `gpus`, `methods`, `optimizers`."""

from __future__ import annotations

import json

import pytest

from memplan.cards import card_ids, load_card
from memplan.catalog.gpus import get_gpu, list_gpus
from memplan.methods import list_methods
from memplan.optimizers.registry import optimizer_names
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("command", "key", "expected"),
    [
        ("models", "id", list(card_ids())),
        ("gpus", "id", [gpu.id for gpu in list_gpus()]),
        ("methods", "name", [method.name for method in list_methods()]),
        ("optimizers", "name", list(optimizer_names())),
    ],
)
def test_lists_are_complete(run: Run, command: str, key: str, expected: list[str]) -> None:
    assert [row[key] for row in json.loads(run(command, "--json").out)] == expected
    text = run(command).out
    assert [name for name in expected if name not in text] == []


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("models", "mistral-7b"), ["mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-v0.3"]),
        (("models", "qwen2.5 72b"), ["Qwen/Qwen2.5-72B"]),
        (("gpus", "h100"), None),
        (("gpus", "4070"), None),
    ],
)
def test_a_query_finds_what_holds_its_words(run: Run, arguments: tuple[str, ...], names: list[str] | None) -> None:
    found = json.loads(run(*arguments, "--json").out)
    rows = found if isinstance(found, list) else [found]
    assert rows
    if names is not None:
        assert [row["id"] for row in rows] == names


def test_one_card(run: Run) -> None:
    shown = json.loads(run("models", "MISTRAL-7B-V0.1", "--json").out)
    card = load_card("mistralai/Mistral-7B-v0.1")
    assert shown["parameters"] == card.parameters == 7_241_732_096
    weights = shown["weights_bytes"]
    assert weights["float32"] == 4 * card.parameters
    assert weights["bfloat16"] == 2 * card.parameters
    assert weights["NF4, double quantization"] < weights["NF4"] < weights["LLM.int8"] < weights["bfloat16"]
    text = run("models", "mistralai/Mistral-7B-v0.1").out
    assert "7,241,732,096" in text
    assert "num_hidden_layers" in text


@pytest.mark.parametrize("card_id", ["openai-community/gpt2", "google-bert/bert-base-uncased", "google-t5/t5-small"])
def test_cards_of_every_kind_have_their_page(run: Run, card_id: str) -> None:
    if card_id not in card_ids():
        pytest.skip("no such card")
    assert f"{load_card(card_id).parameters:,}" in run("models", card_id).out


@pytest.mark.parametrize("name", ["rtx-4090", "RTX 4090 24GB", "4090"])
def test_one_gpu(run: Run, name: str) -> None:
    gpu = get_gpu("rtx-4090")
    text = run("gpus", name).out
    assert text.startswith("RTX 4090 24GB\n")
    assert f"{gpu.usable_bytes:,} bytes" in text
    for source in gpu.sources:
        assert source in text
    assert json.loads(run("gpus", name, "--json").out)["usable_bytes"] == gpu.usable_bytes


def test_optimizers_say_their_state(run: Run) -> None:
    rows = {row["name"]: row for row in json.loads(run("optimizers", "--json").out)}
    assert rows["adamw_torch"]["device_bytes_per_parameter"] == 8
    assert rows["sgd"]["device_bytes_per_parameter"] == 0
    assert rows["adamw_8bit"]["device_bytes_per_parameter"] == pytest.approx(2 + 8 / 256, abs=1e-3)
    assert rows["paged_adamw_8bit"]["host_bytes_per_parameter"] == pytest.approx(2, abs=0.05)
    assert rows["galore_adamw"]["device_bytes_per_parameter"] < 8
    assert {name for name, row in rows.items() if row["device_bytes_per_parameter"] is None} == {
        name for name, row in rows.items() if row["unsupported"]
    }


def test_methods_say_their_aliases(run: Run) -> None:
    assert "(also pretrain, pre_training, sft, full_fine_tuning)" in run("methods", "full").out
