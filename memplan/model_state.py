"""What stays in memory: parameters as stored, their gradients, optimizer states, tensor for tensor.

Symbols: none; every size is a parameter's own.

Sources: transformers 5.23 loading, peft 0.21 (`prepare_model_for_kbit_training`, `cast_adapter_dtype`), bitsandbytes 0.50;
the precision policies are those of `memplan.precision`.

Known limits:
    Gradients and states of policies `master` and `master-fp32-grads` are counted per parameter; frameworks that keep them in
    flat buffers round less.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

from memplan.architecture import Architecture, Buffer, Module, ModuleKind, Parameter
from memplan.dtypes import DType
from memplan.estimate import BytesPerParameter, Component, Parameters
from memplan.methods.adaptation import Adaptation, AddedKind, AddedParameter
from memplan.optimizers import Optimizer, ParamInfo, StateBytes
from memplan.precision import Policy
from memplan.quantization import (
    PROCESS_CODE_BOOK_BYTES,
    ModelOutline,
    Quantization,
    Scheme,
    gptq_block_prefix,
    is_quantized,
    kbit_prepare_dtype,
    load_dtype,
    quantized_module_bias_dtype,
    skip_patterns,
    stored_tensors,
)
from memplan.quantization import ModuleKind as QuantizedKind
from memplan.recipe import Task
from memplan.step.site import Site, SiteParameter
from memplan.units import round_to_block

# Model classes' `_keep_in_fp32_modules` (float16 only) and `_keep_in_fp32_modules_strict`, transformers 5.23 modeling files.
_KEEP_IN_FP32 = {
    "t5": ("wo",),
    "mt5": ("wo",),
    "gpt_oss": ("post_attention_layernorm", "input_layernorm", "norm"),
}
_KEEP_IN_FP32_STRICT = {"deepseek_v3": ("e_score_correction_bias",)}

# Tasks whose head the checkpoint of the pretrained model does not have.
_NEW_HEADS = frozenset({Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION, Task.IMAGE_CLASSIFICATION})

_NO_WEIGHT_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")

_QUANTIZED_KINDS = {
    ModuleKind.LINEAR: QuantizedKind.LINEAR,
    ModuleKind.CONV1D: QuantizedKind.CONV1D,
    ModuleKind.EMBEDDING: QuantizedKind.EMBEDDING,
}


@dataclass(frozen=True, slots=True)
class StoredParameter:
    """One parameter as it is in memory.

    Attributes:
        name: full name.
        elements: logical number of elements (what PEFT counts, also of a packed weight).
        dtype: element type in training; of a quantized weight the one it was loaded in.
        arrival_dtype: element type in which it first reached the GPU, before anything cast it.
        loaded_dtype: element type after loading, where the first forward changes it once more.
        trainable: whether it gets a gradient and optimizer states.
        component: weights or adapters.
        data_bytes, state_bytes: as stored, and what quantization keeps beside it; each rounded per tensor.
        block_sizes: bytes of every tensor it occupies, rounded, in the order of allocation.
        after_casts: whether it is added when PEFT has cast the adapters.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    elements: int
    dtype: DType
    arrival_dtype: DType
    loaded_dtype: DType
    trainable: bool
    component: Component
    data_bytes: int
    state_bytes: int
    block_sizes: tuple[int, ...]
    quantized: bool = False
    is_embedding: bool = False
    is_linear: bool = True
    after_casts: bool = False


@dataclass(frozen=True, slots=True)
class AddedBufferBytes:
    """A buffer that the method adds, rounded: as it arrives, and after PEFT's casts.

    Attributes:
        after_casts: whether it arrives only then.
    """

    name: str
    arrival_bytes: int
    data_bytes: int
    after_casts: bool = False


