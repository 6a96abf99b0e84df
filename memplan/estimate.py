"""The answer: one shape for analytic estimates, traces and measurements.

Every size is an int of bytes. Invariants are checked when an `Estimate` is made: the components sum to the live
peak, the levels are ordered, and an estimate with anything unsupported never says `fits`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PrivateAttr, model_validator

SCHEMA_VERSION = 1


class Component(StrEnum):
    """What a byte is for."""

    WEIGHTS = "weights"  # base parameters as stored, frozen or trained, quantized data included
    QUANTIZATION_STATE = "quantization_state"  # absmax, nested absmax, code books, offsets
    ADAPTERS = "adapters"  # parameters that the method adds
    BUFFERS = "buffers"  # persistent and non-persistent module buffers, and the batch itself
    GRADIENTS = "gradients"  # of parameters
    MASTER_WEIGHTS = "master_weights"  # fp32 copies that a precision policy keeps
    OPTIMIZER_STATES = "optimizer_states"
    ACTIVATIONS = "activations"  # saved for backward
    LOGITS_AND_LOSS = "logits_and_loss"  # the output embedding's result and all that the loss computes from it
    TEMPORARIES = "temporaries"  # kernel workspaces, dequantized weights, foreach temporaries, cast caches
    KV_CACHE = "kv_cache"
    ALLOCATOR_CACHE = "allocator_cache"  # reserved - allocated
    CUDA_CONTEXT = "cuda_context"


class Phase(StrEnum):
    """A stretch of a training run. The loss is the end of `forward`."""

    LOAD = "load"
    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER_STEP = "optimizer_step"
    EVALUATION = "evaluation"  # after a step, where the recipe evaluates
    GENERATION = "generation"  # after a step, where the recipe generates
    SAVE = "save"  # of a checkpoint, after a step
    MERGE = "merge"  # of an adapter into the base, after the last step


class Fits(StrEnum):
    """The verdict's word; true in a condition only where it is `fits`."""

    FITS = "fits"
    UNCERTAIN = "uncertain"
    DOES_NOT_FIT = "does_not_fit"

    def __bool__(self) -> bool:
        return self is Fits.FITS


class Provenance(StrEnum):
    """Which of the three answers a number is."""

    ANALYTIC = "analytic"
    TRACE = "trace"
    MEASURED = "measured"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_enum_values=False)


class Parameters(_Model):
    """Exact element counts, as PEFT's `print_trainable_parameters` counts them."""

    total: int
    trainable: int

    @property
    def trainable_percent(self) -> float:
        """100 * trainable / total."""
        return 100 * self.trainable / self.total if self.total else 0.0


class BytesPerParameter(_Model):
    """Bytes of one *trained* parameter under the recipe's precision policy and optimizer."""

    weights: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        """The classic single figure, e.g. 16 for Adam with mixed precision."""
        return self.weights + self.gradients + self.optimizer


class Peak(_Model):
    """The highest moment of the run at four levels, and when it happens.

    Attributes:
        live_bytes: storages alive, each rounded to 512 bytes.
        allocated_bytes: `torch.cuda.max_memory_allocated`.
        reserved_bytes: `torch.cuda.max_memory_reserved`.
        device_bytes: what the card must have: reserved + CUDA context.
        at: the op and module at the live peak.
    """

    live_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    device_bytes: int
    step: int
    phase: Phase
    at: str


class ComponentBytes(_Model):
    """Bytes of one component alive at the peak."""

    component: Component
    bytes: int


class TimelinePoint(_Model):
    """One phase of one step: its own peak, and what is alive when it ends."""

    step: int
    phase: Phase
    peak_bytes: int
    end_bytes: int


class VerdictReport(_Model):
    """Whether the run fits a GPU, judged on device bytes.

    Attributes:
        usable_bytes: what torch can see of the card.
        expected_bytes: the estimate at device level.
        upper_bytes: expected plus the margin; `fits` needs this to be within `usable_bytes`.
        headroom_bytes: usable - expected.
        margin: how the margin was obtained, in words.
    """

    gpu: str
    usable_bytes: int
    expected_bytes: int
    upper_bytes: int
    headroom_bytes: int
    fits: Fits
    margin: str


class Line(_Model):
    """One line of the receipt: a group of equal storages alive at the peak.

    Attributes:
        module: module path with the layer range it stands for, e.g. `model.layers.{0..31}.mlp.gate_proj`.
        formula: product of symbols times bytes per element, e.g. `B·S·I × 2`.
        numbers: the formula with its numbers, e.g. `4·768·8192 × 2`.
        count: how many such storages are alive.
        bytes: of all of them, each rounded to a 512-byte block.
    """

    component: Component
    module: str
    op: str
    formula: str
    numbers: str
    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Receipt:
    """What makes the lines of an estimate; two estimates are equal whatever makes theirs."""

    write: Callable[[], tuple[Line, ...]] = field(compare=False)


class Estimate(_Model):
    """How much memory a run needs, where it goes and when.

    `components` are what is alive at the live peak; they sum to `peak.live_bytes`.
    """

    schema_version: int = SCHEMA_VERSION
    recipe: dict[str, Any]
    recipe_sources: dict[str, str] = Field(default_factory=dict)
    parameters: Parameters
    bytes_per_parameter: BytesPerParameter
    peak: Peak
    components: tuple[ComponentBytes, ...]
    timeline: tuple[TimelinePoint, ...]
    host_bytes: int = 0
    verdict_report: VerdictReport | None = Field(
        default=None, serialization_alias="verdict", validation_alias=AliasChoices("verdict_report", "verdict")
    )
    assumptions: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()
    provenance: Provenance
    versions: dict[str, str] = Field(default_factory=dict)
    _receipt: _Receipt | None = PrivateAttr(default=None)

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """The receipt: everything alive at the peak, line by line; empty where the answer came without one."""
        return self._receipt.write() if self._receipt is not None else ()

    def write_lines_with(self, write: Callable[[], tuple[Line, ...]]) -> None:
        """Set what makes `lines`, which few callers ask for and which takes longer than the estimate."""
        self._receipt = _Receipt(write)

    @model_validator(mode="after")
    def _check_invariants(self) -> Estimate:
        total = sum(entry.bytes for entry in self.components)
        assert total == self.peak.live_bytes, f"components sum to {total}, peak is {self.peak.live_bytes}"
        peak = self.peak
        assert peak.live_bytes <= peak.allocated_bytes <= peak.reserved_bytes <= peak.device_bytes, peak
        if self.unsupported and self.verdict_report is not None:
            assert self.verdict_report.fits is not Fits.FITS, "an estimate with unsupported parts cannot fit"
        return self

    def component_bytes(self, component: Component) -> int:
        """Bytes of `component` alive at the peak."""
        return sum(entry.bytes for entry in self.components if entry.component is component)

    def verdict(self, gpu: str | None = None) -> VerdictReport:
        """The verdict on `gpu` (any name of `memplan gpus`), or on the recipe's own GPU.

        Raises:
            UnknownNameError: no such GPU.
            InputError: no GPU was named anywhere.
        """
        from memplan.verdict import verdict_on

        return verdict_on(self, gpu)

    def to_json(self, *, indent: int | None = 2) -> str:
        """The public JSON form (keys of the contract; `lines` are left to `explain`)."""
        return self.model_dump_json(by_alias=True, indent=indent)


ProvenanceName = Literal["analytic", "trace", "measured"]
