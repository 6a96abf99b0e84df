"""Floating-point operations of a training step: what a change costs in compute.

Symbols: B micro batch, S sequence length, T key length, N = B·S tokens, P elements of a weight, A attention heads, D head
size, R adapter rank, E experts of which C are chosen a token.

    a linear layer, forward                  2·P·N
    gradient of its input                    2·P·N   where something before it is trained
    gradient of its weight                   2·P·N   where it is trained
    LoRA                                     the same for A and B, P = R·(in + out)
    attention, forward                       2·B·A·S·T·(D of keys + D of values)
    attention, backward                      2 times that; 5/2 in fused kernels, which compute the scores again
    checkpointing                            the layers' forward once more
    4-bit weights                            1·P each time they are dequantized

Sources: Kaplan et al., arXiv 2001.08361, section 2.1 (2·P forward, 4·P backward a token); torch 2.13
torch/utils/flop_counter.py (`mm_flop`, `sdpa_flop_count`, `sdpa_backward_flop_count`), by whose counting a causal mask saves
nothing; torch/utils/checkpoint.py (a non-reentrant recomputation stops at the last tensor to be saved).

Known limits:
    One stack of layers. Operations, not seconds: 32-bit and 16-bit products count alike. Elementwise work, norms and the
    optimizer's update are left out. Modules that read one input are recognised by their parent and width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from memplan.architecture import Architecture, Module, ModuleKind
from memplan.methods import AddedKind
from memplan.prepare import Prepared
from memplan.recipe import Attention
from memplan.resolve import Resolved

FUSED_BACKWARD = Fraction(5, 2)
EAGER_BACKWARD = Fraction(2)
# Config keys of the dropout behind a layer's last product: where it is active, its mask is the last tensor to be saved.
_RESIDUAL_DROPOUT = ("resid_pdrop", "residual_dropout", "hidden_dropout", "hidden_dropout_prob", "resid_dropout")


@dataclass(frozen=True, slots=True)
class FlopCount:
    """Of one micro-batch."""

    forward: int
    backward: int
    recompute: int
    dequantize: int

    @property
    def total(self) -> int:
        """All together."""
        return self.forward + self.backward + self.recompute + self.dequantize


@dataclass(frozen=True, slots=True)
class FlopModel:
    """The step's operations as a function of batch and sequence.

    Attributes:
        forward, backward, recompute: matrix products with weights, a token.
        pairs_forward, pairs_backward, pairs_recompute: attention, for each pair of a query and a key position.
        quantized_elements: elements that are dequantized in one forward pass.
        quantized_recomputed: those that checkpointing dequantizes once more.
        virtual_tokens, prefix: positions before every sequence, and before every layer's keys.
    """

    forward: int
    backward: int
    recompute: int
    pairs_forward: int
    pairs_backward: Fraction
    pairs_recompute: int
    quantized_elements: int
    quantized_recomputed: int
    virtual_tokens: int
    prefix: int

    def count(self, batch: int, sequence: int) -> FlopCount:
        """Of one micro-batch of `batch` sequences of `sequence` tokens."""
        length = sequence + self.virtual_tokens
        tokens, pairs = batch * length, batch * length * (length + self.prefix)
        return FlopCount(
            forward=self.forward * tokens + self.pairs_forward * pairs,
            backward=self.backward * tokens + int(self.pairs_backward * pairs),
            recompute=self.recompute * tokens + self.pairs_recompute * pairs,
            dequantize=2 * self.quantized_elements + self.quantized_recomputed,
        )


def flop_model(resolved: Resolved, prepared: Prepared) -> FlopModel | None:
    """The operations of a recipe's step; None where a part of it has no rule here."""
    fused = resolved.values["attn_implementation"] != Attention.EAGER
    mode = resolved.values["activation_checkpointing"]
    return _flop_model(prepared, fused, "" if not mode else "reentrant" if mode == "reentrant" else "non-reentrant")


@lru_cache(maxsize=512)
def _flop_model(prepared: Prepared, fused: bool, checkpointing: str) -> FlopModel | None:
    architecture = prepared.architecture
    if len(architecture.layer_groups) != 1 or not _is_covered(prepared):
        return None
    config: dict[str, Any] = dict(architecture.config)
    attention = _attention_sizes(config)
    if attention is None:
        return None
    ((layers, depth),) = architecture.layer_groups.items()
    trained, quantized = _parameter_facts(prepared)
    lora = prepared.adaptation.lora
    embeddings = f"{architecture.input_embeddings}.weight"
    flows = bool(checkpointing) or prepared.adaptation.virtual_tokens > 0
    flows = flows or architecture.tied.get(embeddings, embeddings) in trained

    forward = backward = recompute = quantized_elements = quantized_layers = 0
    outputs = _attention_outputs(architecture)
    attended = 0  # layers whose attention has a backward pass
    ends = _last_products(architecture, layers, config) if checkpointing == "non-reentrant" else frozenset()
    for group in _sharing_input(architecture):
        starts = False
        for module in group:
            in_layers = module.path.startswith(layers + ".")
            if in_layers and module.path in outputs:
                attended += flows
            for name, elements in _products(module, config):
                full = architecture.tied.get(name, name)
                site = lora.get(module.path) if name.endswith(".weight") else None
                adapter = site.rank * (module.in_features + module.out_features) if site else 0
                forward += 2 * (elements + adapter)
                if in_layers and checkpointing:
                    repeated = 2 * (elements + adapter)
                    if module.path in ends:
                        repeated -= 2 * (site.rank * module.out_features if site else elements)
                    recompute += repeated
                if full in trained:
                    backward += 2 * elements
                    starts = True
                if site:
                    # Weights of A and B, the gradient between them, and that of A's input where it is wanted.
                    backward += 2 * (adapter + site.rank * module.out_features)
                    backward += 2 * site.rank * module.in_features * flows
                    starts = True
                backward += 2 * elements * flows
                if full in quantized:
                    quantized_elements += elements
                    quantized_layers += elements * in_layers
            starts = starts or bool(_full_names(module, architecture) & trained)
        flows = flows or starts
    per_pair = 2 * attention[0] * (attention[1] + attention[2])
    return FlopModel(
        forward=forward,
        backward=backward,
        recompute=recompute,
        pairs_forward=per_pair * depth,
        pairs_backward=(FUSED_BACKWARD if fused else EAGER_BACKWARD) * per_pair * attended,
        pairs_recompute=per_pair * depth if checkpointing else 0,
        quantized_elements=quantized_elements,
        quantized_recomputed=quantized_layers if checkpointing else 0,
        virtual_tokens=prepared.adaptation.virtual_tokens,
        prefix=prepared.adaptation.prefix_key_values,
    )


