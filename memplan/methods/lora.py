"""LoRA and its variants: DoRA, rsLoRA, initialisations, biases, embeddings, convolutions and expert parameters.

Symbols: r rank, E experts.

Source: peft/tuners/lora/{layer,model,variants,dora}.py (PEFT 0.21.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.architecture import ModuleKind
from memplan.errors import InvalidValueError, UnknownNameError, UnsupportedError
from memplan.methods.state import Weight
from memplan.methods.targets import pattern_value
from memplan.methods.tuner import LINEAR_OR_CONV1D, Config, Target, Tuner
from memplan.quantization_config import is_names
from memplan.step.adapters import decompositions
from memplan.step.adapters import lora as adapters
from memplan.step.adapters.embeddings import lora_embedding
from memplan.step.site import Creator, LoraSite, Rewrite

KINDS = frozenset({ModuleKind.LINEAR, ModuleKind.CONV1D, ModuleKind.EMBEDDING, ModuleKind.CONV})

# LoraConfig fields that change more than values, and which memplan has no count for.
_NOT_COVERED = {
    "layer_replication": "layers that are replicated with shared weights",
    "arrow_config": "Arrow, which routes between trained adapters",
    "monteclora_config": "the samplers of MonteCLoRA",
    "megatron_config": "Megatron's parallel layers",
}

# Variants by their config key (LoraLayer.lora_variants); at most one can be active on a layer.
_LINEAR_VARIANTS = ("use_dora", "use_bdlora", "alora_invocation_tokens", "velora_config", "kasa_config")

_SUB_CONFIGS = ("use_bdlora", "velora_config", "kasa_config")


def has_variant(config: Config, key: str) -> bool:
    """Whether a variant is on: a sub-config counts even when it is empty."""
    return config.get(key) is not None and config[key] is not False


# Initialisations that decompose the base weight on the GPU.
_CREATIONS: Mapping[str, Creator] = {
    "pissa": decompositions.pissa_creation,
    "olora": decompositions.olora_creation,
    "loftq": decompositions.loftq_creation,
}

_INITS = ("gaussian", "olora", "loftq", "eva", "corda", "orthogonal", "lora_ga", "mica", "pissa")

# How the step changes, for each variant.
_UNWALKED = {
    "use_dora": "DoRA on an embedding or a convolution",
    "use_bdlora": "BD-LoRA's block-diagonal factors",
    "alora_invocation_tokens": "activated LoRA's invocation mask",
    "velora_config": "VeLoRA's compressed activations",
    "kasa_config": "KaSA's diagonal",
}


def rank_of(config: Config, path: str) -> int:
    """The rank of a module: `rank_pattern` first, then `r`."""
    rank = pattern_value(config.get("rank_pattern"), path, config["r"])
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise InvalidValueError("peft.rank_pattern", rank, "a positive integer for each pattern")
    return rank


def check(config: Config) -> None:
    """Refuse what PEFT refuses, and what memplan does not cover.

    Raises:
        InvalidValueError, UnsupportedError: see the message.
    """
    for key, words in _NOT_COVERED.items():
        if config.get(key):
            raise UnsupportedError(f"LoRA with {key} is not covered", hint=f"{words} are not counted yet")
    for key in _SUB_CONFIGS:
        if has_variant(config, key) and not isinstance(config[key], Mapping):
            raise InvalidValueError(f"peft.{key}", config[key], "an object, as adapter_config.json holds it")
    for key, name in (("use_bdlora", "nblocks"), ("velora_config", "num_groups")):
        number = (config.get(key) or {}).get(name, 1)
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InvalidValueError(f"peft.{key}.{name}", number, "a positive integer")
    for key in ("target_modules_bd_a", "target_modules_bd_b"):
        names = (config.get("use_bdlora") or {}).get(key)
        if names is not None and not is_names(names):
            raise InvalidValueError(f"peft.use_bdlora.{key}", names, "a list of names")
    init = config["init_lora_weights"]
    known = init in (True, False, None) or (
        isinstance(init, str) and (init.lower() in _INITS or init.startswith("pissa_niter_"))
    )
    if not known:
        raise InvalidValueError(
            "peft.init_lora_weights", init, "true, false, " + ", ".join(_INITS) + " or pissa_niter_<n>"
        )
    if isinstance(init, str) and init.startswith("pissa_niter_") and not init.removeprefix("pissa_niter_").isdecimal():
        raise InvalidValueError("peft.init_lora_weights", init, "pissa_niter_<n> with a whole number")
    if init == "loftq":
        _check_loftq(config.get("loftq_config"))
    active = [key for key in _LINEAR_VARIANTS if has_variant(config, key)] + (["mica"] if init == "mica" else [])
    if len(active) > 1:
        raise InvalidValueError("peft", active, "PEFT combines no two of these LoRA variants")
    if config.get("ensure_weight_tying") and config.get("target_modules") and not config.get("modules_to_save"):
        raise UnsupportedError("LoRA with ensure_weight_tying on target_modules is not covered")


def _check_loftq(options: Any) -> None:
    """Refuse what `loftq_init` refuses (peft/utils/loftq_utils.py)."""
    if not isinstance(options, Mapping) or not options:
        allowed = (
            'an object such as {"loftq_bits": 4, "loftq_iter": 1}, which PEFT asks for with init_lora_weights = loftq'
        )
        raise InvalidValueError("peft.loftq_config", options, allowed)
    for key in options:
        if key not in ("loftq_bits", "loftq_iter"):
            raise UnknownNameError("key of loftq_config", str(key), ("loftq_bits", "loftq_iter"))
    bits, iterations = options.get("loftq_bits", 4), options.get("loftq_iter", 1)
    if bits not in (4, 8):
        raise InvalidValueError("peft.loftq_config.loftq_bits", bits, "4 or 8")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise InvalidValueError("peft.loftq_config.loftq_iter", iterations, "a positive integer")


def _linear(target: Target, config: Config, rank: int) -> list[Weight]:
    trained_b = config["init_lora_weights"] != "mica"
    a = (rank, target.in_features)
    b = (target.out_features, rank)
    blocks = config.get("use_bdlora")
    if blocks:
        a, b = _block_diagonal(target, dict(blocks), a, b)
    weights = [Weight("lora_A.default.weight", a), Weight("lora_B.default.weight", b, trainable=trained_b)]
    if config["lora_bias"]:
        weights.append(Weight("lora_B.default.bias", (target.out_features,)))
    if config["use_dora"]:
        weights.append(Weight("lora_magnitude_vector.default.weight", (target.out_features,)))
    if config.get("kasa_config") is not None:
        weights.append(Weight("lora_diag.default", (rank,)))
    velora = config.get("velora_config")
    if velora:
        groups = int(velora.get("num_groups", 64))
        weights.append(Weight("lora_velora_embed.default", (target.in_features // groups,), parameter=False))
    return weights


def _block_diagonal(
    target: Target, options: Mapping[str, Any], a: tuple[int, int], b: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    blocks = int(options.get("nblocks", 1))
    in_a = any(name in target.path for name in options.get("target_modules_bd_a") or ())
    in_b = any(name in target.path for name in options.get("target_modules_bd_b") or ())
    if in_a and in_b:
        raise InvalidValueError(
            "peft.use_bdlora", target.path, "a module can match target_modules_bd_a or _b, not both"
        )
    if not (in_a or in_b) and options.get("match_strict", True):
        raise InvalidValueError(
            "peft.use_bdlora", target.path, "matches neither list; set match_strict to false to mix"
        )
    sizes = a if in_a else b
    if (in_a or in_b) and any(size % blocks for size in sizes):
        raise InvalidValueError(
            "peft.use_bdlora", blocks, f"nblocks must divide {sizes[0]} and {sizes[1]} of {target.path}"
        )
    return ((a[0], a[1] // blocks) if in_a else a), ((b[0], b[1] // blocks) if in_b else b)


def _embedding(target: Target, config: Config, rank: int) -> list[Weight]:
    if config["lora_bias"]:
        raise InvalidValueError("peft.lora_bias", True, f"PEFT has no bias for an embedding such as {target.path}")
    trained_b = config["init_lora_weights"] != "mica"
    weights = [
        Weight("lora_embedding_A.default", (rank, target.in_features)),
        Weight("lora_embedding_B.default", (target.out_features, rank), trainable=trained_b),
    ]
    if config["use_dora"]:
        weights.append(Weight("lora_magnitude_vector.default.weight", (target.out_features,)))
    return weights


def _conv(target: Target, config: Config, rank: int) -> list[Weight]:
    kernel = target.weight_shape[2:]
    groups = target.in_features // target.weight_shape[1]
    if rank % groups:
        raise InvalidValueError("peft.r", rank, f"a multiple of the {groups} groups of {target.path}")
    ones = (1,) * len(kernel)
    weights = [
        Weight("lora_A.default.weight", (rank, target.in_features, *kernel)),
        Weight("lora_B.default.weight", (target.out_features, rank // groups, *ones)),
    ]
    if config["lora_bias"]:
        weights.append(Weight("lora_B.default.bias", (target.out_features,)))
    if config["use_dora"]:
        weights.append(Weight("lora_magnitude_vector.default.weight", (1, target.out_features, *ones)))
    return weights


def weights(target: Target, config: Config) -> list[Weight]:
    """The factors of one layer: A [r, in] and B [out, r] of a linear layer, A [r, vocabulary] of an embedding."""
    rank = rank_of(config, target.path)
    if target.kind is ModuleKind.EMBEDDING:
        return _embedding(target, config, rank)
    if target.kind is ModuleKind.CONV:
        return _conv(target, config, rank)
    return _linear(target, config, rank)


def expert_weights(shape: tuple[int, ...], rank: int, *, transposed: bool) -> tuple[Weight, Weight]:
    """Factors of one parameter in `target_parameters`: A [r E, in], B [out, r E].

    Args:
        shape: [E, out, in], or [E, in, out] if `transposed`, or [out, in].
        rank: r.
        transposed: the experts class stores its weights as [in, out].

    Raises:
        InvalidValueError: PEFT adapts parameters of two and three dimensions only.
    """
    if len(shape) == 3:
        experts, first, second = shape
        inputs, outputs = (first, second) if transposed else (second, first)
    elif len(shape) == 2:
        experts, (outputs, inputs) = 1, shape
    else:
        raise InvalidValueError("peft.target_parameters", shape, "a parameter of two or three dimensions")
    return (
        Weight("lora_A.default.weight", (rank * experts, inputs)),
        Weight("lora_B.default.weight", (outputs, rank * experts)),
    )


def site(target: Target, config: Config, dtype: Any) -> LoraSite | None:
    """What plain LoRA puts on a linear layer; None for its variants and other layers."""
    if rewrite(target, config) is not adapters.lora:
        return None
    return LoraSite(rank_of(config, target.path), float(config["lora_dropout"]), dtype, bool(config["lora_bias"]))


def rewrite(target: Target, config: Config) -> Rewrite | None:
    """The forward of the adapted layer."""
    variants = [key for key in _LINEAR_VARIANTS if has_variant(config, key)]
    if target.kind is ModuleKind.EMBEDDING:
        plain = not variants and config["init_lora_weights"] != "mica" and target.module.class_name == "Embedding"
        return lora_embedding if plain else None
    if target.kind not in LINEAR_OR_CONV1D or config["init_lora_weights"] == "mica":
        return None
    if not variants:
        return adapters.lora
    return adapters.dora if variants == ["use_dora"] else None


def unwalked(target: Target, config: Config) -> str:
    """What LoRA does on a layer that has no rewrite, in words."""
    for key, words in _UNWALKED.items():
        if has_variant(config, key):
            return words
    if config["init_lora_weights"] == "mica":
        return "MiCA's frozen B"
    return {ModuleKind.EMBEDDING: "LoRA on an embedding that scales"}.get(target.kind, "LoRA on a convolution")


def options(target: Target, config: Config) -> Mapping[str, Any]:
    """What the forward and the making of the adapter have to know."""
    found: dict[str, Any] = {"dropout": float(config["lora_dropout"])}
    init = str(config["init_lora_weights"])
    if init.startswith("pissa"):
        found["svd_iterations"] = int(init.removeprefix("pissa_niter_")) if init != "pissa" else None
    elif init == "loftq":
        quantizes = config["loftq_config"] or {}
        found["loftq"] = int(quantizes.get("loftq_bits", 4)), int(quantizes.get("loftq_iter", 1))
    return found


def creation(target: Target, config: Config) -> Creator | None:
    """What making the adapter computes."""
    if rewrite(target, config) is adapters.dora:
        return adapters.dora_creation
    if rewrite(target, config) is not adapters.lora or target.quantized:
        return None
    init = str(config["init_lora_weights"]).lower()
    return _CREATIONS.get("pissa" if init.startswith("pissa") else init)


TUNER = Tuner(KINDS, weights, "", rank="r", check=check, rewrite=rewrite, options=options, creation=creation)
