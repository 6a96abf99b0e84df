"""The object a family's description talks to: declares modules, runs layers, records the step.

The same description serves twice. Declaring, it collects every module with its parameters (`architecture`);
recording, it runs on a tape with the parameters' real dtypes, adapters and quantization (`Site`).

Symbols: B micro batch, S sequence length (virtual tokens included), H hidden size, L layers, V vocabulary.

Known limits:
    Equal neighbouring layers are executed once as the first and once for all the others; a layer may look at its index only
    through `signature`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from memplan.dtypes import DType
from memplan.families.architecture import Buffer, Module, ModuleKind, Parameter
from memplan.step import autograd
from memplan.step.attention import AttentionOps
from memplan.step.layers import LayerOps
from memplan.step.loss import LossOps
from memplan.step.settings import StepSettings
from memplan.step.site import Site
from memplan.step.tensor import Dim, Leaf, Shape, Tape, Tensor


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive layers that behave alike: the first index and how many."""

    first: int
    count: int


class Builder(LayerOps, AttentionOps, LossOps, Tape):
    """A tape that knows about modules.

    Attributes:
        settings: batch, sequence, precision and kernels of the step.
        sites: what stands at each module path; empty while declaring.
        modules: what has been declared so far, by path.
    """

    def __init__(self, settings: StepSettings, sites: Mapping[str, Site] | None = None) -> None:
        super().__init__()
        self.settings = settings
        self.sites = sites
        self.path = ""
        self.modules: dict[str, Module] = {}
        self.buffers: list[Buffer] = []
        self.layer_groups: dict[str, int] = {}
        self.tied: dict[str, str] = {}
        self.input_path = ""
        self.output_path: str | None = None
        self.head_modules: list[str] = []
        self.class_names: dict[str, str] = {}
        self.parameters: dict[str, Tensor] = {}
        self.casts: dict[str, Tensor] = {}
        self.batch = Dim(settings.batch, "B")
        self.sequence = Dim(settings.sequence + settings.virtual_tokens, "S")

    @property
    def declaring(self) -> bool:
        """Whether this run only collects modules."""
        return self.sites is None

    # -- modules ----------------------------------------------------------------------------------------

    def join(self, name: str) -> str:
        """`name` below the module that is running."""
        return f"{self.path}.{name}" if self.path and name else self.path or name

    def call(self, name: str, forward: Callable[..., Tensor], *args: Tensor) -> Tensor:
        """Run `forward(self, *args)` as the submodule `name`; as in `nn.Module.__call__` the arguments live until it returns."""
        outer = self.path
        self.path = self.join(name)
        try:
            return forward(self, *args)
        finally:
            self.path = outer

    def layers(
        self,
        name: str,
        count: int,
        layer: Callable[[Builder, Tensor, int], Tensor],
        x: Tensor,
        *,
        kind: Callable[[int], object] | None = None,
        checkpoint: bool = True,
    ) -> Tensor:
        """Run `count` layers `name.0`, `name.1`, ... in a row, each called with (builder, x, index).

        Args:
            name: path of the ModuleList below the running module.
            count: number of layers.
            layer: one layer's forward.
            x: input of the first layer.
            kind: what besides its parameters distinguishes layer `index` (such as sliding or full attention).
            checkpoint: whether the layer class is a `GradientCheckpointingLayer`.
        """
        path = self.join(name)
        if self.declaring:
            self.layer_groups[path] = count
            for index in range(count):
                x = self.call(f"{name}.{index}", lambda t, h, i=index: layer(t, h, i), x)
            return x
        checkpointed = checkpoint and self.settings.checkpointing is not None
        for run in self.runs(path, count, kind):
            for index, repeats in ((run.first, 1), (run.first + 1, run.count - 1)):
                if repeats < 1:
                    continue
                last = index + repeats - 1
                label = f"{path}.{index}" if repeats == 1 else f"{path}.{{{index}..{last}}}"
                self.layer_counts.append(repeats)
                self.layer_names.append(label)
                self.enter(self.phase, len(self.layer_counts) - 1)
                x = self._run_layer(path, index, layer, x, checkpointed)
                self.enter(self.phase, 0)
        return x

    def _run_layer(
        self, path: str, index: int, layer: Callable[[Builder, Tensor, int], Tensor], x: Tensor, checkpointed: bool
    ) -> Tensor:
        def forward(h: Tensor) -> Tensor:
            outer, self.path = self.path, f"{path}.{index}"
            try:
                return layer(self, h, index)
            finally:
                self.path = outer

        return autograd.checkpoint(self, forward, x) if checkpointed else forward(x)

    def runs(self, path: str, count: int, kind: Callable[[int], object] | None) -> list[Run]:
        """Group `count` layers below `path` into runs of equal sites and kind."""
        assert self.sites is not None
        signatures = layer_signatures(self.sites, path, count)
        kinds = [kind(index) for index in range(count)] if kind else [None] * count
        found: list[Run] = []
        start = 0
        for index in range(1, count + 1):
            if index == count or signatures[index] != signatures[start] or kinds[index] != kinds[start]:
                found.append(Run(start, index - start))
                start = index
        return found

    # -- parameters -------------------------------------------------------------------------------------

    def declare(self, module: Module) -> None:
        """Add `module` to the architecture; a second description of the same path must agree with the first."""
        known = self.modules.setdefault(module.path, module)
        assert known == module, f"{module.path} is described twice, differently"

    def buffer(self, name: str, shape: Shape, dtype: DType = DType.FLOAT32, *, persistent: bool = False) -> None:
        """Declare a buffer of the running module."""
        if self.declaring:
            self.buffers.append(Buffer(self.join(name), shape, dtype, persistent))

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
            leaf = Leaf(key, shape, dtype) if trainable else None
            known = self.parameters[key] = Tensor(self, shape, dtype, None, leaf)
        return known


def layer_signatures(sites: Mapping[str, Site], path: str, count: int) -> list[tuple[tuple[str, Site], ...]]:
    """What distinguishes each layer below `path`: the sites in it, by their path within the layer."""
    found: list[list[tuple[str, Site]]] = [[] for _ in range(count)]
    prefix = path + "."
    for full, site in sites.items():
        if full.startswith(prefix):
            index, _, rest = full[len(prefix) :].partition(".")
            found[int(index)].append((rest, site))
    return [tuple(entries) for entries in found]