@dataclass(frozen=True)
class ModelState:
    """All parameters of a run with their gradients and states.

    Attributes:
        stored: every parameter, base model first.
        buffers_bytes: buffers of the model and of the method, rounded per tensor.
        added_buffers: the method's among them.
        first_buffers_bytes: those that the checkpoint has beside all modules; they are loaded before any of them.
        shared_code_book_bytes: what bitsandbytes keeps once a process for nested quantization.
        gradients_bytes: of the trained parameters, rounded per tensor; 0 where the optimizer drops each inside backward.
        master_bytes: fp32 copies that the precision policy keeps.
        states: optimizer states.
        trained: the trained parameters as the optimizer sees them, in Trainer's two groups: with weight decay, without.
        frozen: the others, where the optimizer keeps states of them as well.
    """

    stored: tuple[StoredParameter, ...]
    buffers_bytes: int
    shared_code_book_bytes: int
    gradients_bytes: int
    master_bytes: int
    states: StateBytes
    trained: tuple[tuple[ParamInfo, ...], tuple[ParamInfo, ...]]
    policy: Policy
    added_buffers: tuple[AddedBufferBytes, ...] = ()
    first_buffers_bytes: int = 0
    frozen: tuple[ParamInfo, ...] = ()

    @cached_property
    def parameters(self) -> Parameters:
        """Counts as PEFT's `print_trainable_parameters` prints them."""
        return Parameters(
            total=sum(entry.elements for entry in self.stored),
            trainable=sum(entry.elements for entry in self.stored if entry.trainable),
        )

    @cached_property
    def loaded(self) -> dict[Component, int]:
        """Bytes after loading, by component."""
        found: Counter[Component] = Counter()
        for entry in self.stored:
            found[entry.component] += entry.data_bytes
            found[Component.QUANTIZATION_STATE] += entry.state_bytes
        found[Component.BUFFERS] += self.buffers_bytes
        found[Component.QUANTIZATION_STATE] += self.shared_code_book_bytes
        return {component: size for component, size in found.items() if size}

    @cached_property
    def bytes_per_parameter(self) -> BytesPerParameter:
        """Bytes of one trained parameter, averaged over the trained ones (exact sizes, no rounding to blocks)."""
        trained = [entry for entry in self.stored if entry.trainable]
        elements = sum(entry.elements for entry in trained)
        if not elements:
            return BytesPerParameter(weights=0, gradients=0, optimizer=0)
        weights = sum(entry.elements * entry.dtype.itemsize_bytes for entry in trained)
        gradients = 0
        if self.gradients_bytes:
            gradients = sum(
                entry.elements * self.policy.gradient_dtype(entry.dtype).itemsize_bytes for entry in trained
            )
        master = sum(entry.elements * self.policy.master_bytes(entry.dtype) for entry in trained)
        states = self.states.device_unrounded_bytes + self.states.paged_bytes
        return BytesPerParameter(
            weights=round(weights / elements, 6),
            gradients=round(gradients / elements, 6),
            optimizer=round((states + master) / elements, 6),
        )


def quantized_modules(architecture: Architecture, quantization: Quantization | None) -> frozenset[str]:
    """Paths of the modules whose weight is stored quantized."""
    if quantization is None:
        return frozenset()
    last = architecture.registered[-1]
    ties = architecture.tied
    outline = ModelOutline(
        last_parameter=last.full_name(last.parameters[-1].name),
        output_embedding=architecture.output_embeddings,
        tied_parameters=tuple({*ties, *ties.values()}),
        keep_in_fp32_modules=_KEEP_IN_FP32.get(architecture.model_type, ()),
    )
    patterns = skip_patterns(quantization, outline)
    block = None
    if quantization.scheme is Scheme.GPTQ:
        block = gptq_block_prefix(module.path for module in architecture.registered)
    return frozenset(
        module.path
        for module in architecture.modules
        if is_quantized(
            quantization,
            module.path,
            quantized_kind(module),
            patterns,
            in_checkpoint=not _is_new_head(module.path, architecture),
            gptq_block=block,
        )
    )


