"""How far above the estimate a verdict's upper bound lies: what measured runs say, or a stated margin where too few are near.

The rows are `calibration.toml`, which `python -m memplan.evidence calibration` works out from the committed records. A row
is one kind of run on one compute capability. By split conformal prediction, of a row's n configurations the
ceil((n + 1) (1 - alpha))-th smallest relative under-prediction bounds a further run of the same kind with probability
1 - alpha, if it is exchangeable with them; that needs n >= 49 for alpha = 2 %. What exchangeable asks for is taken
strictly: configurations of several models, none of whose settings were assumed or told from the reading itself, a family
that has several among them, and a size within their range. Everything else gets the stated margin, or a wider one where
runs of the row exceeded it; never a narrower one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

from memplan.catalog.gpus import Gpu
from memplan.units import GIB, format_bytes

TABLE = Path(__file__).resolve().parent / "calibration.toml"

# Where no measured runs are near, the margin is stated, not measured: the larger of a fifth of the estimate and 2 GiB.
STATED_FRACTION = (1, 5)
STATED_FLOOR_BYTES = 2 * GIB
_PPM = 10**6


class RunKind(StrEnum):
    """What decides how a run's memory is made up: what is trained, on which base.

    Adapters of different mechanics are not exchangeable: what errors of LoRA bound says nothing about OFT's rotations.
    """

    FULL = "full"
    ADAPTER = "adapter"  # two low-rank factors beside a linear layer: LoRA, whatever it starts from
    OTHER_ADAPTER = "other_adapter"
    PROMPT = "prompt"
    QUANTIZED_ADAPTER = "quantized_adapter"
    QUANTIZED_OTHER_ADAPTER = "quantized_other_adapter"


# PEFT types that prepend something to the sequence or to keys and values, on a base of any storage.
_PROMPTS = frozenset({
    "PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE", "ADAPTION_PROMPT",
})  # fmt: skip
# Methods that are LoRA under any of these names; their `peft` may be absent from a record's keys.
_LORA_METHODS = frozenset({"lora", "qlora", "rslora", "pissa", "olora", "loftq", "eva", "corda", "lora_ga"})
# Initialisations of LoRA by `torch.linalg.svd`. The workspace is what cusolverDn<t>gesvdj_bufferSize says, in an `int` of
# float32 elements (aten/src/ATen/native/cuda/linalg/BatchLinearAlgebraLib.cpp, apply_svd_cusolver_gesvdj; the same type in
# apply_svd_cusolver_gesvd, its fallback); NVIDIA gives no formula, so this is the most that the interface can ask for.
_SVD_INITS = frozenset({"pissa", "loftq"})
SVD_WORKSPACE_BYTES = (2**31 - 1) * 4


@dataclass(frozen=True, slots=True)
class Run:
    """What is near a run: its kind and its model's family (`model_type`).

    Attributes:
        unseen_bytes: the most that a library may take at one moment beside what is counted, which the upper bound adds.
    """

    kind: RunKind
    family: str
    unseen_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kind of run on one compute capability.

    Attributes:
        where: `sm90`, or a profile's own card.
        configurations: distinct recipes measured.
        counted: those of them that can bound others (see the module).
        models: of the counted.
        families: of the counted, those with enough configurations of their own.
        low_bytes, high_bytes: range of the counted ones' predicted reserved bytes.
        worst_ppm: largest under-prediction of all, in millionths of the prediction.
        bound_ppm: the conformal bound; None where too few count.
        date: of the youngest record.
    """

    where: str
    kind: RunKind
    configurations: int
    counted: int
    models: int
    families: tuple[str, ...]
    low_bytes: int
    high_bytes: int
    worst_ppm: int
    bound_ppm: int | None
    date: str


@dataclass(frozen=True, slots=True)
class Margin:
    """Bytes above the expected ones, and how they were obtained."""

    bytes: int
    text: str


# Rows of the user's own card, by its id: measured by `memplan calibrate`, in force once `memplan.profiles` is told so.
LOCAL_ROWS: dict[str, tuple[Row, ...]] = {}


