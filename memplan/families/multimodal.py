"""What image-text models share: image features put among the text embeddings, and heads over the whole.

Symbols: B micro batch, S sequence length, H hidden size, M tokens that an image becomes.

Source: transformers 5.23 models/{gemma3,llava,qwen2_5_vl}/modeling_*.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from memplan.dtypes import DType
from memplan.families import Head
from memplan.families.heads import causal_lm, sequence_classification
from memplan.recipe import Task
from memplan.step import ops
from memplan.step.builder import Builder
from memplan.step.tensor import Node, Shape, Tape, Tensor

IMAGE_TEXT_TASKS = (Task.IMAGE_TEXT_TO_TEXT, Task.FEATURE_EXTRACTION)


def insert_features(t: Builder, inputs_embeds: Tensor, features: Tensor) -> Tensor:
    """`inputs_embeds.masked_scatter(special_image_mask, features)`: saves the mask; backward makes both gradients."""
    features = ops.to(t, features, inputs_embeds.dtype)
    mask = t.new((*inputs_embeds.shape[:2], 1), DType.BOOL, "eq")
    node = t.record(
        "masked_scatter",
        (inputs_embeds, features),
        (mask,),
        _masked_scatter_backward,
        (inputs_embeds.shape, features.shape),
    )
    return t.new(inputs_embeds.shape, inputs_embeds.dtype, "masked_scatter", node)


def _masked_scatter_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, features = cast(tuple[Shape, Shape], node.meta)
    kept = node.all_stored()
    left = tape.new(shape, grad.dtype, "masked_fill") if node.edges[0] is not None else None
    right = tape.new(features, grad.dtype, "masked_scatter_backward") if node.edges[1] is not None else None
    del kept
    return (left, right)


def with_image_text_head(
    t: Builder, body: Callable[[Builder], Tensor], config: Mapping[str, Any], head: Head
) -> Tensor:
    """The model `body` without a head, or as `model` under `lm_head` or `score`; returns the loss."""
    if head.task is Task.FEATURE_EXTRACTION:
        return body(t)
    if head.task is Task.SEQUENCE_CLASSIFICATION:
        return sequence_classification(t, body, head, base="model")
    text = {**config["text_config"], "tie_word_embeddings": config["tie_word_embeddings"]}
    return causal_lm(t, body, text, base="model", embedding="language_model.embed_tokens")
