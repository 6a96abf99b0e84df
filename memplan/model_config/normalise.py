"""`normalise_config`: any config.json's object to the complete architecture keys of its class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.dtypes import parse_dtype
from memplan.errors import InvalidValueError, UnknownNameError
from memplan.model_config.derive import RULES
from memplan.model_config.rope import standardise_rope
from memplan.model_config.schema import ConfigClass, config_class, known_model_types, known_part_types
from memplan.model_config.undescribed import plain_values
from memplan.model_config.values import check_json_data, check_value

_MAX_LABELS = 65536
_OTHERWISE = (
    "for other model types there is no analytic rule; `memplan trace` answers for each one that the installed transformers "
    "knows"
)


def normalise_config(raw: Mapping[str, Any], *, described_only: bool = True) -> dict[str, Any]:
    """Every architecture key of the model that `raw` describes, with the class defaults put in.

    The values are those that the config class of transformers 5.23.0 would hold: its defaults, its other names (a
    GPT-2 has both `n_embd` and `hidden_size`), its derived values (`layer_types`, `num_key_value_heads`, ...), and
    nested `text_config` and `vision_config` done the same way. One thing differs on purpose: T5 and mT5 keep the
    `tie_word_embeddings` of the file (see `memplan.model_config.derive`). Beyond the class, `head_dim` is there
    for every model with heads (hidden_size // heads where the config leaves it open, as in the modelling files),
    `dtype` is a torch name or None, `num_labels` is counted from `id2label`, and `quantization_config` is carried
    along as data. Keys that mean nothing for memory are dropped; `auto_map` and everything else that names code is
    never followed.

    Args:
        raw: the object of a config.json; is not changed.
        described_only: refuse a `model_type` that memplan has no family for; otherwise such a config keeps the plain
            values of the file, and transformers' own class completes it when the model is traced.

    Raises:
        UnknownNameError: a `model_type` or dtype that memplan does not know.
        InvalidValueError: a missing `model_type`, or a value that cannot stand under its key.
    """
    if not isinstance(raw, Mapping):
        raise InvalidValueError("model config", raw, "a JSON object as in a config.json")
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise InvalidValueError("model_type", model_type, "a model type that memplan knows, such as llama")
    if model_type not in known_model_types():
        if not described_only:
            return {**plain_values(raw), "model_type": model_type, **_common(raw, model_type, path="")}
        raise UnknownNameError("model_type", model_type, known_model_types(), show=60, hint=_OTHERWISE)
    return _normalise(raw, config_class(model_type), path="")


def _normalise(raw: Mapping[str, Any], cls: ConfigClass, *, path: str) -> dict[str, Any]:
    given = {key: check_value(key, raw[key], path=path) for key in cls.accepted if key in raw}
    for name, field in cls.aliases.items():
        if name in given and field in given and given[name] != given[field]:
            raise InvalidValueError(path + name, given[name], f"{field} says the same thing and is {given[field]!r}")
    fields: dict[str, Any] = {"model_type": cls.model_type, **cls.defaults}
    fields.update((key, value) for key, value in given.items() if key in cls.defaults)
    extra = {key: value for key, value in given.items() if key in cls.extra}
    if extra.get("head_dim", 0) is None:
        del extra["head_dim"]
    for key in cls.sub_configs:
        fields[key] = _sub_config(raw, cls, key, path=path)
    fields.update(_common(raw, cls.model_type, path=path))
    for rule in RULES.get(cls.model_type, ()):
        rule(fields, extra)
    if cls.rope_theta is not None:
        standardise_rope(cls, fields, extra)
    # As in PreTrainedConfig.__post_init__: what is no field of the class is set last, other names of fields included.
    fields.update((field, given[name]) for name, field in cls.aliases.items() if name in given)
    fields.update(extra)
    fields.update((name, fields[field]) for name, field in cls.aliases.items())
    _check_shapes(fields, cls, path=path)
    return fields


def _sub_config(raw: Mapping[str, Any], cls: ConfigClass, key: str, *, path: str) -> dict[str, Any]:
    nested = raw.get(key)
    if nested is None and key == "text_config" and cls.model_type == "qwen2_5_vl":
        # Qwen2_5_VLConfig.__post_init__: older files keep the text model's keys at the top.
        text_class = config_class(cls.sub_configs[key])
        nested = {name: raw[name] for name in text_class.accepted - set(cls.defaults) if name in raw}
        nested["dtype"] = raw.get("torch_dtype", raw.get("dtype"))
        return _normalise(nested, text_class, path=path)
    if nested is None:
        nested = cls.absent_sub_configs.get(key, {})
    if not isinstance(nested, Mapping):
        raise InvalidValueError(path + key, nested, "an object, or null")
    model_type = cls.sub_configs[key]
    if key not in cls.fixed_sub_configs:
        model_type = nested.get("model_type", model_type)
        if model_type not in known_part_types():
            raise UnknownNameError("model_type", str(model_type), known_part_types(), hint=f"in {path}{key}", show=60)
    return _normalise(nested, config_class(model_type), path=f"{path}{key}.")


def _common(raw: Mapping[str, Any], model_type: str, *, path: str) -> dict[str, Any]:
    """The keys that every config class shares: dtype, number of labels, architectures, quantization."""
    common: dict[str, Any] = {}
    dtype = raw.get("dtype") if raw.get("dtype") is not None else raw.get("torch_dtype")
    if dtype is not None and not isinstance(dtype, str):
        raise InvalidValueError(f"{path}dtype", dtype, "the name of a torch dtype, or null")
    common["dtype"] = None if dtype is None else str(parse_dtype(dtype))
    labels, count = raw.get("id2label"), raw.get("num_labels")
    if labels is not None:
        if not isinstance(labels, Mapping) or not 1 <= len(labels) <= _MAX_LABELS:
            raise InvalidValueError(f"{path}id2label", labels, f"an object with 1 to {_MAX_LABELS} labels, or null")
        count = len(labels)
    if count is None:
        count = 3 if model_type == "bart" else 2  # BartConfig and PreTrainedConfig.__post_init__
    common["num_labels"] = check_value("num_labels", count, path=path)
    architectures = raw.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list) and len(architectures) <= 16 and all(isinstance(a, str) for a in architectures)
    ):
        raise InvalidValueError(f"{path}architectures", architectures, "a list of at most 16 class names, or null")
    common["architectures"] = None if architectures is None else [name[:200] for name in architectures]
    if raw.get("quantization_config") is not None:
        common["quantization_config"] = check_json_data(f"{path}quantization_config", raw["quantization_config"])
    return common


def _check_shapes(fields: dict[str, Any], cls: ConfigClass, *, path: str) -> None:
    """Put in `head_dim`, and refuse sizes that the model classes refuse when they are built."""
    heads, width = fields.get("num_attention_heads"), fields.get("hidden_size")
    if heads is not None and width is not None:
        own_head_dim = cls.reads_head_dim or "qk_head_dim" in fields
        if width % heads and (cls.heads_divide_width or not own_head_dim):
            raise InvalidValueError(f"{path}hidden_size", width, f"a multiple of the {heads} attention heads")
        if fields.get("head_dim") is None:
            if width < heads:
                raise InvalidValueError(f"{path}hidden_size", width, f"at least the {heads} attention heads")
            fields["head_dim"] = width // heads
        for key in ("num_key_value_heads", "num_kv_heads"):
            groups = fields.get(key)
            if groups is not None and heads % groups:
                raise InvalidValueError(path + key, groups, f"a divisor of the {heads} attention heads")
    layers = fields.get("num_hidden_layers")
    for key in ("no_rope_layers", "layer_types"):
        entries = fields.get(key)
        if entries is not None and len(entries) != layers:
            raise InvalidValueError(path + key, entries, f"a list with an entry for each of the {layers} layers")
    feed_forward = fields.get("feed_forward_proj")
    if feed_forward is not None and feed_forward.removeprefix("gated-").count("-"):
        raise InvalidValueError(f"{path}feed_forward_proj", feed_forward, "an activation, or gated- and an activation")
    routed = fields.get("num_experts", fields.get("num_local_experts", fields.get("n_routed_experts")))
    chosen = fields.get("num_experts_per_tok")
    if routed is not None and chosen is not None and chosen > routed:
        raise InvalidValueError(f"{path}num_experts_per_tok", chosen, f"at most the {routed} experts")
