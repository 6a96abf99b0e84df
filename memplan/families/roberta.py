"""RoBERTa and XLM-RoBERTa: BERT's encoder with positions counted from the padding index, and heads of their own.

Symbols: B micro batch, S sequence length, H hidden size, V vocabulary, C labels.

Source: transformers 5.23 models/roberta/modeling_roberta.py, models/xlm_roberta/modeling_xlm_roberta.py.

Known limits:
    As in `memplan.families.bert`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.dtypes import DType
from memplan.families import Family, Head
from memplan.families.bert import Dims, dims, encoder, pooler, self_attention_mask, token_classifier
from memplan.recipe import Task
from memplan.step.builder import Builder
from memplan.step.encoder import first_token, masked_lm_loss
from memplan.step.tensor import Dim, Tensor

HEAD_CLASS = {"roberta": "RobertaClassificationHead", "xlm-roberta": "XLMRobertaClassificationHead"}


def embeddings(t: Builder, d: Dims) -> Tensor:
    """Words, token types and positions: [B, S, H]; each row has positions of its own."""
    for name in ("position_ids", "token_type_ids"):
        t.buffer(name, (1, d.positions), DType.INT64)
    position_ids = t.new((t.batch, t.sequence), DType.INT64, "add")
    token_types = t.new((t.batch, t.sequence), DType.INT64, "gather")
    words = t.input_embedding("word_embeddings", (t.batch, t.sequence), d.vocabulary, d.hidden)
    types = t.embedding("token_type_embeddings", (t.batch, t.sequence), d.token_types, d.hidden, indices=token_types)
    x = words + types
    positions = t.embedding("position_embeddings", (t.batch, t.sequence), d.positions, d.hidden, indices=position_ids)
    x = x + positions
    x = t.layer_norm("LayerNorm", x)
    x = t.dropout(x, d.dropout)
    del position_ids, token_types, words, types, positions
    return x


def encode(t: Builder, d: Dims) -> Tensor:
    """Embeddings and layers: [B, S, H]."""
    embedded = t.call("embeddings", lambda t: embeddings(t, d))
    mask = self_attention_mask(t, embedded, d)
    return t.call("encoder", lambda t, x: encoder(t, x, d, mask), embedded)


def lm_head(t: Builder, x: Tensor, d: Dims) -> Tensor:
    """`RobertaLMHead`: [B, S, V]; always gelu."""
    t.bare("bias", (d.vocabulary,), owner_class="RobertaLMHead")
    if d.tied:
        t.tie("lm_head.decoder.bias", "lm_head.bias")
    x = t.activation("gelu", t.linear("dense", x, d.hidden, bias=True))
    x = t.layer_norm("layer_norm", x)
    tied_to = "roberta.embeddings.word_embeddings" if d.tied else None
    return t.output_embedding("decoder", x, d.vocabulary, tied_to=tied_to, bias=True)


def classification_head(t: Builder, x: Tensor, d: Dims, head: Head, class_name: str) -> Tensor:
    """`RobertaClassificationHead` on the first token: [B, C]."""
    t.class_name(class_name)
    x = t.dropout(first_token(t, x), d.classifier_dropout)
    x = t.activation("tanh", t.linear("dense", x, d.hidden, bias=True))
    x = t.dropout(x, d.classifier_dropout)
    return t.linear("out_proj", x, Dim(head.num_labels, "C"), bias=True)


def forward(t: Builder, config: Mapping[str, Any], head: Head) -> Tensor:
    """The encoder under its head; returns the loss."""
    d = dims(config)
    if head.task is Task.FEATURE_EXTRACTION:
        hidden = encode(t, d)
        t.call("pooler", lambda t, x: pooler(t, x, d), hidden)
        return hidden
    hidden = t.call("roberta", lambda t: encode(t, d))
    if head.task is Task.SEQUENCE_CLASSIFICATION:
        t.head_modules.append("classifier")
        name = HEAD_CLASS[config["model_type"]]
        logits = t.call("classifier", lambda t, x: classification_head(t, x, d, head, name), hidden)
        return t.classification_loss(logits)
    if head.task is Task.TOKEN_CLASSIFICATION:
        return token_classifier(t, hidden, head, d.classifier_dropout)
    t.head_modules.append("lm_head")
    logits = t.call("lm_head", lambda t, x: lm_head(t, x, d), hidden)
    return t.causal_lm_loss(logits) if head.task is Task.CAUSAL_LM else masked_lm_loss(t, logits)


FAMILY = Family(
    forward,
    "roberta",
    (
        Task.MASKED_LM,
        Task.SEQUENCE_CLASSIFICATION,
        Task.TOKEN_CLASSIFICATION,
        Task.PRE_TRAINING,
        Task.CAUSAL_LM,
        Task.FEATURE_EXTRACTION,
    ),
    walked=frozenset({"roberta", "xlm-roberta"}),
    walked_tasks=frozenset({Task.MASKED_LM, Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION}),
    walked_int8=False,
)
