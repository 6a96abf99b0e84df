"""Making a model as torchtune makes it: on the device, module by module, in the order of its component builders.

A checkpoint is then copied into what is there. There is no warm-up of the allocator, and nothing is cast.

Symbols: P positions of the rotary table, D head size.

Sources: torchtune 0.6.1 models/*/_component_builders.py, modules/position_embeddings.py (`rope_init`, `build_rope_cache`),
models/llama3_1/_position_embeddings.py, models/qwen2/_positional_embeddings.py, modules/peft/dora.py
(`initialize_dora_magnitude`), recipes/full_finetune_single_device.py (`_setup_model`).

Known limits:
    The scalars in which Llama 3.1's frequencies are scaled, one at a time, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from memplan.architecture import Architecture
from memplan.dtypes import DType
from memplan.loading import Loading, LoadRecorder
from memplan.model_state import ModelState, StoredParameter
from memplan.torchtune.models import ComponentBuilder, is_magnitude
from memplan.units import round_to_block

# What one layer is made of, in the order in which its parts are made.
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_FEED_FORWARD = ("mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")
_NORMS = (
    "input_layernorm", "pre_feedforward_layernorm", "post_attention_layernorm", "post_feedforward_layernorm",
)  # fmt: skip
_REST = ("model.embed_tokens", "lm_head", "model.norm")


def loading(
    state: ModelState, architecture: Architecture, builder: ComponentBuilder, *, adapters: bool, dora: bool
) -> Loading:
    """The events of making the model of `builder`.

    Args:
        state: what is there afterwards.
        architecture: its modules.
        builder: of torchtune's.
        adapters: whether it is made with adapters in its layers.
        dora: whether they have magnitudes, which are computed when all is there.
    """
    recorder = LoadRecorder()
    stored: dict[str, list[StoredParameter]] = {}
    for entry in state.stored:
        stored.setdefault(entry.module, []).append(entry)

    def make(path: str) -> None:
        # `DoRALinear.__init__` makes the magnitude last.
        for entry in sorted(stored.get(path, ()), key=lambda entry: is_magnitude(entry.name)):
            recorder.alloc(entry.data_bytes)

    per_layer = adapters and not builder.shares_rope_under_lora
    is_gemma2, rest = builder.name == "gemma2", list(_REST)
    if is_gemma2 and adapters:
        make(rest.pop(0))
    if not per_layer:
        _make_rope(recorder, builder)
    for index in range(builder.arguments["num_layers"]):
        layer = f"model.layers.{index}."
        for name in (*(_FEED_FORWARD if is_gemma2 else ()), *_ATTENTION):
            make(layer + name)
        if per_layer:
            _make_rope(recorder, builder)
        for name in (*(() if is_gemma2 else _FEED_FORWARD), *_NORMS):
            make(layer + name)
    for path in rest:
        make(path)
    if dora:
        _compute_magnitudes(recorder, architecture, stored)
    return Loading(
        tuple(recorder.events),
        recorder.peak,
        recorder.live,
        (),
        recorder.live,
        recorder.last_key,
        recorder.blas,
        recorder.peak_after_blas if recorder.blas is not None else 0,
    )


def _make_rope(recorder: LoadRecorder, builder: ComponentBuilder) -> None:
    arguments = builder.arguments
    size = arguments.get("head_dim") or arguments["embed_dim"] // arguments["num_heads"]
    positions, half = arguments["max_seq_len"], size // 2

    def tensor(elements: int, dtype: DType = DType.FLOAT32) -> int:
        return recorder.alloc(round_to_block(elements * dtype.itemsize_bytes))

    theta = tensor(half, DType.INT64)  # torch.arange(0, dim, 2)
    for _ in ("float", "/ dim", "base **"):
        theta = recorder.exchange(theta, round_to_block(half * DType.FLOAT32.itemsize_bytes))
    reciprocal = tensor(half)
    frequencies = tensor(half)
    recorder.free(reciprocal)
    recorder.free(theta)
    if builder.scales_rope:
        tensor(half)
    index = tensor(positions)
    angles = tensor(positions * half)
    doubled = builder.rope != "pairs"
    if doubled:
        both = tensor(positions * size)
    parts = [tensor(positions * (size if doubled else half)) for _ in ("cos", "sin")]
    tensor(positions * (2 * size if doubled else size))
    for key in reversed(parts):
        recorder.free(key)
    recorder.free(index)
    recorder.free(angles)
    if doubled:
        recorder.free(both)
    if builder.scales_rope:
        recorder.free(frequencies)


def _compute_magnitudes(
    recorder: LoadRecorder, architecture: Architecture, stored: Mapping[str, list[StoredParameter]]
) -> None:
    """`magnitude.copy_(norm(weight + scaling * (lora_b @ lora_a)))` of every adapted layer."""
    for module in architecture.registered:
        magnitude = next((entry for entry in stored.get(module.path, ()) if is_magnitude(entry.name)), None)
        if magnitude is None:
            continue
        weight = next(entry for entry in stored[module.path] if entry.name == module.full_name("weight"))
        recorder.use_blas()
        update = recorder.alloc(weight.data_bytes)
        scaled = recorder.alloc(weight.data_bytes)
        total = recorder.alloc(weight.data_bytes)
        recorder.free(scaled)
        norm = recorder.alloc(magnitude.data_bytes)
        for key in (total, norm, update):
            recorder.free(key)
