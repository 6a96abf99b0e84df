"""Which file is the budget file: `memplan.toml`, or `pyproject.toml` with a `[tool.memplan]`, nearest above the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memplan.documents import Document, parse, read_document
from memplan.errors import FileFormatError, InputError

NAME = "memplan.toml"
PYPROJECT = "pyproject.toml"
TABLE = ("tool", "memplan")
EXAMPLE = """\
write a memplan.toml:
  schema = 1
  [[check]]
  name = "sft"
  config = "configs/sft.yaml"   # any training config, or recipe = { model = "...", ... }
  budget = "72 GiB"             # or gpu = "rtx-4090"
or judge a file at once: memplan check configs/sft.yaml --budget "72 GiB\""""


def find_config(start: Path) -> Path:
    """The budget file of `start`: in it or in the nearest folder above, up to the top of the repository.

    Raises:
        InputError: there is none, or one folder has two.
    """
    start = start.resolve()
    for folder in (start, *start.parents):
        found = [path for path in (folder / NAME, folder / PYPROJECT) if path.is_file()]
        found = [path for path in found if path.name == NAME or _has_table(path)]
        if len(found) > 1:
            raise InputError(
                f"{folder} has budgets in {NAME} and in [tool.memplan] of {PYPROJECT}",
                hint="keep one of them, or name the file that counts: memplan check FILE",
                code="two_configs",
            )
        if found:
            return found[0]
        if (folder / ".git").exists():
            break
    raise InputError(
        f"no {NAME} and no [tool.memplan] in {PYPROJECT} in or above {start}", hint=EXAMPLE, code="no_config"
    )


def is_config(path: Path) -> bool:
    """Whether a file that a command line names is a budget file and not a recipe or a training config."""
    if path.name in (NAME, PYPROJECT):
        return True
    if path.suffix.lower() != ".toml" or not path.is_file():
        return False
    data = read_document(path).data
    return isinstance(data, dict) and ("check" in data or "schema" in data) and "model" not in data


def table_of(document: Document) -> tuple[Document, tuple[str, ...]]:
    """The document and where its budgets stand: at the top, or below `tool.memplan`.

    Raises:
        FileFormatError: a pyproject.toml without budgets, or a document that is no table.
    """
    if Path(document.name).name != PYPROJECT:
        if not isinstance(document.data, dict):
            raise FileFormatError(f"{document.name} holds a {type(document.data).__name__}, not a table")
        return document, ()
    if not isinstance(_below(document.data), dict):
        raise FileFormatError(f"{document.name} has no [tool.memplan]", hint=EXAMPLE)
    return document, TABLE


def parse_config_text(text: str, name: str) -> Document:
    """The document in the text of a budget file."""
    return parse(text, "toml", name)


def _has_table(path: Path) -> bool:
    return "memplan" in path.read_text("utf-8", errors="replace") and isinstance(_below(read_document(path).data), dict)


def _below(data: Any) -> Any:
    for key in TABLE:
        data = data.get(key) if isinstance(data, dict) else None
    return data
