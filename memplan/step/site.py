"""What stands at a module path in a given run: its parameters as stored, and how a method has rewritten it."""

from __future__ import annotations

from dataclasses import dataclass

from memplan.dtypes import DType
from memplan.quantization import Quantization


@dataclass(frozen=True, slots=True)
class SiteParameter:
    """One parameter as it is in memory: its element type (a quantized weight's is the one it was loaded in), trained or not."""

    name: str
    dtype: DType
    trainable: bool


@dataclass(frozen=True, slots=True)
class LoraSite:
    """Plain LoRA on a module: `result + B(A(dropout(x))) * scaling`.

    Attributes:
        rank: of this module (`rank_pattern` applied).
        dropout: probability.
        dtype: of the adapter's weights (float32 unless `autocast_adapter_dtype` is off).
        bias: whether `lora_bias` adds a bias to B.
    """

    rank: int
    dropout: float
    dtype: DType
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Site:
    """A module in a run. Equal sites behave alike, so that equal layers are executed once."""

    parameters: tuple[SiteParameter, ...]
    quantized: Quantization | None = None
    lora: LoraSite | None = None

    def parameter(self, name: str) -> SiteParameter | None:
        """The parameter `name`, if the module has one."""
        for entry in self.parameters:
            if entry.name == name:
                return entry
        return None
