"""The names of methods: what they mean, what they set, and what PEFT calls them.

A method is `full`, `bitfit`, or one of PEFT 0.21 by its `peft_type` in lower case, or a common name for a PEFT method
with an option set (`dora` is LoRA with `use_dora`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from memplan.errors import InputError, UnknownNameError


@dataclass(frozen=True, slots=True)
class Method:
    """One way to fine-tune.

    Attributes:
        name: canonical name.
        description: what it trains, in one line.
        peft_type: PEFT's name, or None without PEFT.
        options: adapter config keys that the name sets.
        aliases: other names that mean exactly this.
    """

    name: str
    description: str
    peft_type: str | None = None
    options: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    aliases: tuple[str, ...] = ()


def _peft(peft_type: str, description: str, *aliases: str) -> Method:
    return Method(peft_type.lower(), description, peft_type, aliases=aliases)


def _lora(name: str, description: str, *aliases: str, **options: object) -> Method:
    return Method(name, description, "LORA", MappingProxyType(options), aliases)


_METHODS = (
    Method(
        "full",
        "every parameter, or those that `trainable` names",
        aliases=("pretrain", "pre_training", "sft", "full_fine_tuning"),
    ),
    Method("bitfit", "the biases of the base model, and the head of a classifier"),
    _peft("LORA", "low-rank update B A beside frozen weights"),
    _lora("qlora", "LoRA on weights stored in 4 bits"),
    _lora("dora", "LoRA with a trained magnitude per output", use_dora=True),
    _lora("rslora", "LoRA scaled by alpha / sqrt(r)", use_rslora=True),
    _lora("pissa", "LoRA initialised with the principal singular vectors", init_lora_weights="pissa"),
    _lora("olora", "LoRA initialised by a QR decomposition", init_lora_weights="olora"),
    _lora(
        "loftq",
        "LoRA initialised against the error of quantization",
        init_lora_weights="loftq",
        loftq_config={"loftq_bits": 4, "loftq_iter": 1},
    ),
    _lora("eva", "LoRA initialised with singular vectors of activations", init_lora_weights="eva"),
    _lora("corda", "LoRA initialised by a context-oriented decomposition", init_lora_weights="corda"),
    _lora("lora_ga", "LoRA initialised with singular vectors of gradients", init_lora_weights="lora_ga"),
    _lora("mica", "LoRA with B frozen at the minor singular vectors", init_lora_weights="mica"),
    _peft("ADALORA", "LoRA in the form of a singular value decomposition, with its rank budget pruned"),
    _peft("ADAMSS", "trained subspaces of each weight's singular vectors"),
    _peft("ADAPTION_PROMPT", "trained prompts in the attention of the last layers", "llama_adapter"),
    _peft("BEFT", "a trained bias on a projection"),
    _peft("BOFT", "orthogonal update in butterfly factors"),
    _peft("C3A", "block-circulant update"),
    _peft("CARTRIDGE", "a trained key/value cache"),
    _peft("CPT", "context-aware prompt tuning"),
    _peft("DEFT", "low-rank update in a decomposed subspace"),
    _peft("DELORA", "LoRA with its norm bounded and decoupled from its angle"),
    _peft("FOURIERFT", "a few Fourier coefficients of the update"),
    _peft("FROD", "full-rank update from shared projections and sparse cores"),
    _peft("GLORA", "generalised LoRA: scale, shift and prompt of weight and bias"),
    _peft("GRALORA", "LoRA in sub-blocks of the weight"),
    _peft("HIRA", "update as the product of the weight with a low-rank matrix"),
    _peft("HRA", "a chain of Householder reflections"),
    _peft("IA3", "a trained scale on keys, values and feed-forward activations", "ia_3"),
    _peft("LILY", "low-rank experts shared between layers"),
    _peft("LN_TUNING", "the norms of the base model", "layernorm_tuning"),
    _peft("LOHA", "Hadamard product of two low-rank matrices"),
    _peft("LOKR", "Kronecker product with low-rank factors"),
    _peft("MISS", "shards of the update shared along the input", "bone"),
    _peft("MULTITASK_PROMPT_TUNING", "prompt tuning with low-rank task prompts"),
    _peft("OFT", "block-diagonal orthogonal update"),
    _peft("OSF", "the low singular subspace of each weight"),
    _peft("PEANUT", "weight-aware small networks as adapters"),
    _peft("POLY", "a routed mixture of LoRAs"),
    _peft("PREFIX_TUNING", "trained keys and values before each layer's own"),
    _peft("PROMPT_TUNING", "trained virtual tokens before the input"),
    _peft("PSOFT", "orthogonal update in the principal subspace"),
    _peft("PVERA", "VeRA with a probabilistic shared projection"),
    _peft("P_TUNING", "virtual tokens from a trained encoder"),
    _peft("RANDLORA", "trained scales over random full-rank bases"),
    _peft("ROAD", "two-dimensional rotations of the output"),
    _peft("SHADOW", "a small model beside the base model"),
    _peft("SHIRA", "a sparse set of the weight's entries"),
    _peft("SUPERTUNING", "a sparse set of the weight's entries, with a LoRA beside it"),
    _peft("TINYLORA", "a few scalars over projected singular vectors"),
    _peft("TRAINABLE_TOKENS", "chosen rows of the embedding"),
    _peft("UNILORA", "one shared vector behind every LoRA"),
    _peft("VBLORA", "LoRA composed from a shared vector bank"),
    _peft("VERA", "trained scales over shared random projections"),
    _peft("WAVEFT", "a few wavelet coefficients of the update"),
    _peft("XLORA", "a router over trained LoRA experts"),
)


def _fold(name: str) -> str:
    """The letters and digits of a name: case, hyphens, underscores and spaces do not count."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


