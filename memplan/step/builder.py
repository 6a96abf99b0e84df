"""The object a family's description talks to.

Symbols: L layers.

Known limits:
    Equal neighbouring layers are executed once as the first and once for all the others, and so are groups of layers that come
    again and again (sliding and full attention in turn); a layer may look at its index only through `kind`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from memplan.recipe import Loss, Offloading
from memplan.step.autograd import Results
from memplan.step.autograd import checkpoint as checkpoint_non_reentrant
from memplan.step.loss import LossOps
from memplan.step.offloaded_checkpoint import checkpoint_offloaded
from memplan.step.reentrant import checkpoint_reentrant
from memplan.step.settings import StepSettings
from memplan.step.site import Site
from memplan.step.tensor import StorageInfo, Tensor

Layer = Callable[["Builder", Tensor, int], Tensor]


@dataclass(frozen=True, slots=True)
class PerLayer:
    """Layers that are given tensors of their own (a mask of their kind).

    Attributes:
        of: makes the forward of layer `index`, which refers to what that layer is given and to nothing else.
    """

    of: Callable[[int], Layer]


@dataclass(frozen=True, slots=True)
class ByPosition:
    """Layers that are given their tensors as positional arguments.

    A reentrant checkpoint saves such tensors as autograd saves them, until the layer's backward; keyword arguments are part
    of the function that it calls, which stays as long as the graph (modeling_layers.py, `GradientCheckpointingLayer`).

    Attributes:
        layer: one layer's forward, called with (builder, x, index, *handed, *shared); it may refer to what needs no gradient.
        keywords: what is passed by keyword.
        shared: what is passed by position to every layer and may need a gradient.
        handed: what layers hand on besides the hidden states: each is given these by position and returns (x, *handed). Given
            for the first layer; a variable of the model holds what the layer that ran last returned. None where a layer
            returns the hidden states alone. Layers that hand something on are executed one by one.
    """

    layer: Callable[..., Tensor | Results]
    keywords: tuple[Tensor | None, ...] = ()
    shared: tuple[Tensor | None, ...] = ()
    handed: list[Tensor | None] | None = None


def given(layer: Layer, tensor: Tensor) -> Layer:
    """`layer`, called with `tensor` besides, which a checkpointed layer therefore keeps until its backward."""

    def forward(t: Builder, x: Tensor, index: int, _: Tensor = tensor) -> Tensor:
        return layer(t, x, index)

    return forward


def _storages(tensors: Sequence[Tensor | None]) -> list[StorageInfo]:
    return [entry.storage.info for entry in tensors if entry is not None and entry.storage is not None]


def _of(layer: Callable[..., Tensor | Results] | PerLayer, index: int) -> Callable[..., Tensor | Results]:
    return layer.of(index) if isinstance(layer, PerLayer) else layer


# The longest group of different layers that is looked for.
LONGEST_GROUP = 12


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive groups of layers that behave alike: the first index, layers in a group, and how many groups."""

    first: int
    group: int
    count: int

    def parts(self, fold: bool) -> list[tuple[int, int, int]]:
        """(index, layers, repeats) of what is executed: the first group layer by layer, and one group for all the others."""
        if not fold or self.count == 1:
            return [(self.first + offset, 1, 1) for offset in range(self.group * self.count)]
        second = self.first + self.group
        return [*((index, 1, 1) for index in range(self.first, second)), (second, self.group, self.count - 1)]


