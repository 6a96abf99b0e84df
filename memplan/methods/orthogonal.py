"""Methods that rotate: OFT, BOFT, HRA, PSOFT and RoAd.

Symbols: r rank or number of blocks, b block size, in and out the sizes of the layer.

Source: peft/tuners/<method>/layer.py (PEFT 0.21.2).
"""

from __future__ import annotations

from memplan.architecture import ModuleKind
from memplan.dtypes import DType
from memplan.errors import InvalidValueError, UnsupportedError
from memplan.methods.state import Weight
from memplan.methods.tuner import LINEAR, LINEAR_OR_CONV, Config, Target, Tuner
from memplan.step.adapters import oft as adapters
from memplan.step.adapters.boft import boft as boft_step
from memplan.step.adapters.hra import hra as hra_step
from memplan.step.adapters.road import road as road_step
from memplan.step.site import Rewrite


def _rotated_size(target: Target) -> int:
    """The dimension that is rotated: inputs, kernel included; the width of an embedding."""
    if target.kind is ModuleKind.EMBEDDING:
        return target.out_features
    # PEFT squares the kernel's first size (`kernel_size[0] * kernel_size[0]`).
    kernel = target.weight_shape[2:3]
    return target.in_features * (kernel[0] ** 2 if kernel else 1)


def nearest_divisor(size: int, wanted: int) -> int:
    """The divisor of `size` that PEFT takes instead of one that does not divide it: the nearer one, the lower at a tie.

    Source: peft/tuners/oft/layer.py, OFTLayer.adjust_oft_parameters.
    """
    if wanted >= size:
        return size
    higher = next(value for value in range(wanted, size + 1) if size % value == 0)
    lower = next(value for value in range(wanted, 0, -1) if size % value == 0)
    return lower if wanted - lower <= higher - wanted else higher


def oft(target: Target, config: Config) -> list[Weight]:
    """R [in / b, b (b - 1) / 2], one row with `block_share`: the upper triangles of skew-symmetric blocks."""
    size = _rotated_size(target)
    wanted = config["oft_block_size"] or config["r"]
    exact = wanted if size % wanted == 0 and wanted <= size else nearest_divisor(size, wanted)
    block = exact if config["oft_block_size"] else size // exact
    elements = block * (block - 1) // 2
    rows = 1 if config["block_share"] else size // block
    name = "oft_embedding_R" if target.kind is ModuleKind.EMBEDDING else "oft_R"
    return [
        Weight(f"{name}.default.weight", (rows, elements)),
        Weight(f"{name}.default.rows", (elements,), dtype=DType.INT64, parameter=False),
        Weight(f"{name}.default.cols", (elements,), dtype=DType.INT64, parameter=False),
    ]


def _check_oft(config: Config) -> None:
    if (config["r"] != 0) == (config["oft_block_size"] != 0):
        raise InvalidValueError(
            "peft.r", config["r"], "either r or oft_block_size: their product is the input size, so the other must be 0"
        )


