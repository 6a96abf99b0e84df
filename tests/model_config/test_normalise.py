"""`normalise_config` against the config classes of transformers themselves."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, PretrainedConfig

from memplan.cards import card_ids, load_card
from memplan.errors import InputError, InvalidValueError, UnknownNameError
from memplan.model_config import known_model_types, normalise_config
from memplan.model_config.schema import config_class, key_kinds

# T5Config and MT5Config force this to true; memplan keeps what the file says (see memplan/model_config/derive.py).
KEEPS_TIE = ("t5", "mt5")


def oracle(raw: dict[str, Any]) -> PretrainedConfig:
    keys = copy.deepcopy(raw)
    return AutoConfig.for_model(keys.pop("model_type"), **keys)


def differences(ours: dict[str, Any], theirs: PretrainedConfig, path: str = "") -> list[str]:
    """Keys of ours whose value is not the attribute of the same name."""
    found = []
    for key, value in ours.items():
        if key in ("text_config", "vision_config"):
            found += differences(value, getattr(theirs, key), path=f"{path}{key}.")
            continue
        if (
            key == "head_dim"
        ):  # modelling files: getattr(config, "head_dim", None) or hidden_size // num_attention_heads
            expected = getattr(theirs, key, None) or theirs.hidden_size // theirs.num_attention_heads
        elif key == "dtype":
            expected = None if theirs.dtype is None else str(theirs.dtype).removeprefix("torch.")
        elif key == "tie_word_embeddings" and theirs.model_type in KEEPS_TIE:
            continue
        else:
            expected = getattr(theirs, key)
        expected = list(expected) if isinstance(expected, tuple) else expected
        if expected != value:
            found.append(f"{path}{key}: memplan {value!r}, transformers {expected!r}")
    return found


def check(raw: dict[str, Any]) -> None:
    before = copy.deepcopy(raw)
    assert differences(normalise_config(raw), oracle(raw)) == []
    assert raw == before


@pytest.mark.parametrize("card_id", card_ids())
def test_card_equals_transformers(card_id: str) -> None:
    check(load_card(card_id).config)


@pytest.mark.parametrize("model_type", known_model_types())
def test_bare_model_type_gets_the_class_defaults(model_type: str) -> None:
    check({"model_type": model_type})


def another_value(key: str, default: Any) -> Any:
    """A value for `key` that is not its default, and that the class accepts beside its other defaults."""
    kind = key_kinds().kind_of[key]
    fixed = {
        "vocabulary": 1234, "positions": 64, "count": 3, "count_or_zero": 1, "signed": 7, "number": 0.5, "word": "relu",
        "word_or_words": "C2P|p2c", "integer_or_integers": [-2, 1], "size_or_sizes": 28,
    }  # fmt: skip
    special = {
        "num_experts_per_tok": 3,
        "n_embed": 71 * 64,
        "vision_feature_select_strategy": "full",
        "classifier_pooling": "mean",
    }
    if key in special:
        return special[key]
    if kind == "flag":
        return not default
    if kind in ("layers", "feed_forward_width", "experts", "heads", "width"):
        return 2 * (default or 64)
    return fixed[kind]


def single_changes() -> list[Any]:
    cases = []
    for model_type in known_model_types():
        cls = config_class(model_type)
        for key in sorted(cls.accepted):
            kind = key_kinds().kind_of[key]
            if kind in ("rope", "layer_types", "integers") or key in ("num_key_value_heads", "num_kv_heads"):
                continue  # their own cases are below
            default = cls.defaults.get(cls.aliases.get(key, key))
            cases.append(
                pytest.param({"model_type": model_type, key: another_value(key, default)}, id=f"{model_type}-{key}")
            )
    return cases


@pytest.mark.parametrize("raw", single_changes())
def test_one_key_changed(raw: dict[str, Any]) -> None:
    check(raw)


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LINEAR = {"rope_type": "linear", "factor": 8.0}
PARTIAL = [
    {"model_type": "llama", "num_attention_heads": 16, "num_key_value_heads": None},
    {"model_type": "llama", "hidden_size": 3072, "num_attention_heads": 24, "head_dim": 64, "num_key_value_heads": 8},
    {"model_type": "llama", "rope_scaling": YARN, "rope_theta": 5e5},
    {"model_type": "llama", "rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                                "high_freq_factor": 4.0, "rope_theta": 1e4}},
    {"model_type": "mistral", "sliding_window": None, "head_dim": None},
    {"model_type": "mistral", "num_key_value_heads": 4, "num_attention_heads": 16},
    {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 3, "num_hidden_layers": 6},
    {"model_type": "qwen2", "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
    {"model_type": "qwen2", "num_hidden_layers": 2, "layer_types": ["attention", "attention"]},
    {"model_type": "qwen2", "head_dim": 64, "num_key_value_heads": 2},
    {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 128, "num_hidden_layers": 30},
    {"model_type": "gemma", "hidden_act": "gelu"},
    {"model_type": "gemma2", "num_hidden_layers": 5, "attn_logit_softcapping": None},
    {"model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window_pattern": 3, "rope_scaling": LINEAR},
    {"model_type": "gemma3_text", "use_bidirectional_attention": True, "rope_local_base_freq": 5000.0},
    {"model_type": "gemma3_text", "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 7.0}}},
    {"model_type": "phi", "partial_rotary_factor": 0.4},
    {"model_type": "phi3", "rope_scaling": {"type": "longrope", "long_factor": [1.0] * 48, "short_factor": [1.0] * 48},
     "original_max_position_embeddings": 4096, "max_position_embeddings": 131072},
    {"model_type": "smollm3", "num_hidden_layers": 8, "no_rope_layer_interval": 2, "use_sliding_window": True,
     "sliding_window": 64},
    {"model_type": "smollm3", "num_hidden_layers": 3, "no_rope_layers": [1, 0, 1]},
    {"model_type": "mixtral", "num_key_value_heads": 2, "num_experts": 4},
    {"model_type": "qwen3_moe", "num_local_experts": 16, "mlp_only_layers": [0, 2]},
    {"model_type": "qwen2_moe", "use_sliding_window": True, "max_window_layers": 5},
    {"model_type": "deepseek_v2", "q_lora_rank": None, "num_experts_per_tok": 6, "n_shared_experts": 2},
    {"model_type": "deepseek_v3", "num_nextn_predict_layers": 0, "qk_nope_head_dim": 64},
    {"model_type": "gpt_oss", "num_hidden_layers": 4, "head_dim": 32, "rope_theta": 1e5},
    {"model_type": "gpt2", "hidden_size": 1024, "num_hidden_layers": 3, "num_attention_heads": 16},
    {"model_type": "gpt_neox", "rotary_pct": 1.0, "rotary_emb_base": 1e5, "rope_scaling": LINEAR},
    {"model_type": "gpt_bigcode", "multi_query": False, "num_attention_heads": 24},
    {"model_type": "opt", "word_embed_proj_dim": 512},
    {"model_type": "bloom", "n_embed": 128, "hidden_size": 64},
    {"model_type": "falcon", "num_kv_heads": 1, "ffn_hidden_size": 4096, "alibi": True},
    {"model_type": "bert", "id2label": {"0": "no", "1": "maybe", "2": "yes"}},
    {"model_type": "bert", "num_labels": 7, "torch_dtype": "float16", "architectures": ["BertForMaskedLM"]},
    {"model_type": "bart", "dtype": "bfloat16", "torch_dtype": "float32", "encoder_layers": 3},
    {"model_type": "deberta-v2", "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 512},
    {"model_type": "modernbert", "num_hidden_layers": 5, "global_attn_every_n_layers": 2, "global_rope_theta": 9e4},
    {"model_type": "modernbert", "rope_scaling": LINEAR},
    {"model_type": "t5", "num_layers": 3, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    {"model_type": "t5", "num_hidden_layers": 12},
    {"model_type": "mt5", "feed_forward_proj": "gated-silu", "num_decoder_layers": 2},
    {"model_type": "vit", "image_size": [224, 256], "pooler_output_size": 64},
    {"model_type": "gemma3", "text_config": {"hidden_size": 1024, "num_attention_heads": 4}, "vision_config": None},
    {"model_type": "gemma3", "vision_config": {"model_type": "clip_vision_model", "num_hidden_layers": 2}},
    {"model_type": "llava", "text_config": {"model_type": "gemma", "num_hidden_layers": 2}, "vision_config": {}},
    {"model_type": "qwen2_5_vl", "hidden_size": 1024, "num_attention_heads": 8, "rope_scaling": {"type": "mrope"},
     "torch_dtype": "bfloat16"},
    {"model_type": "qwen2_5_vl", "text_config": {"num_hidden_layers": 2, "tie_word_embeddings": True},
     "vision_config": {"model_type": "qwen2_5_vl", "in_chans": 3, "depth": 2}},
]  # fmt: skip


@pytest.mark.parametrize("raw", PARTIAL, ids=lambda raw: "-".join([raw["model_type"], *list(raw)[1:4]]))
def test_partial_config_equals_transformers(raw: dict[str, Any]) -> None:
    check(raw)


@pytest.mark.parametrize("card_id", ["google/flan-t5-xl", "bigscience/T0_3B", "google/mt5-xxl", "bigscience/mt0-xxl"])
def test_t5_keeps_a_head_of_its_own(card_id: str) -> None:
    raw = load_card(card_id).config
    assert oracle(raw).tie_word_embeddings is True  # if transformers stops forcing it, the exception above can go
    assert normalise_config(raw)["tie_word_embeddings"] is False


def test_what_names_code_is_dropped() -> None:
    raw = {
        "model_type": "llama", "auto_map": {"AutoModel": "evil.Model"}, "_attn_implementation_internal": "evil/kernel",
        "trust_remote_code": True, "custom": object(), 7: "seven",
    }  # fmt: skip
    assert normalise_config(raw) == normalise_config({"model_type": "llama"})


def test_quantization_config_is_carried_as_data() -> None:
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 128, "modules_to_not_convert": ["lm_head"]}
    config = normalise_config({"model_type": "llama", "quantization_config": quantization})
    assert config["quantization_config"] == quantization
    assert config["quantization_config"] is not quantization


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "model config = [] is not allowed: a JSON object as in a config.json"),
        ({}, "model_type = None is not allowed: a model type that memplan knows, such as llama"),
        ({"num_hidden_layers": 7.5}, "num_hidden_layers = 7.5 is not allowed: an integer from 1 to 1024"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0 is not allowed: an integer from 1 to 1024"),
        ({"num_hidden_layers": True}, "num_hidden_layers = True is not allowed: an integer from 1 to 1024"),
        ({"num_hidden_layers": "32"}, "num_hidden_layers = '32' is not allowed: an integer from 1 to 1024"),
        ({"hidden_size": -4096}, "hidden_size = -4096 is not allowed: an integer from 1 to 262144"),
        ({"hidden_size": None}, "hidden_size = None is not allowed: an integer from 1 to 262144"),
        ({"vocab_size": 10**12}, "vocab_size = 1000000000000 is not allowed: an integer from 1 to 4000000"),
        (
            {"num_key_value_heads": 0},
            "num_key_value_heads = 0 is not allowed: an integer from 1 to 4096, or null",
        ),
        ({"num_key_value_heads": 5}, "num_key_value_heads = 5 is not allowed: a divisor of the 32 attention heads"),
        ({"hidden_size": 4100}, "hidden_size = 4100 is not allowed: a multiple of the 32 attention heads"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan is not allowed: a number from 0 to 1e+12"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps = -1.0 is not allowed: a number from 0 to 1e+12"),
        ({"attention_bias": 1}, "attention_bias = 1 is not allowed: true or false"),
        ({"hidden_act": "a;b"}, "hidden_act = 'a;b' is not allowed: a name of at most 64 letters, digits and . _ - |"),
        ({"rope_scaling": 2}, "rope_scaling = 2 is not allowed: an object of rotary parameters, or null"),
        ({"torch_dtype": 16}, "dtype = 16 is not allowed: the name of a torch dtype, or null"),
        ({"id2label": {}}, "id2label = {} is not allowed: an object with 1 to 65536 labels, or null"),
        ({"architectures": "X"}, "architectures = 'X' is not allowed: a list of at most 16 class names, or null"),
    ],
)  # fmt: skip
def test_refused_values(raw: Any, message: str) -> None:
    if raw and isinstance(raw, dict):
        raw = {"model_type": "llama", **raw}
    with pytest.raises(InvalidValueError) as caught:
        normalise_config(raw)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            {"model_type": "gpt2", "n_embd": 768, "hidden_size": 1024},
            "hidden_size = 1024 is not allowed: n_embd says the same thing and is 768",
        ),
        (
            {"model_type": "qwen2", "num_hidden_layers": 2, "layer_types": ["full_attention"]},
            "layer_types = ['full_attention'] is not allowed: a list with an entry for each of the 2 layers",
        ),
        (
            {"model_type": "qwen2", "layer_types": ["mamba"]},
            "layer_types = 'mamba' is not allowed: a list of full_attention and sliding_attention",
        ),
        (
            {"model_type": "smollm3", "num_hidden_layers": 3, "no_rope_layers": [1, 0]},
            "no_rope_layers = [1, 0] is not allowed: a list with an entry for each of the 3 layers",
        ),
        (
            {"model_type": "t5", "feed_forward_proj": "gated-gelu-new"},
            "feed_forward_proj = 'gated-gelu-new' is not allowed: an activation, or gated- and an activation",
        ),
        (
            {"model_type": "gemma3_text", "rope_parameters": {"full_attention": 3.0}},
            "rope_parameters.full_attention = 3.0 is not allowed: an object of rotary parameters, or null",
        ),
        ({"model_type": "mbart", "d_model": None}, "d_model = None is not allowed: an integer from 1 to 262144"),
        (
            {"model_type": "mixtral", "num_experts_per_tok": 9},
            "num_experts_per_tok = 9 is not allowed: at most the 8 experts",
        ),
        (
            {"model_type": "gemma3", "text_config": {"num_hidden_layers": 2048}},
            "text_config.num_hidden_layers = 2048 is not allowed: an integer from 1 to 1024",
        ),
        ({"model_type": "gemma3", "text_config": 5}, "text_config = 5 is not allowed: an object, or null"),
        (
            {"model_type": "gpt2", "n_embd": 770, "n_head": 12},
            "hidden_size = 770 is not allowed: a multiple of the 12 attention heads",
        ),
    ],
)
def test_refused_combinations(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValueError) as caught:
        normalise_config(raw)
    assert str(caught.value) == message


def test_unknown_model_type() -> None:
    with pytest.raises(UnknownNameError) as caught:
        normalise_config({"model_type": "Llama"})
    assert str(caught.value) == (
        "unknown model_type 'Llama'\ndid you mean llama or llava?\nallowed: " + ", ".join(known_model_types()) + "\n"
        "for other model types there is no analytic rule; `memplan trace` answers for each one that the installed "
        "transformers knows"
    )


def test_known_model_types_are_frozen() -> None:
    assert " ".join(known_model_types()) == (
        "bart bert bloom cohere deberta deberta-v2 deepseek_v2 deepseek_v3 distilbert falcon gemma gemma2 gemma3 "
        "gemma3_text gpt2 gpt_bigcode gpt_neox gpt_oss gptj granite llama llava mbart mistral mixtral modernbert mt5 "
        "olmo olmo2 opt phi phi3 qwen2 qwen2_5_vl qwen2_moe qwen3 qwen3_moe roberta smollm3 stablelm starcoder2 t5 vit "
        "whisper xlm-roberta"
    )


def test_unknown_nested_model_type() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown model_type 'llama4'(.|\n)*in text_config"):
        normalise_config({"model_type": "llava", "text_config": {"model_type": "llama4"}})


def test_part_is_no_model_of_its_own() -> None:
    with pytest.raises(UnknownNameError, match="unknown model_type 'siglip_vision_model'"):
        normalise_config({"model_type": "siglip_vision_model"})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
LIKELY = (
    st.integers(-2, 70)
    | st.none()
    | st.booleans()
    | st.floats(0, 2)
    | st.sampled_from(["gelu", "gated-gelu", "a-b-c", "full_attention", "p2c|c2p", "yarn", "bfloat16"])
    | st.lists(st.integers(0, 2) | st.sampled_from(["full_attention", "sliding_attention"]), max_size=4)
    | st.dictionaries(
        st.sampled_from(["full_attention", "rope_type", "factor", "num_layers", "hidden_size"]), JSON, max_size=3
    )
)
SHARED_KEYS = ["dtype", "torch_dtype", "id2label", "num_labels", "architectures", "quantization_config", "text_config"]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), model_type=st.sampled_from(known_model_types()))
def test_any_json_is_answered_or_refused(data: st.DataObject, model_type: str) -> None:
    keys = sorted(config_class(model_type).accepted) + SHARED_KEYS
    raw = data.draw(st.dictionaries(st.sampled_from(keys), LIKELY | JSON, max_size=5))
    try:
        config = normalise_config({**raw, "model_type": model_type})
    except InputError:
        return
    assert config["model_type"] == model_type
    json.dumps(config, allow_nan=False)
