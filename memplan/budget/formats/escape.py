"""User text in Markdown that others read: shown as it is, with no power over the page or its readers.

GitHub turns `@name`, `#12`, `GH-12`, bare addresses and HTML into mentions, links and markup even where a backslash stands
before them; a space of no width after the sign ends that.
"""

from __future__ import annotations

import re

_SPECIAL = re.compile(r"([\\`*_{}\[\]()|~!^$>+-])")
_ZERO_WIDTH = "\u200b"
_LONGEST = 500


def plain(text: str, longest: int = _LONGEST) -> str:
    """`text` on one line, for a sentence or a cell of a table."""
    text = _one_line(text, longest)
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    text = _SPECIAL.sub(r"\\\1", text)
    text = text.replace("@", f"@{_ZERO_WIDTH}").replace("#", f"#{_ZERO_WIDTH}")
    text = re.sub(r"(?i)\b(gh)(\\-)(?=\d)", rf"\1\2{_ZERO_WIDTH}", text)
    return _without_addresses(text)


def code(text: str, longest: int = _LONGEST) -> str:
    """`text` as a span of code, in which nothing is a mention; fit for a cell of a table."""
    text = _one_line(text, longest).replace("`", "'").replace("|", "\\|")
    return f"`{text}`" if text else ""


def html(text: str) -> str:
    """`text` inside of an HTML element of a Markdown page, such as a `<summary>`."""
    text = re.sub(r"[^\w\s.,:;()/@#%+-]|_", lambda found: f"&#{ord(found[0])};", _one_line(text, _LONGEST))
    text = re.sub(r"@|#(?=\d)", lambda found: found[0] + _ZERO_WIDTH, text.replace("&#", "\0")).replace("\0", "&#")
    return _without_addresses(text)


def slug(text: str) -> str:
    """`text` as a part of an HTML comment, which `--` would end."""
    return re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._/-]", "-", text)).strip("-")[:80] or "check"


def _one_line(text: str, longest: int) -> str:
    text = " ".join("".join(sign if sign.isprintable() or sign.isspace() else "\ufffd" for sign in text).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _without_addresses(text: str) -> str:
    text = text.replace("://", f":{_ZERO_WIDTH}//")
    return re.sub(r"(?i)\bwww\.", lambda found: f"www{_ZERO_WIDTH}.", text)