def quantized_kind(module: Module) -> QuantizedKind:
    """The module's class as quantizers tell classes apart."""
    if module.kind is ModuleKind.LINEAR and module.class_name not in ("", "Linear"):
        return QuantizedKind.LINEAR_SUBCLASS
    if module.kind is ModuleKind.BARE and module.path.endswith(".experts"):
        return QuantizedKind.EXPERTS
    return _QUANTIZED_KINDS.get(module.kind, QuantizedKind.OTHER)


def _is_new_head(path: str, architecture: Architecture) -> bool:
    """Whether the task adds this module; the head of a masked language model is in the checkpoint."""
    if architecture.task not in _NEW_HEADS:
        return False
    return any(path == head or path.startswith(f"{head}.") for head in architecture.head_modules)


def model_state(
    architecture: Architecture,
    adaptation: Adaptation,
    optimizer: Optimizer,
    policy: Policy,
    *,
    dtype: DType,
    quantization: Quantization | None = None,
    quantized: frozenset[str] = frozenset(),
    prepare_kbit: bool = False,
    trainer: bool = True,
) -> ModelState:
    """Every parameter of the adapted model as stored, with gradients and optimizer states.

    Args:
        architecture: the base model with its head.
        adaptation: what the method trains and adds.
        optimizer: decides the states.
        policy: decides gradients and master copies.
        dtype: in which base weights are loaded.
        quantization: of the base weights.
        quantized: paths of the modules that it covers.
        prepare_kbit: whether PEFT's `prepare_model_for_kbit_training` casts what is not quantized.
        trainer: whether Trainer groups the parameters, and keeps the 8-bit states of embeddings in 32 bits.

    Raises:
        UnsupportedError: the optimizer has no rule for a trained parameter.
    """
    storing = _Storing(architecture, adaptation, dtype, quantization, quantized, prepare_kbit)
    stored = [storing.base(name, module, parameter) for name, module, parameter in architecture.named_parameters()]
    stored += [storing.added(entry) for entry in adaptation.added]
    by_name = optimizer.reads_names
    groups: tuple[list[ParamInfo], list[ParamInfo]] = ([], [])
    frozen: list[ParamInfo] = []
    gradients = master = 0
    for entry in in_registration_order(stored, architecture):
        if not entry.trainable:
            if optimizer.covers_frozen_parameters:
                frozen.append(ParamInfo(storing.held_shape(entry), entry.dtype))
            continue
        gradients += round_to_block(entry.elements * policy.gradient_dtype(entry.dtype).itemsize_bytes)
        master += round_to_block(entry.elements * policy.master_bytes(entry.dtype))
        state_dtype = policy.state_dtype(entry.dtype)
        name = entry.name if by_name else ""
        param = ParamInfo(entry.shape, state_dtype, name, entry.is_embedding and trainer, entry.is_linear)
        groups[0 if not trainer or has_weight_decay(entry, architecture) else 1].append(param)
    added_buffers = tuple(_added_buffers(adaptation, quantization))
    return ModelState(
        stored=tuple(stored),
        buffers_bytes=_buffers_bytes(architecture.buffers, dtype) + sum(buffer.data_bytes for buffer in added_buffers),
        first_buffers_bytes=_buffers_bytes(
            [buffer for buffer in architecture.buffers if buffer.persistent and "." not in buffer.path], dtype
        ),
        shared_code_book_bytes=(
            PROCESS_CODE_BOOK_BYTES if quantized and quantization is not None and quantization.double_quant else 0
        ),
        gradients_bytes=0 if optimizer.updates_in_backward else gradients,
        master_bytes=master,
        states=optimizer.state_bytes([*groups[0], *groups[1], *frozen]),
        trained=(tuple(groups[0]), tuple(groups[1])),
        policy=policy,
        added_buffers=added_buffers,
        frozen=tuple(frozen),
    )


