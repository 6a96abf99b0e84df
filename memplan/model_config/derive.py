"""Values that a config class derives from other values, each as its `__post_init__` does.

Source: transformers 5.23.0, transformers/models/*/configuration_*.py, the `__post_init__` of the class named at each
rule. A rule sees the fields (defaults with what was given put over them) and the extra keys, and changes both in place.
The order matters: a class derives before it sets the other names of its fields, so that
`T5Config(num_hidden_layers=12)` has 6 decoder layers there and here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rule = Callable[[dict[str, Any], dict[str, Any]], None]

_FULL, _SLIDING = "full_attention", "sliding_attention"


def _key_value_heads(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    if fields["num_key_value_heads"] is None:
        fields["num_key_value_heads"] = fields["num_attention_heads"]


def _head_dim(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    if fields["head_dim"] is None:
        fields["head_dim"] = fields["hidden_size"] // fields["num_attention_heads"]


def _window_only_if_used(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    if not fields["use_sliding_window"]:
        fields["sliding_window"] = None


def _window_from_layer(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    """Qwen2, Qwen3: layers from `max_window_layers` on slide."""
    if fields["layer_types"] is None:
        slides = fields["sliding_window"] is not None
        first = fields["max_window_layers"]
        fields["layer_types"] = [
            _SLIDING if slides and layer >= first else _FULL for layer in range(fields["num_hidden_layers"])
        ]


def _every_other_layer_slides(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    """Gemma 2, gpt-oss: even layers slide."""
    if fields["layer_types"] is None:
        fields["layer_types"] = [_SLIDING if (layer + 1) % 2 else _FULL for layer in range(fields["num_hidden_layers"])]


def _gemma(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    if fields["hidden_act"] == "gelu":  # a legacy value that stands for the tanh approximation
        fields["hidden_act"] = "gelu_pytorch_tanh"


def _gemma3_text(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    if fields["use_bidirectional_attention"] and fields["sliding_window"] is not None:
        fields["sliding_window"] = fields["sliding_window"] // 2 + 1
    pattern = extra.get("sliding_window_pattern", 6)
    if fields["layer_types"] is None:
        fields["layer_types"] = [
            _SLIDING if (layer + 1) % pattern else _FULL for layer in range(fields["num_hidden_layers"])
        ]


def _smollm3(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    layers = fields["num_hidden_layers"]
    if fields["no_rope_layers"] is None:
        interval = fields["no_rope_layer_interval"]
        fields["no_rope_layers"] = [int((layer + 1) % interval != 0) for layer in range(layers)]
    if fields["layer_types"] is None:
        slides = fields["use_sliding_window"] and fields["sliding_window"] is not None
        fields["layer_types"] = [
            _SLIDING if slides and not rope else _FULL for rope in fields["no_rope_layers"][:layers]
        ]


def _mlp_only_layers(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    if fields["mlp_only_layers"] is None:
        fields["mlp_only_layers"] = []


def _qwen2_moe(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    used = fields["use_sliding_window"]
    if not used:
        fields["sliding_window"] = 0
    if fields["layer_types"] is None:
        first = fields["max_window_layers"]
        fields["layer_types"] = [
            _SLIDING if used and (layer + 1) % 2 and layer < first else _FULL
            for layer in range(fields["num_hidden_layers"])
        ]


def _latent_attention(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    """DeepSeek V2 and V3: `head_dim` is the rotated part alone."""
    fields["qk_head_dim"] = fields["qk_nope_head_dim"] + fields["qk_rope_head_dim"]
    fields["head_dim"] = fields["qk_rope_head_dim"]


def _gpt_oss(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    if fields["rope_parameters"] is None:
        fields["rope_parameters"] = {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        }


def _gpt_bigcode(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    fields["num_key_value_heads"] = 1 if fields["multi_query"] else fields["n_head"]


def _opt(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    if fields["word_embed_proj_dim"] is None:
        fields["word_embed_proj_dim"] = fields["hidden_size"]


def _n_embed(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    """Bloom, Falcon: the old name of hidden_size, which wins."""
    width = extra.pop("n_embed", None)
    if width is not None:
        fields["hidden_size"] = width


def _falcon(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    if fields["num_kv_heads"] is None:
        fields["num_kv_heads"] = fields["num_attention_heads"]
    if fields["ffn_hidden_size"] is None:
        fields["ffn_hidden_size"] = fields["hidden_size"] * 4


def _deberta(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    if isinstance(fields["pos_att_type"], str):
        fields["pos_att_type"] = [name.strip() for name in fields["pos_att_type"].lower().split("|")]
    fields["pooler_hidden_size"] = extra.get("pooler_hidden_size", fields["hidden_size"])


def _modernbert(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    every = extra.get("global_attn_every_n_layers", 3)
    if fields["layer_types"] is None:
        fields["layer_types"] = [_SLIDING if layer % every else _FULL for layer in range(fields["num_hidden_layers"])]
    fields["sliding_window"] = fields["local_attention"] // 2  # a property of the class: half the window


def _t5(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    """T5Config, MT5Config.

    Both classes set tie_word_embeddings to true whatever the file says. A checkpoint with an lm_head of its own (T5
    v1.1, Flan-T5, mT5) still keeps it when loaded: `PreTrainedModel.tie_weights` does not tie two weights that are both
    in the checkpoint with different values (transformers/modeling_utils.py, 5.23.0). So what the file says stands.
    """
    if fields["num_decoder_layers"] is None:
        fields["num_decoder_layers"] = fields["num_layers"]
    words = fields["feed_forward_proj"].split("-")
    fields["dense_act_fn"] = "gelu_new" if fields["feed_forward_proj"] == "gated-gelu" else words[-1]
    fields["is_gated_act"] = words[0] == "gated"


def _t5_tied(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    tied = extra.pop("tie_word_embeddings", None) is not False
    fields["scale_decoder_outputs"] = tied
    fields["tie_word_embeddings"] = tied


def _vit(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    if not fields["pooler_output_size"]:
        fields["pooler_output_size"] = fields["hidden_size"]


def _tied_by_text(fields: dict[str, Any], extra: dict[str, Any]) -> None:
    """Llava, Qwen2.5-VL: older files say it in text_config only."""
    if not fields["tie_word_embeddings"] and fields["text_config"].get("tie_word_embeddings"):
        fields["tie_word_embeddings"] = True


RULES: dict[str, tuple[Rule, ...]] = {
    "llama": (_head_dim, _key_value_heads),
    "mistral": (_head_dim, _key_value_heads),
    "qwen2": (_window_only_if_used, _key_value_heads, _window_from_layer),
    "qwen3": (_window_only_if_used, _key_value_heads, _window_from_layer),
    "gemma": (_gemma,),
    "gemma2": (_every_other_layer_slides,),
    "gemma3_text": (_gemma3_text,),
    "phi": (_key_value_heads,),
    "phi3": (_key_value_heads,),
    "smollm3": (_key_value_heads, _smollm3),
    "olmo": (_key_value_heads,),
    "olmo2": (_key_value_heads,),
    "granite": (_key_value_heads,),
    "cohere": (_key_value_heads,),
    "mixtral": (_key_value_heads,),
    "qwen3_moe": (_window_only_if_used, _mlp_only_layers),
    "qwen2_moe": (_mlp_only_layers, _qwen2_moe),
    "deepseek_v2": (_latent_attention, _key_value_heads),
    "deepseek_v3": (_latent_attention, _key_value_heads),
    "gpt_oss": (_key_value_heads, _head_dim, _every_other_layer_slides, _gpt_oss),
    "gpt_bigcode": (_gpt_bigcode,),
    "opt": (_opt,),
    "bloom": (_n_embed,),
    "falcon": (_n_embed, _falcon),
    "deberta": (_deberta,),
    "deberta-v2": (_deberta,),
    "modernbert": (_modernbert,),
    "t5": (_t5, _t5_tied),
    "mt5": (_t5,),
    "vit": (_vit,),
    "llava": (_tied_by_text,),
    "qwen2_5_vl": (_tied_by_text,),
    "qwen2_5_vl_text": (_window_only_if_used, _key_value_heads, _window_from_layer),
}
