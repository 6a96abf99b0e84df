"""`memplan diff`."""

from __future__ import annotations

from typing import Annotated

import typer

from memplan.cli.estimate import check_formats
from memplan.cli.output import write_json, write_report, write_text

Before = Annotated[
    str, typer.Argument(metavar="BEFORE", help="A recipe or training config, or REF:PATH of one at a git ref.")
]
After = Annotated[str, typer.Argument(metavar="AFTER", help="The same.")]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format", metavar="NAME", help="Format of both files; by default it is detected.", show_default=False
    ),
]
GpuOption = Annotated[
    str | None,
    typer.Option("--gpu", metavar="NAME", help="Card whose kernels run, where a file names none.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="The comparison in Markdown.")]


def diff(
    before: Before,
    after: After,
    *,
    file_format: FormatOption = None,
    gpu: GpuOption = None,
    as_json: Json = False,
    markdown: Markdown = False,
) -> int:
    """Why two runs need different memory: component by component, and what each changed recipe key did.

    For example: memplan diff main:configs/sft.yaml configs/sft.yaml

    Exit code 0: compared, whatever the difference. 2: wrong input. 3: not even the model states of one are known. 4: a file or
    a git ref is missing.
    """
    from memplan.budget import diff as compare

    check_formats(as_json, markdown)
    found = compare(before, after, format=file_format, gpu=gpu)
    if as_json:
        write_json(found.to_json())
    elif markdown:
        from memplan.budget.formats.markdown import difference_markdown

        write_text(difference_markdown(found))
    else:
        from memplan.budget.formats.text import difference_report

        write_report(difference_report(found))
    return 0
