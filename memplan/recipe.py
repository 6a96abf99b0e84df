"""The question: one flat recipe, with the same keys in Python, JSON, YAML, TOML, the CLI and a query string.

A `Recipe` holds what the user said; `None` means "not said". `memplan.resolve.resolve` fills every default in and
says where each came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from memplan.documents import MAX_FILE_BYTES as MAX_FILE_BYTES
from memplan.documents import Document, read_document
from memplan.documents import parse_json as parse_json
from memplan.errors import FileFormatError, InputError, InvalidValueError, UnknownNameError


class Precision(StrEnum):
    """What "mixed precision" means depends on who runs it; see `memplan.precision` for bytes and sources."""

    FP32 = "fp32"
    AMP = "amp"
    PURE = "pure"
    MASTER = "master"
    MASTER_FP32_GRADS = "master-fp32-grads"


class Task(StrEnum):
    """What head the model has, by transformers' pipeline names."""

    CAUSAL_LM = "causal-lm"
    SEQUENCE_CLASSIFICATION = "sequence-classification"
    TOKEN_CLASSIFICATION = "token-classification"
    MASKED_LM = "masked-lm"
    SEQ2SEQ_LM = "seq2seq-lm"
    IMAGE_CLASSIFICATION = "image-classification"
    FEATURE_EXTRACTION = "feature-extraction"
    PRE_TRAINING = "pre-training"
    IMAGE_TEXT_TO_TEXT = "image-text-to-text"
    SPEECH_SEQ2SEQ = "speech-seq2seq"


class Attention(StrEnum):
    """`attn_implementation` as transformers spells it."""

    EAGER = "eager"
    SDPA = "sdpa"
    FLASH_ATTENTION_2 = "flash_attention_2"


class Loss(StrEnum):
    """How logits and loss are computed: the model's own loss, over chunks, or fused with the output embedding."""

    DEFAULT = "default"
    FUSED_LINEAR = "fused_linear"
    CHUNKED = "chunked"


class Offloading(StrEnum):
    """What of the activations waits for backward in host memory; see `memplan.resolve_offloading` for who does it."""

    CHECKPOINTS = "checkpoints"
    HIDDEN_STATES = "hidden-states"
    SAVED_TENSORS = "saved-tensors"


class Stack(StrEnum):
    """Whose training loop runs the step."""

    TRANSFORMERS = "transformers"
    TRL = "trl"
    LIGER = "liger"
    UNSLOTH = "unsloth"
    TORCHTUNE = "torchtune"


# Two-sided bounds on every number: nothing physical lies outside, and products stay printable.
PositiveInt = Annotated[int, Field(strict=True, ge=1)]
BatchSize = Annotated[int, Field(strict=True, ge=1, le=65_536)]
SequenceLength = Annotated[int, Field(strict=True, ge=1, le=16_777_216)]
Rank = Annotated[int, Field(strict=True, ge=1, le=16_384)]
Flag = Annotated[bool, Field(strict=True)]

# Keys that say how one method adapts and mean nothing, or something else, under another.
KEYS_OF_THE_METHOD = ("peft", "lora_r", "lora_dropout", "target_modules", "num_virtual_tokens", "trainable")
# Keys that say how the base below an adapter is stored.
KEYS_OF_THE_BASE = (
    "load_in_4bit", "load_in_8bit", "quantization_config", "prepare_model_for_kbit_training", "autocast_adapter_dtype",
    "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype", "bnb_4bit_quant_storage",
    "llm_int8_skip_modules",
)  # fmt: skip


