"""Templates that cannot be tricked: everything escaped, every attribute quoted, no script or style in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from memplan.web.pages.rendering import STATIC, WEB, breakable, environment, static_digest

TEMPLATES = sorted((WEB / "templates").glob("*"))
_TAG = re.compile(r"<[a-zA-Z][^<>]*?(?:\{\{.*?\}\}[^<>]*?|\{%.*?%\}[^<>]*?)*>", re.DOTALL)
_EXPRESSION = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.DOTALL)


def _ids(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", TEMPLATES, ids=_ids)
def test_attributes_are_quoted_and_hold_no_code(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert path.suffix == ".html"
    for tag in _TAG.findall(text):
        plain = _EXPRESSION.sub("x", tag)
        assert not re.search(r"=\s*[^\s\"'>=]", re.sub(r'"[^"]*"', '""', plain)), tag
        assert "='" not in plain, tag
        assert not re.search(r"\s(on\w+|style|srcdoc)=", plain), tag
        assert "javascript:" not in tag


@pytest.mark.parametrize("path", TEMPLATES, ids=_ids)
def test_nothing_is_marked_safe_and_no_script_holds_values(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\|\s*safe\b|autoescape|Markup", text)
    assert "<style" not in text
    for script in re.findall(r"<script.*?</script>", text, re.DOTALL):
        assert re.fullmatch(r'<script type="module" src="[^"]*"></script>', _EXPRESSION.sub("x", script))
    assert not re.search(r'(?:href|src|action)="https?:', text)


def test_escaping_does_not_depend_on_a_files_ending() -> None:
    for name in ("x.html", "x.svg", "x.md", "x.txt", None):
        template = environment().from_string("{{ text }}")
        template.name = name
        assert template.render(text="<b>&\"'") == "&lt;b&gt;&amp;&#34;&#39;"


def test_only_rendered_templates_become_markup() -> None:
    """Where Python declares text to be HTML, it came out of a template or out of memplan's own plot."""
    places = {}
    for path in sorted((WEB / "pages").glob("*.py")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if "Markup(" in line:
                places[path.name] = places.get(path.name, 0) + 1
    assert places == {"accuracy.py": 1, "catalogue_routes.py": 1, "rendering.py": 2, "routes.py": 2}
    assert breakable("<b>a_b.c/d</b>") == "&lt;b&gt;a_<wbr>b.<wbr>c/<wbr>d&lt;/<wbr>b&gt;"


def test_static_files() -> None:
    assert sorted(path.name for path in STATIC.iterdir()) == ["app.js", "icon.svg", "style.css"]
    assert len(static_digest("style.css")) == 12
    css = (STATIC / "style.css").read_text(encoding="utf-8")
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", css)
    script = (STATIC / "app.js").read_text(encoding="utf-8")
    assert not re.search(r"\beval\b|new Function|https?://", script)


def _luminance(colour: str) -> float:
    digits = colour.removeprefix("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    channels = [int(digits[index : index + 2], 16) / 255 for index in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_stands_out(theme: int) -> None:
    """WCAG 2.2 AA, 4.5:1 for text and 3:1 for the edges of inputs, in both themes."""
    css = (STATIC / "style.css").read_text(encoding="utf-8")
    tokens = dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", css.split(":root {")[1 + theme].partition("}")[0]))
    grounds = ("bg", "surface", "sunk", "accent-soft")
    for ink in ("ink", "muted", "accent"):
        for ground in grounds:
            assert _contrast(tokens[ink], tokens[ground]) >= 4.5, (ink, ground)
    for tone in ("fits", "uncertain", "no"):
        for ground in ("surface", f"{tone}-soft", "accent-soft"):
            assert _contrast(tokens[tone], tokens[ground]) >= 4.5, (tone, ground)
        assert _contrast(tokens["ink"], tokens[f"{tone}-soft"]) >= 4.5
        assert _contrast(tokens["muted"], tokens[f"{tone}-soft"]) >= 4.5
    assert _contrast(tokens["accent-ink"], tokens["accent"]) >= 4.5
    assert _contrast(tokens["edge"], tokens["surface"]) >= 3