_BY_NAME = {method.name: method for method in _METHODS}
_BY_FOLDED = {_fold(word): method for method in _METHODS for word in (method.name, *method.aliases)}
_BY_PEFT_TYPE = {method.peft_type: method for method in reversed(_METHODS) if method.peft_type}
_BY_PEFT_TYPE["LORA"] = _BY_NAME["lora"]
_BY_PEFT_TYPE["BONE"] = _BY_NAME["miss"]


def list_methods() -> list[Method]:
    """Every method, `full` first."""
    return list(_METHODS)


def get_method(name: str) -> Method:
    """The method of a canonical name.

    Raises:
        UnknownNameError: no such method.
    """
    method = _BY_FOLDED.get(_fold(name))
    if method is None:
        raise UnknownNameError("method", name, _BY_NAME, show=0, hint="allowed: " + ", ".join(_BY_NAME))
    return method


def canonical_method(name: str | None, peft: Mapping[str, object] | None = None) -> str:
    """The canonical name of a method, from its name, its adapter config, or both.

    Args:
        name: as the user wrote it; case, hyphens and underscores do not count. None: what `peft` says, else `full`.
        peft: content of an adapter_config.json; its `peft_type` must agree with `name`.

    Raises:
        UnknownNameError: no such method, or no such `peft_type`.
        InputError: `name` and `peft_type` disagree.
    """
    peft_type = None if peft is None else peft.get("peft_type")
    if peft_type is not None and str(peft_type).upper() not in _BY_PEFT_TYPE:
        raise UnknownNameError(
            "peft_type", str(peft_type), _BY_PEFT_TYPE, show=0, hint="allowed: " + ", ".join(_BY_PEFT_TYPE)
        )
    if name is None:
        if peft_type is not None:
            return _BY_PEFT_TYPE[str(peft_type).upper()].name
        return "full" if not peft else "lora"
    method = get_method(name)
    if peft_type is not None and _BY_PEFT_TYPE[str(peft_type).upper()].peft_type != method.peft_type:
        raise InputError(
            f"method = {name!r} and peft.peft_type = {peft_type!r} disagree",
            hint=f"{method.name} has PEFT type {method.peft_type or 'none'}; give one of the two",
        )
    return method.name
