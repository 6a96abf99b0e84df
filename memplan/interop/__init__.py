"""Reading the configs people already have, and writing them.

    reading = memplan.interop.read("sft.yaml")       any of the formats, detected or named
    reading.recipe                                   what `memplan.estimate` takes
    memplan.interop.write(recipe, "axolotl", "sft.yaml").diff
    reading.used, reading.defaults, reading.ignored, reading.unknown_memory_like, reading.unsupported

Nothing that a file names is imported, executed or followed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from memplan.documents import Document, Syntax, parse, read_document, syntax_of
from memplan.errors import InputError
from memplan.interop.callback import trainer_callback
from memplan.interop.draft import Draft, Source
from memplan.interop.formats import Format, detect, format_names, get_format
from memplan.interop.objects import read_objects
from memplan.interop.reading import DefaultUsed, Reading, UsedKey
from memplan.interop.settle import settle
from memplan.interop.writing import Written, write
from memplan.recipe import mapping_of

__all__ = [
    "DefaultUsed",
    "Reading",
    "UsedKey",
    "Written",
    "detect_file",
    "format_names",
    "read",
    "read_documents",
    "read_many",
    "read_objects",
    "read_text",
    "trainer_callback",
    "write",
]


def read(path: str | Path, format: str | None = None, *, version: str | None = None) -> Reading:  # noqa: A002
    """Read one config file.

    Args:
        path: a .json, .toml, .yaml or .yml file.
        format: its format (`format_names()`); by default it is detected.
        version: of the framework whose config it is, where defaults moved; by default the newest one known.

    Raises:
        FileFormatError: not readable, not recognised, ambiguous, or a value that cannot stand there, with file and line.
        UnknownNameError: no such format, or an unknown key in a recipe file.
    """
    return _read([(read_document(Path(path)), format)], version)


def detect_file(path: str | Path) -> str:
    """The name of a file's format.

    Raises:
        FileFormatError: not readable, not recognised, or ambiguous.
    """
    return detect(read_document(Path(path))).name


def read_many(paths: Iterable[str | Path], *, version: str | None = None) -> Reading:
    """Read config files of one run together, e.g. training arguments, an adapter config and accelerate's YAML.

    Raises:
        FileFormatError: as for `read`.
        InputError: no file, or two files that say different things.
    """
    return read_documents((read_document(Path(path)) for path in paths), version=version)


def read_documents(
    documents: Iterable[Document],
    format: str | None = None,  # noqa: A002
    *,
    version: str | None = None,
) -> Reading:
    """Read the parsed config files of one run together.

    Args:
        documents: at least one.
        format: of a single document; by default it is detected.
        version: as for `read`.

    Raises:
        FileFormatError, UnknownNameError: as for `read`.
        InputError: no document, or two that say different things.
    """
    found = [(document, format) for document in documents]
    if not found:
        raise InputError("no config file is given")
    return _read(found, version)


def read_text(
    text: str,
    format: str | None = None,  # noqa: A002
    name: str = "text",
    *,
    syntax: Syntax | None = None,
    version: str | None = None,
) -> Reading:
    """Read the text of a config file.

    Args:
        text: the whole file.
        format: its format; by default it is detected.
        name: of the file, for messages; its ending says how it is written.
        syntax: json, yaml or toml, where the name has no ending.
        version: as for `read`.

    Raises:
        FileFormatError, UnknownNameError: as for `read`.
    """
    return _read([(parse(text, syntax or syntax_of(name), name), format)], version)


def _read(documents: list[tuple[Document, str | None]], version: str | None) -> Reading:
    found = [(document, get_format(name) if name else detect(document)) for document, name in documents]
    draft = Draft()
    for document, entry in found:
        if version and entry.framework:
            draft.versions[entry.framework] = version
        _read_one(document, entry, draft)
    settle(draft)
    return draft.reading([entry.name for _, entry in found])


def _read_one(document: Document, entry: Format, draft: Draft) -> None:
    if entry.name == "recipe":
        data = mapping_of(document)
        prefix = ("recipe",) if data is not document.data else ()
        source = Source(document.name, data, document.lines)
        source.path = prefix
        for key in data:
            draft.use(source, key, "activation_checkpointing" if key == "gradient_checkpointing" else key)
        return
    if not isinstance(document.data, dict):
        raise InputError(f"{document.name} holds a {type(document.data).__name__}, not a mapping of keys")
    source = Source(document.name, document.data, document.lines)
    entry.read(source, draft)
    draft.sort_rest(source, entry.harmless)
