"""What a model is made of: modules with their exact parameters, as the family's own description declares them.

Nothing here counts bytes; methods decide what is trained and added, quantization how it is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from math import prod


class ModuleKind(StrEnum):
    """What kind of torch module owns the parameters; PEFT and bitsandbytes decide by it."""

    LINEAR = "linear"
    CONV1D = "conv1d"  # transformers.pytorch_utils.Conv1D: a linear whose weight is [in, out]
    EMBEDDING = "embedding"
    NORM = "norm"
    CONV = "conv"  # torch.nn.ConvNd, weight [out, in / groups, *kernel]
    BARE = "bare"  # parameters that sit directly on a container (experts, position tables, cls tokens)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a module: leaf name (`weight`, `bias`, ...) and shape."""

    name: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(map(int, self.shape))


@dataclass(frozen=True, slots=True)
class Module:
    """A module that owns parameters.

    Attributes:
        path: dotted name as in `model.named_modules()`, e.g. `model.layers.0.self_attn.q_proj`.
        class_name: torch class, where a rule depends on it (`Linear`, `LlamaRMSNorm`, ...).
        in_features, out_features: of linear kinds; (num_embeddings, embedding_dim) of an embedding; 0 elsewhere.
    """

    path: str
    kind: ModuleKind
    parameters: tuple[Parameter, ...]
    in_features: int = 0
    out_features: int = 0
    class_name: str = ""

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rpartition(".")[2]

    def full_name(self, parameter: str) -> str:
        """The name of one of its parameters as in `model.named_parameters()`."""
        return f"{self.path}.{parameter}" if self.path else parameter

    @property
    def elements(self) -> int:
        """Number of elements of all parameters."""
        return sum(parameter.elements for parameter in self.parameters)


@dataclass(frozen=True, slots=True)
class Buffer:
    """A tensor of the module that is not a parameter (rotary frequencies, position ids).

    Attributes:
        persistent: whether it is part of the checkpoint.
        as_loaded: whether it takes the dtype in which the weights are loaded.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    persistent: bool = False
    as_loaded: bool = False


@dataclass(frozen=True)
class Architecture:
    """A model with its task head, as built by transformers.

    Attributes:
        model_type: of the config; for a multimodal model that of the whole.
        config: the normalised config that the description read.
        modules: every module that owns parameters, in the order of the forward pass, a tied output embedding included.
        tied: full name of a parameter that is another one: `{"lm_head.weight": "model.embed_tokens.weight"}`.
        base_model_prefix: transformers' attribute of the headless model inside this one (`model`, `bert`, ...), or "".
        input_embeddings, output_embeddings: module paths; output is None for models without one.
        layer_groups: path prefix of each stack of layers with its length: `{"model.layers": 32}`.
        class_names: class of container modules where a rule depends on it (`{"classifier": "RobertaClassificationHead"}`).
        frozen: full names of parameters that the model itself builds with `requires_grad=False`.
        head_modules: top-level modules that the task head adds beyond the base model (`("score",)`), output embedding excluded.
        registered_children: where a container registers its modules in another order than it runs them, that order, by the
            end of the container's path (`"layers.*"` is each layer of a stack).
    """

    model_type: str
    task: str
    config: Mapping[str, object]
    modules: tuple[Module, ...]
    buffers: tuple[Buffer, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    base_model_prefix: str = ""
    input_embeddings: str = ""
    output_embeddings: str | None = None
    layer_groups: Mapping[str, int] = field(default_factory=dict)
    class_names: Mapping[str, str] = field(default_factory=dict)
    head_modules: tuple[str, ...] = ()
    frozen: frozenset[str] = frozenset()
    registered_children: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def by_path(self) -> dict[str, Module]:
        """Modules by their path."""
        return {module.path: module for module in self.modules}

    @cached_property
    def registered(self) -> tuple[Module, ...]:
        """The modules in the order of `model.named_modules()`, in which optimizers, PEFT and the loader take them."""
        children: dict[str, dict[str, None]] = {}
        for module in self.modules:
            for container, name in _steps(module.path):
                children.setdefault(container, {})[name] = None
        ranks = {
            container: {name: rank for rank, name in enumerate(self._in_order(container, list(names)))}
            for container, names in children.items()
        }

        def place(module: Module) -> tuple[int, ...]:
            return tuple(
                int(name) if name.isdigit() else ranks[container][name] for container, name in _steps(module.path)
            )

        return tuple(sorted(self.modules, key=place))

    def _in_order(self, container: str, names: list[str]) -> list[str]:
        """Names of children in order of registration: those that the table lists take their own places in its order."""
        parts = container.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        listed = next((self.registered_children[end] for end in ends if end in self.registered_children), ())
        ordered = iter([name for name in listed if name in names])
        return [next(ordered) if name in listed else name for name in names]

    @cached_property
    def containers(self) -> frozenset[str]:
        """Paths of modules that own no parameters themselves but hold modules that do."""
        found: set[str] = set()
        for module in self.modules:
            parent = module.path.rpartition(".")[0]
            while parent and parent not in found:
                found.add(parent)
                parent = parent.rpartition(".")[0]
        return frozenset(found)

    @cached_property
    def total_elements(self) -> int:
        """Parameters of the model, a tied weight counted once."""
        return sum(parameter.elements for _, _, parameter in self.named_parameters())

    def named_parameters(self) -> list[tuple[str, Module, Parameter]]:
        """Every parameter once as (full name, module, parameter), in the order of `model.named_parameters()`.

        A tied one stands under the name that owns it, where the first module that has it is.
        """
        known = {
            module.full_name(entry.name): (module, entry) for module in self.modules for entry in module.parameters
        }
        found: dict[str, tuple[str, Module, Parameter]] = {}
        for module in self.registered:
            for entry in module.parameters:
                name = module.full_name(entry.name)
                name = self.tied.get(name, name)
                if name in known:
                    found.setdefault(name, (name, *known[name]))
        return list(found.values())


def _steps(path: str) -> list[tuple[str, str]]:
    """(container, child) on the way to a module, indices of containers left out."""
    parts = path.split(".") if path else []
    general = ["*" if part.isdigit() else part for part in parts]
    return [(".".join(general[:depth]), part) for depth, part in enumerate(parts)]
