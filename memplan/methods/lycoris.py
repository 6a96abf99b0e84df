"""LoHa and LoKr: Hadamard and Kronecker products of low-rank factors.

Symbols: r rank; out = a c and in = b d factored as near to a square as they go.

Source: peft/tuners/{loha,lokr}/layer.py (PEFT 0.21.2), after LyCORIS.
"""

from __future__ import annotations

from collections.abc import Callable

from memplan.architecture import ModuleKind
from memplan.methods.lora import rank_of
from memplan.methods.state import Weight
from memplan.methods.tuner import LINEAR_OR_CONV, Config, Target, Tuner
from memplan.step.adapters import lycoris as adapters
from memplan.step.site import Rewrite


def loha(target: Target, config: Config) -> list[Weight]:
    """Two pairs w_a [out, r], w_b [r, in]; with `use_effective_conv2d` a core t [r, r, kernel] for each as well."""
    rank = rank_of(config, target.path)
    outputs, *inputs = target.weight_shape
    kernel = inputs[1:]
    if target.kind is ModuleKind.CONV and config["use_effective_conv2d"] and any(size != 1 for size in kernel):
        core = (rank, rank, *kernel) if len(kernel) == 2 else (rank, rank, kernel[0], 1)
        return [
            Weight(f"hada_{name}.default", shape)
            for pair in ("1", "2")
            for name, shape in (
                (f"t{pair}", core),
                (f"w{pair}_a", (rank, outputs)),
                (f"w{pair}_b", (rank, inputs[0])),
            )
        ]
    flat = 1
    for size in inputs:
        flat *= size
    return [
        Weight(f"hada_w{pair}_{side}.default", shape)
        for pair in ("1", "2")
        for side, shape in (("a", (outputs, rank)), ("b", (rank, flat)))
    ]


def factorization(dimension: int, factor: int = -1) -> tuple[int, int]:
    """Two numbers whose product is `dimension`, the smaller first: near `factor`, or near the square root if -1.

    Source: peft/tuners/lokr/layer.py, factorization.
    """
    if factor > 0 and dimension % factor == 0:
        return factor, dimension // factor
    if factor == -1:
        factor = dimension
    small, large = 1, dimension
    length = small + large
    while small < large:
        candidate = small + 1
        while dimension % candidate:
            candidate += 1
        partner = dimension // candidate
        if candidate + partner > length or candidate > factor:
            break
        small, large = candidate, partner
    return (large, small) if small > large else (small, large)


def lokr(target: Target, config: Config) -> list[Weight]:
    """w1 [a, b] and w2 [c, d]; w2, and with `decompose_both` w1, in factors of rank r where r is small enough."""
    rank = rank_of(config, target.path)
    outputs, inputs, *kernel = target.weight_shape
    b, d = factorization(inputs, config["decompose_factor"])
    a, c = factorization(outputs, config["decompose_factor"])
    if config["decompose_both"] and rank < max(a, b) / 2:
        weights = [Weight("lokr_w1_a.default", (a, rank)), Weight("lokr_w1_b.default", (rank, b))]
    else:
        weights = [Weight("lokr_w1.default", (a, b))]
    if rank >= max(c, d) / 2:
        return [*weights, Weight("lokr_w2.default", (c, d, *kernel))]
    if kernel and config["use_effective_conv2d"] and any(size != 1 for size in kernel):
        core = (rank, rank, *kernel) if len(kernel) == 2 else (rank, rank, kernel[0], 1)
        return [
            *weights,
            Weight("lokr_t2.default", core),
            Weight("lokr_w2_a.default", (rank, c)),
            Weight("lokr_w2_b.default", (rank, d)),
        ]
    flat = d
    for size in kernel:
        flat *= size
    return [*weights, Weight("lokr_w2_a.default", (c, rank)), Weight("lokr_w2_b.default", (rank, flat))]


def _rewrite(forward: Rewrite) -> Callable[[Target, Config], Rewrite | None]:
    def choose(target: Target, config: Config) -> Rewrite | None:
        drops = config["rank_dropout"] or config["module_dropout"]
        return forward if target.kind is ModuleKind.LINEAR and not drops else None

    return choose


LOHA = Tuner(
    LINEAR_OR_CONV,
    loha,
    "LoHa on convolutions or with dropout",
    rank="r",
    packed=False,
    rewrite=_rewrite(adapters.loha),
)
LOKR = Tuner(
    LINEAR_OR_CONV, lokr, "LoKr on convolutions or with dropout", packed=False, rewrite=_rewrite(adapters.lokr)
)
