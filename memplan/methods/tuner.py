"""What a PEFT method is, to memplan: the tensors it puts on one layer, and those that all layers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from memplan.architecture import Module, ModuleKind
from memplan.dtypes import DType
from memplan.methods.state import Weight
from memplan.step.site import Creator, Rewrite

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """A module that a method adapts.

    Attributes:
        module: the base module.
        dtype: that adapters on it are created in.
        quantized: whether its weight is.
        packed: whether that is in 4 bits.
    """

    module: Module
    dtype: DType
    quantized: bool = False
    packed: bool = False

    @property
    def path(self) -> str:
        """Dotted path."""
        return self.module.path

    @property
    def kind(self) -> ModuleKind:
        """What kind of module it is."""
        return self.module.kind

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of its weight as stored before quantization."""
        return next(parameter.shape for parameter in self.module.parameters if parameter.name == "weight")

    @property
    def in_features(self) -> int:
        """Input size; `num_embeddings` of an embedding, input channels of a convolution."""
        return self.module.in_features or self.weight_shape[1]

    @property
    def out_features(self) -> int:
        """Output size; `embedding_dim` of an embedding, output channels of a convolution."""
        return self.module.out_features or self.weight_shape[0]

    @property
    def has_bias(self) -> bool:
        """Whether the base layer has a bias."""
        return any(parameter.name == "bias" for parameter in self.module.parameters)


LINEAR = frozenset({ModuleKind.LINEAR})
LINEAR_OR_CONV1D = frozenset({ModuleKind.LINEAR, ModuleKind.CONV1D})
LINEAR_OR_CONV = frozenset({ModuleKind.LINEAR, ModuleKind.CONV})

Options = Mapping[str, Any]
Weights = Callable[[Target, Config], list[Weight]]


@dataclass(frozen=True, slots=True)
class Tuner:
    """A method that wraps layers one by one.

    Attributes:
        kinds: layers that it can wrap.
        weights: the tensors on one layer.
        unwalked: what it does to the step, in words, where no rewrite walks it.
        rewrite: the layer's forward under the method, or a choice of it for a layer (None: not walked there).
        options: what the forward has to know of the config.
        creation: what making the adapter computes on the GPU, if it does.
        shared: tensors that several layers use, each with the path that it is named after.
        rank: key of the rank that must fit the layer, or "".
        packed: whether it works on weights that are packed in 4 bits; without it PEFT fails as it wraps the layer, or in
            the first forward (tried with bitsandbytes 0.50 on every method).
        check: refuses configs that PEFT refuses or memplan does not cover.
    """

    kinds: frozenset[ModuleKind]
    weights: Weights
    unwalked: str
    shared: Callable[[list[Target], Config], list[tuple[str, Weight]]] | None = None
    rank: str = ""
    check: Callable[[Config], None] | None = None
    packed: bool = True
    rewrite: Callable[[Target, Config], Rewrite | None] | None = None
    options: Callable[[Target, Config], Options] | None = None
    creation: Callable[[Target, Config], Creator | None] | None = None