def in_registration_order(stored: Iterable[StoredParameter], architecture: Architecture) -> list[StoredParameter]:
    """Parameters as `named_parameters()` of the adapted model gives them: what a method adds stands behind its module's own.

    What belongs to no module, such as virtual tokens, comes last; what a method puts on a container, before what is in it.
    """
    seen: set[str] = set()
    behind: dict[str, int] = {}
    before: dict[str, int] = {}
    for module in architecture.registered:
        parent = module.path.rpartition(".")[0]
        while parent and parent not in before:
            before[parent] = len(seen)
            parent = parent.rpartition(".")[0]
        names = (module.full_name(parameter.name) for parameter in module.parameters)
        seen.update(architecture.tied.get(name, name) for name in names)
        behind[module.path] = len(seen)
    base = 0

    def place(entry: StoredParameter) -> tuple[int, int]:
        nonlocal base
        if entry.component is Component.WEIGHTS:
            base += 1
            return base, 0
        return (behind[entry.module], 1) if entry.module in behind else (before.get(entry.module, len(seen)), 2)

    return sorted(stored, key=place)


def has_weight_decay(entry: StoredParameter, architecture: Architecture) -> bool:
    """Whether Trainer puts a parameter in the group with weight decay (`Trainer.get_decay_parameter_names`, 5.23)."""
    module = architecture.by_path.get(entry.module)
    if module is not None and module.class_name == "LayerNorm":
        return False
    return _NO_WEIGHT_DECAY.search(entry.name.lower()) is None


@dataclass(frozen=True, slots=True)
class _Storing:
    """How parameters of one run are stored."""

    architecture: Architecture
    adaptation: Adaptation
    dtype: DType
    quantization: Quantization | None
    quantized: frozenset[str]
    prepare_kbit: bool

    def base(self, name: str, module: Module, parameter: Parameter) -> StoredParameter:
        """A parameter of the base model."""
        model_type, shape = self.architecture.model_type, parameter.shape
        dtype = arrival = loaded = load_dtype(
            name,
            self.dtype,
            keep_in_fp32_modules=_KEEP_IN_FP32.get(model_type, ()),
            keep_in_fp32_modules_strict=_KEEP_IN_FP32_STRICT.get(model_type, ()),
        )
        is_packed = module.path in self.quantized and (parameter.name == "weight" or module.kind is ModuleKind.BARE)
        state_bytes = 0
        if is_packed:
            assert self.quantization is not None
            if module.kind is ModuleKind.CONV1D:  # the layer that replaces it is a linear one
                shape = shape[::-1]
            tensors = stored_tensors(self.quantization, shape, dtype)
            blocks = tuple(tensor.block_bytes for tensor in tensors)
            state_bytes = sum(tensor.block_bytes for tensor in tensors if tensor.role == "state")
        else:
            if self.prepare_kbit:
                dtype = loaded = kbit_prepare_dtype(self.quantization, dtype)
            quantization = self.quantization if module.path in self.quantized else None
            if quantization and quantization.scheme.is_4bit_bitsandbytes and parameter.name == "bias":
                # The first forward of a 4-bit layer rewrites its bias; this is how it stays from then on.
                dtype = quantized_module_bias_dtype(quantization, dtype, dtype)
            blocks = (round_to_block(parameter.elements * dtype.itemsize_bytes),)
        return StoredParameter(
            name=name,
            module=module.path,
            shape=shape,
            elements=parameter.elements,
            dtype=dtype,
            arrival_dtype=arrival,
            loaded_dtype=loaded,
            trainable=name in self.adaptation.trainable_base,
            component=Component.WEIGHTS,
            data_bytes=sum(blocks) - state_bytes,
            state_bytes=state_bytes,
            block_sizes=blocks,
            quantized=is_packed,
            is_embedding=module.kind is ModuleKind.EMBEDDING,
            is_linear=module.kind is ModuleKind.LINEAR,
        )

    def held_shape(self, entry: StoredParameter) -> tuple[int, ...]:
        """The shape of a parameter's tensor as it is in memory."""
        if not entry.quantized:
            return entry.shape
        assert self.quantization is not None
        return stored_tensors(self.quantization, entry.shape, entry.dtype)[0].shape

    def added(self, entry: AddedParameter) -> StoredParameter:
        """A parameter that the method adds."""
        dtype = DType(entry.dtype)
        size = round_to_block(entry.elements * dtype.itemsize_bytes)
        base = self.architecture.by_path.get(entry.module)
        # PEFT holds virtual tokens in an `nn.Embedding` of its own (tuners/prompt_tuning/model.py and its like).
        is_prompt = entry.kind is AddedKind.PROMPT and entry.name.endswith("embedding.weight")
        return StoredParameter(
            name=entry.name,
            module=entry.module,
            shape=entry.shape,
            elements=entry.elements,
            dtype=dtype,
            arrival_dtype=self._arrival_dtype(entry, dtype),
            loaded_dtype=dtype,
            trainable=entry.trainable,
            component=Component.ADAPTERS,
            data_bytes=size,
            state_bytes=0,
            block_sizes=(size,),
            is_embedding=is_prompt or (base is not None and base.kind is ModuleKind.EMBEDDING),
            after_casts=entry.after_casts,
        )

    def _arrival_dtype(self, entry: AddedParameter, dtype: DType) -> DType:
        """Adapters first take their layer's dtype (the compute dtype of a quantized one), then PEFT casts them."""
        if entry.kind is not AddedKind.ADAPTER or dtype is not DType.FLOAT32:
            return dtype
        if entry.module in self.quantized and self.quantization is not None:
            layer = self.quantization.compute_dtype
        else:
            layer = kbit_prepare_dtype(self.quantization, self.dtype) if self.prepare_kbit else self.dtype
        return layer if layer.is_half else dtype


