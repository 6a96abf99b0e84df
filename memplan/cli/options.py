"""Command-line options of a recipe, made from `Recipe.model_fields`: the command line cannot disagree with the Recipe.

    @with_recipe
    def estimate(recipe: Recipe, *, as_json: Annotated[bool, typer.Option("--json")] = False) -> int: ...

The wrapped command takes RECIPE_FILE and every recipe key as `--kebab-case`. Values arrive as text and are read by
`memplan.cli.values`, so that a wrong one is refused in the words of the Recipe and not in those of the parser.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from memplan.cards import card_ids
from memplan.cli.values import read_value
from memplan.errors import InputError
from memplan.recipe import Recipe
from memplan.recipe_help import RECIPE_HELP
from memplan.recipe_text import Kind, choices_of, kind_of

_METAVARS = {
    Kind.TEXT: "TEXT",
    Kind.INTEGER: "INT",
    Kind.NUMBER: "NUMBER",
    Kind.LIST: "LIST",
    Kind.NAMES: "NAMES",
    Kind.OBJECT: "JSON|FILE",
    Kind.TEXT_OR_OBJECT: "TEXT",
}
_LONGEST_METAVAR = 48
# Old name of transformers, which the Recipe reads as well.
_OLD_NAMES = {"--gradient-checkpointing": "--activation-checkpointing"}


def option_name(key: str) -> str:
    """`micro_batch_size` as `--micro-batch-size`."""
    return "--" + key.replace("_", "-")


def with_recipe(command: Callable[..., int], *, file_option: str = "", base_option: str = "") -> Callable[..., int]:
    """`command(recipe, **own options)` as a typer command with RECIPE_FILE and all recipe options.

    A command whose recipe may be None is called with None where no file and no recipe option is given.

    Args:
        command: what to call.
        file_option: name of an option that takes the recipe's file, for a command with an argument of its own.
        base_option: parameter of the command's own whose file is the recipe where no RECIPE_FILE is given.
    """
    recipe, *own = inspect.signature(command, eval_str=True).parameters.values()
    optional = types.NoneType in get_args(recipe.annotation)
    arguments = [parameter for parameter in own if parameter.kind is not inspect.Parameter.KEYWORD_ONLY]
    given = [*arguments, *_recipe_parameters(file_option), *own[len(arguments) :]]

    def run(**values: Any) -> int:
        mine = {parameter.name: values.pop(parameter.name) for parameter in own}
        file, file_format = values.pop("recipe_file"), values.pop("file_format")
        base = mine.get(base_option)
        if file is None and base is not None and (base.is_file() or not _is_said(values["model"])):
            file = base
        if optional and file is None and not any(_is_said(text) for text in values.values()):
            return command(None, **mine)
        return command(recipe_of(file, values, file_format), **mine)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(given, return_annotation=int)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in given}
    return run


def recipe_of(file: Path | None, texts: Mapping[str, Any], file_format: str | None = None) -> Recipe:
    """The recipe of a file and options; an option replaces what the file says.

    The file is a recipe or any config that `memplan.interop` reads; its format is detected where none is named.

    Raises:
        InputError: the recipe or one of its values is wrong, or no model is named.
    """
    said = {key: read_value(key, kind_of(key), text, choices_of(key)) for key, text in texts.items() if _is_said(text)}
    if file is None:
        if "model" not in said:
            raise no_model()
        return Recipe(**said)
    from memplan.interop import read

    if not file.exists() and str(file) in card_ids():
        raise InputError(f"{file} is a model, and no recipe file", hint=f"name it with an option: --model {file}")
    reading = read(file, file_format)
    if "model" not in {**reading.keys, **said}:
        raise no_model()
    return reading.recipe_with(**said)


def no_model() -> InputError:
    """The error of a command line without a model."""
    return InputError(
        "no model is named",
        hint="for example: --model mistralai/Mistral-7B-v0.1, or a recipe file; `memplan models` lists the cards",
    )


def _is_said(text: Any) -> bool:
    return text not in (None, [])


def spelled_out(arguments: list[str]) -> list[str]:
    """`arguments` with `--activation-checkpointing` given a value where it stands alone, and old names renewed.

    It is a flag with kinds: alone, with `=reentrant`, with ` reentrant` and as `--no-activation-checkpointing`.

    Raises:
        InputError: a value after a switch, which would be taken for the recipe's file.
    """
    found: list[str] = []
    rest = iter(range(len(arguments)))
    for index in rest:
        word, equals, value = arguments[index].partition("=")
        if word == "--":
            return found + arguments[index:]
        positive = word.replace("--no-", "--", 1)
        name = _OLD_NAMES.get(positive, positive)
        following = arguments[index + 1] if index + 1 < len(arguments) else "-"
        if name in _options_of(Kind.FLAG):
            if equals or (following.isalnum() and not _looks_like_file(following)):
                raise _no_value(word, value if equals else following)
            found.append(arguments[index])
        elif name not in _options_of(Kind.FLAG_OR_NAME):
            found.append(arguments[index])
        elif positive != word and not equals:
            found.append(f"{name}=false")
        elif positive != word:
            found.append(arguments[index])
        elif equals:
            found.append(f"{name}={value}")
        else:
            is_value = not following.startswith("-") and not _looks_like_file(following)
            found.append(f"{name}={following}" if is_value else f"{name}=true")
            if is_value:
                next(rest)
    return found


def _no_value(option: str, value: str) -> InputError:
    name = option.replace("--no-", "--", 1)[2:]
    return InputError(
        f"{option} is a switch and takes no value, not {value!r}", hint=f"say --{name} or --no-{name}, or leave it out"
    )


@cache
def _options_of(kind: Kind) -> frozenset[str]:
    return frozenset(option_name(key) for key in Recipe.model_fields if kind_of(key) is kind)


def _looks_like_file(word: str) -> bool:
    return Path(word).suffix in (".json", ".toml", ".yaml", ".yml") or Path(word).exists()


@cache
def _recipe_parameters(file_option: str = "") -> tuple[inspect.Parameter, ...]:
    text = "A recipe, or a config of your framework (`memplan read`): YAML, TOML or JSON. Options replace its keys."
    argument = typer.Argument(metavar="RECIPE_FILE", help=text)
    option = typer.Option(file_option, metavar="RECIPE_FILE", help=text, show_default=False)
    file = Annotated[Path | None, option if file_option else argument]
    named = typer.Option("--format", metavar="NAME", help="Format of the file; by default it is detected.")
    parameters = [_parameter("recipe_file", file), _parameter("file_format", Annotated[str | None, named])]
    for panel, keys in RECIPE_HELP.items():
        parameters += [_parameter(key, _option(key, panel, text)) for key, text in keys.items()]
    return tuple(parameters)


def _option(key: str, panel: str, text: str) -> Any:
    kind, name = kind_of(key), option_name(key)
    if kind is Kind.FLAG:
        flag = typer.Option(f"{name}/--no-{name[2:]}", help=text, rich_help_panel=panel, show_default=False)
        return Annotated[bool | None, flag]
    names = ("true", "false") if kind is Kind.FLAG_OR_NAME else ()
    metavar = "|".join((*names, *choices_of(key))) or _METAVARS[kind]
    if len(metavar) > _LONGEST_METAVAR:
        metavar, text = "NAME", f"{text} One of: {', '.join((*names, *choices_of(key)))}."
    info = typer.Option(name, metavar=metavar, help=text, rich_help_panel=panel, show_default=False)
    return Annotated[list[str] | None, info] if kind in (Kind.LIST, Kind.NAMES) else Annotated[str | None, info]


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