def run_of(values: Mapping[str, Any], family: str) -> Run:
    """The run that resolved recipe values describe."""
    method, peft = str(values.get("method", "full")), values.get("peft") or {}
    quantized = bool(values.get("load_in_4bit") or values.get("load_in_8bit") or values.get("quantization_config"))
    if method in ("full", "bitfit"):
        return Run(RunKind.FULL, family)
    if str(peft.get("peft_type") or method.upper()) in _PROMPTS:
        return Run(RunKind.PROMPT, family)
    if method in _LORA_METHODS and not peft.get("use_dora"):
        unseen = SVD_WORKSPACE_BYTES if peft.get("init_lora_weights") in _SVD_INITS else 0
        return Run(RunKind.QUANTIZED_ADAPTER if quantized else RunKind.ADAPTER, family, unseen)
    return Run(RunKind.QUANTIZED_OTHER_ADAPTER if quantized else RunKind.OTHER_ADAPTER, family)


def stated_bytes(expected_bytes: int) -> int:
    """The stated margin above `expected_bytes`."""
    numerator, denominator = STATED_FRACTION
    return max(expected_bytes * numerator // denominator, STATED_FLOOR_BYTES)


def margin(gpu: Gpu, run: Run | None, reserved_bytes: int, expected_bytes: int) -> Margin:
    """What lies between expected and upper bound, beside the context.

    What the run may take unseen comes on top, as if it were taken at the peak and never given back.

    Args:
        gpu: the card that is judged.
        run: what was run; None where it is not known, which leaves the stated margin.
        reserved_bytes: predicted, in torch's allocator.
        expected_bytes: the same with the context.
    """
    seen = _margin(gpu, run, reserved_bytes, expected_bytes)
    if run is None or not run.unseen_bytes:
        return seen
    text = f"{seen.text}; and {format_bytes(run.unseen_bytes)}, the most that cuSOLVER's workspace for an SVD can be"
    return Margin(seen.bytes + run.unseen_bytes, text)


def _margin(gpu: Gpu, run: Run | None, reserved_bytes: int, expected_bytes: int) -> Margin:
    stated = stated_bytes(expected_bytes)
    near = _near(gpu, run) if run is not None else []
    profile = "".join(f"; profile of this card of {row.date}" for row in near if row.where == gpu.id)
    worst = max((reserved_bytes * row.worst_ppm // _PPM for row in near), default=0)
    own_worst = max((reserved_bytes * row.worst_ppm // _PPM for row in near if row.where == gpu.id), default=0)
    for row in near:
        if run is not None and _bounds(row, run, reserved_bytes):
            bound = row.bound_ppm or 0
            text = (
                f"calibrated on {row.counted} configurations of {row.models} models ({row.where}, {row.kind}), {row.date}: "
                f"98 % of such runs stay within {bound / 10_000:.1f} % of the estimate; and the highest known CUDA context"
            )
            return Margin(max(reserved_bytes * bound // _PPM, own_worst), text + profile)
    if worst > stated:
        widest = f"the largest excess among {sum(row.configurations for row in near)} measured configurations"
        return Margin(worst, f"stated and widened: {widest}, and the highest known CUDA context{profile}")
    text = "stated, not calibrated: the larger of 20 % and 2 GiB, and the highest known CUDA context"
    for row in near:
        text += (
            f"; {row.configurations} measured configurations are near ({row.where}, {row.kind}), {row.counted} count"
        )
    return Margin(stated, text + profile)


def _bounds(row: Row, run: Run, reserved_bytes: int) -> bool:
    """Whether enough runs stand behind a row, and this one lies among them."""
    return (
        row.bound_ppm is not None and run.family in row.families and row.low_bytes <= reserved_bytes <= row.high_bytes
    )


def _near(gpu: Gpu, run: Run) -> list[Row]:
    """Rows of the run's kind: the user's own card's, then its compute capability's."""
    found = [row for row in LOCAL_ROWS.get(gpu.id, ()) if row.kind is run.kind]
    if gpu.compute_capability is not None:
        major, minor = gpu.compute_capability
        committed = rows().get((f"sm{major}{minor}", run.kind))
        found += [committed] if committed is not None else []
    return found


@lru_cache(maxsize=1)
def rows() -> dict[tuple[str, RunKind], Row]:
    """The committed rows."""
    if not TABLE.exists():
        return {}
    with TABLE.open("rb") as file:
        found = [
            Row(
                **{
                    **entry,
                    "kind": RunKind(entry["kind"]),
                    "families": tuple(entry["families"]),
                    "bound_ppm": entry.get("bound_ppm"),
                }
            )
            for entry in tomllib.load(file).get("row", ())
        ]
    return {(row.where, row.kind): row for row in found}
