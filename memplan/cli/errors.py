"""Usage errors of the parser, in memplan's words."""

from __future__ import annotations

from typing import Any

from memplan.errors import closest


def usage_message(error: Any) -> tuple[str, str]:
    """Message and hint of a usage error: an unknown option or command comes with "did you mean"."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "memplan"
    hint = [f"`{path} --help` lists the options"]
    option = getattr(error, "option_name", None)
    if option and type(error).__name__ == "NoSuchOption":
        near = closest(option.lstrip("-"), [name.lstrip("-") for name in _options(context)])
        if near:
            hint.insert(0, "did you mean " + " or ".join(f"--{name}" for name in near) + "?")
        return f"{path} has no option {option}", "\n".join(hint)
    message = str(error.format_message()).rstrip(".")
    return message[:1].lower() + message[1:], "\n".join(hint)


def _options(context: Any) -> list[str]:
    if context is None:
        return []
    return [
        name for param in context.command.params for name in (*param.opts, *param.secondary_opts) if name[:2] == "--"
    ]
