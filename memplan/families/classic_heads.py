"""Heads of the older decoders (GPT-2, GPT-NeoX, OPT, Bloom, Falcon), whose token classifier is called `classifier`.

Symbols: C labels.

Source: `...ForCausalLM`, `...ForSequenceClassification`, `...ForTokenClassification` of the models' files, transformers 5.23.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.families import Head
from memplan.families.heads import Body, causal_lm, sequence_classification
from memplan.recipe import Task
from memplan.step.builder import Builder
from memplan.step.tensor import Dim, Tensor

DECODER_TASKS = (
    Task.CAUSAL_LM,
    Task.SEQUENCE_CLASSIFICATION,
    Task.TOKEN_CLASSIFICATION,
    Task.FEATURE_EXTRACTION,
)


def decoder_head(
    t: Builder,
    body: Body,
    config: Mapping[str, Any],
    head: Head,
    *,
    base: str,
    embedding: str,
    bias: bool = False,
    classifier_dropout: float = 0.1,
) -> Tensor:
    """The decoder `body` under the head that was asked for.

    Args:
        t: the builder.
        body: the decoder without a head: [B, S, H].
        config: normalised config.
        head: which head.
        base: attribute of the decoder.
        embedding: path of the input embedding below it, for tying.
        bias: whether `lm_head` has one.
        classifier_dropout: in front of the token classifier.
    """
    match head.task:
        case Task.CAUSAL_LM:
            return causal_lm(t, body, config, base=base, embedding=embedding, bias=bias)
        case Task.SEQUENCE_CLASSIFICATION:
            return sequence_classification(t, body, head, base=base)
        case Task.TOKEN_CLASSIFICATION:
            hidden = t.dropout(t.call(base, body), classifier_dropout)
            of_body, t.outputs = t.outputs, []  # forward holds them until it returns; the result has no past key/values
            t.head_modules.append("classifier")
            loss = t.classification_loss(t.linear("classifier", hidden, Dim(head.num_labels, "C"), bias=True))
            del of_body
            return loss
        case _:
            return body(t)


def token_classifier_dropout(config: Mapping[str, Any]) -> float:
    """The first of `classifier_dropout` and `hidden_dropout` that the config has, else 0.1."""
    for key in ("classifier_dropout", "hidden_dropout"):
        if config.get(key) is not None:
            return float(config[key])
    return 0.1
