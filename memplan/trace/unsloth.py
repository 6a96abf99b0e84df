"""Unsloth's LoRA training in a trace: its own forwards, autograd functions, checkpointing and loss run on fakes.

`FastLanguageModel.from_pretrained` reads a checkpoint and a tokenizer; here the model is built and loaded as for every trace,
with the classes that Unsloth patched, and what `from_pretrained` does to a loaded model (models/llama.py) stands in `apply`.
`get_peft_model` is Unsloth's. The batch is what SFTTrainer's padding-free collator makes of full sequences.

What stands in for a GPU: launches of Triton kernels do nothing; the device's properties are those of the spec; streams and
events do nothing; which kernel attention takes is answered by `AttentionChooser`. Unsloth compiles each layer with
torch.compile where a batch is padded; padding-free batches run as written, and only they are traced.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import gettempdir
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend

from memplan.errors import UnsupportedError
from memplan.trace import versions
from memplan.trace.attention import AttentionChooser
from memplan.trace.liger import silence_triton
from memplan.trace.spec import AttentionBackend, TraceSpec

# What a trace could not run, for the user.
NOTE = (
    "Unsloth's own code ran, but for from_pretrained, whose changes of a loaded model were made by hand; the batch is "
    "padding-free with texts of one length, as long as max_seq_length"
)
# Model type to the module and class of Unsloth that patches it.
PATCHERS = {
    "llama": ("llama", "FastLlamaModel"),
    "mistral": ("mistral", "FastMistralModel"),
    "qwen2": ("qwen2", "FastQwen2Model"),
    "qwen3": ("qwen3", "FastQwen3Model"),
    "gemma": ("gemma", "FastGemmaModel"),
    "granite": ("granite", "FastGraniteModel"),
    "cohere": ("cohere", "FastCohereModel"),
}
_BACKENDS = {
    AttentionBackend.FLASH: SDPBackend.FLASH_ATTENTION,
    AttentionBackend.EFFICIENT: SDPBackend.EFFICIENT_ATTENTION,
    AttentionBackend.CUDNN: SDPBackend.CUDNN_ATTENTION,
    AttentionBackend.MATH: SDPBackend.MATH,
}


class _Idle:
    """A stream or an event on which nothing ever waits."""

    cuda_stream = idx = 0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> _Idle:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: _Idle()


class _Kernels:
    """bitsandbytes' library: its functions work in place on pointers."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *_: 0


def install(spec: TraceSpec, attention: AttentionChooser) -> None:
    """Makes Unsloth importable and imports it; it patches transformers, PEFT and TRL for good.

    Raises:
        UnavailableError: a package is missing, or of a version that no trace was tested with.
        UnsupportedError: a run that Unsloth's fast path does not make.
    """
    for package in ("unsloth", "unsloth_zoo"):
        versions.check_package(package, "2026.10.9", "2026.10.10", extra="unsloth==2026.10.9")
    versions.check_package("triton", "3.4", "4.0", extra="triton")
    model_type = str(spec.model_config["model_type"])
    if model_type not in PATCHERS or spec.task != "causal-lm":
        raise UnsupportedError(f"Unsloth's trace has no {model_type} under a {spec.task} head", code="not_traceable")
    if spec.peft is None or str(spec.peft["peft_type"]).upper() != "LORA":
        raise UnsupportedError("Unsloth's trace is one of LoRA", code="not_traceable")
    _pretend(spec, attention)
    if "unsloth" not in sys.modules:
        compiled = str(Path(gettempdir()) / "memplan-unsloth")
        os.environ.update(UNSLOTH_DISABLE_STATISTICS="1", UNSLOTH_COMPILE_LOCATION=compiled)
        silence_triton()
        import_module("unsloth")
        silence_triton()
    module, name = PATCHERS[model_type]
    # Its placeholders lie on the device, which does not exist while the model is built.
    llama: Any = import_module("unsloth.models.llama")
    llama.get_current_device = lambda: "meta"
    llama._PerDeviceRopeCache._build_rope_cache = _build_rope_cache
    getattr(import_module(f"unsloth.models.{module}"), name).pre_patch()
    _forget()


