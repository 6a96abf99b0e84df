"""The parameters of a model while a method changes it: what PEFT's wrappers do to names, copies and `requires_grad`.

Sources (PEFT 0.21.2): tuners/tuners_utils.py, BaseTuner.inject_adapter and _mark_only_adapters_as_trainable;
utils/other.py, ModulesToSaveWrapper and _set_trainable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from memplan.architecture import Architecture, Module
from memplan.dtypes import DType
from memplan.errors import InvalidValueError
from memplan.methods.adaptation import AddedBuffer, AddedKind, AddedParameter
from memplan.methods.targets import module_paths


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor that a method adds.

    Attributes:
        name: relative to the module it sits on, adapter name included (`lora_A.default.weight`).
        shape: its shape.
        trainable: whether it is trained.
        dtype: as created; None: that of the layer it adapts.
        autocast: whether `autocast_adapter_dtype` casts it (it stands under the adapter's name in a tuner layer).
        parameter: False for a buffer.
        on_host: a buffer that PEFT leaves in the host memory in which it makes it.
        registered: False for a tensor that its module holds and does not list among its buffers.
    """

    name: str
    shape: tuple[int, ...]
    trainable: bool = True
    dtype: DType | None = None
    autocast: bool = True
    parameter: bool = True
    on_host: bool = False
    registered: bool = True


@dataclass(frozen=True, slots=True)
class Entry:
    """One parameter of the model under the method.

    Attributes:
        path: its name in `named_parameters()`, relative to the base model.
        module: path of the base module it belongs to.
        shape, dtype, trainable: as they stand.
        base: its full name if it is a parameter of the base model itself, else None.
        tied_to: base name of the parameter that this one is, if it is tied and not copied.
        kind: why it was added; None for base parameters.
        after_casts: whether it is added when PEFT has cast the adapters.
    """

    path: str
    module: str
    shape: tuple[int, ...]
    dtype: DType
    trainable: bool
    base: str | None = None
    tied_to: str | None = None
    kind: AddedKind | None = None
    after_casts: bool = False


