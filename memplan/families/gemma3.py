"""Gemma 3 with images: a SigLIP tower, a pooling projector, the Gemma 3 text model.

Symbols: B micro batch, S sequence length, H hidden size, P patches of an image, M tokens that an image becomes.

Source: transformers 5.23 models/gemma3/modeling_gemma3.py.

Known limits:
    One image a row; the sequence length includes its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.families import Family, Head, gemma
from memplan.families.multimodal import IMAGE_TEXT_TASKS, insert_features, with_image_text_head
from memplan.families.vision import pixel_values, vision_model
from memplan.recipe import Task
from memplan.step import ops
from memplan.step.builder import Builder
from memplan.step.norms import gemma_rms_norm
from memplan.step.pooling import average_pool
from memplan.step.tensor import Tensor


def projector(t: Builder, x: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Pool the patches' square down to M tokens, norm, project: [B, P, vision H] to [B, M, H]."""
    vision, text = config["vision_config"], config["text_config"]
    weight = t.bare("mm_input_projection_weight", (vision["hidden_size"], text["hidden_size"]))
    pooled = average_pool(t, x, config["mm_tokens_per_image"])
    normed = gemma_rms_norm(t, "mm_soft_emb_norm", pooled, class_name="Gemma3RMSNorm")
    projected = t.matmul(normed, t.view(weight, (weight.shape[1], weight.shape[0])), None)
    return ops.to(t, projected, x.dtype)


def model(t: Builder, config: Mapping[str, Any]) -> Tensor:
    """`Gemma3Model`: [B, S, H]."""
    vision, text = config["vision_config"], {**config["text_config"], "dtype": config["dtype"]}
    inputs_embeds = t.call("language_model", lambda t: gemma.embeddings(t, text))
    features = t.call("vision_tower", lambda t, p: vision_model(t, p, vision), pixel_values(t, vision))
    features = t.call("multi_modal_projector", lambda t, h: projector(t, h, config), features)
    inputs_embeds = insert_features(t, inputs_embeds, features)
    return t.call("language_model", lambda t, h: gemma.model(t, text, h), inputs_embeds)


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The model under its head; returns the loss."""
    return with_image_text_head(t, lambda t: model(t, config), config, head)


FAMILY = Family(forward, "model", (*IMAGE_TEXT_TASKS, Task.CAUSAL_LM, Task.SEQUENCE_CLASSIFICATION, Task.PRE_TRAINING))
