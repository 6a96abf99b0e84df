"""The page: addresses, statuses, mistakes beside their fields, headers, and no more bytes than promised."""

from __future__ import annotations

import html
import re

import pytest
from starlette.testclient import TestClient

from memplan import estimate
from memplan.web.pages.keys import query_of, read_query

QLORA = "model=mistralai/Mistral-7B-v0.1&method=qlora&lora_r=16&micro_batch_size=1&gpu=rtx-4090"
TOO_MUCH = "model=mistralai/Mistral-7B-v0.1&method=full&gpu=rtx-4090"
SMALL = "model=openai-community/gpt2&method=lora&gpu=t4"
PAGES = ("/", f"/?{SMALL}", "/models", "/models/gpt2", "/gpus", "/methods", "/about", f"/receipt?{SMALL}")
FRAGMENTS = ("changes", "gpus", "methods")
MAX_PAGE_BYTES = 100 * 1024


def _numbers(page: str) -> dict[str, int]:
    return {name: int(size) for size, name in re.findall(r'data-bytes="(\d+)" data-name="(\w+)"', page)}


def _text(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page))


@pytest.mark.parametrize("path", PAGES)
def test_every_page_answers(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.text.count("<h1") == 1
    assert answer.text.lstrip().startswith('<!doctype html>\n<html lang="en">')
    assert "style=" not in answer.text
    assert not re.search(r"\son\w+=", answer.text)
    assert not re.search(r"<script(?![^>]*\ssrc=)", answer.text)


def test_the_page_says_what_the_estimate_says(client: TestClient) -> None:
    page = client.get(f"/?{QLORA}").text
    expected = estimate(**read_query(QLORA.encode()).keys)
    found = _numbers(page)
    assert found["device"] == expected.peak.device_bytes
    assert found["reserved"] == expected.peak.reserved_bytes
    assert found["allocated"] == expected.peak.allocated_bytes
    assert found["live"] == expected.peak.live_bytes
    for entry in expected.components:
        assert found[entry.component.value] == entry.bytes
    assert expected.verdict_report is not None
    assert f'data-fits="{expected.verdict_report.fits.value}"' in page


@pytest.mark.parametrize(("query", "word"), [(QLORA, "Fits"), (TOO_MUCH, "Does not fit")])
def test_the_verdict_comes_first(client: TestClient, query: str, word: str) -> None:
    page = client.get(f"/?{query}").text
    answer = page.partition('<div id="answer"')[2]
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", answer, re.DOTALL)
    assert _text(headings[0]).startswith(word)
    changes = "What else would fit" if word == "Fits" else "What would make it fit"
    assert [_text(heading) for heading in headings[1:]] == [
        "Against RTX 4090 24GB", changes, "When", "Where it goes", "On every GPU", "With every method", "How we know",
        "Assumptions", "Take it along",
    ]  # fmt: skip
    assert f"<title>{word}: mistralai/Mistral-7B-v0.1" in page


def test_what_is_not_covered_is_said_and_never_fits(client: TestClient) -> None:
    page = client.get("/?model=mistralai/Mistral-7B-v0.1&method=lora&gpu=mi300x").text
    assert 'data-fits="uncertain"' in page
    assert "not covered: the kernels of MI300X" in page
    assert "at least" in page.partition('id="verdict"')[2].partition("</h2>")[0]
    assert "at most" not in page.partition('<svg class="bar"')[2].partition("</svg>")[0]


def test_a_page_with_style_and_script_is_small(client: TestClient) -> None:
    for query in ("/", f"/?{QLORA}", "/?model=Qwen/Qwen3-30B-A3B&method=lora&gpu=h200"):
        page = client.get(query).text
        assets = re.findall(r'(?:href|src)="(/static/[^"]+)"', page)
        assert {asset.partition("?")[0] for asset in assets} == {
            "/static/icon.svg",
            "/static/style.css",
            "/static/app.js",
        }
        total = len(page.encode()) + sum(len(client.get(asset).content) for asset in assets)
        assert total <= MAX_PAGE_BYTES, query


@pytest.mark.parametrize("path", PAGES)
def test_nothing_is_loaded_from_elsewhere(client: TestClient, path: str) -> None:
    page = client.get(path).text
    loaded = re.findall(r'<(?:link|script|img|iframe|source|object|use|image)[^>]*\s(?:href|src|data)="([^"]*)"', page)
    assert loaded
    assert all(address.startswith(("/static/", "#")) for address in loaded)


def test_static_files_are_kept_by_their_digest(client: TestClient) -> None:
    page = client.get("/").text
    (address,) = re.findall(r'href="(/static/style\.css\?v=\w+)"', page)
    assert "immutable" in client.get(address).headers["cache-control"]
    assert client.get("/static/style.css?v=old").headers["cache-control"] == "no-cache"
    assert client.get("/static/../app.py").status_code == 404
    assert client.get("/static/%2e%2e/app.py").status_code == 404


def test_a_page_that_is_known_is_not_sent_again(client: TestClient) -> None:
    first = client.get(f"/?{SMALL}")
    again = client.get(f"/?{SMALL}", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    assert not again.content
    assert client.get("/?model=nope").headers["cache-control"] == "no-store"


# -- the address ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("gpu=RTX+4090&model=mistral-7b-v0.1&lora_r=&method=", "model=mistralai/Mistral-7B-v0.1&gpu=rtx-4090"),
        ("model=gpt2&gradient_checkpointing=true", "model=openai-community/gpt2&activation_checkpointing=true"),
        ("method=qlora&gpu=t4", "method=qlora&gpu=t4"),
    ],
)
def test_the_address_becomes_the_short_one(client: TestClient, given: str, canonical: str) -> None:
    answer = client.get(f"/?{given}", follow_redirects=False)
    if given != canonical:
        assert answer.status_code == 303
        assert answer.headers["location"] == f"/?{canonical}"
        answer = client.get(answer.headers["location"], follow_redirects=False)
    assert answer.status_code == 200
    assert f'data-query="{html.escape(canonical)}"' in answer.text