class _Origins(dict[str, str]):
    """Equal to every other, so that recipes compare by what they say."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Origins)

    __hash__ = None


class Recipe(BaseModel):
    """A training run, as far as the user said it.

    Example:
        Recipe(model="mistralai/Mistral-7B-v0.1", method="qlora", micro_batch_size=4, sequence_length=2048)

    Raises:
        UnknownNameError: a key that does not exist, with "did you mean".
        InvalidValueError: a value outside what the key allows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=False)

    model: str | dict[str, Any]
    method: str | None = None
    peft: dict[str, Any] | None = None
    lora_r: Rank | None = None
    lora_dropout: Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)] | None = None
    target_modules: str | tuple[str, ...] | None = None
    num_virtual_tokens: Annotated[int, Field(strict=True, ge=1, le=65_536)] | None = None
    trainable: tuple[str, ...] | None = None
    autocast_adapter_dtype: Flag | None = None
    prepare_model_for_kbit_training: Flag | None = None

    task: Task | None = None
    num_labels: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None
    num_added_tokens: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] | None = None
    tie_word_embeddings: Flag | None = None

    dtype: str | None = None
    precision: Precision | None = None
    autocast_dtype: Literal["bfloat16", "float16"] | None = None
    load_in_4bit: Flag | None = None
    load_in_8bit: Flag | None = None
    bnb_4bit_quant_type: Literal["nf4", "fp4"] | None = None
    bnb_4bit_use_double_quant: Flag | None = None
    bnb_4bit_compute_dtype: str | None = None
    bnb_4bit_quant_storage: str | None = None
    llm_int8_skip_modules: tuple[str, ...] | None = None
    quantization_config: dict[str, Any] | None = None

    optim: str | None = None
    optim_args: dict[str, Any] | None = None
    optim_target_modules: str | tuple[str, ...] | None = None
    optimizer_in_backward: Flag | None = None
    max_grad_norm: Annotated[float, Field(strict=True, ge=0, le=1e9, allow_inf_nan=False)] | None = None
    gradient_accumulation_steps: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None

    micro_batch_size: BatchSize | None = None
    sequence_length: SequenceLength | None = None
    target_length: SequenceLength | None = None
    padding: Flag | None = None
    packing: Flag | None = None
    packed_text_tokens: SequenceLength | None = None

    activation_checkpointing: Flag | Literal["reentrant", "non-reentrant"] | None = None
    activation_offloading: Flag | Literal["checkpoints", "hidden-states", "saved-tensors"] | None = None
    attn_implementation: Attention | None = None
    loss: Loss | None = None
    stack: Stack | None = None
    stack_version: str | None = None
    torch_version: Literal["2.11", "2.12", "2.13", "2.14"] | None = None
    keep_outputs: Flag | Literal["backward"] | None = None
    use_cache: Flag | None = None

    eval_strategy: Literal["no", "steps", "epoch"] | None = None
    per_device_eval_batch_size: BatchSize | None = None
    prediction_loss_only: Flag | None = None
    eval_accumulation_steps: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None
    max_eval_samples: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None
    max_new_tokens: SequenceLength | None = None
    max_prompt_length: SequenceLength | None = None
    save_strategy: Literal["no", "steps", "epoch"] | None = None
    merge_and_unload: Flag | None = None

    gpu: str | None = None
    gpus: Annotated[int, Field(strict=True, ge=1, le=65_536)] | None = None
    expandable_segments: Flag | None = None
    empty_cache_steps: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None

    _uncovered: tuple[str, ...] = PrivateAttr(())
    _origins: _Origins = PrivateAttr(default_factory=lambda: _Origins())

    def __init__(self, /, **data: Any) -> None:
        data = _accept_old_names(data)
        unknown = [key for key in data if key not in type(self).model_fields]
        if unknown:
            raise UnknownNameError("recipe key", unknown[0], type(self).model_fields, show=0)
        try:
            super().__init__(**data)
        except ValidationError as error:
            _raise_readable(error)

    @field_validator("target_modules", "trainable", "llm_int8_skip_modules", "optim_target_modules", mode="before")
    @classmethod
    def _list_to_tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list | set) else value

    @classmethod
    def from_file(cls, path: str | Path, format: str | None = None) -> Recipe:  # noqa: A002
        """The recipe in a `.json`, `.toml` or `.yaml` file: its own keys, or any config that `memplan.interop` reads.

        What a config asks for and no recipe key can say is in `uncovered`; `memplan.interop.read` tells more.

        Args:
            path: the file.
            format: its format (`memplan.interop.format_names()`); by default it is detected.

        Raises:
            FileFormatError: not readable as the format its ending names, or no format that memplan knows.
            UnknownNameError, InvalidValueError: as for the constructor.
        """
        from memplan.interop import read  # not needed for a recipe made of keys

        return read(path, format).recipe

    @classmethod
    def from_objects(
        cls,
        *,
        model_config: Any = None,
        training_args: Any = None,
        peft_config: Any = None,
        quantization_config: Any = None,
        **keys: Any,
    ) -> Recipe:
        """The recipe of a run's own objects, read by attribute: none of their libraries is imported.

        Args:
            model_config: `model.config`, a mapping as in config.json, or a model's name.
            training_args: a TrainingArguments or SFTConfig.
            peft_config: a LoraConfig or any other config of PEFT.
            quantization_config: a BitsAndBytesConfig.
            keys: recipe keys that no object says, such as `sequence_length` and `gpu`.

        Raises:
            InputError: nothing is given, or a value cannot stand there.
        """
        from memplan.interop import read_objects  # not needed for a recipe made of keys

        reading = read_objects(
            model_config=model_config,
            training_args=training_args,
            peft_config=peft_config,
            quantization_config=quantization_config,
        )
        return reading.recipe_with(**keys)

    def said(self) -> dict[str, Any]:
        """The keys that the user gave, in the model's order."""
        return {key: value for key, value in self if value is not None}

    def replace(self, **changes: Any) -> Recipe:
        """This recipe with `changes` (validated again)."""
        changed = Recipe(**{**self.said(), **changes}).with_uncovered(self._uncovered)
        return changed.with_origins({key: text for key, text in self._origins.items() if key not in changes})

    @property
    def origins(self) -> Mapping[str, str]:
        """Where the values of keys are from that nobody said: the default of a framework whose config was read."""
        return self._origins

    def with_origins(self, origins: Mapping[str, str]) -> Recipe:
        """This recipe with `origins`; they are no part of what it says, and recipes are compared without them."""
        if not origins:
            return self
        copy = self.model_copy()
        copy._origins = _Origins({**self._origins, **origins})
        return copy

    @property
    def uncovered(self) -> tuple[str, ...]:
        """What the run has beyond these keys and no key can say, e.g. FSDP in a config file that was read.

        Every answer lists it as unsupported, and none says that the run fits.
        """
        return self._uncovered

    def with_uncovered(self, texts: Iterable[str]) -> Recipe:
        """This recipe with `texts` added to `uncovered`."""
        added = tuple(dict.fromkeys((*self._uncovered, *texts)))
        if added == self._uncovered:
            return self
        copy = self.model_copy()
        copy._uncovered = added
        return copy


