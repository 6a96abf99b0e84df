"""Prompt learning: virtual tokens or key/values from an encoder beside a frozen model.

Symbols: N virtual tokens, S transformer submodules (2 for an encoder-decoder), H token dimension, L layers.

Encoders are float32 whatever the base model is: `autocast_adapter_dtype` does not reach them.

Sources (PEFT 0.21.2): tuners/{prompt_tuning,multitask_prompt_tuning,p_tuning,prefix_tuning,cpt,cartridge}/model.py;
utils/other.py, _prepare_prompt_learning_config; peft_model.py, PeftModel._setup_prompt_encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from memplan.architecture import Architecture, ModuleKind
from memplan.dtypes import DType
from memplan.errors import InvalidValueError
from memplan.methods.adaptation import Adaptation, AddedKind
from memplan.methods.apply import finish
from memplan.methods.state import ModelState, Weight
from memplan.model_config.schema import config_class
from memplan.step.adapters import prompts as encoders
from memplan.step.adapters.prefix import prefix_tuning as prefix_tuning_step
from memplan.step.site import AdapterTensor, PromptSite, Rewrite

Encoder = Callable[[Mapping[str, Any]], list[Weight]]

_LAYER_KEYS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers")
_WIDTH_KEYS = ("hidden_size", "n_embd", "d_model")
_HEAD_KEYS = ("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads")

# Decoders whose step behind a prefix is equal to the trace.
_PREFIXED = frozenset(
    {
        "llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "phi3", "olmo", "olmo2", "stablelm", "starcoder2", "phi",
        "cohere", "gemma", "gpt2", "gpt_neox", "opt", "mixtral", "qwen2_moe", "qwen3_moe",
    }
)  # fmt: skip

# Those whose outputs hold the cache that they were given only where `use_cache` is set (transformers 5.23, the end of each
# decoder's forward: `past_key_values if use_cache else None`); the others hold it always.
_RETURN_NO_CACHE = frozenset(
    {"gemma", "gpt2", "mistral", "opt", "phi3", "qwen2", "qwen2_moe", "qwen3", "smollm3", "starcoder2"}
)

_UNWALKED = {
    "PROMPT_TUNING": "prompt tuning's longer sequence",
    "MULTITASK_PROMPT_TUNING": "multitask prompt tuning's longer sequence",
    "P_TUNING": "P-tuning's prompt encoder and longer sequence",
    "PREFIX_TUNING": "prefix tuning's key/value cache",
    "CPT": "context-aware prompt tuning's longer sequence",
    "CARTRIDGE": "a cartridge's key/value cache",
}


def _tokens(config: Mapping[str, Any]) -> int:
    return int(config["num_virtual_tokens"] * config["num_transformer_submodules"])


def prompt_tuning(config: Mapping[str, Any]) -> list[Weight]:
    """One embedding [N S, H]."""
    return [Weight("embedding.weight", (_tokens(config), config["token_dim"]))]


def multitask_prompt_tuning(config: Mapping[str, Any]) -> list[Weight]:
    """The shared embedding, and for each task columns [N S, ranks] and rows [ranks, H]."""
    tasks, ranks = config["num_tasks"], config["num_ranks"]
    return [
        *prompt_tuning(config),
        Weight("prefix_task_cols", (tasks, _tokens(config), ranks)),
        Weight("prefix_task_rows", (tasks, ranks, config["token_dim"])),
    ]


def _linear(name: str, inputs: int, outputs: int) -> list[Weight]:
    return [Weight(f"{name}.weight", (outputs, inputs)), Weight(f"{name}.bias", (outputs,))]


def p_tuning(config: Mapping[str, Any]) -> list[Weight]:
    """The embedding and its encoder: three linear layers, or a two-directional LSTM and two linear layers."""
    width, hidden = config["token_dim"], config["encoder_hidden_size"]
    weights = prompt_tuning(config)
    if config["encoder_reparameterization_type"] == "MLP":
        return [
            *weights,
            *_linear("mlp_head.0", width, hidden),
            *_linear("mlp_head.2", hidden, hidden),
            *_linear("mlp_head.4", hidden, width),
        ]
    for layer in range(config["encoder_num_layers"]):
        inputs = width if layer == 0 else 2 * hidden
        for direction in ("", "_reverse"):
            weights += [
                Weight(f"lstm_head.weight_ih_l{layer}{direction}", (4 * hidden, inputs)),
                Weight(f"lstm_head.weight_hh_l{layer}{direction}", (4 * hidden, hidden)),
                Weight(f"lstm_head.bias_ih_l{layer}{direction}", (4 * hidden,)),
                Weight(f"lstm_head.bias_hh_l{layer}{direction}", (4 * hidden,)),
            ]
    return [*weights, *_linear("mlp_head.0", 2 * hidden, 2 * hidden), *_linear("mlp_head.2", 2 * hidden, width)]


def prefix_tuning(config: Mapping[str, Any]) -> list[Weight]:
    """Keys and values of every layer [N, 2 L H], or an embedding [N, H] with two linear layers to them."""
    width, hidden, tokens = config["token_dim"], config["encoder_hidden_size"], config["num_virtual_tokens"]
    every_layer = 2 * config["num_layers"] * width
    if not config["prefix_projection"]:
        return [Weight("embedding.weight", (tokens, every_layer))]
    return [
        Weight("embedding.weight", (tokens, width)),
        *_linear("transform.0", width, hidden),
        *_linear("transform.2", hidden, every_layer),
    ]


def cpt(config: Mapping[str, Any]) -> list[Weight]:
    """The frozen embedding of the context [N, H] and its trained change."""
    shape = (config["num_virtual_tokens"], config["token_dim"])
    return [Weight("embedding.weight", shape, trainable=False), Weight("delta_embedding.weight", shape)]


def cartridge(config: Mapping[str, Any]) -> list[Weight]:
    """Keys and values of every layer: the first tokens frozen, the others trained."""
    width = 2 * config["num_layers"] * config["token_dim"]
    frozen = config["num_frozen_tokens"]
    trained = Weight("trainable_embedding", (config["num_virtual_tokens"] - frozen, width))
    return [Weight("frozen_embedding", (frozen, width), trainable=False), trained] if frozen else [trained]


ENCODERS: dict[str, Encoder] = {
    "PROMPT_TUNING": prompt_tuning,
    "MULTITASK_PROMPT_TUNING": multitask_prompt_tuning,
    "P_TUNING": p_tuning,
    "PREFIX_TUNING": prefix_tuning,
    "CPT": cpt,
    "CARTRIDGE": cartridge,
}


def _first(config: Mapping[str, Any], keys: tuple[str, ...], name: str, *, aliases: bool = False) -> int:
    """The first of `keys` in a model's config; PEFT reads the config as a dict, where aliases of fields do not stand."""
    fields = config_class(config["model_type"]).defaults
    for key in keys:
        if isinstance(config.get(key), int) and (aliases or key in fields):
            return int(config[key])
    raise InvalidValueError(f"peft.{name}", None, "PEFT cannot infer it from this model's config: give it")


