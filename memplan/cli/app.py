"""The application: commands, and how errors become messages and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from memplan.cli.accuracy import accuracy
from memplan.cli.calibrate import calibrate
from memplan.cli.check import check
from memplan.cli.compare import compare
from memplan.cli.diff import diff
from memplan.cli.errors import usage_message
from memplan.cli.estimate import estimate
from memplan.cli.explain import explain
from memplan.cli.explain_oom import explain_oom
from memplan.cli.export import export
from memplan.cli.lists import gpus, methods, models, optimizers
from memplan.cli.measure import measure
from memplan.cli.options import spelled_out, with_recipe
from memplan.cli.output import write_error, write_message, write_text
from memplan.cli.plan import plan
from memplan.cli.read import read
from memplan.cli.serve import serve
from memplan.cli.trace import trace
from memplan.errors import MemplanError

# Typer carries its own copy of click from 0.20 on; this is the base of its usage errors in every version.
_ClickException: type[Exception] = next(
    cls for cls in typer.BadParameter.__mro__ if issubclass(cls, Exception) and cls.__name__ == "ClickException"
)
_INTERRUPTED = 130


class MemplanCommand(TyperCommand):
    """A command whose help has its options under headings, in plain text that is never shortened."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, section by section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                usual = "Arguments" if param.param_type_name == "argument" else "Options"
                sections.setdefault(getattr(param, "rich_help_panel", None) or usual, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


class MemplanGroup(TyperGroup):
    """Turns every deliberate error into one screen on stderr and its exit code."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> Any:  # type: ignore[override]
        """Run a command line; exits when `standalone_mode` (the default), else returns the exit code."""
        standalone = extra.pop("standalone_mode", True)
        arguments = list(sys.argv[1:] if args is None else args)
        code = self._run(arguments, prog_name or "memplan", extra)
        if standalone:
            sys.exit(code)
        return code

    def _run(self, arguments: list[str], prog_name: str, extra: dict[str, Any]) -> int:
        try:
            code = super().main(spelled_out(arguments), prog_name=prog_name, standalone_mode=False, **extra)
        except MemplanError as error:
            write_error(error)
            return error.exit_code
        except _ClickException as error:
            write_message(*usage_message(error))
            return 2
        except (typer.Abort, KeyboardInterrupt):
            write_message("interrupted")
            return _INTERRUPTED
        return int(code or 0)


app = typer.Typer(
    name="memplan",
    cls=MemplanGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from memplan import __version__

        write_text(f"memplan {__version__}\n")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """How much GPU memory a training run needs, where it goes, and whether it fits."""
    if context.invoked_subcommand is None:
        write_text(context.get_help() + "\n")


for _command in (
    with_recipe(estimate),
    with_recipe(plan),
    with_recipe(trace),
    with_recipe(measure),
    with_recipe(compare),
    with_recipe(explain),
    with_recipe(explain_oom, file_option="--recipe"),
    with_recipe(export, base_option="into"),
    check,
    diff,
    read,
    models,
    gpus,
    methods,
    optimizers,
    accuracy,
    calibrate,
    serve,
):
    app.command(_command.__name__.replace("_", "-"), cls=MemplanCommand)(_command)
