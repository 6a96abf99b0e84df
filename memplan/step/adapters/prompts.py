"""Virtual tokens before the sequence: prompt tuning, P-tuning.

Symbols: B micro batch, S sequence length without them, N virtual tokens, H hidden size.

Source: peft/peft_model.py, PeftModelForCausalLM.forward and PeftModel.get_prompt; peft/tuners/{prompt_tuning,p_tuning}/model.py
(PEFT 0.21.2).

Known limits:
    Decoders only; P-tuning with its MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step import ops
from memplan.step.builder import Builder
from memplan.step.layers import lookup
from memplan.step.site import PromptSite
from memplan.step.split import concatenate
from memplan.step.tensor import Leaf, Node, Shape, Tape, Tensor


def prompted(t: Builder, site: PromptSite, forward: Callable[[Builder], Tensor]) -> Tensor:
    """The base model's forward on embeddings with the prompt in front; PEFT's variables live until it returns."""
    held: list[object] = []
    whole = (t.batch, t.tokens + site.tokens)
    if t.settings.padding:
        held.append(t.alloc((t.batch, site.tokens), DType.FLOAT32, "_to_copy"))
        held.append(t.alloc(whole, DType.FLOAT32, "cat"))

    def put_in_front(embedded: Tensor) -> Tensor:
        held.append(t.alloc((t.batch, site.tokens), DType.INT64, "_to_copy", Component.BUFFERS))
        held.append(t.alloc(whole, DType.INT64, "cat", Component.BUFFERS))
        prompts = ops.to(t, _repeated(t, site.encode(t, site)), embedded.dtype)
        result = concatenate(t, (prompts, embedded), (*whole, embedded.shape[-1]))
        held.extend((prompts, result))
        return result

    t.prompt = put_in_front
    try:
        return forward(t)
    finally:
        t.prompt = None


def prompt_tuning(t: Builder, site: PromptSite) -> Tensor:
    """The rows of an embedding, [1, N, H]."""
    indices = t.new((t.batch, site.tokens), DType.INT64, "_to_copy")
    return lookup(t, parameter(t, site, "embedding.weight"), indices, (1, site.tokens))


def p_tuning(t: Builder, site: PromptSite) -> Tensor:
    """The rows of an embedding through three linear layers."""
    return through_layers(t, site, prompt_tuning(t, site), "mlp_head", (0, 2, 4), "relu")


def through_layers(
    t: Builder, site: PromptSite, x: Tensor, name: str, indices: tuple[int, ...], activation: str
) -> Tensor:
    """Linear layers `{name}.{index}` with an activation between each two."""
    backward = {"relu": "threshold_backward"}.get(activation)
    for index in indices:
        weight, bias = (parameter(t, site, f"{name}.{index}.{leaf}") for leaf in ("weight", "bias"))
        x = t.matmul(x, weight, bias)
        if index < indices[-1]:
            x = ops.unary(t, activation, x, save="output", backward_op=backward)
    return x


def _repeated(t: Builder, x: Tensor) -> Tensor:
    """`prompts.repeat(batch_size, 1, 1)`: [B, N, H]; backward sums over the batch."""
    node = t.record("repeat", (x,), (), _repeat_backward, (x.shape, x.dtype))
    return t.new((t.batch, *x.shape[1:]), x.dtype, "repeat", node)


def _repeat_backward(tape: Tape, node: Node, grad: Tensor) -> Iterable[Tensor | None]:
    shape, dtype = cast(tuple[Shape, DType], node.meta)
    return (tape.new(shape, dtype, "sum"),)


def parameter(t: Builder, site: PromptSite, name: str) -> Tensor:
    """A parameter of the prompt encoder."""
    entry = next(entry for entry in site.tensors if entry.name == name)
    known = t.parameters.get(f"prompt_encoder.{name}")
    if known is None:
        leaf = Leaf(name, entry.shape, entry.dtype, accumulates=t.settings.accumulating) if entry.trainable else None
        known = t.parameters[f"prompt_encoder.{name}"] = Tensor(t, entry.shape, entry.dtype, None, leaf)
    return known
