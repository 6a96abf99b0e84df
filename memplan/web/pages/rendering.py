"""Templates: one environment, escaping everywhere, and the words and numbers that several pages share."""

from __future__ import annotations

import hashlib
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from memplan import __version__
from memplan.report.wording import component_name, counted, gib, phase_name, share, value_text
from memplan.units import format_bytes, format_count
from memplan.web.pages.keys import query_of

WEB = Path(__file__).resolve().parents[1]
STATIC = WEB / "static"


@cache
def static_digest(name: str) -> str:
    """The first digits of a static file's SHA-256; a new file has a new address, so that the old may be cached forever."""
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The templates. Everything is escaped, whatever a template's name ends with."""
    env = Environment(
        loader=FileSystemLoader(WEB / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    env.filters.update(
        size=format_bytes,
        gib=gib,
        share=share,
        component=component_name,
        phase=phase_name,
        count=format_count,
        value=value_text,
        breakable=breakable,
        pc=lambda number: f"{number:.2f}%",
    )
    env.globals.update(version=__version__, counted=counted, static_digest=static_digest, query_of=query_of)
    return env


def breakable(text: str) -> Markup:
    """`text` whose long names may be broken behind an underscore, a dot or a slash."""
    return Markup(re.sub(r"(?<=[_./])(?=\w)", "<wbr>", str(escape(text))))


def render(template: str, /, **context: Any) -> Markup:
    """A template as safe HTML."""
    return Markup(environment().get_template(template).render(context))


__all__ = ["STATIC", "environment", "render", "static_digest"]
