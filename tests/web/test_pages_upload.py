"""Configs that people paste or upload become the address, whole or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from memplan.cards import card_ids, load_card
from memplan.model_config import normalise_config
from memplan.web.pages.keys import read_query
from memplan.web.pages.upload import shortest_config

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.35.0",
    "vocab_size": 32000,
    "auto_map": {"AutoModel": "evil.py"},
}
ADAPTER = {
    "base_model_name_or_path": "openai-community/gpt2",
    "bias": "none",
    "fan_in_fan_out": True,
    "inference_mode": True,
    "lora_alpha": 32,
    "lora_dropout": 0.1,
    "peft_type": "LORA",
    "r": 4,
    "target_modules": ["c_attn"],
    "task_type": "CAUSAL_LM",
}


def _send(client: TestClient, text: str, *, state: str = "", as_file: str = "") -> Any:
    files = {"file": (as_file, text.encode(), "application/json")} if as_file else {"file": ("", b"")}
    data = {"state": state, "text": "" if as_file else text}
    return client.post("/read", data=data, files=files, follow_redirects=False)


def _keys(answer: Any) -> dict[str, Any]:
    assert answer.status_code == 303, answer.text[-600:]
    return dict(read_query(answer.headers["location"].removeprefix("/?").encode()).keys)


@pytest.mark.parametrize("as_file", ["", "config.json"])
def test_a_config_becomes_the_model(client: TestClient, as_file: str) -> None:
    answer = _send(client, json.dumps(LLAMA), state="method=lora&model=gpt2&gpu=t4", as_file=as_file)
    keys = _keys(answer)
    assert normalise_config(keys["model"]) == normalise_config(LLAMA)
    assert keys["method"] == "lora"
    assert keys["gpu"] == "t4"
    assert not set(keys["model"]) & {"auto_map", "transformers_version", "bos_token_id"}
    assert client.get(answer.headers["location"], follow_redirects=False).status_code == 200


def test_an_adapter_becomes_the_method(client: TestClient) -> None:
    answer = _send(client, json.dumps(ADAPTER), state="method=qlora&lora_r=64&gpu=t4", as_file="adapter_config.json")
    keys = _keys(answer)
    assert keys["model"] == "openai-community/gpt2"
    assert keys["peft"]["r"] == 4
    assert "lora_r" not in keys
    page = client.get(answer.headers["location"])
    assert page.status_code == 200
    assert 'data-name="adapters"' in page.text


def test_a_mistake_in_the_form_is_not_lost(client: TestClient) -> None:
    answer = _send(client, json.dumps(LLAMA), state="micro_batch_size=four&gpu=t4")
    page = client.get(answer.headers["location"])
    assert page.status_code == 422
    assert 'value="four"' in page.text
    assert "&#34;model_type&#34;:&#34;llama&#34;" in page.text


@pytest.mark.parametrize("card_id", card_ids()[::9])
def test_the_shortest_config_is_the_same_model(card_id: str) -> None:
    config = load_card(card_id).config
    short = shortest_config(config)
    assert normalise_config(short) == normalise_config(config)
    assert shortest_config(short) == short
    assert len(short) <= len(config)


def test_labels_are_counted() -> None:
    config = {"model_type": "bert", "id2label": {str(number): f"label {number}" for number in range(1000)}}
    short = shortest_config(config)
    assert short == {"model_type": "bert", "num_labels": 1000}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "paste a config"),
        ("{", "not valid JSON: line 1"),
        ('{"model_type": "llama", "hidden_size": NaN}', "NaN"),
        ('{"model_type": "llama", "model_type": "gpt2"}', "twice"),
        ('{"model_type": "lama"}', "did you mean llama"),
        ('{"model_type": "llama", "hidden_size": -1}', "hidden_size"),
        ('{"hello": 1}', ""),
        ("[1, 2]", ""),
        ("&a [*a]", ""),
        ("x" * 3000, ""),
    ],
)
def test_what_cannot_be_read_is_said_beside_the_text(client: TestClient, text: str, words: str) -> None:
    answer = _send(client, text, state="method=lora&gpu=t4")
    assert answer.status_code == 422
    message = answer.text.partition('id="error-text"')[2].partition("</p>")[0]
    assert message.startswith(">")
    assert len(message) > 10
    assert words in message.replace("&#39;", "'")
    assert '<option value="t4" selected>' in answer.text
    if text:
        assert answer.text.count("<textarea") == 1
        assert "</textarea>" in answer.text


def test_what_an_address_cannot_hold_is_refused(client: TestClient) -> None:
    kept = [f"model.layers.{layer}.mlp.down_proj" for layer in range(200)]
    config = LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 4, "modules_to_not_convert": kept}}
    answer = _send(client, json.dumps(config))
    assert answer.status_code == 422
    assert "characters of an address" in answer.text


def test_an_upload_is_limited(client: TestClient) -> None:
    answer = _send(client, " " * 300_000 + json.dumps(LLAMA))
    assert answer.status_code == 413


def test_no_script_comes_back(client: TestClient) -> None:
    answer = _send(client, '{"</textarea><script>alert(1)</script>": ')
    assert answer.status_code == 422
    assert "<script>alert" not in answer.text
