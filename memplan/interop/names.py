"""Which names of unknown keys sound like memory.

A key that no reader knows is harmless when its name has none of these words, or its value switches it off. Otherwise it is
reported: a misspelt batch size, or a feature that memplan has not heard of, must not be taken for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from memplan.errors import closest

_WORDS = frozenset({
    "4bit", "8bit",
    "accumulation", "activation", "activations", "adam", "adamw", "adapter", "adapters", "attention", "attn", "batch",
    "batches", "bf16", "bfloat16", "bit", "bits", "bnb", "bytes", "cache", "checkpointing", "chunk", "chunked", "compile",
    "context", "cp", "cpu", "cuda", "deepspeed", "device", "devices", "dim", "dora", "dtype", "ep", "experts", "flash",
    "float16", "float32", "fp16", "fp32", "fp8", "freeze", "frozen", "fsdp", "fused", "fusion", "gb", "gib", "gpu", "gpus",
    "grad", "gradient", "gradients", "half", "hidden", "kernel", "kernels", "kv", "layer", "layers", "len", "length",
    "liger", "logits", "lora", "maxlen", "mem", "memory", "micro", "microbatch", "mixed", "nodes", "offload", "offloading",
    "optim", "optimizer", "pack", "packed", "packing", "pad", "padding", "parallel", "parallelism", "parallelize", "peft",
    "pipeline", "pp", "precision", "processes", "qlora", "quant", "quantization", "quantize", "quantized", "rank",
    "recompute", "replicas", "seq", "seqlen", "sequence", "shard", "sharded", "sharding", "shards", "size", "sp", "tensor",
    "tokens", "tp", "trainable", "unfreeze", "unfrozen", "unsloth", "upcast", "vocab", "vram", "window", "world", "zero",
})  # fmt: skip

_LONGEST_KEY = 64
_OFF = (None, False, 0, 0.0, "", "no", "none", "None", "off", "false", "disabled")


_WORD = re.compile(r"[A-Z]?[a-z]+[0-9]*|[A-Z]+(?![a-z])[0-9]*|[0-9]+[a-z]*")


def words_of(key: str) -> list[str]:
    """The words of a key in lower case: of `maxSeq_len` they are max, seq and len."""
    return [word.lower() for word in _WORD.findall(key)]


def is_memory_like(key: str) -> bool:
    """Whether a name sounds as if it had to do with memory."""
    words = words_of(key)
    return any(word in _WORDS or word.rstrip("s") in _WORDS for word in words)


def is_off(value: Any) -> bool:
    """Whether a value switches its key off."""
    if isinstance(value, Mapping | list | tuple):
        return not value
    return any(value is off or (type(value) is type(off) and value == off) for off in _OFF)


def nearest(key: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)`, or nothing."""
    found = closest(key, sorted(known), limit=1) if len(key) <= _LONGEST_KEY else []
    return f" (did you mean {found[0]}?)" if found else ""
