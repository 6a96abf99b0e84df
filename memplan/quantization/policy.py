"""Which modules are quantized, and in which dtype everything else ends up.

The rules of transformers 5.23 (quantizers/base.py, quantizers/quantizers_utils.py and one integration a scheme), and of
optimum 2.3 for gptq. Four of them surprise:

- With bitsandbytes and fp8, a list of modules to skip *replaces* the default one: `llm_int8_skip_modules=["q_proj"]`
  quantizes the output head. AWQ adds to the default.
- The default skips the module of the last *parameter*. When that is a bias (`classifier.bias` in BERT and most other
  encoders) the name matches no module, so the classification head is replaced. A head that is not in the checkpoint
  still keeps the load dtype, because only loaded tensors are quantized: see `is_quantized`.
- Experts stored as one 3-D parameter are not `nn.Linear`: bitsandbytes leaves them in 16 bit.
- bitsandbytes replaces exact `nn.Linear` only, so Falcon, whose layers are a subclass of it, stays in 16 bit whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from memplan.errors import UnsupportedError
from memplan.quantization.scheme import Quantization, Scheme


class ModuleKind(StrEnum):
    """The class of a module, as far as quantizers tell classes apart."""

    LINEAR = "linear"  # exactly torch.nn.Linear
    LINEAR_SUBCLASS = "linear_subclass"  # FalconLinear, some routers, grouped linears
    CONV1D = "conv1d"  # transformers.pytorch_utils.Conv1D: GPT-2
    EMBEDDING = "embedding"
    EXPERTS = "experts"  # 3-D expert parameters in a module whose name ends in ".experts"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class ModelOutline:
    """What a quantizer asks of a model before it looks at single modules.

    Attributes:
        last_parameter: last name of `model.named_parameters()` as the model is built, before weights are tied: the
            output head of a tied model too ("lm_head.weight").
        output_embedding: path of `model.get_output_embeddings()`; None when the model has none.
        tied_parameters: both sides of every tie ("lm_head.weight", "model.embed_tokens.weight").
        keep_in_fp32_modules: the model class's `_keep_in_fp32_modules` (T5: "wo").
    """

    last_parameter: str
    output_embedding: str | None = None
    tied_parameters: tuple[str, ...] = ()
    keep_in_fp32_modules: tuple[str, ...] = ()


# optimum/gptq/constants.py, BLOCK_PATTERNS (optimum 2.3): the first one that some module's name starts with counts.
GPTQ_BLOCK_PATTERNS = (
    "transformer.h",
    "model.decoder.layers",
    "gpt_neox.layers",
    "model.layers",
    "model.language_model.layers",
    "h",
    "decoder.layers",
    "layers",
)

_REPLACED_KINDS = {
    # transformers/integrations/bitsandbytes.py, replace_with_bnb_linear: `type(module) is nn.Linear` or Conv1D
    Scheme.NF4: (ModuleKind.LINEAR, ModuleKind.CONV1D),
    Scheme.FP4: (ModuleKind.LINEAR, ModuleKind.CONV1D),
    Scheme.INT8: (ModuleKind.LINEAR, ModuleKind.CONV1D),
    # transformers/integrations/finegrained_fp8.py, replace_with_fp8_linear
    Scheme.FP8: (ModuleKind.LINEAR, ModuleKind.EXPERTS),
    # optimum/gptq/utils.py, get_layers
    Scheme.GPTQ: (ModuleKind.LINEAR, ModuleKind.CONV1D),
    # transformers/integrations/awq.py, replace_with_awq_linear: isinstance(module, nn.Linear)
    Scheme.AWQ: (ModuleKind.LINEAR, ModuleKind.LINEAR_SUBCLASS),
}


def default_skip_modules(outline: ModelOutline) -> tuple[str, ...]:
    """Modules that transformers leaves alone when nothing else is said: tied weights, last parameter, output embedding.

    Source: transformers/quantizers/base.py, get_keys_to_not_convert (5.23).
    """
    names = {*outline.tied_parameters, outline.last_parameter}
    if outline.output_embedding is not None:
        names.add(outline.output_embedding)
    return tuple(sorted({name.removesuffix(".weight") for name in names}))


def skip_patterns(quantization: Quantization, outline: ModelOutline) -> tuple[str, ...]:
    """Every pattern that keeps a module from being replaced, default, given and kept in fp32.

    Source: transformers/quantizers/base.py, HfQuantizer.get_modules_to_not_convert (5.23). Not used by gptq.
    """
    patterns = set(outline.keep_in_fp32_modules)
    if quantization.skip_modules is None or quantization.scheme is Scheme.AWQ:
        patterns.update(default_skip_modules(outline))
    patterns.update(quantization.skip_modules or ())
    return tuple(sorted(patterns))


def is_skipped(module_path: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern names the module: as a prefix or regex up to a dot, or as any suffix.

    "layer.1" skips "layer.1.attn" but not "layer.11.attn"; "fc1" skips "model.layers.0.fc1" and, being a plain
    suffix, "model.layers.0.xfc1" too.

    Source: transformers/quantizers/quantizers_utils.py, should_convert_module (5.23).
    """
    boundary = r"(?:(?<=\.)|(?=\.|$))"
    return any(
        re.match(rf"(?:{pattern}){boundary}", module_path) or module_path.endswith(pattern) for pattern in patterns
    )


def is_replaced(
    quantization: Quantization,
    module_path: str,
    module_kind: ModuleKind,
    patterns: Sequence[str],
    *,
    gptq_block: str | None = None,
) -> bool:
    """Whether transformers swaps the module for a quantized one.

    Args:
        quantization: the scheme and its options.
        module_path: as in `named_modules()`.
        module_kind: what it is.
        patterns: `skip_patterns(quantization, outline)`, made once a model.
        gptq_block: `gptq_block_prefix(...)` of the model, needed for gptq only.

    Raises:
        UnsupportedError: gptq without a block.
    """
    if module_kind not in _REPLACED_KINDS[quantization.scheme]:
        return False
    if quantization.scheme is Scheme.GPTQ:
        if gptq_block is None:
            raise UnsupportedError("gptq quantizes the transformer blocks only, and their path is not known")
        return module_path.startswith(gptq_block)
    return not is_skipped(module_path, patterns)


def is_quantized(
    quantization: Quantization,
    module_path: str,
    module_kind: ModuleKind,
    patterns: Sequence[str],
    *,
    in_checkpoint: bool = True,
    gptq_block: str | None = None,
) -> bool:
    """Whether the module's weight is stored quantized.

    Differs from `is_replaced` for a weight that the checkpoint lacks, such as a new classification head: transformers
    puts a plain parameter of the load dtype into the quantized module (modeling_utils.py,
    _move_missing_keys_from_meta_to_device, 5.23). The bytes are then right, but the forward of such a head fails in
    bitsandbytes 0.50, as a copy by PEFT's `modules_to_save` too: the run needs the head among `skip_modules`.
    """
    return in_checkpoint and is_replaced(quantization, module_path, module_kind, patterns, gptq_block=gptq_block)


def gptq_block_prefix(module_paths: Iterable[str]) -> str:
    """Path of the list of transformer blocks that gptq quantizes.

    Raises:
        UnsupportedError: no known name of such a list.

    Source: optimum/gptq/utils.py, get_block_name_with_pattern (optimum 2.3).
    """
    paths = list(module_paths)
    for pattern in GPTQ_BLOCK_PATTERNS:
        if any(path.startswith(pattern) for path in paths):
            return pattern
    raise UnsupportedError("gptq: no module is named like a list of transformer blocks")