def infer(architecture: Architecture, config: dict[str, Any]) -> dict[str, Any]:
    """Fill in layers, width and heads from the model's config.

    For key/value prefixes on a model with grouped queries, width is that of the key/value heads.

    Raises:
        InvalidValueError: the config does not say, and neither does `peft`.

    Source: peft/utils/other.py, _prepare_prompt_learning_config.
    """
    config = dict(config)
    for key in ("num_layers", "token_dim", "num_attention_heads", "encoder_hidden_size"):
        value = config.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InvalidValueError(f"peft.{key}", value, "a positive integer")
    model: Mapping[str, Any] = architecture.config
    text = model.get("text_config")
    model = text if isinstance(text, Mapping) else model
    if config["num_layers"] is None:
        config["num_layers"] = _first(model, _LAYER_KEYS, "num_layers", aliases=True)
    if config["token_dim"] is None:
        config["token_dim"] = _first(model, _WIDTH_KEYS, "token_dim")
    if config["num_attention_heads"] is None:
        config["num_attention_heads"] = _first(model, _HEAD_KEYS, "num_attention_heads")
    if config["peft_type"] in ("PREFIX_TUNING", "CARTRIDGE") and model.get("num_key_value_heads") is not None:
        heads, head_size = model["num_key_value_heads"], model.get("head_dim")
        if head_size is None:
            head_size = config["token_dim"] // config["num_attention_heads"]
        if model.get("global_head_dim") is not None:
            heads, head_size = model.get("num_global_key_value_heads") or heads, model["global_head_dim"]
        config["token_dim"] = head_size * heads
        config["num_attention_heads"] = heads
    if config.get("encoder_hidden_size") is None:
        config["encoder_hidden_size"] = config["token_dim"]
    if config["num_transformer_submodules"] is None:
        config["num_transformer_submodules"] = 2 if config["task_type"] == "SEQ_2_SEQ_LM" else 1
    return config


