"""Which of torchtune's component builders makes the model of a config, and what each is given.

Only what a builder makes exactly: a config with anything else is refused, and the refusal says what it is.

Sources: torchtune 0.6.1 models/{llama2,llama3,llama3_1,llama3_2,mistral,qwen2,gemma,phi3}/_component_builders.py and
_model_builders.py.

Known limits:
    Rotary tables are as long as the config's `max_position_embeddings`. That is what the model builders pass, but for Qwen2
    0.5B, 1.5B and 7B, whose 32768 are a quarter of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from memplan.errors import UnsupportedError

# Builders take lists of these (`LORA_ATTN_MODULES`), here under the names that transformers gives them.
ATTENTION_MODULES = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": "output_proj"}
MLP_MODULES = frozenset({"gate_proj", "up_proj", "down_proj"})
OUTPUT_MODULE = "lm_head"

# What a LoraConfig may say besides: values that change nothing, and those that torchtune's builders take.
_LORA_KEYS = frozenset({"r", "lora_alpha", "lora_dropout", "use_dora", "target_modules"})
_LORA_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",), "fan_in_fan_out": (False,), "init_lora_weights": (True,), "use_rslora": (False,),
    "task_type": (None, "CAUSAL_LM"), "peft_type": ("LORA",), "inference_mode": (False,),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ComponentBuilder:
    """A function of torchtune's that makes a `TransformerDecoder`.

    Attributes:
        name: of the function and its package below torchtune.models; `lora_` stands before it with adapters.
        arguments: what it is given, adapters aside.
        rope: class of the rotary embedding: `pairs` of neighbours in float32, `halves` of each head in the model's type, or
            `float32 halves` with products that are promoted.
        scales_rope: whether its frequencies are scaled (Llama 3.1).
        shares_rope_under_lora: whether all layers have one rotary table with adapters, too; without them they always do.
        output_dropout: whether an adapter on the output has dropout.
        tied: whether the output multiplies with the embedding's weight.
    """

    name: str
    arguments: Mapping[str, Any]
    rope: str = "pairs"
    scales_rope: bool = False
    shares_rope_under_lora: bool = False
    output_dropout: bool = True
    tied: bool = False

    @property
    def is_gemma(self) -> bool:
        """Whether it scales its embeddings and has Gemma's norms."""
        return self.name in ("gemma", "gemma2")

    @property
    def adapts_output(self) -> bool:
        """Whether its `lora_` twin takes `apply_lora_to_output`."""
        return not self.is_gemma

    @property
    def attention(self) -> str:
        """What transformers calls its attention: torch's kernels, or op by op."""
        return "eager" if self.name == "gemma2" else "sdpa"


@dataclass(frozen=True, slots=True)
class LoraArguments:
    """What a `lora_` builder is given."""

    attention: tuple[str, ...]
    mlp: bool
    output: bool
    rank: int
    alpha: float
    dropout: float
    dora: bool


def component_builder(config: Mapping[str, Any]) -> ComponentBuilder:
    """The builder of a complete HF config's model.

    Raises:
        UnsupportedError: no builder of torchtune 0.6 makes it exactly.
    """
    model_type = str(config["model_type"])
    if model_type not in _BUILDERS:
        raise _refused(f"{model_type} models: memplan knows torchtune's {', '.join(_BUILDERS)}")
    return _BUILDERS[model_type](config)


def is_built(config: Mapping[str, Any]) -> bool:
    """Whether a builder makes the config's model."""
    try:
        component_builder(config)
    except UnsupportedError:
        return False
    return True


def _llama(config: Mapping[str, Any]) -> ComponentBuilder:
    _check(config, mlp_bias=(False, None), attention_bias=(False, None))
    rope_type, tied = _rope_type(config), bool(config.get("tie_word_embeddings"))
    arguments = _arguments(config)
    if rope_type == "default":
        if tied:
            raise _refused("a tied llama without llama3's rotary scaling: only llama3_2 ties")
        return ComponentBuilder("llama3", arguments)
    arguments["scale_factor"] = config["rope_parameters"].get("factor", 8)
    if not tied:
        return ComponentBuilder("llama3_1", arguments, scales_rope=True, shares_rope_under_lora=True)
    arguments["tie_word_embeddings"] = True
    return ComponentBuilder("llama3_2", arguments, scales_rope=True, shares_rope_under_lora=True, tied=True)


def _mistral(config: Mapping[str, Any]) -> ComponentBuilder:
    _check(config, tie_word_embeddings=(False, None))
    _rope_type(config, "default")
    return ComponentBuilder("mistral", _arguments(config), output_dropout=False)


def _qwen2(config: Mapping[str, Any]) -> ComponentBuilder:
    _rope_type(config, "default")
    tied = bool(config.get("tie_word_embeddings"))
    arguments = {**_arguments(config), "tie_word_embeddings": tied}
    return ComponentBuilder("qwen2", arguments, rope="halves", tied=tied)


def _gemma(config: Mapping[str, Any]) -> ComponentBuilder:
    _check(config, attention_bias=(False, None), tie_word_embeddings=(True,))
    _rope_type(config, "default")
    arguments = _arguments(config, activation=("gelu_pytorch_tanh",), square=False)
    return ComponentBuilder("gemma", {**arguments, "head_dim": config["head_dim"]}, tied=True)


