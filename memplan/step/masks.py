"""The mask of sliding-window attention, and which mask each decoder layer gets.

Symbols: B micro batch, S sequence length.

Source: transformers 5.23 masking_utils.py (`create_sliding_window_causal_mask`, `sdpa_mask`,
`_ignore_causal_mask_sdpa`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.dtypes import DType
from memplan.errors import InvalidValueError
from memplan.step.attention import AttentionOps, same_text
from memplan.step.tensor import Tensor


def sliding_window_mask(t: AttentionOps, dtype: DType, window: int) -> Tensor | None:
    """What `create_sliding_window_causal_mask` returns: the plain causal mask below the window's length.

    Flash attention takes the window as a number. For sdpa the mask is boolean [B, 1, S, S], expanded over the batch
    unless there is padding; for eager attention it is additive in `dtype`.
    """
    settings = t.settings
    if settings.attn_implementation == "flash_attention_2":
        return t.causal_mask(dtype)
    keys = t.sequence if t.prefix is None else t.sequence + t.prefix.tokens
    plain = t.prefix is None and not settings.packing
    if settings.attn_implementation == "sdpa" and plain and keys < window:
        return t.causal_mask(dtype)
    square = (1, 1, t.sequence, keys)
    texts = t.alloc((1, t.sequence), DType.INT64, "cumsum") if settings.packing else None
    positions = [t.alloc((t.sequence,), DType.INT64, "add") for _ in range(2)]
    block = same_text(t) if texts is not None else None
    allowed = _both(t, t.new(square, DType.BOOL, "gt"), t.new(square, DType.BOOL, "le"))
    if block is not None:
        allowed = _both(t, allowed, block)
    del texts, block
    if settings.padding:
        batched = t.new((t.batch, 1, t.sequence, keys), DType.BOOL, "bitwise_and")
        del allowed
        allowed = batched
        del batched
    del positions
    if settings.attn_implementation == "eager":
        return t.new((t.batch, 1, t.sequence, keys), dtype, "where")
    # Expanded over the batch; what sdpa makes of it is as large as its shape says.
    return Tensor(t, (t.batch, 1, t.sequence, keys), DType.BOOL, allowed.storage, is_view=True)


def _both(t: AttentionOps, a: Tensor, b: Tensor) -> Tensor:
    return t.new(a.shape, DType.BOOL, "bitwise_and")


# Their forward makes the mask of sliding attention whether a layer takes it or not; others look for such a layer first.
_MAKE_BOTH = frozenset({"gemma2", "gemma3_text", "gpt_oss", "qwen2_moe"})


def layer_masks(t: AttentionOps, dtype: DType, config: Mapping[str, Any]) -> list[Tensor | None]:
    """The mask of every layer, as `layer_types` or a window for all layers choose it; layers of one type share one.

    Args:
        t: the tape.
        dtype: of the embeddings; additive masks have it.
        config: normalised; `layer_types` and `sliding_window` may be absent.

    Raises:
        InvalidValueError: layers slide, and no window is given.
    """
    window: int | None = config.get("sliding_window")
    types = config.get("layer_types")
    if not types:
        mask = sliding_window_mask(t, dtype, window) if window else t.causal_mask(dtype)
        return [mask] * config["num_hidden_layers"]
    masks = {"full_attention": t.causal_mask(dtype)}
    slide = "sliding_attention" in types
    if slide or config["model_type"] in _MAKE_BOTH:
        # masking_utils.py, create_sliding_window_causal_mask refuses it as well.
        if window is None or (slide and not window):
            raise InvalidValueError("sliding_window", window, "the width of the window: some of its layers slide")
        masks["sliding_attention"] = sliding_window_mask(t, dtype, window)
    # One that no layer takes stands at the end: `causal_mask_mapping` holds it as well.
    return [*(masks[layer_type] for layer_type in types), *masks.values()]


def slides(config: Mapping[str, Any], index: int) -> bool:
    """Whether the key/value cache of layer `index` has a window (cache_utils.py, `get_layer_types_and_kwargs`)."""
    types = config.get("layer_types")
    return types[index] == "sliding_attention" if types else config.get("sliding_window") is not None


def mask_kind(config: Mapping[str, Any], index: int) -> str:
    """What distinguishes the attention of layer `index` from that of others."""
    types = config.get("layer_types")
    return str(types[index]) if types else ""
