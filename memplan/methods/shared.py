"""Methods whose layers share tensors: VeRA, PVeRA, RandLoRA, VB-LoRA, UniLoRA, TinyLoRA and FRoD.

A shared tensor is named after the first layer that holds it, as `named_parameters()` does.

Symbols: r rank, in and out the sizes of the layer, IN and OUT the largest of all targeted layers.

Source: peft/tuners/<method>/{model,layer}.py (PEFT 0.21.2).
"""

from __future__ import annotations

from memplan.architecture import ModuleKind
from memplan.dtypes import DType
from memplan.errors import InvalidValueError
from memplan.methods.state import Weight
from memplan.methods.tuner import LINEAR_OR_CONV1D, Config, Target, Tuner
from memplan.step.adapters import vera as adapters
from memplan.step.adapters.pvera import pvera as pvera_step
from memplan.step.adapters.randlora import randlora as randlora_step
from memplan.step.adapters.unilora import unilora as unilora_step
from memplan.step.adapters.vblora import vblora as vblora_step

Shared = list[tuple[str, Weight]]


def _largest(targets: list[Target]) -> tuple[int, int]:
    return max(target.in_features for target in targets), max(target.out_features for target in targets)


def vera(target: Target, config: Config) -> list[Weight]:
    """The trained scales b [out] and d [r]."""
    return [
        Weight("vera_lambda_b.default", (target.out_features,)),
        Weight("vera_lambda_d.default", (config["r"],)),
    ]


def vera_shared(targets: list[Target], config: Config) -> Shared:
    """The frozen projections A [r, IN] and B [OUT, r], buffers."""
    inputs, outputs = _largest(targets)
    return [
        (targets[0].path, Weight("vera_A.default", (config["r"], inputs), parameter=False)),
        (targets[0].path, Weight("vera_B.default", (outputs, config["r"]), parameter=False)),
    ]


def pvera(target: Target, config: Config) -> list[Weight]:
    """The trained scales b [out] and d [2 r]: half of it is a variance."""
    return [
        Weight("pvera_lambda_b.default", (target.out_features,)),
        Weight("pvera_lambda_d.default", (2 * config["r"],)),
    ]


def pvera_shared(targets: list[Target], config: Config) -> Shared:
    """The frozen projections A [2 r, IN] and B [OUT, r], buffers."""
    inputs, outputs = _largest(targets)
    return [
        (targets[0].path, Weight("pvera_A.default", (2 * config["r"], inputs), parameter=False)),
        (targets[0].path, Weight("pvera_B.default", (outputs, config["r"]), parameter=False)),
    ]


