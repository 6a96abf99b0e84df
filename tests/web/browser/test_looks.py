"""What every page keeps to: themes, small screens, print, reduced motion, and what axe looks for."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from itertools import pairwise
from typing import Any

import pytest
from playwright.sync_api import Page, expect

NewPage = Callable[..., Page]

FITS = "/?model=TinyLlama/TinyLlama-1.1B-Chat-v1.0&method=qlora&lora_r=16&gpu=rtx-4090"
TOO_MUCH = "/?model=TinyLlama/TinyLlama-1.1B-Chat-v1.0&method=full&gpu=rtx-5060"
UNSURE = "/?model=TinyLlama/TinyLlama-1.1B-Chat-v1.0&method=qlora&lora_r=16&gpu=mi300x"
WRONG = "/?model=llama3&method=lora&lora_r=x&gpu=rtx-4099"
PAGES = (
    "/", FITS, TOO_MUCH, UNSURE, WRONG, "/models", "/models/openai-community/gpt2", "/gpus", "/methods", "/about", "/accuracy",
    "/accuracy/records", "/api/docs",
    FITS.replace("/?", "/receipt?"),
)  # fmt: skip
# Sections of an answer as pages of their own, for those without scripts.
SECTIONS = tuple(FITS.replace("/?", f"/{name}?") for name in ("changes", "on-every-gpu", "with-every-method"))
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
_SERIOUS = ("serious", "critical")


def _show_all(page: Page) -> None:
    """Load every section, and open what is folded."""
    for section in page.locator(".later").all():
        section.scroll_into_view_if_needed()
        expect(section).to_have_class("card later loaded")
    page.evaluate("document.querySelectorAll('details:not([name])').forEach((entry) => (entry.open = true))")


_LOOKED_AT = {
    "light": ("/", FITS, WRONG, "/methods", "/accuracy", "/accuracy/records", "/api/docs"),
    "dark": (FITS, WRONG),
}


@pytest.mark.parametrize("scheme", list(_LOOKED_AT))
def test_axe_finds_nothing_serious(new_page: NewPage, scheme: str) -> None:
    page = new_page(color_scheme=scheme, reduced_motion="reduce")
    found = []
    for path in _LOOKED_AT[scheme]:
        page.goto(path)
        _show_all(page)
        page.evaluate(AXE)
        result: dict[str, Any] = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        assert result["passes"], "axe looked at nothing"
        found += [
            (path, entry["impact"], entry["id"], [node["html"][:200] for node in entry["nodes"][:3]])
            for entry in result["violations"]
            if entry["impact"] in _SERIOUS
        ]
    assert found == []


def test_no_page_is_wider_than_320_pixels(new_page: NewPage) -> None:
    page = new_page(viewport={"width": 320, "height": 640})
    for path in (*PAGES, *SECTIONS):
        page.goto(path)
        _show_all(page)
        wide = page.evaluate(
            """[...document.querySelectorAll("main *")].filter((element) => {
                if (element.closest(".scroll, pre, svg, select, .visually-hidden")) return false;
                return element.getBoundingClientRect().right > 320.5;
            }).map((element) => element.outerHTML.slice(0, 120))"""
        )
        assert (path, wide) == (path, [])
        assert (path, page.evaluate("document.documentElement.scrollWidth")) == (path, 320)


def test_dark_follows_the_system(new_page: NewPage) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        page = new_page(color_scheme=scheme)
        page.goto(FITS)
        colours[scheme] = page.evaluate(
            "[document.body, document.querySelector('.card')].map((e) => getComputedStyle(e).backgroundColor)"
        )
    assert colours["light"] == ["rgb(250, 249, 246)", "rgb(255, 255, 255)"]
    assert colours["dark"] == ["rgb(19, 20, 23)", "rgb(27, 28, 32)"]


def test_the_verdict_is_never_told_by_colour_alone(page: Page) -> None:
    seen = set()
    for path, word in ((FITS, "Fits"), (TOO_MUCH, "Does not fit"), (UNSURE, "Uncertain")):
        page.goto(path)
        verdict = page.locator(".verdict")
        expect(verdict.locator("strong")).to_have_text(word)
        icon = verdict.locator("use").first.get_attribute("href")
        border = verdict.evaluate("(element) => getComputedStyle(element).borderLeftStyle")
        seen.add((icon, border))
    assert len(seen) == 3
    assert len({border for _, border in seen}) == 3


def test_charts_speak(page: Page) -> None:
    page.goto(FITS)
    for name in ("svg.bar", "svg.timeline"):
        chart = page.locator(name)
        assert chart.get_attribute("role") == "img"
        assert chart.locator("title").first.inner_html()
        assert "GiB" in chart.locator("desc").inner_html()


def test_a_small_screen_keeps_the_verdict_in_sight(new_page: NewPage) -> None:
    page = new_page(viewport={"width": 320, "height": 640})
    page.goto(FITS)
    strip = page.locator(".strip")
    expect(strip).to_be_in_viewport()
    expect(strip).to_contain_text("Fits")
    strip.click()
    expect(page.locator("#verdict")).to_be_in_viewport()


def test_reduced_motion(new_page: NewPage) -> None:
    for preference, moves in (("reduce", False), ("no-preference", True)):
        page = new_page(reduced_motion=preference)
        page.goto(FITS)
        seconds = page.locator("#answer").evaluate("(element) => getComputedStyle(element).transitionDuration")
        assert (seconds != "0s") is moves


def test_print_leaves_the_form_out(page: Page) -> None:
    page.goto(FITS)
    page.emulate_media(media="print")
    expect(page.locator("#recipe")).to_be_hidden()
    expect(page.locator(".top nav")).to_be_hidden()
    expect(page.locator(".verdict")).to_be_visible()
    expect(page.locator("svg.bar")).to_be_visible()


def test_headings_go_down_step_by_step(page: Page) -> None:
    for path in PAGES:
        page.goto(path)
        levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map((e) => Number(e.tagName[1]))")
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