def apply_prompts(method: str, state: ModelState, config: dict[str, Any]) -> Adaptation:
    """The frozen model with a prompt encoder.

    Raises:
        InvalidValueError: no number of virtual tokens, or sizes that PEFT cannot infer.
    """
    peft_type = config["peft_type"]
    embedding = state.architecture.by_path.get(state.architecture.input_embeddings)
    if embedding is None or embedding.kind is not ModuleKind.EMBEDDING:
        raise InvalidValueError("method", method, f"a {state.architecture.model_type} model has no tokens to prompt")
    config = _checked(infer(state.architecture, config))
    for weight in ENCODERS[peft_type](config):
        created = replace(weight, dtype=DType.FLOAT32, autocast=False)
        state.add("prompt_encoder.default", "", created, DType.FLOAT32, AddedKind.PROMPT)
    finish(state, config, config.get("modules_to_save"))
    key_values = None
    if peft_type == "PREFIX_TUNING":
        heads = config["num_attention_heads"]
        key_values = (config["num_layers"], heads, config["token_dim"] // heads)
    encode = _encoder(config, state.architecture)
    tensors = tuple(AdapterTensor(w.name, w.shape, DType.FLOAT32, w.trainable) for w in ENCODERS[peft_type](config))
    cached = peft_type in ("PREFIX_TUNING", "CARTRIDGE")
    returns_cache = state.architecture.model_type not in _RETURN_NO_CACHE
    tokens = config["num_virtual_tokens"]
    return Adaptation(
        method=method,
        peft=config,
        trainable_base=state.trainable_base(),
        added=state.added(),
        virtual_tokens=0 if cached else tokens,
        prefix_key_values=tokens if cached else 0,
        prompt=PromptSite(encode, tensors, tokens, state.layer_dtype(embedding), key_values, returns_cache)
        if encode
        else None,
        unwalked=() if encode is not None else (_UNWALKED[peft_type],),
    )


def _encoder(config: Mapping[str, Any], architecture: Architecture) -> Rewrite | None:
    """What makes the virtual tokens in the step, where they stand before one decoder's sequence."""
    if config["task_type"] != "CAUSAL_LM" or config["num_transformer_submodules"] != 1:
        return None
    if config["peft_type"] == "PROMPT_TUNING":
        return encoders.prompt_tuning
    if config["peft_type"] == "P_TUNING" and config["encoder_reparameterization_type"] == "MLP":
        return encoders.p_tuning
    if config["peft_type"] == "PREFIX_TUNING" and architecture.model_type in _PREFIXED:
        # A prefix of fewer layers leaves the last ones without.
        layers = _first(architecture.config, _LAYER_KEYS, "num_layers", aliases=True)
        return prefix_tuning_step if config["num_layers"] >= layers else None
    return None


def _checked(config: dict[str, Any]) -> dict[str, Any]:
    if config["peft_type"] == "CPT":
        if config["task_type"] != "CAUSAL_LM":
            raise InvalidValueError("peft.task_type", config["task_type"], "CAUSAL_LM, the only task of CPT")
        config["cpt_token_ids"] = config["cpt_token_ids"] or [0]
        config["num_virtual_tokens"] = len(config["cpt_token_ids"])
    if config["num_virtual_tokens"] is None:
        raise InvalidValueError(
            "peft.num_virtual_tokens", None, f"{config['peft_type']} needs a positive number of them"
        )
    frozen = config.get("num_frozen_tokens", 0)
    if not 0 <= frozen <= config["num_virtual_tokens"]:
        raise InvalidValueError("peft.num_frozen_tokens", frozen, "at most num_virtual_tokens")
    kind = config.get("encoder_reparameterization_type", "MLP")
    if kind not in ("MLP", "LSTM"):
        raise InvalidValueError("peft.encoder_reparameterization_type", kind, "MLP or LSTM")
    if config["task_type"] is None:
        raise InvalidValueError("peft.task_type", None, "prompt learning needs the task")
    return config