class ModelState:
    """Every parameter of a model, base and added, with its trainability.

    Args:
        architecture: the base model.
        dtype_of: dtype of a base parameter by its full name.
        quantized: paths of modules with a quantized weight.
        quantized_dtype: what adapters on them are created in.
        packed: whether their weights are packed, as 4-bit ones are, and have lost the layer's shape.
        autocast: `autocast_adapter_dtype`.
    """

    def __init__(
        self,
        architecture: Architecture,
        dtype_of: Callable[[str], DType],
        quantized: frozenset[str],
        quantized_dtype: DType,
        *,
        autocast: bool,
        packed: bool = True,
    ) -> None:
        self.architecture = architecture
        self.quantized = quantized
        self.packed = packed
        self._quantized_dtype = quantized_dtype
        self._dtype_of = dtype_of
        self._autocast = autocast
        self.entries: list[Entry] = []
        self.buffers: list[AddedBuffer] = []
        self.adapted: set[str] = set()
        for module in architecture.registered:
            for parameter in module.parameters:
                name = module.full_name(parameter.name)
                tied_to = architecture.tied.get(name)
                self.entries.append(
                    Entry(name, module.path, parameter.shape, dtype_of(name), False, base=name, tied_to=tied_to)
                )

    def layer_dtype(self, module: Module) -> DType:
        """What an adapter on a module is created in: PEFT moves it to the dtype of the layer's weight."""
        if module.path in self.quantized:
            return self._quantized_dtype
        names = [parameter.name for parameter in module.parameters]
        name = "weight" if "weight" in names else names[0]
        return self._dtype_of(module.full_name(name))

    def cast(self, weight: Weight, layer_dtype: DType) -> DType:
        """The dtype of an added tensor after `get_peft_model`."""
        dtype = weight.dtype or layer_dtype
        floating = dtype.is_half or dtype in (DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2)
        return DType.FLOAT32 if self._autocast and weight.autocast and floating else dtype

    def add(
        self, owner: str, module: str, weight: Weight, layer_dtype: DType, kind: AddedKind = AddedKind.ADAPTER
    ) -> None:
        """Add a tensor below the path `owner`, which may be empty; `module` is the base module it belongs to."""
        path = f"{owner}.{weight.name}" if owner else weight.name
        dtype = self.cast(weight, layer_dtype)
        if weight.parameter:
            self.entries.append(Entry(path, module, weight.shape, dtype, weight.trainable, kind=kind))
        else:
            created = weight.dtype or layer_dtype
            before = "" if created is dtype else created
            self.buffers.append(AddedBuffer(path, weight.shape, dtype, before, weight.on_host, weight.registered))

    def inject(self, module: Module, weights: Iterable[Weight]) -> None:
        """Put a tuner layer around a module."""
        dtype = self.layer_dtype(module)
        self.wrap(module.path)
        for weight in weights:
            self.add(module.path, module.path, weight, dtype)

    def wrap(self, path: str) -> None:
        """Move what stands at a module path to `base_layer` below it."""
        self.adapted.add(path)
        for index, entry in enumerate(self.entries):
            if entry.module == path:
                rest = entry.path[len(path) + 1 :]
                self.entries[index] = replace(entry, path=f"{path}.base_layer.{rest}")

    def train_biases(self, bias: str) -> None:
        """`bias="all"`, or `"lora_only"` and the like: base biases of every module, or of adapted ones."""
        if bias == "none":
            return
        for index, entry in enumerate(self.entries):
            if not entry.path.endswith(".bias"):
                continue
            if bias == "all" or (entry.base is not None and entry.module in self.adapted):
                self.entries[index] = replace(entry, trainable=True)

    def save_modules(
        self,
        names: Iterable[str] | None,
        *,
        tied: bool = False,
        saved: Iterable[str] = (),
        after_casts: bool = False,
    ) -> list[str]:
        """Wrap modules whose path ends with one of `names` into a frozen original and a trained copy.

        Args:
            names: of `modules_to_save`; PEFT compares plain endings, so `classifier` also finds `pre_classifier`.
            tied: the copies share the weight of the input embedding's copy and add nothing.
            saved: paths that are wrapped already.
            after_casts: the copies are made when PEFT has cast the adapters.

        Returns:
            the paths found.

        Raises:
            InvalidValueError: a copy of a quantized weight, which cannot be trained, or of an adapted layer.
        """
        endings = tuple(names or ())
        found: list[str] = []
        for path in module_paths(self.architecture) if endings else ():
            inside = any(path == outer or path.startswith(f"{outer}.") for outer in (*saved, *found))
            if path.endswith(endings) and not inside:
                self._copy(path, shared=tied, after_casts=after_casts)
                found.append(path)
        return found

    def _copy(self, path: str, *, shared: bool, after_casts: bool) -> None:
        if path in self.adapted:
            raise InvalidValueError(
                "peft.modules_to_save",
                path,
                "the adapter targets this layer too, and PEFT cannot train it whole as well",
                hint=f"add {path.rpartition('.')[2]!r} to exclude_modules, or name target_modules that leave it out",
            )
        inside = [(i, entry) for i, entry in enumerate(self.entries) if entry.path.startswith(f"{path}.")]
        for index, entry in inside:
            if entry.base is not None and entry.module in self.quantized and entry.base.endswith(".weight"):
                raise InvalidValueError(
                    "peft.modules_to_save",
                    entry.module,
                    "its weight is quantized and cannot be trained",
                    hint=f"add {entry.module.rpartition('.')[2]!r} to llm_int8_skip_modules",
                )
            rest = entry.path[len(path) + 1 :]
            self.entries[index] = replace(entry, path=f"{path}.original_module.{rest}", trainable=False)
            if not shared:
                copy = f"{path}.modules_to_save.default.{rest}"
                copied = replace(entry, path=copy, trainable=True, base=None, tied_to=None, kind=AddedKind.COPY)
                self.entries.append(replace(copied, after_casts=after_casts))

    def added(self) -> tuple[AddedParameter, ...]:
        """Parameters beyond the base model's, as `named_parameters()` names them."""
        return tuple(
            AddedParameter(
                entry.path, entry.module, entry.shape, entry.kind, entry.trainable, entry.dtype, entry.after_casts
            )
            for entry in self.entries
            if entry.kind is not None
        )

    def trainable_base(self) -> frozenset[str]:
        """Full names of base parameters that are trained; a tied one by the name that owns the storage."""
        return frozenset(
            entry.tied_to or entry.base for entry in self.entries if entry.base is not None and entry.trainable
        )
