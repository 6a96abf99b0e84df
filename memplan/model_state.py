"""What stays in memory: parameters as stored, their gradients, optimizer states, tensor for tensor.

Symbols: none; every size is a parameter's own.

Sources: transformers 5.23 loading, peft 0.21 (`prepare_model_for_kbit_training`, `cast_adapter_dtype`), bitsandbytes 0.50;
the precision policies are those of `memplan.precision`.

Known limits:
    Gradients and states of policies `master` and `master-fp32-grads` are counted per parameter; frameworks that keep them in
    flat buffers round less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from memplan.dtypes import DType
from memplan.estimate import BytesPerParameter, Component, Parameters
from memplan.families.architecture import Architecture, Module, ModuleKind
from memplan.methods.adaptation import AddedParameter, Adaptation
from memplan.optimizers import Optimizer, ParamInfo, StateBytes
from memplan.precision import Policy
from memplan.quantization import (
    PROCESS_CODE_BOOK_BYTES,
    ModelOutline,
    Quantization,
    gptq_block_prefix,
    is_quantized,
    kbit_prepare_dtype,
    load_dtype,
    skip_patterns,
    stored_tensors,
)
from memplan.quantization import ModuleKind as QuantizedKind
from memplan.quantization import Scheme
from memplan.step.site import Site, SiteParameter
from memplan.units import round_to_block

# Model classes' `_keep_in_fp32_modules` (float16 only) and `_keep_in_fp32_modules_strict`, transformers 5.23 modeling files.
_KEEP_IN_FP32 = {
    "t5": ("wo",),
    "mt5": ("wo",),
    "gpt_oss": ("post_attention_layernorm", "input_layernorm", "norm"),
}
_KEEP_IN_FP32_STRICT = {"deepseek_v3": ("e_score_correction_bias",)}

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
        dtype: element type; of a quantized weight the one it was loaded in.
        trainable: whether it gets a gradient and optimizer states.
        component: weights or adapters.
        data_bytes, state_bytes: as stored, and what quantization keeps beside it; each rounded per tensor.
        block_sizes: bytes of every tensor it occupies, rounded, in the order of allocation.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    elements: int
    dtype: DType
    trainable: bool
    component: Component
    data_bytes: int
    state_bytes: int
    block_sizes: tuple[int, ...]
    quantized: bool = False
    is_embedding: bool = False
    is_linear: bool = True


@dataclass(frozen=True)
class ModelState:
    """All parameters of a run with their gradients and states.

    Attributes:
        stored: every parameter, base model first.
        buffers_bytes: buffers of the model and of the method, rounded per tensor.
        shared_code_book_bytes: what bitsandbytes keeps once a process for nested quantization.
        gradients_bytes: of the trained parameters, rounded per tensor.
        master_bytes: fp32 copies that the precision policy keeps.
        states: optimizer states.
        trained: the trained parameters as the optimizer sees them, with how many of each.
    """

    stored: tuple[StoredParameter, ...]
    buffers_bytes: int
    shared_code_book_bytes: int
    gradients_bytes: int
    master_bytes: int
    states: StateBytes
    trained: Mapping[ParamInfo, int]
    policy: Policy

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
        gradients = sum(entry.elements * self.policy.gradient_dtype(entry.dtype).itemsize_bytes for entry in trained)
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
    last = architecture.modules[-1]
    ties = architecture.tied
    outline = ModelOutline(
        last_parameter=f"{last.path}.{last.parameters[-1].name}",
        output_embedding=architecture.output_embeddings,
        tied_parameters=tuple({*ties, *ties.values()}),
        keep_in_fp32_modules=_KEEP_IN_FP32.get(architecture.model_type, ()),
    )
    patterns = skip_patterns(quantization, outline)
    block = None
    if quantization.scheme is Scheme.GPTQ:
        block = gptq_block_prefix(module.path for module in architecture.modules)
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

    Raises:
        UnsupportedError: the optimizer has no rule for a trained parameter.
    """
    stored = [
        _stored_base(
            name,
            module,
            parameter.name,
            parameter.shape,
            adaptation,
            dtype,
            quantization,
            quantized,
            prepare_kbit,
            architecture,
        )
        for name, module, parameter in architecture.named_parameters()
    ]
    stored += [_stored_added(entry, architecture) for entry in adaptation.added]
    trained: Counter[ParamInfo] = Counter()
    gradients = master = 0
    for entry in stored:
        if not entry.trainable:
            continue
        gradients += round_to_block(entry.elements * policy.gradient_dtype(entry.dtype).itemsize_bytes)
        master += round_to_block(entry.elements * policy.master_bytes(entry.dtype))
        trained[
            ParamInfo(
                entry.shape,
                policy.state_dtype(entry.dtype),
                _optimizer_name(entry),
                entry.is_embedding,
                entry.is_linear,
            )
        ] += 1
    return ModelState(
        stored=tuple(stored),
        buffers_bytes=_buffers_bytes(architecture, adaptation),
        shared_code_book_bytes=PROCESS_CODE_BOOK_BYTES if quantization is not None and quantization.double_quant else 0,
        gradients_bytes=gradients,
        master_bytes=master,
        states=optimizer.state_bytes(trained),
        trained=trained,
        policy=policy,
    )


