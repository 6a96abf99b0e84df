"""Image-text models against transformers on the meta device."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.errors import UnsupportedError
from memplan.families import Head, describe
from memplan.model_config import normalise_config
from memplan.recipe import Task
from memplan.step.settings import StepSettings
from tests.families.oracle import assert_card_equals, assert_config_equals, cases_of
from tests.families.recordings import assert_balanced, record_config
from tests.families.test_decoders import name_of, small

VISION = {
    "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "num_channels": 3,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip
SIGLIP = {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False}
CLIP = {"model_type": "clip_vision_model", **VISION}
GEMMA_TEXT = small("gemma3_text", head_dim=16, sliding_window=8, sliding_window_pattern=2)
QWEN_VISION = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 20, "num_heads": 4, "in_channels": 3, "patch_size": 4,
    "spatial_merge_size": 3, "temporal_patch_size": 2, "out_hidden_size": 48, "fullatt_block_indexes": [1],
}  # fmt: skip

GEMMA3 = {"model_type": "gemma3", "text_config": GEMMA_TEXT, "vision_config": SIGLIP, "mm_tokens_per_image": 4}
LLAVA = {"model_type": "llava", "text_config": small("llama"), "vision_config": CLIP, "image_seq_length": 16}
LLAVA_SIGLIP = {
    "model_type": "llava", "text_config": small("qwen2"), "vision_config": SIGLIP, "tie_word_embeddings": True,
    "vision_feature_select_strategy": "full", "multimodal_projector_bias": False, "projector_hidden_act": "silu",
}  # fmt: skip
QWEN = {
    "model_type": "qwen2_5_vl", "text_config": small("qwen2_5_vl_text"), "vision_config": QWEN_VISION,
    "tie_word_embeddings": True,
}  # fmt: skip


@pytest.mark.parametrize(("card_id", "task"), cases_of("gemma3", "llava", "qwen2_5_vl"))
def test_cards_equal_transformers(card_id: str, task: Task) -> None:
    assert_card_equals(card_id, Head(task, num_labels=5))


@pytest.mark.parametrize("config", [GEMMA3, LLAVA, LLAVA_SIGLIP, QWEN], ids=name_of)
@pytest.mark.parametrize("task", [Task.IMAGE_TEXT_TO_TEXT, Task.FEATURE_EXTRACTION])
def test_odd_configs_equal_transformers(config: dict[str, Any], task: Task) -> None:
    assert_config_equals(config, Head(task))


@pytest.mark.parametrize("checkpointing", [None, "non-reentrant"])
@pytest.mark.parametrize(
    ("config", "unused"),
    [
        (GEMMA3, "$."),
        (LLAVA_SIGLIP, r"vision_tower\.(post_layernorm|encoder\.layers\.1\.)"),
        (LLAVA, r"vision_tower\.(post_layernorm|encoder\.layers\.1\.)"),
        ({**LLAVA, "vision_feature_layer": -1}, r"vision_tower\.post_layernorm"),
    ],
    ids=["gemma3", "llava with siglip", "llava", "llava, last layer"],
)
def test_every_parameter_gets_its_gradient(config: dict[str, Any], unused: str, checkpointing: str | None) -> None:
    settings = StepSettings(batch=2, sequence=32, checkpointing=checkpointing)
    assert_balanced(config, Head(Task.IMAGE_TEXT_TO_TEXT), settings, unused=unused)


def test_a_step_of_unknown_image_sizes_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="sizes of the images"):
        record_config(QWEN, Head(Task.IMAGE_TEXT_TO_TEXT), StepSettings(batch=1, sequence=32))


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({**LLAVA, "vision_config": {**SIGLIP, "vision_use_head": True}}, "pooling head"),
        ({**LLAVA, "vision_feature_layer": [-2, -1]}, "several layers"),
        ({**LLAVA, "text_config": small("phi3")}, "text model phi3"),
    ],
)
def test_parts_without_a_description_are_refused(config: dict[str, Any], found: str) -> None:
    with pytest.raises(UnsupportedError, match=found):
        describe(normalise_config(config), Head(Task.IMAGE_TEXT_TO_TEXT))
