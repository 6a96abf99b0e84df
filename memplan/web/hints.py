"""Hints as a client of the API can follow them: keys instead of options, addresses instead of commands.

memplan's errors speak to somebody at a terminal. What is listed by a command is listed at an address, an option is a key, and
a command that has no address is one for the client's own machine.
"""

from __future__ import annotations

import re

_LISTS = re.compile(r"`memplan (models|gpus|methods|optimizers|accuracy)`")
_COMMAND = re.compile(r"`(memplan [^`]*)`(?! on your own machine)")
_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)(?=[\s,;:.)]|$)")
_CARDS = re.compile(r"(lists all \d+ cards)$", re.M)
# How a line begins that only repeats what a form offers anyway.
LISTED_AT = "GET /api/v1/"


def over_rest(hint: str) -> str:
    """The hint in the API's words."""
    hint = _LISTS.sub(rf"{LISTED_AT}\1", hint)
    hint = _CARDS.sub(r"\1; any other model is sent as the object of its config.json", hint)
    if "own machine" not in hint:
        hint = _COMMAND.sub(r"`\1` on your own machine", hint)
    return _OPTION.sub(lambda found: found[1].replace("-", "_"), hint)