def _is_covered(prepared: Prepared) -> bool:
    """Whether the method multiplies no matrices beyond the base's and plain LoRA's."""
    adaptation = prepared.adaptation
    products = (
        entry
        for entry in adaptation.added
        if entry.kind is AddedKind.ADAPTER and len(entry.shape) > 1 and entry.module not in adaptation.lora
    )
    rewritten = adaptation.adapters.keys() - adaptation.lora.keys()
    return not adaptation.unwalked and not rewritten and not any(products)


def _attention_sizes(config: dict[str, Any]) -> tuple[int, int, int] | None:
    """Heads, and the head sizes of keys and of values."""
    heads = config.get("num_attention_heads")
    if not heads:
        return None
    if config.get("qk_nope_head_dim"):
        return heads, config["qk_nope_head_dim"] + config["qk_rope_head_dim"], config["v_head_dim"]
    size = config.get("head_dim") or (config["hidden_size"] // heads if config.get("hidden_size") else 0)
    return (heads, size, size) if size else None


def _parameter_facts(prepared: Prepared) -> tuple[frozenset[str], frozenset[str]]:
    """Full names of base parameters that are trained, and of those that are stored in 4 bits."""
    quantized = {entry.name for entry in prepared.state.stored if entry.quantized}
    return frozenset(prepared.adaptation.trainable_base), frozenset(quantized)


def _products(module: Module, config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Weights that tokens are multiplied with: full name, and elements that one token meets."""
    if module.kind in (ModuleKind.LINEAR, ModuleKind.CONV1D):
        yield f"{module.path}.weight", module.in_features * module.out_features
    elif module.kind is ModuleKind.BARE:
        chosen = config.get("num_experts_per_tok") or config.get("num_experts_per_token")
        for parameter in module.parameters:
            name = f"{module.path}.{parameter.name}"
            if len(parameter.shape) == 3 and chosen:
                yield name, parameter.elements // parameter.shape[0] * chosen
            elif len(parameter.shape) == 2 and parameter.name == "weight" and module.name in ("gate", "router"):
                yield name, parameter.elements


def _sharing_input(architecture: Architecture) -> Iterator[list[Module]]:
    """Modules in forward order, those that read one input together: neighbours of one parent and width, not its last."""
    modules = architecture.modules
    group: list[Module] = []
    for index, module in enumerate(modules):
        following = modules[index + 1] if index + 1 < len(modules) else None
        is_last = following is None or _parent(following) != _parent(module)
        joins = group and not is_last and _parent(group[0]) == _parent(module)
        if joins and module.in_features and group[0].in_features == module.in_features:
            group.append(module)
            continue
        if group:
            yield group
        group = [module]
    if group:
        yield group


def _attention_outputs(architecture: Architecture) -> frozenset[str]:
    """The projection behind each attention: the last linear module of a parent with `att` in its name."""
    last: dict[str, str] = {}
    for module in architecture.modules:
        if module.kind in (ModuleKind.LINEAR, ModuleKind.CONV1D):
            last[_parent(module)] = module.path
    return frozenset(path for parent, path in last.items() if "att" in parent.rpartition(".")[2].casefold())


def _last_products(architecture: Architecture, layers: str, config: dict[str, Any]) -> frozenset[str]:
    """Linear modules that end a layer, with nothing behind them that saves a tensor."""
    if any(config.get(key) for key in _RESIDUAL_DROPOUT):
        return frozenset()
    last: dict[str, Module] = {}
    for module in architecture.modules:
        if module.path.startswith(layers + "."):
            last[module.path[len(layers) + 1 :].partition(".")[0]] = module
    return frozenset(module.path for module in last.values() if module.kind in (ModuleKind.LINEAR, ModuleKind.CONV1D))


def _full_names(module: Module, architecture: Architecture) -> set[str]:
    names = {f"{module.path}.{parameter.name}" for parameter in module.parameters}
    return {architecture.tied.get(name, name) for name in names}


def _parent(module: Module) -> str:
    return module.path.rpartition(".")[0]