def test_an_inline_config_is_a_model(client: TestClient) -> None:
    config = {"model_type": "llama", "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config |= {"intermediate_size": 512, "vocab_size": 1000}
    page = client.get(f"/?{query_of({'model': config, 'method': 'full', 'gpu': 't4'})}", follow_redirects=False)
    assert page.status_code == 200
    expected = estimate(model=config, method="full", gpu="t4")
    assert _numbers(page.text)["device"] == expected.peak.device_bytes
    assert "llama (inline config)" in page.text


def test_a_link_with_a_gpu_alone_fills_the_form(client: TestClient) -> None:
    page = client.get("/?gpu=t4")
    assert page.status_code == 200
    assert '<option value="t4" selected>' in page.text
    assert "Start from an example" in page.text


# -- mistakes ---------------------------------------------------------------------------------------------


def test_a_mistake_keeps_what_was_entered(client: TestClient) -> None:
    answer = client.get("/?model=gpt2&method=lora&lora_r=sixteen&gpu=t4&micro_batch_size=4")
    assert answer.status_code == 422
    page = answer.text
    assert 'value="sixteen"' in page
    assert 'value="4"' in page
    assert '<option value="t4" selected>' in page
    field = re.search(r'<input id="f-lora_r"[^>]*>', page)
    assert field is not None
    assert 'aria-invalid="true"' in field[0]
    assert 'aria-describedby="error-lora_r"' in field[0]
    assert re.search(r'<p class="field-error" id="error-lora_r">[^<]*whole number', page)
    assert '<a href="#f-lora_r">' in page


@pytest.mark.parametrize(
    ("query", "field", "words"),
    [
        ("model=&method=lora", "model", "no model is named"),
        ("model=llama3", "model", "did you mean meta-llama"),
        ("model=gpt2&gpu=rtx-4099", "gpu", "did you mean rtx-4090"),
        ("model=gpt2&method=loar", "method", "did you mean lora"),
        ("model=gpt2&optim=adamw_torch_fussed", "optim", "did you mean adamw_torch_fused"),
        ("model=gpt2&method=full&lora_r=8", "lora_r", "not a PEFT method"),
        ("model=gpt2&sequence_length=4096", "sequence_length", "1024 positions"),
        ("model=gpt2&micro_batch_size=0", "micro_batch_size", "greater than or equal to 1"),
        ("model=gpt2&load_in_4bit=true", "method", "adapter"),
    ],
)
def test_each_mistake_stands_beside_its_field(client: TestClient, query: str, field: str, words: str) -> None:
    answer = client.get(f"/?{query}")
    assert answer.status_code == 422
    message = re.search(rf'id="error-{field}">(.*?)</p>', answer.text, re.DOTALL)
    assert message is not None, answer.text[answer.text.index('id="mistakes"') :][:600]
    assert words in _text(message[1])


def test_remedies_are_links_that_answer(client: TestClient) -> None:
    page = client.get("/?model=gpt2&method=full&lora_r=8&gpu=t4").text
    (address,) = re.findall(r'<span class="remedies"><a href="([^"]+)">leave lora_r out', page)
    assert client.get(html.unescape(address)).status_code == 200
    page = client.get("/?model=gpt2&gpu=rtx-4099").text
    assert '<a href="/?model=openai-community/gpt2&amp;gpu=rtx-4090">use rtx-4090</a>' in page


def test_every_wrong_name_is_told_at_once(client: TestClient) -> None:
    page = client.get("/?model=nope&gpu=nope&method=nope&lora_r=nope").text
    assert "4 things need to change first" in page


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{7*7}}", "'-alert(1)-'"]
)
@pytest.mark.parametrize("key", ["model", "gpu", "method", "lora_r", "target_modules", "peft", "stack_version", "zzz"])
def test_whatever_is_entered_stays_text(client: TestClient, key: str, text: str) -> None:
    answer = client.get("/", params={"model": "gpt2", key: text} if key != "model" else {key: text})
    assert answer.status_code in (200, 422)
    assert "<script>alert" not in answer.text
    assert "<img" not in answer.text
    assert ">49<" not in answer.text


