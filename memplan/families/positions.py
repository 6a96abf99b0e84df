"""How many tokens models with learned or tabulated positions can take: beyond them, a lookup fails on the first batch.

Sources (transformers 5.23): the `position_embeddings`, `embed_positions`, `wpe` of models/{bert,distilbert,gpt2,gpt_bigcode,
gptj,opt,bart,mbart,roberta,deberta,deberta_v2}/modeling_*.py. RoBERTa numbers positions from `pad_token_id + 1`.

Known limits:
    Whisper's and ViT's inputs have a fixed length and are not checked here. Rotary and relative positions have no limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KEYS = {
    "bart": "max_position_embeddings",
    "bert": "max_position_embeddings",
    "deberta": "max_position_embeddings",
    "deberta-v2": "max_position_embeddings",
    "distilbert": "max_position_embeddings",
    "gpt2": "n_positions",
    "gpt_bigcode": "n_positions",
    "gptj": "n_positions",
    "mbart": "max_position_embeddings",
    "opt": "max_position_embeddings",
    "roberta": "max_position_embeddings",
    "xlm-roberta": "max_position_embeddings",
}


def max_positions(config: Mapping[str, Any]) -> int | None:
    """Tokens of the longest sequence, virtual ones included; None where nothing limits it.

    Args:
        config: a normalised config.
    """
    model_type = str(config["model_type"])
    key = _KEYS.get(model_type)
    if key is None or (model_type.startswith("deberta") and not config.get("position_biased_input", True)):
        return None
    limit = int(config[key])
    if model_type in ("roberta", "xlm-roberta"):
        pad = config.get("pad_token_id")
        limit -= (1 if pad is None else int(pad)) + 1
    return limit
