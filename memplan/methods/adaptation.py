"""What a fine-tuning method does to a model: which parameters train, which are added, which modules are rewritten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod
from operator import index

from memplan.step.site import AdapterSite, LoraSite, PromptSite


class AddedKind(StrEnum):
    """Why a parameter was added; decides its element type and component."""

    ADAPTER = "adapter"  # float32 when `autocast_adapter_dtype` casts it, else as the method creates it
    COPY = "copy"  # `modules_to_save`: a trainable copy of base weights, in their dtype unless PEFT casts it
    PROMPT = "prompt"  # virtual token embeddings and prompt encoders


@dataclass(frozen=True, slots=True)
class AddedParameter:
    """A parameter that the method adds.

    Attributes:
        name: as in `peft_model.named_parameters()`, without the leading `base_model.model.`.
        module: path of the base module it belongs to, or "" (prompt encoders).
        shape: its shape.
        kind: why it was added.
        trainable: whether the method trains it.
        dtype: as it is in memory after `get_peft_model` on the recipe's base dtype.
        after_casts: whether it is added when PEFT has cast the adapters.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    kind: AddedKind
    trainable: bool
    dtype: str
    after_casts: bool = False

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(map(index, self.shape))


@dataclass(frozen=True, slots=True)
class AddedBuffer:
    """A tensor that the method adds and PEFT does not count as a parameter (VeRA's shared projections, masks, indices).

    Attributes:
        dtype: as it is in memory after `get_peft_model`.
        created_dtype: before PEFT casts adapters, if it does.
        on_host: PEFT leaves it in host memory; Trainer moves the model to the device, unless bitsandbytes quantized it.
        registered: whether `named_buffers()` lists it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    created_dtype: str = ""
    on_host: bool = False
    registered: bool = True


@dataclass(frozen=True)
class Adaptation:
    """A model under a method.

    Attributes:
        method: canonical name.
        peft: the adapter config with every default filled in, as PEFT resolves it ({} without PEFT).
        trainable_base: full names of base parameters that are trained.
        added: parameters beyond the base model's.
        buffers: tensors beyond parameters.
        lora: how plain LoRA rewrites modules, by module path.
        adapters: how other methods rewrite modules, by module path.
        shares_trained: layers train the same tensor, so that none of them is like another.
        prompt: virtual tokens and what they come from.
        virtual_tokens: positions added to every sequence (prompt methods).
        prefix_key_values: key/value positions added to every layer's cache (prefix tuning).
        unwalked: what of this method the step walk has no rule for yet, in words; empty when it is covered.
    """

    method: str
    trainable_base: frozenset[str]
    peft: Mapping[str, object] = field(default_factory=dict)
    added: tuple[AddedParameter, ...] = ()
    buffers: tuple[AddedBuffer, ...] = ()
    lora: Mapping[str, LoraSite] = field(default_factory=dict)
    adapters: Mapping[str, AdapterSite] = field(default_factory=dict)
    shares_trained: bool = False
    prompt: PromptSite | None = None
    virtual_tokens: int = 0
    prefix_key_values: int = 0
    unwalked: tuple[str, ...] = ()
