"""`rope_parameters` as each config class standardises them.

Source: transformers 5.23.0, `RotaryEmbeddingConfigMixin.convert_rope_params_to_dict` and `standardize_rope_params`
(transformers/modeling_rope_utils.py), and the classes that override the first (named at each function).
Memory depends on it through the partial rotary factor (the width that is rotated) and the type (`longrope` and
`dynamic` keep a second frequency table).
"""

from __future__ import annotations

from typing import Any

from memplan.model_config.schema import ConfigClass

_SCALED_TYPES = ("llama3", "yarn", "longrope")
_PARTIAL_FACTOR_DEFAULTS = {"phi": 0.5, "stablelm": 0.25}  # kwargs.setdefault in PhiConfig and StableLmConfig


def standardise_rope(cls: ConfigClass, fields: dict[str, Any], extra: dict[str, Any]) -> None:
    """Set `fields["rope_parameters"]`, and take out of `extra` the keys that the class consumes on the way."""
    if cls.model_type in ("gemma3_text", "modernbert"):
        _by_layer_type(cls, fields, extra)
        return
    parameters: dict[str, Any] = dict(extra.pop("rope_scaling", None) or fields["rope_parameters"] or {})
    theta: Any
    if cls.model_type == "gpt_neox":  # GPTNeoXConfig.convert_rope_params_to_dict: its own names
        theta = extra.pop("rotary_emb_base", cls.rope_theta)
        factor = extra.pop("rotary_pct", 0.25)
    elif cls.model_type == "phi3":  # Phi3Config.convert_rope_params_to_dict: the factor is read, not taken
        theta = extra.pop("rope_theta", cls.rope_theta)
        factor = extra.get("partial_rotary_factor", 1.0)
    elif cls.model_type == "qwen2_5_vl_text":  # Qwen2_5_VLTextConfig.convert_rope_params_to_dict
        theta = extra.pop("rope_theta", cls.rope_theta)
        factor = None
        if parameters.get("rope_type", parameters.get("type")) == "mrope":
            parameters["rope_type"] = "default"
    else:
        theta = extra.pop("rope_theta", cls.rope_theta)
        factor = extra.pop("partial_rotary_factor", _PARTIAL_FACTOR_DEFAULTS.get(cls.model_type))
    nested = _nested_keys(fields, parameters)
    for key in nested:
        parameters[key] = dict(parameters[key]) if parameters[key] is not None else None
    for target in [parameters[key] for key in nested] or [parameters]:
        if target is not None:
            target.setdefault("rope_theta", theta)
            if factor is not None:
                target.setdefault("partial_rotary_factor", factor)
    _standardise(cls, fields, parameters)
    if cls.model_type == "phi3" and parameters.get("rope_type") in ("su", "yarn"):  # Phi3Config: old names of longrope
        parameters["rope_type"] = "longrope"
    fields["rope_parameters"] = parameters


def _by_layer_type(cls: ConfigClass, fields: dict[str, Any], extra: dict[str, Any]) -> None:
    """Gemma3TextConfig and ModernBertConfig: one set for full attention, one for sliding attention."""
    modernbert = cls.model_type == "modernbert"
    assert isinstance(cls.rope_theta, dict)
    scaling = extra.pop("rope_scaling", None)
    parameters = dict(fields["rope_parameters"] or {})
    for layer_type in ("sliding_attention", "full_attention"):
        parameters[layer_type] = dict(parameters.get(layer_type) or {"rope_type": "default"})
    if scaling is not None:
        parameters["full_attention"].update(scaling)
        if modernbert:
            parameters["sliding_attention"].update(scaling)
    full, local = ("global_rope_theta", "local_rope_theta") if modernbert else ("rope_theta", "rope_local_base_freq")
    parameters["full_attention"].setdefault("rope_theta", extra.pop(full, cls.rope_theta["global"]))
    parameters["sliding_attention"].setdefault("rope_theta", extra.pop(local, cls.rope_theta["local"]))
    _standardise(cls, fields, parameters)
    fields["rope_parameters"] = parameters


def _nested_keys(fields: dict[str, Any], parameters: dict[str, Any]) -> list[str]:
    labels = fields.get("layer_types") or ()
    return [key for key in parameters if key in labels]


def _standardise(cls: ConfigClass, fields: dict[str, Any], parameters: dict[str, Any]) -> None:
    nested = _nested_keys(fields, parameters)
    for target in [parameters[key] for key in nested] or [parameters]:
        if target is None:
            continue
        target.setdefault("rope_type", target.get("type", "default"))
        if target["rope_type"] == "default":
            target["rope_type"] = cls.rope_type
        if target["rope_type"] in _SCALED_TYPES:
            if not nested and "original_max_position_embeddings" in fields:  # Phi3 keeps it outside and it wins
                target["original_max_position_embeddings"] = fields["original_max_position_embeddings"]
            else:
                target.setdefault("original_max_position_embeddings", fields["max_position_embeddings"])
