"""Methods whose update is a product of low-rank factors in some form other than LoRA's.

Symbols: r rank, in and out the sizes of the layer.

Source: peft/tuners/<method>/layer.py (PEFT 0.21.2).
"""

from __future__ import annotations

from memplan.architecture import ModuleKind
from memplan.errors import InvalidValueError, UnsupportedError
from memplan.methods.lora import rank_of
from memplan.methods.state import Weight
from memplan.methods.targets import is_all_linear
from memplan.methods.tuner import LINEAR, LINEAR_OR_CONV1D, Config, Target, Tuner
from memplan.step.adapters import adalora as adapters
from memplan.step.adapters import deft as deft_step
from memplan.step.adapters import peanut as peanut_step
from memplan.step.adapters.delora import delora as delora_step
from memplan.step.adapters.glora import glora as glora_step
from memplan.step.adapters.gralora import gralora as gralora_step
from memplan.step.adapters.hira import hira as hira_step

_CONVOLUTIONS = frozenset({*LINEAR_OR_CONV1D, ModuleKind.CONV})


def adalora(target: Target, config: Config) -> list[Weight]:
    """A [r, in], B [out, r], the singular values E [r, 1], and the count of ranks kept, at rank `init_r`.

    The count is created frozen, but moving it to the layer's device or dtype makes a new parameter of it, which
    requires a gradient, gets one and is trained; only on a CPU in float32 nothing moves.
    """
    rank = config["init_r"]
    inputs = target.in_features
    for size in target.weight_shape[2:]:
        inputs *= size
    return [
        Weight("lora_A.default", (rank, inputs)),
        Weight("lora_B.default", (target.out_features, rank)),
        Weight("lora_E.default", (rank, 1)),
        Weight("ranknum.default", (1,)),
    ]


def _check_adalora(config: Config) -> None:
    step = config["total_step"]
    if not isinstance(step, int) or step <= 0:
        raise InvalidValueError("peft.total_step", step, "AdaLoRA needs the number of training steps")
    if config["use_dora"] or config["loftq_config"]:
        raise InvalidValueError("peft.use_dora", config["use_dora"], "AdaLoRA has neither DoRA nor LoftQ")
    if config["tinit"] >= step - config["tfinal"]:
        raise InvalidValueError(
            "peft.total_step", step, "more than tinit + tfinal, or no step is left to prune ranks in"
        )


def hira(target: Target, config: Config) -> list[Weight]:
    """A [r, in] and B [out, r], multiplied elementwise with the weight.

    PEFT 0.21 drops `rank_pattern` on its way to layers that are not quantized (hira/layer.py, dispatch_default).
    """
    rank = rank_of(config, target.path) if target.quantized else config["r"]
    kernel = target.weight_shape[2:]
    name = "hira_embedding" if target.kind is ModuleKind.EMBEDDING else "hira"
    ones = (1,) * len(kernel)
    return [
        Weight(f"{name}_A.default", (rank, target.in_features, *kernel)),
        Weight(f"{name}_B.default", (target.out_features, rank, *ones)),
    ]


def delora(target: Target, config: Config) -> list[Weight]:
    """A [r, in], B [out, r], the bound lambda [1], and the weight's column norms [in]."""
    rank = rank_of(config, target.path)
    return [
        Weight("delora_A.default", (rank, target.in_features)),
        Weight("delora_B.default", (target.out_features, rank)),
        Weight("delora_lambda.default", (1,)),
        Weight("delora_w_norm.default", (target.in_features,), parameter=False),
    ]


def deft(target: Target, config: Config) -> list[Weight]:
    """P [out, r] and R [r, in]; PaRa (`para`) has P alone."""
    rank = min(config["r"], target.out_features)
    weights = [Weight("deft_P.default", (target.out_features, rank))]
    return weights if config["para"] else [*weights, Weight("deft_R.default", (rank, target.in_features))]


