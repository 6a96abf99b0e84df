"""Forms of a report: golden text, what CI services accept, and user text that has no power over the page."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from memplan.budget import Content, check_mapping
from memplan.budget.formats import Format, rendered
from memplan.budget.formats.escape import code, html, plain, slug
from memplan.budget.formats.markdown import MAX_CHARACTERS, marker_of
from memplan.budget.result import CheckReport
from memplan.report.wording import gib
from memplan.units import format_bytes

HOSTILE = "a|b `c` <img src=x> @everyone #1 GH-7 https://evil.example www.evil.example [x](y) \\ **z**"
GPT2 = {"model": "openai-community/gpt2", "sequence_length": 128}


def report_of(*checks: dict[str, object], base: list[dict[str, object]] | None = None) -> CheckReport:
    past = Content({"schema": 1, "check": base}) if base is not None else None
    return check_mapping({"schema": 1, "check": list(checks)}, base=past)


@pytest.fixture(scope="module")
def mixed() -> CheckReport:
    """One check of each kind."""
    return report_of(
        {"name": "fits", "recipe": GPT2, "gpu": "h100"},
        {"name": HOSTILE[:100], "recipe": GPT2, "budget": "100 MiB", "message": f"{HOSTILE}\n::error::x"},
        {"name": "grew", "recipe": {**GPT2, "micro_batch_size": 4}, "max_increase": "0 B"},
        {"name": "unsure", "recipe": {**GPT2, "stack": "unsloth"}, "gpu": "t4"},
        {"name": "typo", "recipe": {"modle": "@everyone"}, "gpu": "t4"},
        base=[{"name": "grew", "recipe": GPT2, "max_increase": "0 B"}],
    )


def test_golden_text() -> None:
    """Every word is fixed; the sizes are those of the report itself."""
    report = report_of(
        {"name": "small", "recipe": GPT2, "gpu": "h100", "message": "not shown"},
        {"name": "tight", "recipe": {**GPT2, "micro_batch_size": 4}, "budget": "1 GiB", "message": "Ask first."},
        base=[{"name": "tight", "recipe": GPT2, "budget": "1 GiB"}],
    )
    small, tight = report.checks
    over, why = tight.limits[0], tight.growth.why
    assert why is not None
    change = why.change_bytes
    room = format_bytes(over.limit_bytes - over.expected_bytes)
    h100 = small.limits[0]
    parts = [
        (name, one.before_bytes, one.after_bytes)
        for name, one in (
            ("buffers", why.components[1]),
            ("activations", next(one for one in why.components if one.component == "activations")),
            ("logits and loss", next(one for one in why.components if one.component == "logits_and_loss")),
        )
    ]
    text = rendered(report, Format.TEXT)
    lines = text.splitlines()
    assert lines[0] == "Over budget: 1 of 2 checks over"
    assert lines[2].split("  ")[0] == "check"
    assert (
        lines[3].split()
        == (
            f"small within {gib(h100.expected_bytes)} {gib(h100.upper_bytes)} {gib(h100.limit_bytes)} "
            f"{format_bytes(h100.limit_bytes - h100.expected_bytes)} new"
        ).split()
    )
    assert (
        lines[4].split()
        == (
            f"tight over {gib(over.expected_bytes)} {gib(over.upper_bytes)} 1.00 GiB {room} +{format_bytes(change)}"
        ).split()
    )
    assert lines[6:10] == [
        "tight: over",
        f"because  over the budget: {over.expected_bytes / 2**30:.1f} GiB expected, 1.0 GiB allowed, "
        f'{format_bytes(over.expected_bytes - 2**30)} too much; the limit is budget = "1 GiB" in checks: check[1].budget',
        "run      openai-community/gpt2, full, 4 × 128 tokens, adamw_torch_fused",
        "message  Ask first.",
    ]
    assert lines[11:13] == [
        "Why tight changed since base",
        f"- micro_batch_size not set → 4: +{format_bytes(change)}",
    ]
    assert lines[14].split() == ["component", "base", "now", "change"]
    for name, before, after in parts:
        assert re.search(rf"^{name} +{format_bytes(before)} +{format_bytes(after)} +\+", text, re.MULTILINE), name
    assert "not shown" not in text


def test_markdown_says_the_verdict_first(mixed: CheckReport) -> None:
    lines = rendered(mixed, Format.MARKDOWN).splitlines()
    assert lines[0] == marker_of(mixed) == "<!-- memplan:check:checks -->"
    assert (
        lines[1] == "### memplan: Error: 1 of 5 checks could not be judged, 1 over, 1 grew too much, 1 with a warning"
    )
    assert lines[3] == "| | check | peak | at most | limit | Δ vs base | verdict |"
    rows = lines[5:10]
    assert [re.split(r"(?<!\\)\|", row)[-2].strip() for row in rows] == [
        "within",
        "over",
        "grew",
        "uncertain (warning)",
        "error",
    ]
    assert all(len(re.split(r"(?<!\\)\|", row)) == 9 for row in rows)
    assert lines.count("</details>") == 4


def test_user_text_has_no_power_over_the_page(mixed: CheckReport) -> None:
    text = rendered(mixed, Format.MARKDOWN)
    outside = re.sub(r"`[^`\n]*`", "", text)
    assert not re.search(r"@\w", outside)
    assert not re.search(r"(^|[^&\w])#\d", outside)
    assert "<img" not in outside
    assert "](y)" not in outside
    assert "https://evil" not in outside
    assert "www.evil" not in outside
    assert "**z**" not in outside


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b*c", "a\\_b\\*c"),
        ("@me", "@\u200bme"),
        ("#12", "#\u200b12"),
        ("<b>&amp;", "&lt;b\\>&amp;amp;"),
        ("two\nlines\x00", "two lines\ufffd"),
        ("GH-12", "GH\\-\u200b12"),
        ("http://x", "http:\u200b//x"),
    ],
)
def test_plain(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_code_html_and_slug() -> None:
    assert code("a`b|c") == "`a'b\\|c`"
    assert code("") == ""
    assert html("</summary>@x #1 *") == "&#60;/summary&#62;@\u200bx #\u200b1 &#42;"
    assert slug("a--b/../--> <x>.toml") == "a-b/../-x-.toml"
    assert slug("-->") == "check"
    assert len(plain("x" * 9999)) == 500


def test_a_long_comment_is_cut_sensibly() -> None:
    checks = [
        {"name": f"check {index} " + "é" * 80, "recipe": GPT2, "budget": "100 MiB", "message": "word " * 190}
        for index in range(240)
    ]
    checks.append({"name": "broken", "recipe": {}, "gpu": "t4"})
    text = rendered(report_of(*checks), Format.MARKDOWN)
    assert len(text) <= MAX_CHARACTERS
    assert len(text.encode()) <= MAX_CHARACTERS
    assert "`broken`" in text
    assert "<details><summary>broken: error</summary>" in text
    assert re.search(r"Details of \d+ checks are left out of this comment", text)
    assert text.count("<details>") == text.count("</details>")


def test_annotations(mixed: CheckReport) -> None:
    lines = rendered(mixed, Format.GITHUB).splitlines()
    assert [line.split(" ")[0] for line in lines] == ["::error", "::error", "::error", "::warning"]
    assert all(line.startswith("::") and line.count("\n") == 0 for line in lines)
    assert "%0A::error::x" in lines[1]
    assert "title=memplan%3A a|b" in lines[1]
    many = report_of(*({"name": f"c{index}", "recipe": GPT2, "budget": "1 MiB"} for index in range(14)))
    lines = rendered(many, Format.GITHUB).splitlines()
    assert len(lines) == 10
    assert "5 more checks" in lines[-1]
    fine = report_of({"name": "a", "recipe": GPT2, "gpu": "h100"})
    assert rendered(fine, Format.GITHUB) == "::notice title=memplan::Pass: 1 check within its limits\n"


def test_junit(mixed: CheckReport) -> None:
    root = ET.fromstring(rendered(mixed, Format.JUNIT))
    suite = root.find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("5", "2", "1")
    cases = suite.findall("testcase")
    assert cases[1].get("name") == " ".join(HOSTILE[:100].split())
    assert [child.tag for case in cases for child in case] == [
        "system-out",
        "failure",
        "failure",
        "system-out",
        "error",
    ]
    failure = cases[1].find("failure")
    assert failure is not None
    assert "over the budget" in str(failure.get("message"))
    assert HOSTILE in str(failure.text)
    control = check_mapping(
        {"schema": 1, "check": [{"name": "a", "recipe": {"model": "x\x00\x1b\ud800"}, "gpu": "t4"}]}
    )
    ET.fromstring(rendered(control, Format.JUNIT).encode("utf-8", "replace"))
