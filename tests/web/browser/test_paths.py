"""What people do: from an empty form to a verdict, by keyboard and by mouse, with and without scripts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from memplan import estimate

NewPage = Callable[..., Page]

MISTRAL = "/?model=mistralai/Mistral-7B-v0.1&method=lora&micro_batch_size=1&gpu=rtx-4090"
LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 1000,
    "transformers_version": "4.40",
}


def _device_bytes(page: Page) -> int:
    return int(page.locator('[data-name="device"]').get_attribute("data-bytes") or 0)


def _tab_to(page: Page, name: str) -> None:
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name || ''") == name:
            return
    pytest.fail(f"Tab never reaches {name}")


def test_by_keyboard(page: Page) -> None:
    page.goto("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    _tab_to(page, "model")
    page.keyboard.type("mistralai/Mistral-7B-v0.1")
    page.keyboard.press("Escape")
    _tab_to(page, "gpu")
    page.keyboard.type("RTX 4090")
    _tab_to(page, "method")
    page.keyboard.type("qlora")
    _tab_to(page, "lora_r")
    page.keyboard.type("16")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"/\?model=mistralai/Mistral-7B-v0\.1&method=qlora&lora_r=16&gpu=rtx-4090$"))
    expect(page.locator("#verdict")).to_contain_text("Fits on RTX 4090 24GB")
    expected = estimate(model="mistralai/Mistral-7B-v0.1", method="qlora", lora_r=16, gpu="rtx-4090")
    assert _device_bytes(page) == expected.peak.device_bytes


def test_by_mouse(page: Page) -> None:
    page.goto("/")
    page.get_by_role("link", name="LoRA of Mistral-7B on an A100 80GB").click()
    expect(page.locator("#verdict")).to_contain_text("Fits on A100 80GB")
    page.locator("#f-gpu").select_option("t4")
    expect(page.locator("#verdict")).to_contain_text("Does not fit on Tesla T4 16GB")
    expect(page).to_have_url(re.compile("&gpu=t4$"))
    expect(page.locator("#announce")).to_contain_text("Does not fit on Tesla T4")
    before = _device_bytes(page)
    page.locator("#changes .changes a").first.click()
    expect(page.locator("#verdict")).to_contain_text("Fits")
    assert _device_bytes(page) < before
    page.go_back()
    expect(page.locator("#verdict")).to_contain_text("Does not fit on Tesla T4 16GB")


def test_live_answers_leave_the_form_alone(page: Page) -> None:
    page.goto(MISTRAL)
    page.locator("#breakdown-heading ~ table summary").first.click()
    batch = page.locator("#f-micro_batch_size")
    batch.fill("2")
    expect(page).to_have_url(re.compile("micro_batch_size=2"))
    assert page.evaluate("document.activeElement.id") == "f-micro_batch_size"
    assert batch.input_value() == "2"
    expected = estimate(model="mistralai/Mistral-7B-v0.1", method="lora", micro_batch_size=2, gpu="rtx-4090")
    assert _device_bytes(page) == expected.peak.device_bytes
    assert page.locator("#breakdown-heading ~ table details[open]").count() == 1
    page.reload()
    assert page.locator("#f-micro_batch_size").input_value() == "2"


def test_half_a_name_is_no_mistake(page: Page) -> None:
    page.goto("/?gpu=t4")
    model = page.locator("#f-model")
    model.press_sequentially("gpt2-me")
    page.wait_for_timeout(600)
    assert page.locator("#error-model").count() == 0
    assert page.locator("#verdict").count() == 0
    model.fill("openai-community/gpt2-medium")
    expect(page.locator("#verdict")).to_contain_text("Tesla T4")
    model.fill("gpt2-me")
    model.press("Tab")
    expect(page.locator("#error-model")).to_contain_text("unknown model")


def test_a_shared_link_is_the_same_page(new_page: NewPage) -> None:
    mine = new_page()
    mine.goto("/?model=gpt2&method=lora&lora_r=4&gpu=t4&padding=true")
    theirs = new_page()
    theirs.goto(mine.url)
    assert theirs.url == mine.url
    assert theirs.locator("#verdict").inner_text() == mine.locator("#verdict").inner_text()
    assert _device_bytes(theirs) == _device_bytes(mine)
    assert theirs.locator("#f-model").input_value() == "openai-community/gpt2"
    assert theirs.locator("#f-lora_r").input_value() == "4"
    assert theirs.locator("#f-gpu").input_value() == "t4"
    assert theirs.locator("#f-padding").input_value() == "true"
    assert "1 set" in theirs.locator(".rest > summary").inner_text()


def test_a_mistake_is_corrected(page: Page) -> None:
    page.goto(MISTRAL)
    page.locator("#f-lora_r").fill("sixteen")
    error = page.locator("#error-lora_r")
    expect(error).to_contain_text("whole number")
    expect(page.locator("#f-lora_r")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#f-lora_r")).to_have_attribute("aria-describedby", "error-lora_r")
    expect(page.locator("#mistakes-title")).to_be_visible()
    expect(page).to_have_title("One thing needs to change first · memplan")
    page.get_by_role("button", name="Estimate").click()
    expect(page.locator("#mistakes")).to_be_focused()
    assert page.locator("#f-lora_r").input_value() == "sixteen"
    assert page.locator("#f-gpu").input_value() == "rtx-4090"
    page.locator("#mistakes a").first.click()
    expect(page.locator("#f-lora_r")).to_be_focused()
    page.locator("#f-lora_r").fill("16")
    expect(page.locator("#verdict")).to_be_visible()
    expect(error).to_have_count(0)
    expect(page).to_have_title(
        re.compile("^Fits: mistralai/Mistral-7B-v0.1, lora, rtx-4090 · memplan$|^Does not fit: ")
    )
    title = page.title()
    page.reload()
    assert page.title() == title
    assert page.locator("[aria-invalid]").count() == 0


def test_mistakes_stand_in_the_order_of_the_form(page: Page) -> None:
    page.goto("/?lora_r=x&gpu=rtx-4099&model=llama3&method=lora")
    keys = page.locator("#mistakes [data-field]").evaluate_all("(all) => all.map((entry) => entry.dataset.field)")
    assert keys == ["model", "gpu", "lora_r"]


def test_a_small_screen_without_scripts_leads_to_the_answer(new_page: NewPage) -> None:
    page = new_page(java_script_enabled=False, viewport={"width": 320, "height": 640})
    page.goto(MISTRAL)
    page.get_by_role("link", name="Does not fit: see the answer below").click()
    expect(page.locator("#verdict")).to_be_in_viewport()


def test_the_plot_can_be_read_by_keyboard(page: Page) -> None:
    page.goto("/accuracy")
    points = page.locator(".scatter circle > title").count()
    assert points
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Every point as a row of a table":
            break
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text("Every record")
    regions = []
    for _ in range(20):
        page.keyboard.press("Tab")
        regions.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert "Every record" in regions
    assert page.locator("table tbody tr").count() == points


def test_an_empty_form_asks_for_a_model(page: Page) -> None:
    page.goto("/")
    page.get_by_role("button", name="Estimate").click()
    expect(page.locator("#error-model")).to_contain_text("no model is named")


def test_a_remedy_is_one_click(page: Page) -> None:
    page.goto("/?model=llama3&method=lora&gpu=rtx-4090")
    page.get_by_role("link", name="use meta-llama/Meta-Llama-3-8B").click()
    expect(page.locator("#verdict")).to_be_visible()
    assert page.locator("#f-method").input_value() == "lora"


def test_a_rank_without_a_method_is_one_click_from_lora(page: Page) -> None:
    page.goto("/?model=mistralai/Mistral-7B-v0.1&lora_r=16&gpu=rtx-4090")
    page.get_by_role("link", name="use method qlora").click()
    expect(page.locator("#verdict")).to_contain_text("Fits on RTX 4090")
    assert page.locator("#f-lora_r").input_value() == "16"


def test_an_unknown_model_says_how_any_model_is_given(page: Page) -> None:
    page.goto("/?model=somebody/finetune&gpu=rtx-4090")
    expect(page.locator("#error-model")).to_contain_text("For any other model, paste its config.json here.")
    page.locator("#f-model").fill(json.dumps(LLAMA))
    page.get_by_role("button", name="Estimate").click()
    expect(page.locator("#verdict")).to_contain_text("Fits on RTX 4090")


def test_without_scripts(new_page: NewPage) -> None:
    page = new_page(java_script_enabled=False)
    page.goto("/")
    page.locator("#f-model").fill("mistralai/Mistral-7B-v0.1")
    page.locator("#f-method").select_option("lora")
    page.locator("#f-gpu").select_option("rtx-4090")
    page.locator("#f-lora_r").fill("x")
    page.get_by_role("button", name="Estimate").click()
    assert "whole number" in page.locator("#error-lora_r").inner_text()
    page.locator("#f-lora_r").fill("8")
    page.get_by_role("button", name="Estimate").click()
    assert "Does not fit" in page.locator("#verdict").inner_text()
    assert page.url.endswith("/?model=mistralai/Mistral-7B-v0.1&method=lora&lora_r=8&gpu=rtx-4090")
    answer = page.url
    page.get_by_role("link", name="Search for changes that fit").click()
    page.locator(".changes a").first.click()
    assert "Fits" in page.locator("#verdict").inner_text()
    page.goto(answer)
    page.get_by_role("link", name="The same recipe on every GPU").click()
    page.get_by_role("link", name="H200 SXM 141GB").click()
    assert "Fits on H200" in page.locator("#verdict").inner_text()
    page.get_by_role("link", name="Every line of the receipt").click()
    assert page.locator("table.lines").count() > 3
    page.goto(answer)
    summary = page.locator("#breakdown-heading ~ table summary").first
    lines = page.locator("#breakdown-heading ~ table .lines").first
    assert not lines.is_visible()
    summary.click()
    assert lines.is_visible()
    assert page.locator("[data-copy]").first.is_hidden()


def test_a_config_is_uploaded_and_pasted(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA), encoding="utf-8")
    page.goto("/")
    page.locator("#f-gpu").select_option("t4")
    page.get_by_text("Paste or upload a config").click()
    page.locator("#f-file").set_input_files(file)
    page.get_by_role("button", name="Read it").click()
    expect(page.locator("#verdict")).to_contain_text("Fits on Tesla T4")
    expect(page.locator(".verdict-sub")).to_contain_text(
        "llama (inline config), full, 1 × 2048 tokens, adamw_torch_fused"
    )
    assert _device_bytes(page) == estimate(model=LLAMA, gpu="t4").peak.device_bytes
    page.get_by_text("Paste or upload a config").click()
    page.locator("#f-text").fill('{"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}')
    page.get_by_role("button", name="Read it").click()
    expect(page.locator(".verdict-sub")).to_contain_text("lora")
    page.get_by_text("Paste or upload a config").click()
    page.locator("#f-text").fill("{broken")
    page.get_by_role("button", name="Read it").click()
    expect(page.locator("#error-text")).to_contain_text("not valid JSON")
    assert page.locator("#f-text").input_value() == "{broken"


def test_sections_load_when_they_are_looked_at(page: Page) -> None:
    page.goto(MISTRAL)
    expect(page.locator("#changes .changes li").first).to_be_visible(timeout=20_000)
    assert page.locator("#every-method table").count() == 0
    page.locator("#every-method").scroll_into_view_if_needed()
    expect(page.locator("#every-method table")).to_be_visible(timeout=20_000)
    expect(page.locator("#every-gpu table tr.current")).to_contain_text("RTX 4090 24GB")
    page.locator("#every-method").get_by_role("link", name="qlora", exact=True).click()
    expect(page.locator("#verdict")).to_contain_text("Fits")


def test_everything_can_be_copied(new_page: NewPage) -> None:
    page = new_page(permissions=["clipboard-read", "clipboard-write"])
    page.goto(MISTRAL)
    for name in ("Link", "CLI", "YAML"):
        details = page.locator("details.copy", has=page.get_by_text(name, exact=True))
        if details.get_attribute("open") is None:
            details.locator("summary").click()
        details.get_by_role("button").click()
        expect(details.get_by_role("button")).to_have_text("Copied")
        copied = page.evaluate("navigator.clipboard.readText()")
        if name == "Link":
            assert copied == page.url
        else:
            assert copied == details.locator("pre").inner_text()
            assert "Mistral-7B" in copied