def gralora(target: Target, config: Config) -> list[Weight]:
    """A [k, in / k, r] and B [k, r, out / k] over k sub-blocks, and a plain pair of rank `hybrid_r`."""
    rank, blocks, hybrid = config["r"], config["gralora_k"], config["hybrid_r"]
    inputs, outputs = target.in_features, target.out_features
    if inputs % blocks or outputs % blocks:
        raise InvalidValueError("peft.gralora_k", blocks, f"a divisor of {inputs} and {outputs} of {target.path}")
    weights = [
        Weight("gralora_A.default", (blocks, inputs // blocks, rank)),
        Weight("gralora_B.default", (blocks, rank, outputs // blocks)),
    ]
    if hybrid:
        weights += [
            Weight("gralora_A_general.default.weight", (hybrid, inputs)),
            Weight("gralora_B_general.default.weight", (outputs, hybrid)),
        ]
    return weights


def _check_gralora(config: Config) -> None:
    if not isinstance(config["gralora_k"], int) or config["gralora_k"] < 1 or config["r"] % config["gralora_k"]:
        raise InvalidValueError("peft.gralora_k", config["gralora_k"], f"a divisor of the rank {config['r']}")


def peanut(target: Target, config: Config) -> list[Weight]:
    """A [r, out] and B [out, r], with `depth` square layers [r, r] before and after the middle."""
    rank, depth = config["r"], config["depth"]
    inner = [
        Weight(f"peanut_{side}.default.{index}.weight", (rank, rank))
        for side in ("encoders", "decoders")
        for index in range(depth)
    ]
    return [
        Weight("peanut_A.default.weight", (rank, target.out_features)),
        Weight("peanut_B.default.weight", (target.out_features, rank)),
        *inner,
    ]


def poly(target: Target, config: Config) -> list[Weight]:
    """A and B for each of `n_skills` skills and `n_splits` splits, and the logits of the router."""
    rank, skills, splits = config["r"], config["n_skills"], config["n_splits"]
    return [
        Weight("poly_router.default.module_logits", (config["n_tasks"], splits * skills)),
        Weight("poly_lora_A.default", (splits, skills, target.in_features // splits, rank)),
        Weight("poly_lora_B.default", (splits, skills, rank, target.out_features // splits)),
    ]


def glora(target: Target, config: Config) -> list[Weight]:
    """Scale A and shift B of the weight, prompt C, scale D and shift E of the bias, each of the form its option names.

    Forms: `lora` (two factors), `vector`, `constant`, or zeros that are buffers. C, D and E need a bias on the layer.
    """
    rank = config["r"]
    inputs, outputs = target.in_features, target.out_features
    weights = []
    for name in ("A", "B"):
        if config["config_A_B"] == "lora":
            weights += [
                Weight(f"glora_{name}.default.Xd", (outputs, rank)),
                Weight(f"glora_{name}.default.Xu", (rank, inputs)),
            ]
        else:
            weights.append(_glora_path(name, config["config_A_B"], (outputs, 1), zeros=(outputs, inputs)))
    form = config["config_C"] if target.has_bias else "none"
    if form == "lora":
        weights += [Weight("glora_C.default.Xd", (inputs, rank)), Weight("glora_C.default.Xu", (rank, 1))]
    else:
        weights.append(_glora_path("C", form if form == "vector" else "none", (inputs, 1), zeros=(inputs, 1)))
    for name in ("D", "E"):
        form = config["config_D_E"] if target.has_bias else "none"
        weights.append(_glora_path(name, form, (outputs,), zeros=(outputs,)))
    return weights


def _glora_path(name: str, form: str, vector: tuple[int, ...], *, zeros: tuple[int, ...]) -> Weight:
    if form == "vector":
        return Weight(f"glora_{name}.default.X", vector)
    if form == "constant":
        return Weight(f"glora_{name}.default.X", (1,))
    return Weight(f"glora_{name}.default.zeros", zeros, parameter=False, autocast=False)


def _check_glora(config: Config) -> None:
    for key, allowed in (
        ("config_A_B", ("lora", "vector", "constant", "none")),
        ("config_C", ("lora", "vector", "none")),
        ("config_D_E", ("vector", "constant", "none")),
    ):
        if config[key] not in allowed:
            raise InvalidValueError(f"peft.{key}", config[key], ", ".join(allowed))


def lily(target: Target, config: Config) -> list[Weight]:
    """The router [num_B, r] of one layer; A and B are shared (see `lily_shared`)."""
    return [Weight("lily_router.default.weight", (config["num_B"], config["r"]))]


def lily_shared(targets: list[Target], config: Config) -> list[tuple[str, Weight]]:
    """A [r, in] for each `stride_A` layers and B [num_B r, out] for all layers, by target name and weight shape."""
    names = config["target_modules"]
    groups: dict[tuple[str, tuple[int, ...]], list[Target]] = {}
    for target in targets:
        matched = names if isinstance(names, str) else next(name for name in names if target.path.endswith(name))
        groups.setdefault((matched, target.weight_shape), []).append(target)
    found = []
    for members in groups.values():
        first = members[0]
        shared_b = Weight("lily_B.default.weight", (config["num_B"] * config["r"], first.out_features))
        found.append((first.path, shared_b))
        for owner in members[:: config["stride_A"]]:
            found.append((owner.path, Weight("lily_A.default.weight", (config["r"], owner.in_features))))
    return found


def _check_lily(config: Config) -> None:
    if config["num_B"] < 2 or config["stride_A"] < 1:
        raise InvalidValueError("peft.num_B", config["num_B"], "at least 2, with stride_A at least 1")
    if is_all_linear(config["target_modules"]):
        # PEFT condenses the list of all paths to suffixes and shares by those, which nothing documents.
        raise UnsupportedError("Lily with target_modules all-linear is not covered", hint="name the modules")


ADALORA = Tuner(
    _CONVOLUTIONS,
    adalora,
    "AdaLoRA on convolutions",
    rank="init_r",
    check=_check_adalora,
    rewrite=lambda target, config: adapters.adalora if target.kind is not ModuleKind.CONV else None,
    options=lambda target, config: {"dropout": float(config["lora_dropout"])},
)
HIRA = Tuner(
    frozenset({*_CONVOLUTIONS, ModuleKind.EMBEDDING}),
    hira,
    "HiRA on Conv1D, embeddings and convolutions",
    rank="r",
    rewrite=lambda target, config: hira_step if target.kind is ModuleKind.LINEAR else None,
    options=lambda target, config: {"dropout": float(config["hira_dropout"])},
)
DELORA = Tuner(
    LINEAR,
    delora,
    "DeLoRA on quantized weights",
    rank="r",
    packed=False,
    rewrite=lambda target, config: delora_step if not target.quantized else None,
    options=lambda target, config: {"dropout": float(config["module_dropout"])},
)
DEFT = Tuner(
    LINEAR_OR_CONV1D,
    deft,
    "DEFT with a QR decomposition, or on quantized weights",
    packed=False,
    rewrite=lambda target, config: (
        deft_step.deft if config["decomposition_method"] == "relu" and not target.quantized else None
    ),
    creation=lambda target, config: deft_step.creation if config["init_weights"] and not config["para"] else None,
    options=lambda target, config: {"dropout": float(config["deft_dropout"])},
)
GRALORA = Tuner(
    LINEAR_OR_CONV1D,
    gralora,
    "GraLoRA on weights in 8 bits, whose results are views that PEFT 0.21 adds to in place, or on kv_b_proj, whose input has "
    "four dimensions: the run stops",
    rank="r",
    check=_check_gralora,
    rewrite=lambda target, config: (
        gralora_step if (target.packed or not target.quantized) and not target.path.endswith(".kv_b_proj") else None
    ),
    options=lambda target, config: {"dropout": float(config["gralora_dropout"])},
)
PEANUT = Tuner(
    LINEAR,
    peanut,
    "PEANuT with another act_fn than " + ", ".join(peanut_step.ACTIVATIONS) + ", or on quantized weights",
    rank="r",
    packed=False,
    rewrite=lambda target, config: (
        peanut_step.peanut if config["act_fn"] in peanut_step.ACTIVATIONS and not target.quantized else None
    ),
    options=lambda target, config: {"act_fn": config["act_fn"], "depth": config["depth"]},
)
POLY = Tuner(LINEAR, poly, "Poly's routed factors", rank="r")
GLORA = Tuner(
    LINEAR,
    glora,
    "GLoRA on quantized weights",
    rank="r",
    check=_check_glora,
    packed=False,
    rewrite=lambda target, config: glora_step if not target.quantized else None,
)
LILY = Tuner(LINEAR, lily, "Lily's routed factors", shared=lily_shared, rank="r", check=_check_lily)