@pytest.mark.parametrize("path", ["/etc/passwd", "./pyproject.toml", "../x", "~/config.json", "file:///etc/passwd"])
def test_a_path_is_no_model(client: TestClient, path: str) -> None:
    answer = client.get("/", params={"model": path})
    assert answer.status_code == 422
    assert "unknown model" in answer.text


def test_errors_are_pages(client: TestClient) -> None:
    answer = client.get("/nowhere")
    assert answer.status_code == 404
    assert "<h1>There is nothing at this address</h1>" in answer.text
    missing = client.get("/models/no/such")
    assert missing.status_code == 404
    assert "text/html" in missing.headers["content-type"]
    assert client.post("/gpus").status_code == 405


# -- fragments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FRAGMENTS)
def test_fragments_and_their_pages_say_the_same(client: TestClient, name: str) -> None:
    page = client.get(f"/?{SMALL}").text
    section = re.search(rf'data-src="(/fragments/{name}\?[^"]+)".*?<a class="more" href="([^"]+)"', page, re.DOTALL)
    assert section is not None
    fragment, alone = (client.get(html.unescape(address)) for address in section.groups())
    assert fragment.status_code == alone.status_code == 200
    assert "<html" not in fragment.text
    assert fragment.text in alone.text


def test_the_answer_alone(client: TestClient) -> None:
    fragment = client.get(f"/fragments/answer?{SMALL}")
    assert fragment.status_code == 200
    assert fragment.text.strip().startswith('<div id="answer"')
    assert fragment.text.strip() in client.get(f"/?{SMALL}").text
    wrong = client.get("/fragments/answer?model=gpt2&lora_r=x")
    assert wrong.status_code == 422
    assert 'data-field="lora_r"' in wrong.text


def test_fragments_refuse_what_the_page_refuses(client: TestClient) -> None:
    assert client.get("/fragments/gpus?model=nope").status_code == 422
    assert client.get("/fragments/gpus").status_code == 422
    assert client.get("/receipt?model=gpt2&lora_r=x").status_code == 422
    assert client.get("/fragments/what?model=gpt2").status_code == 404


def test_the_root_path_of_a_proxy_is_kept() -> None:
    from memplan.web.app import create_app

    with TestClient(create_app(), root_path="/tools/memplan") as mounted:
        answer = mounted.get("/tools/memplan/?model=gpt2&lora_r=", follow_redirects=False)
        assert answer.headers["location"] == "/tools/memplan/?model=openai-community/gpt2"
        page = mounted.get(answer.headers["location"]).text
    links = re.findall(r'(?:href|src|action|data-src|data-answer)="([^"#][^"]*)"', page)
    assert len(links) > 20
    assert all(link.startswith("/tools/memplan/") for link in links)