def randlora(target: Target, config: Config) -> list[Weight]:
    """Scales lambda [r, n] and gamma [n, min(in, out)] over n = ceil(min(in, out) / r) bases."""
    rank = config["r"]
    small = min(target.in_features, target.out_features)
    bases = -(-small // rank)
    return [
        Weight("randlora_lambda.default", (rank, bases)),
        Weight("randlora_gamma.default", (bases, small)),
    ]


def randlora_shared(targets: list[Target], config: Config) -> Shared:
    """The frozen bases A [r, 1, min(IN, OUT)] and B [max(IN, OUT), n, r], buffers.

    They are made in bfloat16, and moved to the type of the layer where it has one (not in 8 bits).
    """
    rank, first = config["r"], targets[0]
    small, large = sorted(_largest(targets))
    dtype = DType.BFLOAT16 if first.quantized and not first.packed else None
    return [
        (first.path, Weight("randlora_A.default", (rank, 1, small), dtype=dtype, parameter=False)),
        (first.path, Weight("randlora_B.default", (large, -(-small // rank), rank), dtype=dtype, parameter=False)),
    ]


def vblora(target: Target, config: Config) -> list[Weight]:
    """Logits over the vector bank: A [r, in / v, n] and B [out / v, r, n] for n vectors of length v."""
    rank, vectors, length = config["r"], config["num_vectors"], config["vector_length"]
    for size in (target.in_features, target.out_features):
        if size % length:
            raise InvalidValueError("peft.vector_length", length, f"a divisor of {size}, a size of {target.path}")
    return [
        Weight("vblora_logits_A.default", (rank, target.in_features // length, vectors)),
        Weight("vblora_logits_B.default", (target.out_features // length, rank, vectors)),
    ]


def vblora_shared(targets: list[Target], config: Config) -> Shared:
    """The vector bank [n, v]."""
    bank = Weight("vblora_vector_bank.default", (config["num_vectors"], config["vector_length"]))
    return [(targets[0].path, bank)]


def unilora(target: Target, config: Config) -> list[Weight]:
    """Indices into the shared vector and scales for every entry of A [r, in] and B [out, r], buffers."""
    a, b = (config["r"], target.in_features), (target.out_features, config["r"])
    # PEFT 0.21 moves the scales to the type of the stored weight (unilora/layer.py, update_scaling).
    scales = DType.UINT8 if target.quantized else None
    return [
        Weight("unilora_indices_A.default", a, dtype=DType.INT64, parameter=False),
        Weight("unilora_indices_B.default", b, dtype=DType.INT64, parameter=False),
        Weight("unilora_scales_A.default", a, dtype=scales, parameter=False),
        Weight("unilora_scales_B.default", b, dtype=scales, parameter=False),
    ]


def unilora_shared(targets: list[Target], config: Config) -> Shared:
    """The one trained vector."""
    return [(targets[0].path, Weight("unilora_theta_d.default", (config["theta_d_length"],)))]


def tinylora(target: Target, config: Config) -> list[Weight]:
    """Frozen buffers A [r, in], B [out, r] and the projections P [u, r, r]; of an embedding A [r, H] and B [V, r]."""
    inputs, outputs = target.in_features, target.out_features
    if target.kind is ModuleKind.EMBEDDING:
        inputs, outputs = outputs, inputs
    rank = min(config["r"], inputs, outputs)
    return [
        Weight("tinylora_A.default", (rank, inputs), parameter=False),
        Weight("tinylora_B.default", (outputs, rank), parameter=False),
        Weight("tinylora_P.default", (config["u"], rank, rank), parameter=False),
    ]


def tinylora_shared(targets: list[Target], config: Config) -> Shared:
    """The trained vectors v [u], one for each group of layers that `weight_tying` makes."""
    groups = max(1, round(len(targets) * (1.0 - config["weight_tying"])))
    size = max(1, len(targets) // groups)
    used = sorted({min(index // size, groups - 1) for index in range(len(targets))})
    return [(targets[0].path, Weight(f"tinylora_v.default.{group}", (config["u"],))) for group in used]


def frod_category(path: str) -> str:
    """The role of a module, by which FRoD shares its projections.

    Source: peft/tuners/frod/model.py, _category_from_key.
    """
    parts = path.split(".")
    if len(parts) == 1:
        return parts[0]
    if parts[-2].isdigit():
        return parts[-1]
    category = f"{parts[-2]}_{parts[-1]}"
    if category == "output_dense" and len(parts) >= 3 and parts[-3] == "attention":
        return "attention_output"
    return category


def _frod_nonzero(size: int, rate: float) -> int:
    off_diagonal = size * size - size
    number = min(int(size * size * rate), off_diagonal)
    return max(1, number) if rate > 0 and off_diagonal > 0 else number


def frod(target: Target, config: Config) -> list[Weight]:
    """The diagonal [in], the values of the sparse core, and the frozen rotation U [out, in], a buffer PEFT leaves uncast."""
    nonzero = _frod_nonzero(target.in_features, config["sparse_rate"])
    return [
        Weight("frod_lambda_l.default", (target.in_features,)),
        Weight("frod_lambda_s_values.default", (nonzero,)),
        Weight("frod_U.default", (target.out_features, target.in_features), autocast=False, parameter=False),
    ]


def frod_shared(targets: list[Target], config: Config) -> Shared:
    """For each role: the frozen projection V [in, in], and the places of the sparse core, buffers of the tuner itself."""
    found: Shared = []
    for category, target in {frod_category(target.path): target for target in reversed(targets)}.items():
        size = target.in_features
        nonzero = _frod_nonzero(size, config["sparse_rate"])
        for name, shape, dtype in (
            ("frod_V", (size, size), None),
            ("frod_s_indices", (2, nonzero), DType.INT64),
            ("frod_s_size", (2,), DType.INT64),
        ):
            weight = Weight(f"{name}.{category}.default", shape, dtype=dtype, autocast=False, parameter=False)
            found.append(("base_model", weight))
    return found


VERA = Tuner(
    LINEAR_OR_CONV1D,
    vera,
    "",
    shared=vera_shared,
    rewrite=lambda target, config: adapters.vera,
    options=lambda target, config: {"dropout": float(config["vera_dropout"])},
)
PVERA = Tuner(
    LINEAR_OR_CONV1D,
    pvera,
    "",
    shared=pvera_shared,
    rewrite=lambda target, config: pvera_step,
    options=lambda target, config: {
        "dropout": float(config["pvera_dropout"]),
        "samples_always": bool(config["sample_at_inference"]),
    },
)
RANDLORA = Tuner(
    LINEAR_OR_CONV1D,
    randlora,
    "",
    shared=randlora_shared,
    rewrite=lambda target, config: randlora_step,
    options=lambda target, config: {"dropout": float(config["randlora_dropout"])},
)
VBLORA = Tuner(
    LINEAR_OR_CONV1D,
    vblora,
    "",
    shared=vblora_shared,
    rewrite=lambda target, config: vblora_step,
    options=lambda target, config: {"dropout": float(config["vblora_dropout"]), "topk": config["topk"]},
)
UNILORA = Tuner(
    LINEAR_OR_CONV1D,
    unilora,
    "UniLoRA on quantized weights, to whose stored type PEFT 0.21 rounds its scales",
    shared=unilora_shared,
    rewrite=lambda target, config: unilora_step if not target.quantized else None,
    options=lambda target, config: {"dropout": float(config["unilora_dropout"])},
)
TINYLORA = Tuner(
    frozenset({*LINEAR_OR_CONV1D, ModuleKind.EMBEDDING}),
    tinylora,
    "TinyLoRA's projected core",
    shared=tinylora_shared,
    packed=False,
)
FROD = Tuner(LINEAR_OR_CONV1D, frod, "FRoD's sparse core", shared=frod_shared, packed=False)