class Builder(LossOps):
    """A tape with modules, attention and losses on it, and layers that repeat.

    Attributes:
        ports: for each folded run, the storages that its executed layer took and gave.

    Args:
        settings: batch, sequence, precision and kernels of the step.
        sites: what stands at each module path; None while declaring.
        fold: execute equal neighbouring layers once instead of one by one.
    """

    def __init__(self, settings: StepSettings, sites: Mapping[str, Site] | None = None, *, fold: bool = True) -> None:
        super().__init__(settings, sites)
        self.fold = fold
        self.ports: list[tuple[int, int]] = []
        self.last_layer = 0

    def layers(
        self,
        name: str,
        count: int,
        layer: Layer | PerLayer | ByPosition,
        x: Tensor,
        *,
        kind: Callable[[int], object] | None = None,
        checkpoint: bool = True,
        returned: list[Tensor | None] | None = None,
    ) -> Tensor:
        """Run `count` layers `name.0`, `name.1`, ... in a row, each called with (builder, x, index).

        Args:
            name: path of the ModuleList below the running module.
            count: number of layers.
            layer: one layer's forward. A checkpoint keeps everything that it refers to; what only layer `index` is given is
                left to a `PerLayer`, what is passed by position to a `ByPosition`.
            x: input of the first layer.
            kind: what besides its parameters distinguishes layer `index` (such as sliding or full attention).
            checkpoint: whether the layer class is a `GradientCheckpointingLayer`.
            returned: filled with what the layer that ran last returned, where that is a tuple with the attention weights and
                a variable of the model holds it until the next layer has returned.
        """
        path = self.join(name)
        kept: object = None
        shared: tuple[Tensor | None, ...] = ()
        handed: list[Tensor | None] | None = None
        forward: Callable[..., Tensor | Results] | PerLayer
        if isinstance(layer, ByPosition):
            kept, shared, handed, forward = layer.keywords, layer.shared, layer.handed, layer.layer
        else:
            forward = layer
        if self.declaring:
            self.layer_groups[path] = count
            for index in range(count):
                out = self._run_layer(path, index, _of(forward, index), x, (*(handed or ()), *shared), None, None)
                x, handed = out[0], list(out[1:]) if handed is not None else None
            return x
        mode = self.settings.checkpointing if checkpoint else None
        self.last_layer = count - 1
        for run in self._with_last_alone(self.runs(path, count, kind)):
            for first, together, repeats in run.parts(self.fold and handed is None):
                self.layer_counts.append(repeats)
                self.layer_names.append(f"{path}.{first}" + (f"-{first + together - 1}" if together > 1 else ""))
                self.enter(self.phase, len(self.layer_counts) - 1)
                given = _storages([x]) if returned is None or not returned else _storages(returned)
                if repeats > 1:
                    self.handed.update(info.index for info in given)
                for index in range(first, first + together):
                    this = _of(forward, index)
                    held = this if kept is None else kept
                    others = (*(handed or ()), *shared)
                    with_weights = returned is not None
                    out = self._run_layer(path, index, this, x, others, mode, held, with_weights=with_weights)
                    x = out[0]
                    if returned is not None:
                        returned[:] = out
                    if handed is not None:
                        handed[:] = out[1:]
                    del this, held, others
                made = _storages(out)
                del out
                for info in made:
                    info.is_port = True
                if repeats > 1:
                    self.ports += [(a.index, b.index) for a, b in zip(given, made, strict=False)]
                self.enter(self.phase, 0)
        return x

    def _run_layer(
        self,
        path: str,
        index: int,
        layer: Callable[..., Tensor | Results],
        x: Tensor,
        others: tuple[Tensor | None, ...],
        checkpointing: str | None,
        kept: object,
        *,
        with_weights: bool = False,
    ) -> Results:
        def forward(h: Tensor, *others: Tensor | None) -> Results:
            outer = self.path
            self.path = self.module = f"{path}.{index}"
            try:
                out = layer(self, h, index, *others)
                return (*(out if isinstance(out, tuple) else (out,)), *(self.layer_locals if with_weights else ()))
            finally:
                self.path = self.module = outer
                self.layer_locals.clear()

        if checkpointing is None:
            return forward(x, *others)
        if self.settings.offloads_hidden_states:
            return checkpoint_offloaded(self, forward, x, is_last=index == self.last_layer, kept=kept)
        offloads = self.settings.offloading == Offloading.CHECKPOINTS
        if checkpointing == "reentrant":
            return checkpoint_reentrant(self, forward, x, others, kept=kept, offloads=offloads)
        return checkpoint_non_reentrant(self, forward, x, others, offloads=offloads)

    def _with_last_alone(self, runs: list[Run]) -> list[Run]:
        """`runs`, with the last layer apart where backward's first matrix product, which makes the workspace, is in it."""
        last = runs[-1]
        if (self.settings.loss != Loss.FUSED_LINEAR and not self.settings.offloads_hidden_states) or last.count == 1:
            return runs
        following = last.first + last.group * (last.count - 1)
        return [*runs[:-1], Run(last.first, last.group, last.count - 1), Run(following, last.group, 1)]

    def runs(self, path: str, count: int, kind: Callable[[int], object] | None) -> list[Run]:
        """Group `count` layers below `path` into runs of equal sites and kind, singly or in groups."""
        assert self.sites is not None
        signatures = layer_signatures(self.sites, path, count)
        distinct: list[object] = []
        numbers: list[int] = []
        for index, signature in enumerate(signatures):
            layer = (signature, kind(index) if kind else None)
            if layer not in distinct:
                distinct.append(layer)
            numbers.append(distinct.index(layer))
        found: list[Run] = []
        while (start := sum(run.group * run.count for run in found)) < count:
            longest = min(LONGEST_GROUP, (count - start) // 3)
            tried = [Run(start, group, _repeats(numbers, start, group)) for group in range(1, max(longest, 1) + 1)]
            # What is not executed; of equals the shorter group.
            found.append(max(tried, key=lambda run: (run.count - 2) * run.group if run.count > 2 else run.group == 1))
        return found


def _repeats(numbers: list[int], start: int, group: int) -> int:
    """How many times the `group` entries at `start` come in a row."""
    count, pattern = 1, numbers[start : start + group]
    while numbers[start + count * group : start + (count + 1) * group] == pattern:
        count += 1
    return count


def layer_signatures(sites: Mapping[str, Site], path: str, count: int) -> list[tuple[tuple[str, Site], ...]]:
    """What distinguishes each layer below `path`: the sites in it, by their path within the layer."""
    found: list[list[tuple[str, Site]]] = [[] for _ in range(count)]
    prefix = path + "."
    for full, site in sites.items():
        if full.startswith(prefix):
            index, _, rest = full[len(prefix) :].partition(".")
            found[int(index)].append((rest, site))
    return [tuple(entries) for entries in found]