def _gemma2(config: Mapping[str, Any]) -> ComponentBuilder:
    _check(config, attention_bias=(False, None), tie_word_embeddings=(True,))
    _rope_type(config, "default")
    arguments = _arguments(config, activation=("gelu_pytorch_tanh",), square=False)
    return ComponentBuilder(
        "gemma2",
        {
            **arguments,
            "head_dim": config["head_dim"],
            "hidden_capping_value": config["attn_logit_softcapping"] or 50.0,
            "final_capping_value": config["final_logit_softcapping"] or 30.0,
            "sliding_window_size": config["sliding_window"],
            "query_pre_attn_scalar": config["query_pre_attn_scalar"],
        },
        tied=True,
    )


def _phi3(config: Mapping[str, Any]) -> ComponentBuilder:
    _check(config, tie_word_embeddings=(False, None))
    _rope_type(config, "default")
    partial = config["rope_parameters"].get("partial_rotary_factor", 1.0)
    if partial != 1.0:
        raise _refused(f"rotary embeddings on {partial:.0%} of each head")
    return ComponentBuilder("phi3", _arguments(config), rope="float32 halves")


_BUILDERS: dict[str, Callable[[Mapping[str, Any]], ComponentBuilder]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "phi3": _phi3,
}
MODEL_TYPES = frozenset(_BUILDERS)


def _arguments(
    config: Mapping[str, Any], *, activation: tuple[str, ...] = ("silu", "swish"), square: bool = True
) -> dict[str, Any]:
    """What all builders take; `square` where heads share the hidden size among them."""
    hidden, heads, head_size = config["hidden_size"], config["num_attention_heads"], config["head_dim"]
    _check(config, **{"hidden_act" if "hidden_act" in config else "hidden_activation": activation})
    if square and hidden != heads * head_size:
        raise _refused(f"head_dim={head_size}, which is not hidden_size / num_attention_heads")
    if hidden % heads:
        raise _refused(f"hidden_size={hidden}, which {heads} attention heads do not divide")
    return {
        "vocab_size": config["vocab_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": config.get("num_key_value_heads") or heads,
        "embed_dim": hidden,
        "intermediate_dim": config["intermediate_size"],
        "max_seq_len": config["max_position_embeddings"],
        "attn_dropout": config.get("attention_dropout") or 0.0,
    }


def _rope_type(config: Mapping[str, Any], *allowed: str) -> str:
    found = str(config["rope_parameters"].get("rope_type", "default"))
    if found not in (allowed or ("default", "llama3")):
        raise _refused(f"rotary embeddings of type {found} in {config['model_type']} models")
    return found


def _check(config: Mapping[str, Any], **allowed: tuple[Any, ...]) -> None:
    for key, values in allowed.items():
        if config.get(key) not in values:
            raise _refused(f"{config['model_type']} models with {key}={config.get(key)}")


def lora_arguments(peft: Mapping[str, Any], builder: ComponentBuilder) -> LoraArguments:
    """The arguments that make an adapter_config.json's adapters.

    Raises:
        UnsupportedError: torchtune's builders cannot put adapters there, or not such ones.
    """
    if str(peft.get("peft_type")) != "LORA":
        raise _refused(f"the method {peft.get('peft_type')}: its recipes train LoRA and DoRA")
    for key, value in peft.items():
        if key in _LORA_KEYS or (value in _LORA_PLAIN[key] if key in _LORA_PLAIN else not value):
            continue
        raise _refused(f"adapters with {key}={value}")
    names = _targets(peft.get("target_modules"))
    attention = tuple(name for name in ATTENTION_MODULES if name in names)
    mlp, output = MLP_MODULES & names, OUTPUT_MODULE in names
    others = names - MLP_MODULES - {OUTPUT_MODULE, *ATTENTION_MODULES}
    if others:
        raise _refused(f"adapters on {', '.join(sorted(others))}")
    if not attention:
        raise _refused("adapters on none of an attention block's projections (lora_attn_modules)")
    if mlp and mlp != MLP_MODULES:
        raise _refused(f"adapters on {', '.join(sorted(mlp))} alone: apply_lora_to_mlp takes all three projections")
    if output and builder.tied:
        raise _refused("an adapter on an output that is tied to the embedding")
    rank = int(peft.get("r") or 8)
    return LoraArguments(
        attention=tuple(ATTENTION_MODULES[name] for name in attention),
        mlp=bool(mlp),
        output=output,
        rank=rank,
        alpha=float(peft.get("lora_alpha") or 2 * rank),
        dropout=float(peft.get("lora_dropout") or 0.0),
        dora=bool(peft.get("use_dora")),
    )


def is_magnitude(name: str) -> bool:
    """Whether a parameter of an adapter is DoRA's magnitude."""
    return "magnitude" in name


def _targets(given: Any) -> frozenset[str]:
    if given is None:  # PEFT's default for these models; torchtune has none
        return frozenset({"q_proj", "v_proj"})
    if given == "all-linear":
        return MLP_MODULES | frozenset(ATTENTION_MODULES)
    if isinstance(given, str):
        return frozenset({given})
    return frozenset(map(str, given))


def _refused(what: str) -> UnsupportedError:
    return UnsupportedError(f"torchtune has no builder for {what}")
