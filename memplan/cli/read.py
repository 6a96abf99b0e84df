"""`memplan read`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from memplan.cli.output import write_json, write_report
from memplan.errors import InputError

Files = Annotated[list[Path], typer.Argument(metavar="FILE", help="Config files of one run.")]
FormatOption = Annotated[
    str | None, typer.Option("--format", metavar="NAME", help="Format of the file; by default it is detected.")
]
VersionOption = Annotated[
    str | None, typer.Option("--framework-version", metavar="VERSION", help="Of the framework whose defaults apply.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")]


def read(
    files: Files,
    *,
    file_format: FormatOption = None,
    framework_version: VersionOption = None,
    as_json: Json = False,
) -> int:
    """Training configs as a recipe: which keys were used, which defaults, what is ignored, unknown or not covered.

    Reads configs of transformers, PEFT, bitsandbytes, accelerate, DeepSpeed, axolotl, LLaMA-Factory, TRL, torchtune and
    torchtitan; `memplan estimate FILE` and the other commands take them as well.
    """
    from memplan import interop
    from memplan.report.reading import reading_json, reading_report

    if file_format is not None and len(files) > 1:
        raise InputError("--format names the format of one file", hint="leave it out, the formats are detected")
    if len(files) == 1:
        reading = interop.read(files[0], file_format, version=framework_version)
    else:
        reading = interop.read_many(files, version=framework_version)
    if as_json:
        write_json(json.dumps(reading_json(reading), indent=2, ensure_ascii=False, default=str))
    else:
        write_report(reading_report(reading))
    return 0
