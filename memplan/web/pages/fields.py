"""The form: which recipe keys it shows, under which label, with which choices.

The keys that most people set come first; every other key of the recipe stands under "Everything else", so that whatever an
address holds survives a submit. A test holds that every key of `Recipe` is there once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from memplan.catalog.gpus import list_gpus
from memplan.methods import list_methods
from memplan.optimizers.catalog import optimizer_rows
from memplan.recipe_help import RECIPE_HELP
from memplan.recipe_text import Kind, choices_of, kind_of
from memplan.units import GIB
from memplan.web.pages.keys import Mistake

_COMMON_METHODS = ("full", "lora", "qlora", "dora", "rslora", "ia3", "prefix_tuning", "prompt_tuning", "bitfit")
_COMMON_OPTIMIZERS = (
    "adamw_torch_fused",
    "adamw_torch",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "adafactor",
    "lion_8bit",
    "sgd",
    "muon",
)


@dataclass(frozen=True, slots=True)
class Option:
    """One entry of a select; `value` is what the address holds."""

    value: str
    label: str


@dataclass(frozen=True, slots=True)
class Group:
    """Entries of a select under one heading; without a heading where `label` is empty."""

    label: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Field:
    """One input.

    Attributes:
        default: what an empty input means, shown as its placeholder or as the select's first entry.
        groups: entries of a select; empty for a text input.
        numeric: whether phones should show digits.
        suggests: whether the list of models stands behind it.
    """

    key: str
    label: str
    hint: str = ""
    default: str = ""
    groups: tuple[Group, ...] = ()
    numeric: bool = False
    suggests: bool = False
    wide: bool = True


@dataclass(frozen=True, slots=True)
class Fieldset:
    """Inputs under one legend."""

    legend: str
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Input:
    """A field with what the user wrote and what is wrong with it."""

    field: Field
    text: str
    mistake: Mistake | None
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class FilledFieldset:
    """A fieldset of a form with its values."""

    legend: str
    inputs: tuple[Input, ...]

    @property
    def said(self) -> int:
        """How many inputs hold something."""
        return sum(bool(entry.text) for entry in self.inputs)

    @property
    def wrong(self) -> bool:
        """Whether an input has a mistake."""
        return any(entry.mistake for entry in self.inputs)


@dataclass(frozen=True)
class Form:
    """The whole form as it is shown.

    Attributes:
        main: fieldsets that are always open.
        rest: the other keys, folded unless one of them is said.
    """

    main: tuple[FilledFieldset, ...]
    rest: tuple[FilledFieldset, ...]

    @property
    def rest_said(self) -> int:
        """How many keys are said that the main part does not show."""
        return sum(fieldset.said for fieldset in self.rest)

    @property
    def rest_is_open(self) -> bool:
        """Whether the folded part must be seen."""
        return any(fieldset.wrong for fieldset in self.rest)


def fill(texts: Mapping[str, str], mistakes: Sequence[Mistake] = ()) -> Form:
    """The form with a user's texts, wrong ones included."""
    by_key = {mistake.key: mistake for mistake in reversed(mistakes)}

    def filled(fieldset: Fieldset) -> FilledFieldset:
        return FilledFieldset(
            fieldset.legend,
            tuple(
                Input(field, texts.get(field.key, ""), by_key.get(field.key), _with_value(field, texts.get(field.key)))
                for field in fieldset.fields
            ),
        )

    return Form(tuple(map(filled, main_fieldsets())), tuple(map(filled, other_fieldsets())))


def _with_value(field: Field, text: str | None) -> tuple[Group, ...]:
    """The entries of a select, and the user's own text where it is none of them: a wrong value is shown, not lost."""
    known = {option.value for group in field.groups for option in group.options}
    if not field.groups or not text or text in known:
        return field.groups
    return (Group("As given", (Option(text, text),)), *field.groups)


