"""What stands at a module path in a given run: its parameters as stored, and how a method has rewritten it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memplan.dtypes import DType
from memplan.quantization import Quantization

# The forward of an adapted layer: called with the layer (`memplan.step.adapters.layer.AdaptedLayer`) and its input; of an
# adapted module: with the tape, its input and what it is made of.
Rewrite = Callable[..., Any]
Creator = Callable[[Any], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class SiteParameter:
    """One parameter as it is in memory: its element type (a quantized weight's is the one it was loaded in), trained or not."""

    name: str
    dtype: DType
    trainable: bool


@dataclass(frozen=True, slots=True)
class LoraSite:
    """Plain LoRA on a linear module: `result + B(A(dropout(x))) * scaling`.

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
class AdapterTensor:
    """A parameter or buffer of an adapter.

    Attributes:
        name: as PEFT calls it, without the adapter's name: `lora_A`, `lora_B.bias`, `oft_R.rows`.
        shape, dtype, trainable: as they stand.
        owner: path of the layer that it is named after, if layers share it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    trainable: bool
    owner: str = ""


def adapter_tensor_name(name: str) -> str:
    """A tensor's name below its layer without the adapter's: `lora_A.default.weight` is `lora_A`."""
    return name.replace(".default", "").removesuffix(".weight")


@dataclass(frozen=True, slots=True)
class AdapterSite:
    """What a method puts on a module and how the module's forward changes.

    Attributes:
        rewrite: the forward of the adapted layer (`memplan.step.adapters`).
        tensors: the adapter's parameters and buffers.
        options: what the config says about this layer, by key.
        creation: what making the adapter computes: called with the layer, returns the tensors that stay, by name.
    """

    rewrite: Rewrite
    tensors: tuple[AdapterTensor, ...]
    options: tuple[tuple[str, Any], ...] = ()
    creation: Creator | None = None


@dataclass(frozen=True, slots=True)
class PromptSite:
    """Virtual tokens before every sequence, or in every layer's cache.

    Attributes:
        encode: makes their embeddings [B, N, H] (`memplan.step.adapters.prompts`), or all keys and values
            (`memplan.step.adapters.prefix`): called with the tape and this.
        tensors: the encoder's parameters.
        tokens: N.
        dtype: of the base model, to which keys and values are cast.
        key_values: layers, key/value heads and head size of a prefix; None for embeddings.
        returns_cache: the model's outputs hold the cache that it was given, whether or not `use_cache` is set.
    """

    encode: Rewrite
    tensors: tuple[AdapterTensor, ...]
    tokens: int
    dtype: DType = DType.FLOAT32
    key_values: tuple[int, int, int] | None = None
    returns_cache: bool = False


@dataclass(frozen=True, slots=True)
class Site:
    """A module in a run. Equal sites behave alike, so that equal layers are executed once."""

    parameters: tuple[SiteParameter, ...]
    quantized: Quantization | None = None
    adapter: AdapterSite | None = None

    def parameter(self, name: str) -> SiteParameter | None:
        """The parameter `name`, if the module has one."""
        for entry in self.parameters:
            if entry.name == name:
                return entry
        return None
