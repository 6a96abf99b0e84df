"""The Llama family as Unsloth runs it for training LoRA adapters: one row of texts, its own forwards and functions.

Symbols: B texts, S tokens of each, T tokens of the row (B·S), H hidden size, A attention heads, K key/value heads, D head size,
I intermediate size, V vocabulary, L layers.

Source: unsloth 2026.10.9 models/{llama,mistral,qwen3}.py (`LlamaModel_fast_forward`, `LlamaDecoderLayer_fast_forward`,
`LlamaAttention_fast_forward`).

Known limits:
    A batch that is padding-free, as SFTTrainer makes it under Unsloth. Layers that Unsloth compiles (padded batches) are not
    described.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.architecture import Architecture
from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.families.decoder import Dims, dims
from memplan.step import unsloth
from memplan.step.builder import Builder
from memplan.step.tensor import Dim, Storage, Tensor, count_elements
from memplan.units import BLOCK_BYTES, round_to_block

# `LlamaRotaryEmbedding`: rows that it begins with at most, by which it grows, and that it makes at a time.
_FIRST_ROWS, _ROWS, _PIECE_ROWS = 32768, 8192, 32768


def decoder(t: Builder, config: Mapping[str, Any], *, qk_norm: bool, qkv_bias: bool) -> Tensor:
    """The decoder without its head, from the embedding on: [1, T, H]."""
    d = dims(config)
    tokens = t.batch * t.tokens
    positions = t.alloc((1, tokens), DType.INT32, "_to_copy")
    if t.grad_enabled:
        t.hold(Tensor(t, (1, tokens), DType.INT32, positions))  # of the rotary embedding's contexts
    x = t.input_embedding("embed_tokens", (1, tokens), d.vocabulary, d.hidden)
    tables = _rotary_tables(t, config, d, tokens)
    if t.settings.checkpointing:
        t.held.append(tables)  # every layer is given them, which its checkpoint keeps

    def layer(t: Builder, x: Tensor, index: int) -> Tensor:
        return _layer(t, x, d, qk_norm=qk_norm, qkv_bias=qkv_bias)

    x = t.layers("layers", d.layers, layer, x)
    x = unsloth.rms_norm(t, "norm", x)
    del tables
    return x


def unsloth_buffers_bytes(architecture: Architecture) -> int:
    """What Unsloth's rotary embedding has in the place of transformers': two numbers, and no second copy of the frequencies."""
    copies = [buffer for buffer in architecture.buffers if buffer.path.endswith("original_inv_freq")]
    sizes = [count_elements(copy.shape) * DType.FLOAT32.itemsize_bytes for copy in copies]
    return sum(2 * BLOCK_BYTES - round_to_block(size) for size in sizes)


def rotary_rows(count: int) -> int:
    """How many rows a table that grows to `count` of them has."""
    return -(-count // _ROWS) * _ROWS


def _rotary_tables(t: Builder, config: Mapping[str, Any], d: Dims, tokens: Dim) -> tuple[Storage, ...]:
    """`extend_rope_embedding` of the model: cos and sin of every position that it has, made by the first batch."""
    positions, size = int(config["max_position_embeddings"]), int(d.head_size)
    large = positions > _FIRST_ROWS
    tables = _tables(t, rotary_rows(positions) if large else positions, size, on_device=large)
    if tokens > tables[0].info.shape[0]:
        t.outgrown.update(table.info.index for table in tables)
        return tables
    t.workspaces["cos"], t.workspaces["sin"] = tables
    return ()


def _grow_tables(t: Builder, d: Dims, tokens: Dim) -> None:
    """The same of the first layer's attention, for a row that is longer than the model has positions."""
    if "cos" not in t.workspaces:
        rows = rotary_rows(tokens)
        t.workspaces["cos"], t.workspaces["sin"] = _tables(t, rows, int(d.head_size), on_device=True)