def _pretend(spec: TraceSpec, attention: AttentionChooser) -> None:
    """What Unsloth asks a GPU for."""
    functional: Any = import_module("bitsandbytes.functional")
    driver: Any = import_module("triton.backends.nvidia.driver")
    # It relinks CUDA where bitsandbytes or Triton cannot find it.
    functional.lib = _Kernels()
    driver.libcuda_dirs = lambda: None
    capability = spec.gpu_arch.capability
    properties = SimpleNamespace(
        name="GPU", major=capability[0], minor=capability[1], total_memory=spec.gpu_memory_bytes, gcnArchName="",
        multi_processor_count=spec.multiprocessors, max_threads_per_multi_processor=2048, is_integrated=0,
    )  # fmt: skip
    cuda: Any = torch.cuda
    for name, answer in {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
        "get_device_name": "GPU", "get_device_properties": properties, "get_device_capability": capability,
        "is_current_stream_capturing": False, "mem_get_info": (spec.gpu_memory_bytes, spec.gpu_memory_bytes),
        "default_stream": _Idle(), "current_stream": _Idle(), "stream": _Idle(), "_lazy_init": None, "device": _Idle(),
    }.items():  # fmt: skip
        setattr(cuda, name, partial(_answer, answer))
    cuda.Stream = cuda.Event = _Idle
    torch._C._cuda_getCurrentRawStream = lambda *_: 0
    attention.__doc__ = "enable_gqa"  # which Unsloth looks for in the description of scaled_dot_product_attention
    torch._fused_sdp_choice = partial(_choice, attention)
    # Fakes look whether there is a GPU, and would initialize it.
    mode: Any = FakeTensorMode
    mode.avoid_device_init = True
    fake: Any = FakeTensor
    fake.data_ptr = lambda tensor: tensor.untyped_storage()._cdata // 16 * 16
    fake.resize_ = _resize
    fake.tolist = _to_list
    fake.is_pinned = lambda tensor, *_: True
    fake.pin_memory = lambda tensor, *_: tensor


def _answer(answer: Any, *_: Any, **__: Any) -> Any:
    return answer


def _choice(
    chooser: AttentionChooser,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **_: Any,
) -> int:
    return int(_BACKENDS[chooser.choose(query, key, value, attn_mask, dropout_p, is_causal)].value)


