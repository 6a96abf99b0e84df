"""A tape that knows about modules: where a parameter sits, how it is stored, what has been declared.

The same description serves twice. Declaring, it collects every module with its parameters; recording, it runs with the
parameters' real element types, adapters and quantization (`Site`).

Symbols: B micro batch, S sequence length (virtual tokens included).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from memplan.architecture import Buffer, Module, ModuleKind, Parameter
from memplan.dtypes import DType
from memplan.step.key_value_cache import KeyValueCache
from memplan.step.settings import StepSettings
from memplan.step.site import Site
from memplan.step.tensor import Dim, Leaf, Shape, Storage, Tape, Tensor

if TYPE_CHECKING:
    from memplan.step.adapters.prefix import Prefix

Output = TypeVar("Output")


class ModuleTape(Tape):
    """A tape with a current module.

    Attributes:
        settings: batch, sequence, precision and kernels of the step.
        sites: what stands at each module path; None while declaring.
        modules: what has been declared so far, by path.
        tied: full name of a parameter that is another one.
        input_path, output_path: module paths of the input and output embeddings.
        head_modules: top-level modules that the task head adds, output embedding excluded.
        frozen: full names of parameters that the model itself does not train.
        outputs: what the model's output object holds besides the loss: logits, past key/values.
        tokens: length of the batch, without what a prompt method puts in front.
        prompt: puts it there, given the embedded batch.
        prefix: keys and values that a method puts in every layer's cache.
        limits: where the texts of a packed row begin and end, for queries and for keys, if the batch holds them.
        cache: of a model that generates; its head makes the last token's logits alone, and no loss.
        labels: of the batch, where the loop's own variable holds them until the loss takes them.
        layer_locals: attention weights that eager attention returns and that a variable of the layer holds until its end.
    """

    def __init__(self, settings: StepSettings, sites: Mapping[str, Site] | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.steps_in_backward = settings.in_backward is not None
        self.workspace_bytes = settings.workspace_bytes
        self.workspace_is_loaded = settings.workspace_is_loaded
        self.sites = sites
        self.path = ""
        self.modules: dict[str, Module] = {}
        self.buffers: list[Buffer] = []
        self.layer_groups: dict[str, int] = {}
        self.tied: dict[str, str] = {}
        self.input_path = ""
        self.output_path: str | None = None
        self.head_modules: list[str] = []
        self.frozen: set[str] = set()
        self.outputs: list[Tensor] = []
        self.layer_locals: list[Tensor] = []
        self.labels: Tensor | None = None
        self.class_names: dict[str, str] = {}
        self.parameters: dict[str, Tensor] = {}
        self.batch = Dim.variable(settings.batch, "B")
        self.tokens = Dim.variable(settings.sequence, "S")
        self.sequence = self.tokens + settings.virtual_tokens
        self.prompt: Callable[[Tensor], Tensor] | None = None
        self.prefix: Prefix | None = None
        self.limits: tuple[Storage, Storage] | None = None
        self.cache: KeyValueCache | None = None
        target = settings.target_sequence
        self.target_sequence = Dim.variable(target, "T") if target else self.sequence

    @property
    def declaring(self) -> bool:
        """Whether this run only collects modules."""
        return self.sites is None

    # -- modules ----------------------------------------------------------------------------------------

    def join(self, name: str) -> str:
        """`name` below the module that is running."""
        return f"{self.path}.{name}" if self.path and name else self.path or name

    def call(self, name: str, forward: Callable[..., Output], *args: Tensor) -> Output:
        """Run `forward(self, *args)` as the submodule `name`; as in `nn.Module.__call__` arguments live until it returns."""
        outer = self.path
        self.path = self.module = self.join(name)
        try:
            return forward(self, *args)
        finally:
            self.path = self.module = outer

    # -- parameters -------------------------------------------------------------------------------------

    def declare(self, module: Module) -> None:
        """Add `module` to the architecture; a second description of the same path must agree with the first."""
        known = self.modules.setdefault(module.path, module)
        assert known == module, f"{module.path} is described twice, differently"

    def buffer(
        self,
        name: str,
        shape: Shape,
        dtype: DType = DType.FLOAT32,
        *,
        persistent: bool = False,
        as_loaded: bool = False,
    ) -> None:
        """Declare a buffer of the running module."""
        if self.declaring:
            self.buffers.append(Buffer(self.join(name), shape, dtype, persistent, as_loaded))

    def bare(self, name: str, shape: Shape, *, owner_class: str = "") -> Tensor:
        """A parameter that sits on the running module itself, such as `cls_token` or fused experts."""
        if self.declaring:
            known = self.modules.pop(self.path, None)
            parameters = (*(known.parameters if known else ()), Parameter(name, shape))
            self.modules[self.path] = Module(self.path, ModuleKind.BARE, parameters, class_name=owner_class)
        return self.parameter(self.path, name, shape)

    def tie(self, name: str, source: str) -> None:
        """Declare that the parameter `name` is the parameter `source` (full names)."""
        self.tied[name] = source

    def class_name(self, name: str) -> None:
        """Declare the torch class of the running module, where a rule of PEFT or transformers asks for it."""
        self.class_names[self.path] = name

    def freeze(self, name: str) -> None:
        """Declare that the model builds the parameter `name` of the running module with `requires_grad=False`."""
        self.frozen.add(self.join(name))

    def parameter(self, path: str, name: str, shape: Shape) -> Tensor:
        """The parameter `path.name` as a tensor; its storage is not on the tape (model states are counted apart)."""
        key = f"{path}.{name}" if path else name
        key = self.tied.get(key, key)
        known = self.parameters.get(key)
        if known is None:
            path, _, name = key.rpartition(".")
            site = self.sites.get(path) if self.sites else None
            entry = site.parameter(name) if site else None
            dtype = entry.dtype if entry else DType.FLOAT32
            trainable = entry.trainable if entry else True
            leaf = Leaf(key, shape, dtype, accumulates=self.settings.accumulating) if trainable else None
            known = self.parameters[key] = Tensor(self, shape, dtype, None, leaf)
        return known
