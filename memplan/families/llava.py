"""LLaVA: a CLIP (or SigLIP) tower, a two-layer projector, a Llama-like text model.

Symbols: B micro batch, S sequence length, H hidden size, P patches of an image.

Source: transformers 5.23 models/llava/modeling_llava.py.

Known limits:
    One image a row; the sequence length includes its tokens. Features come from one layer of the tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.errors import UnsupportedError
from memplan.families import Family, Head, llama
from memplan.families.multimodal import IMAGE_TEXT_TASKS, insert_features, with_image_text_head
from memplan.families.vision import pixel_values, vision_model
from memplan.recipe import Task
from memplan.step.builder import Builder
from memplan.step.split import narrow
from memplan.step.tensor import Dim, Tensor


def projector(t: Builder, x: Tensor, config: Mapping[str, Any]) -> Tensor:
    """linear, activation, linear: [B, P, vision H] to [B, P, H]."""
    hidden, bias = Dim(config["text_config"]["hidden_size"], "H"), config["multimodal_projector_bias"]
    x = t.linear("linear_1", x, hidden, bias=bias)
    x = t.activation(config["projector_hidden_act"], x)
    return t.linear("linear_2", x, hidden, bias=bias)


def model(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """`LlavaModel`: [B, S, H].

    Raises:
        UnsupportedError: features of several layers, or a text model that is not Llama-like.
    """
    vision, text = config["vision_config"], config["text_config"]
    if not isinstance(config["vision_feature_layer"], int):
        raise UnsupportedError("features from several layers of the vision tower")
    if text["model_type"] not in llama.MODEL_TYPES:
        raise UnsupportedError(f"{config['model_type']} with text model {text['model_type']}")
    inputs_embeds = t.call("language_model", lambda t: llama.embeddings(t, text))
    layer = config["vision_feature_layer"]
    pixels = pixel_values(t, vision)
    features = t.call("vision_tower", lambda t, p: vision_model(t, p, vision, feature_layer=layer), pixels)
    if config["vision_feature_select_strategy"] == "default":  # without the class token
        features = narrow(t, features, (features.shape[0], features.shape[1] - 1, features.shape[2]))
    features = t.call("multi_modal_projector", lambda t, h: projector(t, h, config), features)
    inputs_embeds = insert_features(t, inputs_embeds, features)
    return t.call("language_model", lambda t, h: llama.model(t, text, h), inputs_embeds)


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The model under its head; returns the loss."""
    return with_image_text_head(t, lambda t: model(t, config), config, head)


FAMILY = Family(forward, "model", (*IMAGE_TEXT_TASKS, Task.PRE_TRAINING))