def _resize(tensor: torch.Tensor, *size: Any, **_: Any) -> torch.Tensor:
    """`resize_` on CUDA: what is larger is allocated before the old goes (aten native/cuda/Resize.cpp)."""
    shape = torch.Size(size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
    with torch.no_grad():
        return tensor.set_(torch.empty(shape, dtype=tensor.dtype, device=tensor.device))


def _build_rope_cache(rope: Any, index: int) -> None:
    """`_PerDeviceRopeCache._build_rope_cache`, whose `torch.device(index)` asks which accelerator there is."""
    size = rope.current_rope_size
    rope._set_cos_sin_cache(
        seq_len=rope._rope_cache_rows(), device=torch.device("cuda", index), dtype=rope._rope_cache_dtype
    )
    rope.current_rope_size = size
    rope._rope_cache_versions[index] = rope._rope_cache_version


def _to_list(tensor: Any) -> Any:
    return list(tensor.memplan_values)


def _forget() -> None:
    """What Unsloth keeps of the run before."""
    utils = import_module("unsloth.kernels.utils")
    utils._SCRATCH.clear()
    import_module("unsloth.utils.packing").clear_packed_caches()
    dispatch = import_module("unsloth.utils.attention_dispatch")
    for name in ("_sdpa_choice", "_sdpa_gqa_choices"):
        getattr(dispatch, name).cache_clear()
    fused = import_module("unsloth_zoo.fused_losses.fused_linear")
    for name in ("_budget_bytes", "_fp32_out_ok", "_flash_min_rows_auto", "_flash_ce_ok", "_triton_arch_ok"):
        getattr(fused, name).cache_clear()
    fused._TRITON_BROKEN.clear()
    checkpointing: Any = import_module("unsloth_zoo.gradient_checkpointing")
    # Of another mode of fakes: not to be resized.
    checkpointing.CPU_BUFFERS, checkpointing.GPU_BUFFERS, checkpointing.GPU_BUFFERS_B = [], None, None
    checkpointing.unpatch_unsloth_smart_gradient_checkpointing()


def apply_method(spec: TraceSpec, model: Any, options: dict[str, Any], before: Callable[[Any], None]) -> Any:
    """What `from_pretrained` does to a loaded model, then Unsloth's `get_peft_model`.

    Args:
        spec: the run.
        model: loaded.
        options: of the LoraConfig.
        before: called with the model before adapters are added.
    """
    llama = import_module("unsloth.models.llama")
    module, name = PATCHERS[str(spec.model_config["model_type"])]
    patcher = getattr(import_module(f"unsloth.models.{module}"), name)
    rotary = model.model.rotary_emb
    for attribute in ("cos_cached", "sin_cached"):
        setattr(rotary, attribute, torch.empty(1, dtype=getattr(torch, spec.dtype), device="cuda"))
    llama.mark_unsloth_fast_path(model)
    tokenizer = SimpleNamespace(padding_side="right")
    model, _ = patcher.post_patch(model, None, correct_dtype=getattr(torch, spec.dtype))
    for layer in model.model.layers:
        layer.self_attn.apply_qkv, layer.self_attn.apply_o = llama.original_apply_qkv, llama.original_apply_o
        layer.self_attn.rotary_emb = model.model.rotary_emb
    for part in model.modules():
        part.max_seq_length = spec.sequence // spec.packed_sequences
    model._saved_temp_tokenizer = model.model._saved_temp_tokenizer = tokenizer
    _name_training_loop()
    llama._install_bnb_nf4_override()
    before(model)
    checkpointing: Any = spec.checkpointing != "none"
    model = llama.FastLlamaModel.get_peft_model(
        model, use_gradient_checkpointing="unsloth" if checkpointing and spec.offloads_hidden_states else checkpointing,
        **options,
    )  # fmt: skip
    import_module("unsloth.utils.packing").mark_allow_overlength(model)
    gc.collect()
    return model


def _name_training_loop() -> None:
    """`get_peft_model` insists that `from_pretrained` has rewritten Trainer's loop, which no trace runs."""
    trainer: Any = import_module("transformers.trainer").Trainer

    def _fast_inner_training_loop(*_: Any, **__: Any) -> None:
        raise AssertionError("a trace runs no Trainer")

    trainer._inner_training_loop = _fast_inner_training_loop


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Its loss's ops, whose fakes say what comes out alone; their own code allocates what a GPU's does."""
    if "unsloth" not in sys.modules:
        return {}
    fused = import_module("unsloth_zoo.fused_losses.fused_linear")
    ops = torch.ops.unsloth_zoo
    return {
        getattr(ops, fused._CE_OP).default: fused._OPS["ce_impl"],
        ops.fused_linear_scale_rows.default: fused._OPS["scale_rows_impl"],
    }


def sizes(spec: TraceSpec) -> dict[tuple[str, str], Callable[[dict[str, Any], torch.Tensor], int]]:
    """How many tokens have a label: all but one of each text."""
    return {("unsloth_zoo/fused_losses/fused_linear.py", "_keep_index"): lambda _scope, mask: (
        mask.numel() - spec.packed_sequences
    )}  # fmt: skip


def metadata(spec: TraceSpec, device: torch.device) -> dict[str, torch.Tensor]:
    """What the batch has besides: the texts' lengths, and Trainer's count of tokens with a label."""
    lengths: Any = torch.zeros((spec.packed_sequences,), dtype=torch.int32, device=device)
    lengths.memplan_values = [spec.sequence // spec.packed_sequences] * spec.packed_sequences
    return {
        "packed_seq_lengths": lengths,
        "num_items_in_batch": torch.zeros((), dtype=torch.int64, device=device),
    }