def _optimizer_name(entry: StoredParameter) -> str:
    """Low-rank optimizers look at module names; for all others equal shapes should fall together."""
    return ""


def _stored_base(
    name: str,
    module: Module,
    leaf: str,
    shape: tuple[int, ...],
    adaptation: Adaptation,
    dtype: DType,
    quantization: Quantization | None,
    quantized: frozenset[str],
    prepare_kbit: bool,
    architecture: Architecture,
) -> StoredParameter:
    is_packed = (
        quantization is not None and module.path in quantized and (leaf == "weight" or module.kind is ModuleKind.BARE)
    )
    loaded = load_dtype(
        name,
        dtype,
        keep_in_fp32_modules=_KEEP_IN_FP32.get(architecture.model_type, ()),
        keep_in_fp32_modules_strict=_KEEP_IN_FP32_STRICT.get(architecture.model_type, ()),
    )
    elements = 1
    for size in shape:
        elements *= size
    if is_packed:
        assert quantization is not None
        tensors = stored_tensors(quantization, shape, loaded)
        data = sum(tensor.block_bytes for tensor in tensors if tensor.role == "data")
        state = sum(tensor.block_bytes for tensor in tensors if tensor.role == "state")
        blocks = tuple(tensor.block_bytes for tensor in tensors)
    else:
        if prepare_kbit:
            loaded = kbit_prepare_dtype(quantization, loaded)
        data, state = round_to_block(elements * loaded.itemsize_bytes), 0
        blocks = (data,)
    return StoredParameter(
        name=name,
        module=module.path,
        shape=shape,
        elements=elements,
        dtype=loaded,
        trainable=name in adaptation.trainable_base,
        component=Component.WEIGHTS,
        data_bytes=data,
        state_bytes=state,
        block_sizes=blocks,
        quantized=is_packed,
        is_embedding=module.kind is ModuleKind.EMBEDDING,
        is_linear=module.kind is ModuleKind.LINEAR,
    )


def _stored_added(entry: AddedParameter, architecture: Architecture) -> StoredParameter:
    dtype = DType(entry.dtype)
    size = round_to_block(entry.elements * dtype.itemsize_bytes)
    base = architecture.by_path.get(entry.module)
    return StoredParameter(
        name=entry.name,
        module=entry.module,
        shape=entry.shape,
        elements=entry.elements,
        dtype=dtype,
        trainable=entry.trainable,
        component=Component.ADAPTERS,
        data_bytes=size,
        state_bytes=0,
        block_sizes=(size,),
        is_embedding=base is not None and base.kind is ModuleKind.EMBEDDING,
    )


def _buffers_bytes(architecture: Architecture, adaptation: Adaptation) -> int:
    total = 0
    for buffer in (*architecture.buffers, *adaptation.buffers):
        elements = 1
        for size in buffer.shape:
            elements *= size
        total += round_to_block(elements * DType(buffer.dtype).itemsize_bytes)
    return total


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
    return {
        path: Site(
            tuple(parameters),
            quantization if path in quantized else None,
            adaptation.lora.get(path),
        )
        for path, parameters in by_module.items()
    }