def boft(target: Target, config: Config) -> list[Weight]:
    """R [1, in / b, b, b] and the scale s [out]; the butterfly permutation P [1, in, in] is a float32 buffer."""
    size = _rotated_size(target)
    block, number = config["boft_block_size"], config["boft_block_num"]
    for key in ("boft_block_size", "boft_block_num"):
        if isinstance(config[key], bool) or not isinstance(config[key], int) or config[key] < 0:
            raise InvalidValueError(f"peft.{key}", config[key], "a whole number, 0 or more")
    if (block != 0) == (number != 0):
        raise InvalidValueError("peft.boft_block_size", block, "either boft_block_size or boft_block_num, the other 0")
    divisor = block or number
    if size % divisor:
        key = "boft_block_size" if block else "boft_block_num"
        raise InvalidValueError(f"peft.{key}", divisor, f"a divisor of {size}, the input size of {target.path}")
    block = block or size // number
    scale = (1, target.out_features) if target.kind is ModuleKind.CONV else (target.out_features, 1)
    return [
        Weight("boft_R.default", (1, size // block, block, block)),
        Weight("boft_s.default", scale),
        Weight("boft_P", (1, size, size), dtype=DType.FLOAT32, autocast=False, parameter=False, on_host=True),
    ]


def _check_boft(config: Config) -> None:
    if config["boft_n_butterfly_factor"] != 1:
        raise UnsupportedError(
            "BOFT with boft_n_butterfly_factor above 1 is not covered",
            hint="PEFT uses it only where it can compile its CUDA extension, and falls back to 1 elsewhere",
        )


def hra(target: Target, config: Config) -> list[Weight]:
    """u [in, r]: r Householder vectors."""
    return [Weight("hra_u.default", (_rotated_size(target), config["r"]))]


def psoft(target: Target, config: Config) -> list[Weight]:
    """A rotation of the r principal directions, two scale vectors [r], and float32 buffers A [r, in] and B [out, r]."""
    rank = config["r"]
    triangle = rank * (rank - 1) // 2
    orthogonal = config["psoft_orth"]
    weights = [Weight("psoft_R.default.weight", (triangle,) if orthogonal else (rank, rank))]
    if config["psoft_mag_b"]:
        weights.append(Weight("psoft_R.default.vector_b", (rank,)))
    if config["psoft_mag_a"]:
        weights.append(Weight("psoft_R.default.vector_a", (rank,)))
    if orthogonal:
        weights += [
            Weight(f"psoft_R.default.{name}", (triangle,), dtype=DType.INT64, parameter=False)
            for name in ("rows", "cols")
        ]
    return [
        *weights,
        Weight("_psoft_A_cache.default", (rank, target.in_features), dtype=DType.FLOAT32, parameter=False),
        Weight("_psoft_B_cache.default", (target.out_features, rank), dtype=DType.FLOAT32, parameter=False),
    ]


_ROAD_SIZES = {"road_1": (1, 2), "road_2": (1, 1), "road_4": (2, 1)}


def road(target: Target, config: Config) -> list[Weight]:
    """Angles and scales: out / 2, out or 2 out of each for `road_1`, `road_2`, `road_4`."""
    if target.out_features % config["group_size"]:
        raise InvalidValueError(
            "peft.group_size",
            config["group_size"],
            f"a divisor of {target.out_features}, the output size of {target.path}",
        )
    times, over = _ROAD_SIZES[config["variant"]]
    size = target.out_features * times // over
    return [Weight("road_theta.default", (size,)), Weight("road_alpha.default", (size,))]


def _check_road(config: Config) -> None:
    if config["variant"] not in _ROAD_SIZES:
        raise InvalidValueError("peft.variant", config["variant"], ", ".join(_ROAD_SIZES))
    if not isinstance(config["group_size"], int) or config["group_size"] < 2 or config["group_size"] % 2:
        raise InvalidValueError("peft.group_size", config["group_size"], "a positive even number")


def _oft_rewrite(target: Target, config: Config) -> Rewrite | None:
    special = config["coft"] or config["block_share"] or config["module_dropout"] or not config["use_cayley_neumann"]
    # DeepSeek's latents have four dimensions, which PEFT takes for an image's: the run stops (OFTRotationModule.forward).
    stops = target.path.endswith(".kv_b_proj")
    return adapters.oft if target.kind is ModuleKind.LINEAR and not special and not stops else None


OFT = Tuner(
    frozenset({*LINEAR_OR_CONV, ModuleKind.EMBEDDING}),
    oft,
    "OFT on other than linear layers, on kv_b_proj (whose input PEFT 0.21 takes for an image: the run stops), or with coft, "
    "block_share, module_dropout or an exact Cayley transform",
    check=_check_oft,
    rewrite=_oft_rewrite,
    options=lambda target, config: {"terms": config["num_cayley_neumann_terms"]},
)
BOFT = Tuner(
    LINEAR_OR_CONV,
    boft,
    "BOFT on convolutions, on weights in 8 bits (beside which its permutations lie on the device), or with boft_dropout",
    check=_check_boft,
    rewrite=lambda target, config: (
        boft_step
        if target.kind is ModuleKind.LINEAR and (target.packed or not target.quantized) and not config["boft_dropout"]
        else None
    ),
    options=lambda target, config: {"on_host": target.quantized},
)
HRA = Tuner(
    LINEAR_OR_CONV,
    hra,
    "HRA on convolutions, or with apply_GS",
    rank="r",
    packed=False,
    rewrite=lambda target, config: (
        hra_step if target.kind is ModuleKind.LINEAR and not config["apply_GS"] and not target.quantized else None
    ),
)
PSOFT = Tuner(
    LINEAR,
    psoft,
    "PSOFT's rotation in the principal subspace; its buffers keep whole factors of the weight's decomposition",
    rank="r",
    packed=False,
)
ROAD = Tuner(
    LINEAR,
    road,
    "",
    check=_check_road,
    rewrite=lambda target, config: road_step,
    options=lambda target, config: {"variant": config["variant"], "group_size": config["group_size"]},
)