def load_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a JSON, TOML or YAML recipe file.

    Raises:
        FileFormatError: missing, too large, an unknown ending, broken syntax, or not a mapping.
    """
    return mapping_of(read_document(path))


def mapping_of(document: Document) -> dict[str, Any]:
    """The recipe keys in a document: at its top, or under `recipe`.

    Raises:
        FileFormatError: not a mapping, a key that is no text, or an alias, which no recipe needs.
    """
    name, data = document.name, document.data
    if document.first_alias_line:
        raise FileFormatError(f"{name}: line {document.first_alias_line}: aliases are not read")
    if isinstance(data, dict) and isinstance(data.get("recipe"), dict):
        stray = [str(key) for key in data if key in Recipe.model_fields]
        if stray:
            raise FileFormatError(f"{name}: {stray[0]} stands outside of `recipe`", hint="put every recipe key into it")
        data = data["recipe"]
    if not isinstance(data, dict):
        raise FileFormatError(f"{name} holds a {type(data).__name__}, not a mapping of recipe keys")
    for key in data:
        if not isinstance(key, str):
            raise FileFormatError(f"{name}: the key {key!r} is not text")
    return data


def _accept_old_names(data: dict[str, Any]) -> dict[str, Any]:
    """Transformers renamed `gradient_checkpointing` to `activation_checkpointing` (5.x); both are read."""
    if "gradient_checkpointing" not in data:
        return data
    if data.get("activation_checkpointing") is not None:
        raise InputError("activation_checkpointing and gradient_checkpointing are one setting: give one of them")
    data = dict(data)
    data["activation_checkpointing"] = data.pop("gradient_checkpointing")
    return data


def _raise_readable(error: ValidationError) -> NoReturn:
    found = error.errors(include_url=False)
    first = found[0]
    key = str(first["loc"][0]) if first["loc"] else "recipe"
    if first["type"] == "missing":
        raise InputError(f"{key} is missing", hint=f"every recipe names its {key}") from None
    if first["type"] in ("enum", "literal_error") and isinstance(first.get("input"), str):
        allowed = first.get("ctx", {}).get("expected", "")
        names = [word.strip().strip("'") for word in allowed.replace(" or ", ", ").split(",")]
        raise UnknownNameError(key, first["input"], names) from None
    # A key of several types has an error for each of them.
    messages = dict.fromkeys(_sentence(entry["msg"]) for entry in found if entry["loc"][:1] == first["loc"][:1])
    raise InvalidValueError(key, first.get("input"), ", or ".join(messages)) from None


def _sentence(message: str) -> str:
    # Lists are kept as tuples, which is nobody's business.
    return (message[:1].lower() + message[1:]).replace("input should be a valid tuple", "a list of names")