def _buffers_bytes(buffers: Iterable[Buffer], dtype: DType) -> int:
    held = [(buffer.shape, dtype if buffer.as_loaded else buffer.dtype) for buffer in buffers]
    return sum(round_to_block(prod(shape) * DType(dtype).itemsize_bytes) for shape, dtype in held)


def _added_buffers(adaptation: Adaptation, quantization: Quantization | None) -> Iterator[AddedBufferBytes]:
    # transformers/trainer.py moves the model to the device, unless it is bitsandbytes' (Trainer.__init__, 5.23).
    moved = quantization is None or not quantization.scheme.is_bitsandbytes
    for buffer in adaptation.buffers:
        if buffer.on_host and not moved:
            continue
        arrival, data = (
            round_to_block(prod(buffer.shape) * DType(name).itemsize_bytes)
            for name in (buffer.created_dtype or buffer.dtype, buffer.dtype)
        )
        yield AddedBufferBytes(buffer.name, arrival, data, buffer.on_host)


def sites_of(
    architecture: Architecture,
    adaptation: Adaptation,
    state: ModelState,
    quantization: Quantization | None,
    quantized: frozenset[str],
) -> dict[str, Site]:
    """What stands at each module path, for the step to be recorded on."""
    by_module: dict[str, list[SiteParameter]] = {module.path: [] for module in architecture.modules}
    for entry in state.stored:
        if entry.component is Component.WEIGHTS:
            leaf = entry.name.rpartition(".")[2]
            by_module[entry.module].append(SiteParameter(leaf, entry.dtype, entry.trainable))
    for added in adaptation.added:
        if added.kind is AddedKind.COPY and added.module in by_module:
            # `ModulesToSaveWrapper.forward` runs the copy in the original's place.
            leaf = added.name.rpartition(".")[2]
            kept = [parameter for parameter in by_module[added.module] if parameter.name != leaf]
            by_module[added.module] = [*kept, SiteParameter(leaf, DType(added.dtype), added.trainable)]
    return {
        path: Site(
            tuple(parameters),
            quantization if path in quantized else None,
            adaptation.adapters.get(path),
        )
        for path, parameters in by_module.items()
    } | {path: Site((), None, adapter) for path, adapter in adaptation.adapters.items() if path not in by_module}
