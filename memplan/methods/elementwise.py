"""Methods that train vectors, blocks or chosen entries: IA3, BEFT, FourierFT, WaveFT, C3A, MiSS, ShiRA, Supertuning, OSF.

Symbols: in and out the sizes of the layer, r rank.

Source: peft/tuners/<method>/{model,layer}.py (PEFT 0.21.2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from memplan.architecture import ModuleKind
from memplan.dtypes import DType
from memplan.errors import InvalidValueError
from memplan.methods.state import Weight
from memplan.methods.targets import compile_pattern, pattern_value
from memplan.methods.tuner import LINEAR, LINEAR_OR_CONV1D, Config, Target, Tuner
from memplan.step.adapters import c3a as adapted_c3a
from memplan.step.adapters import ia3 as adapters
from memplan.step.adapters import miss as adapted_miss
from memplan.step.adapters import shira as adapted_shira
from memplan.step.adapters.fourierft import fourierft as adapted_fourierft
from memplan.step.site import Rewrite


def _is_feedforward(target: Target, config: Config) -> bool:
    modules = config["feedforward_modules"]
    if isinstance(modules, str):
        return compile_pattern("peft.feedforward_modules", modules).fullmatch(target.path) is not None
    return target.path.endswith(tuple(modules))


def ia3(target: Target, config: Config) -> list[Weight]:
    """The scale l of the output [out, 1], or of the input [1, in] on `feedforward_modules`."""
    feedforward = _is_feedforward(target, config)
    size = target.in_features if feedforward else target.out_features
    if target.kind is ModuleKind.CONV:
        return [Weight("ia3_l.default", (1, size) + (1,) * len(target.weight_shape[2:]))]
    return [Weight("ia3_l.default", (1, size) if feedforward else (size, 1))]


def _check_ia3(config: Config) -> None:
    targets, feedforward = config["target_modules"], config["feedforward_modules"]
    if isinstance(targets, list) and isinstance(feedforward, list) and not set(feedforward) <= set(targets):
        raise InvalidValueError("peft.feedforward_modules", feedforward, "some of target_modules")


def beft(target: Target, config: Config) -> list[Weight]:
    """A bias [1, out]."""
    return [Weight("beft_bias.default", (1, target.out_features))]


def _last_dotted(patterns: Mapping[str, int] | None, path: str, default: int) -> int:
    """The value of the first pattern that matches after a dot up to the end of the path."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf".*\.{pattern}$", path):
            return value
    return default


def _fits(key: str, number: int, target: Target) -> int:
    limit = target.in_features * target.out_features
    if number > limit:
        raise InvalidValueError(f"peft.{key}", number, f"at most {limit}, the entries of {target.path}")
    return number


def fourierft(target: Target, config: Config) -> list[Weight]:
    """The trained coefficients [n_frequency]."""
    number = _last_dotted(config["n_frequency_pattern"], target.path, config["n_frequency"])
    return [Weight("fourierft_spectrum.default", (_fits("n_frequency", number, target),))]


def waveft(target: Target, config: Config) -> list[Weight]:
    """The trained coefficients [n_frequency]; with `proportional_parameters` see `waveft_shared`."""
    if config["proportional_parameters"]:
        return []
    number = pattern_value(config["n_frequency_pattern"], target.path, config["n_frequency"])
    return [Weight("waveft_spectrum.default", (_fits("n_frequency", number, target),))]


def waveft_shared(targets: list[Target], config: Config) -> list[tuple[str, Weight]]:
    """With `proportional_parameters`: each layer's part of n_frequency times the number of layers, by its size."""
    if not config["proportional_parameters"]:
        return []
    sizes = [target.in_features * target.out_features for target in targets]
    budget = config["n_frequency"] * len(targets)
    found = []
    for target, size in zip(targets, sizes, strict=True):
        number = _fits("n_frequency", max(1, round(size / sum(sizes) * budget)), target)
        found.append((target.path, Weight("waveft_spectrum.default", (number,))))
    return found