def _tables(t: Builder, rows: int, size: int, *, on_device: bool) -> tuple[Storage, Storage]:
    """`_set_cos_sin_cache`: by pieces of 32768 rows; the first tables are computed in host memory."""
    dtype = t.settings.autocast or DType.BFLOAT16
    if not on_device:
        made = [t.alloc((rows, size), dtype, "_to_copy", Component.BUFFERS) for _ in range(2)]
        return made[0], made[1]
    integers = t.alloc((rows,), DType.INT64, "arange")
    numbers = t.alloc((rows,), DType.FLOAT32, "_to_copy")
    del integers
    if rows <= _PIECE_ROWS:
        frequencies = t.alloc((rows, size // 2), DType.FLOAT32, "mul")
        both = t.alloc((rows, size), DType.FLOAT32, "cat")
        cos, sin = _piece(t, rows, size, dtype, None), _piece(t, rows, size, dtype, None)
        del numbers, frequencies, both
        return cos, sin
    wholes: list[Storage] = []
    piece: list[Storage] = []
    first = second = None
    for start in range(0, rows, _PIECE_ROWS):
        count = min(_PIECE_ROWS, rows - start)
        first = t.alloc((count, size // 2), DType.FLOAT32, "mul")
        second = t.alloc((count, size), DType.FLOAT32, "cat")
        before, piece = piece, []
        for _ in range(2):
            piece.append(_piece(t, count, size, dtype, before.pop(0) if before else None))
        if not start:
            wholes = [t.alloc((rows, size), dtype, "empty", Component.BUFFERS) for _ in range(2)]
    del numbers, first, second, piece
    return wholes[0], wholes[1]


def _piece(t: Builder, rows: int, size: int, dtype: DType, before: object) -> Storage:
    """`(emb.cos() * attention_scaling).to(dtype)`; the variable holds the piece before until then."""
    raw = t.alloc((rows, size), DType.FLOAT32, "cos")
    scaled = t.alloc((rows, size), DType.FLOAT32, "mul")
    del raw
    made = t.alloc((rows, size), dtype, "_to_copy")
    del scaled, before
    return made


def _layer(t: Builder, x: Tensor, d: Dims, *, qk_norm: bool, qkv_bias: bool) -> Tensor:
    residual = x
    x = unsloth.rms_norm(t, "input_layernorm", x)
    x = t.call("self_attn", lambda t, h: _attention(t, h, d, qk_norm=qk_norm, qkv_bias=qkv_bias), x)
    x = residual + x
    residual = x
    x = unsloth.rms_norm(t, "post_attention_layernorm", x)
    x = t.call("mlp", lambda t, h: _mlp(t, h, d), x)
    return residual + x


def _attention(t: Builder, x: Tensor, d: Dims, *, qk_norm: bool, qkv_bias: bool) -> Tensor:
    sizes = {"q_proj": d.heads, "k_proj": d.kv_heads, "v_proj": d.kv_heads}
    if qkv_bias:  # which its function has no room for: PEFT's own layers
        made = [t.linear(name, x, heads * d.head_size, bias=True) for name, heads in sizes.items()]
    else:
        projections = [unsloth.projection(t, name, heads * d.head_size, d.hidden) for name, heads in sizes.items()]
        made = unsloth.lora_qkv(t, x, projections)
    query, key, value = (
        t.split_heads(part, heads, d.head_size) for part, heads in zip(made, sizes.values(), strict=True)
    )
    del made
    _lengths(t)
    _grow_tables(t, d, t.batch * t.tokens)
    query, key = (unsloth.norm_rope if qk_norm else unsloth.rope)(t, query, key)
    out = unsloth.packed_attention(t, query, key, value)
    return unsloth.lora_w(t, out, unsloth.projection(t, "o_proj", d.hidden, d.heads * d.head_size))


def _lengths(t: Builder) -> None:
    """`get_packed_info_from_kwargs`: where the texts begin, kept with their lengths until the next batch has its own."""
    if unsloth.OFFSETS not in t.workspaces:
        t.workspaces[unsloth.OFFSETS] = t.alloc((t.batch + 1,), DType.INT32, "zeros", Component.BUFFERS)


def _mlp(t: Builder, x: Tensor, d: Dims) -> Tensor:
    shapes: dict[str, tuple[Dim, Dim]] = {
        "gate_proj": (d.intermediate, d.hidden),
        "up_proj": (d.intermediate, d.hidden),
        "down_proj": (d.hidden, d.intermediate),
    }
    return unsloth.lora_mlp(t, x, *(unsloth.projection(t, name, *shape) for name, shape in shapes.items()))