@cache
def main_fieldsets() -> tuple[Fieldset, ...]:
    """What most people set."""
    return (
        Fieldset(
            "Model and card",
            (
                Field(
                    "model",
                    "Model",
                    "A name, or paste the JSON of a config.json.",
                    default="such as Qwen/Qwen2.5-7B",
                    suggests=True,
                ),
                Field("gpu", "GPU", default="none: say what it needs", groups=_gpu_groups()),
            ),
        ),
        Fieldset(
            "Fine-tuning",
            (
                Field("method", "Method", default="full: train every parameter", groups=_method_groups()),
                Field("lora_r", "LoRA rank r", default="8", numeric=True, wide=False),
                Field("target_modules", "Target modules", default="the method's own", wide=False),
            ),
        ),
        Fieldset(
            "Batch",
            (
                Field("micro_batch_size", "Micro-batch size", default="1", numeric=True, wide=False),
                Field("sequence_length", "Sequence length", default="2048", numeric=True, wide=False),
                Field("gradient_accumulation_steps", "Accumulation steps", default="1", numeric=True, wide=False),
                Field(
                    "activation_checkpointing",
                    "Checkpointing",
                    default="default",
                    groups=_plain("true", "false", "reentrant", "non-reentrant"),
                    wide=False,
                ),
            ),
        ),
        Fieldset(
            "Precision and optimizer",
            (
                Field("precision", "Precision", default="what the weights' type implies", groups=_precision_groups()),
                Field(
                    "dtype",
                    "Weights loaded as",
                    default="as stored",
                    groups=_plain("float32", "bfloat16", "float16"),
                    wide=False,
                ),
                Field(
                    "attn_implementation",
                    "Attention",
                    default="sdpa",
                    groups=_choices("attn_implementation"),
                    wide=False,
                ),
                Field("optim", "Optimizer", default="adamw_torch_fused", groups=_optimizer_groups(), wide=False),
                Field("stack", "Stack", default="transformers", groups=_choices("stack"), wide=False),
            ),
        ),
    )


@cache
def other_fieldsets() -> tuple[Fieldset, ...]:
    """Every recipe key that the main part does not show, under the command line's headings."""
    shown = {field.key for fieldset in main_fieldsets() for field in fieldset.fields}
    found = []
    for heading, texts in RECIPE_HELP.items():
        fields = tuple(_other(key, text) for key, text in texts.items() if key not in shown)
        if fields:
            found.append(Fieldset(heading, fields))
    return tuple(found)


def _other(key: str, hint: str) -> Field:
    kind = kind_of(key)
    groups: tuple[Group, ...] = ()
    if kind in (Kind.FLAG, Kind.FLAG_OR_NAME):
        groups = _plain("true", "false", *choices_of(key))
    elif choices_of(key):
        groups = _choices(key)
    if kind is Kind.OBJECT:
        hint = hint.replace(": its path, or a JSON object", ", as JSON").replace(
            ": a path, or a JSON object", ", as JSON"
        )
        hint = hint.replace(": a JSON object, or its path", ", as JSON")
    return Field(key, key, hint, groups=groups, numeric=kind in (Kind.INTEGER, Kind.NUMBER))


def all_fields() -> Iterator[Field]:
    """Every input, from the top."""
    for fieldset in (*main_fieldsets(), *other_fieldsets()):
        yield from fieldset.fields


def _plain(*values: str) -> tuple[Group, ...]:
    return (Group("", tuple(Option(value, value) for value in values)),)


def _choices(key: str) -> tuple[Group, ...]:
    return _plain(*choices_of(key))


def _precision_groups() -> tuple[Group, ...]:
    meanings = {
        "fp32": "float32 throughout, 16 bytes a parameter with Adam",
        "amp": "autocast over float32 weights, 16 bytes",
        "pure": "16-bit throughout, 8 bytes",
        "master": "16-bit with a float32 copy, 16 bytes",
        "master-fp32-grads": "the same with float32 gradients, 18 bytes",
    }
    return (Group("", tuple(Option(name, f"{name}: {meanings[name]}") for name in choices_of("precision"))),)


def _gpu_groups() -> tuple[Group, ...]:
    by_architecture: dict[str, list[Option]] = {}
    for gpu in list_gpus():
        label = f"{gpu.name} ({gpu.usable_bytes / GIB:.1f} GiB usable)"
        by_architecture.setdefault(f"{gpu.vendor} {gpu.architecture}", []).append(Option(gpu.id, label))
    return tuple(Group(name, tuple(options)) for name, options in by_architecture.items())


def _method_groups() -> tuple[Group, ...]:
    known = {
        method.name: Option(method.name, f"{method.name}: {method.description.replace('`', '')}")
        for method in list_methods()
    }
    return _split(known, _COMMON_METHODS)


def _optimizer_groups() -> tuple[Group, ...]:
    known = {name: Option(name, name) for name, row in optimizer_rows().items() if not row.unsupported}
    return _split(known, _COMMON_OPTIMIZERS)


def _split(known: Mapping[str, Option], common: Sequence[str]) -> tuple[Group, ...]:
    first = tuple(known[name] for name in common)
    return (Group("Common", first), Group("All others", tuple(o for name, o in known.items() if name not in common)))