def c3a(target: Target, config: Config) -> list[Weight]:
    """Circulant kernels [out / b, in / b, b]."""
    block = _last_dotted(config["block_size_pattern"], target.path, config["block_size"])
    for size in (target.in_features, target.out_features):
        if size % block:
            raise InvalidValueError("peft.block_size", block, f"a divisor of {size}, a size of {target.path}")
    return [Weight("c3a_kernel.default", (target.out_features // block, target.in_features // block, block))]


def miss(target: Target, config: Config) -> list[Weight]:
    """One block [r, out]; `bat` has [out / r, r, r], `mini` [r, mini_r]."""
    rank, mini = config["r"], config["mini_r"]
    inputs, outputs = target.in_features, target.out_features
    if rank > inputs:
        raise InvalidValueError("peft.r", rank, f"at most {inputs}, the input size of {target.path}")
    if config["init_weights"] == "bat":
        if inputs % rank or outputs % rank:
            raise InvalidValueError("peft.r", rank, f"a divisor of {inputs} and {outputs} of {target.path}")
        return [Weight("miss_block.default", (outputs // rank, rank, rank))]
    if config["init_weights"] == "mini":
        if outputs % mini:
            raise InvalidValueError("peft.mini_r", mini, f"a divisor of {outputs}, the output size of {target.path}")
        return [Weight("miss_block.default", (rank, mini))]
    return [Weight("miss_block.default", (rank, outputs))]


def shira(target: Target, config: Config) -> list[Weight]:
    """r (in + out) entries of the weight, and their places."""
    number = config["r"] * (target.in_features + target.out_features)
    limit = target.in_features * target.out_features
    if number > limit:
        raise InvalidValueError("peft.r", config["r"], f"at most {limit} entries in {target.path}, not {number}")
    return [
        Weight("shira_weight.default", (number,)),
        Weight("shira_indices.default", (2, number), dtype=DType.INT32, parameter=False, registered=False),
    ]


def _check_shira(config: Config) -> None:
    if config["mask_type"] != "random":
        raise InvalidValueError("peft.mask_type", config["mask_type"], "random, the only one that PEFT has")


def supertuning(target: Target, config: Config) -> list[Weight]:
    """The share 1 - sparsity of the weight's entries, their places, and with `r` a LoRA beside them."""
    number = int(target.in_features * target.out_features * (1 - config["sparsity"]))
    if number < 1:
        raise InvalidValueError(
            "peft.sparsity", config["sparsity"], f"one that leaves an entry of {target.path} to train"
        )
    weights = [
        Weight("supertuning_values.default", (number,)),
        Weight("supertuning_indices.default", (number,), dtype=DType.INT32, parameter=False),
    ]
    if config["r"] is not None:
        weights += [
            Weight("supertuning_lora_A.default.weight", (config["r"], target.in_features)),
            Weight("supertuning_lora_B.default.weight", (target.out_features, config["r"])),
        ]
    return weights


def _check_supertuning(config: Config) -> None:
    if not 0 <= config["sparsity"] < 1:
        raise InvalidValueError("peft.sparsity", config["sparsity"], "at least 0 and below 1")


def osf(target: Target, config: Config) -> list[Weight]:
    """The low singular triplets U [out, l], S [l], V [l, in], trained, with frozen copies; l = min(in, out) - rank.

    The high vectors of the larger side stay as a buffer. They are created in the weight's dtype.
    """
    inputs, outputs = target.in_features, target.out_features
    small = min(inputs, outputs)
    rank = _osf_rank(config["effective_rank"], small)
    for pattern, value in (config["rank_pattern"] or {}).items():
        if re.search(pattern, target.path):
            rank = _osf_rank(value, small)
            break
    if rank <= 0:
        raise InvalidValueError("peft.effective_rank", config["effective_rank"], "a positive rank or fraction")
    low = small - rank
    shapes = {"U": (outputs, low), "S": (low,), "V": (low, inputs)}
    weights = [Weight(f"osf_svd_params.default.{name}_low", shape) for name, shape in shapes.items()]
    weights += [Weight(f"_osf_{name}_low_init.default", shape, parameter=False) for name, shape in shapes.items()]
    if outputs > inputs:
        weights.append(Weight("_osf_U_high.default", (outputs, rank), parameter=False))
    if outputs < inputs:
        weights.append(Weight("_osf_V_high.default", (rank, inputs), parameter=False))
    return weights


def _osf_rank(value: float | None, small: int) -> int:
    if value is None:
        return small // 2
    rank = int(small * value) if isinstance(value, float) and 0 < value <= 1 else int(value)
    return max(min(small, rank), 0)


def _miss_rewrite(target: Target, config: Config) -> Rewrite | None:
    if config["init_weights"] != "bat":
        return adapted_miss.miss
    return adapted_miss.bat if not target.quantized else None


IA3 = Tuner(
    frozenset({*LINEAR_OR_CONV1D, ModuleKind.CONV}),
    ia3,
    "IA3 on convolutions",
    check=_check_ia3,
    rewrite=lambda target, config: adapters.ia3 if target.kind is not ModuleKind.CONV else None,
    options=lambda target, config: {"feedforward": _is_feedforward(target, config)},
)
BEFT = Tuner(LINEAR, beft, "", rewrite=lambda target, config: adapters.beft)
FOURIERFT = Tuner(LINEAR_OR_CONV1D, fourierft, "", rewrite=lambda target, config: adapted_fourierft)
WAVEFT = Tuner(LINEAR_OR_CONV1D, waveft, "WaveFT's materialised update", shared=waveft_shared)
C3A = Tuner(
    LINEAR,
    c3a,
    "C3A on weights in 8 bits, whose results are views that PEFT 0.21 adds to in place: the run stops",
    rewrite=lambda target, config: adapted_c3a.c3a if target.packed or not target.quantized else None,
    creation=lambda target, config: adapted_c3a.creation,
)
MISS = Tuner(
    LINEAR,
    miss,
    "MiSS's blocks of a quantized weight (bat)",
    rewrite=_miss_rewrite,
    options=lambda target, config: {"dropout": float(config["miss_dropout"])},
)
SHIRA = Tuner(
    LINEAR,
    shira,
    "SHiRA's sparse update of a quantized weight",
    check=_check_shira,
    rewrite=lambda target, config: adapted_shira.shira if not target.quantized else None,
    creation=lambda target, config: adapted_shira.creation,
)
SUPERTUNING = Tuner(
    LINEAR, supertuning, "Supertuning's materialised sparse update", check=_check_supertuning, packed=False
)
OSF = Tuner(LINEAR, osf, "OSF's recomposed weight", packed=False)
