"""Modules that families are written with: linear, embedding, norms, rotary embedding, dropout.

Symbols: B micro batch, S sequence length, H hidden size, R adapter rank, I intermediate size.

Sources: the modeling files of transformers 5.23 (norms compute in float32), torch.nn 2.13.

Known limits:
    Adapters (`memplan.step.adapters`) stand on linear layers, Conv1D and embeddings.
"""

from __future__ import annotations

from memplan.architecture import Module, ModuleKind, Parameter
from memplan.dtypes import DType
from memplan.estimate import Component
from memplan.step import liger, ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.modules import ModuleTape
from memplan.step.quantized import quantized_linear
from memplan.step.site import Site
from memplan.step.tensor import Leaf, Node, Shape, Tape, Tensor

# Linear layers whose forward does not call `F.linear` (models/falcon/modeling_falcon.py).
WRITTEN_OUT = frozenset({"FalconLinear"})


class LayerOps(ModuleTape):
    """The modules with parameters."""

    # -- linear -----------------------------------------------------------------------------------------

    def linear(
        self, name: str, x: Tensor, out_features: int, *, bias: bool = False, class_name: str = "Linear"
    ) -> Tensor:
        """`nn.Linear`: x [..., in] to [..., out_features], with whatever quantization and adapter stands there."""
        path = self.join(name)
        in_features = x.shape[-1]
        if self.declaring:
            self.declare(_linear_module(path, ModuleKind.LINEAR, in_features, out_features, bias, class_name))
        written_out = class_name in WRITTEN_OUT
        return self._apply_linear(path, x, (out_features, in_features), bias, written_out=written_out)

    def output_embedding(
        self, name: str, x: Tensor, vocabulary: int, *, tied_to: str | None = None, bias: bool = False
    ) -> Tensor:
        """The linear that makes logits [..., V]; `tied_to` is the path of the embedding whose weight it shares."""
        path = self.join(name)
        if tied_to is not None:
            self.tie(f"{path}.weight", f"{tied_to}.weight")
        self.output_path = path
        with self.component(Component.LOGITS_AND_LOSS):
            return self.linear(name, x, vocabulary, bias=bias)

    def conv1d(self, name: str, x: Tensor, out_features: int) -> Tensor:
        """Transformers' `Conv1D` (GPT-2): a linear with bias whose weight is [in, out]."""
        path = self.join(name)
        in_features = x.shape[-1]
        if self.declaring:
            self.declare(_linear_module(path, ModuleKind.CONV1D, in_features, out_features, True, "Conv1D"))
        return self._apply_linear(path, x, (out_features, in_features), True)

    def _apply_linear(self, path: str, x: Tensor, shape: Shape, bias: bool, *, written_out: bool = False) -> Tensor:
        outer, self.module = self.module, path
        site = self.sites.get(path) if self.sites else None
        weight = self.parameter(path, "weight", shape)
        bias_tensor = self.parameter(path, "bias", (shape[0],)) if bias else None
        if site is None or (site.quantized is None and site.adapter is None):
            out = (self._written_out if written_out else self.matmul)(x, weight, bias_tensor)
        elif site.adapter is None:
            out = self._base_linear(site, x, weight, bias_tensor, written_out)
        else:
            layer = AdaptedLayer(
                self,
                path,
                site,
                weight,
                bias_tensor,
                lambda h: self._base_linear(site, h, weight, bias_tensor, written_out),
            )
            out = site.adapter.rewrite(layer, x)
        self.module = outer
        return out

    def _base_linear(
        self, site: Site, x: Tensor, weight: Tensor, bias: Tensor | None, written_out: bool = False
    ) -> Tensor:
        if site.quantized is None:
            return (self._written_out if written_out else self.matmul)(x, weight, bias)
        return quantized_linear(self, site.quantized, x, weight, bias)

    def matmul(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`F.linear` under the step's autocast: inputs are cast, trained float32 weights through autocast's cache."""
        autocast = self.settings.autocast
        if autocast is None:
            return ops.linear(self, x, weight, bias)
        # The arguments are cast from the last to the first, as the compiler evaluates them.
        bias = self.cast_weight(bias, autocast) if bias is not None else None
        weight = self.cast_weight(weight, autocast)
        return ops.linear(self, self.cast_weight(x, autocast), weight, bias)

    def _written_out(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`x @ weight.T + bias`: the transpose is no leaf, so autocast does not keep its copy."""
        out = self.matmul(x, self.view(weight, weight.shape), None)
        return out if bias is None else out + bias

    def cast_weight(self, weight: Tensor, dtype: DType) -> Tensor:
        """Autocast's copy of a tensor; kept until autocast ends if the tensor is a trained float32 leaf.

        Besides parameters such leaves are the input embedding's result under `input_require_grads`, and the input of a layer
        that reentrant checkpointing repeats. The copy is made with gradients on, whatever surrounds it, and its graph keeps
        the leaf.

        Source: aten/src/ATen/autocast_mode.cpp, `cached_cast`.
        """
        if weight.dtype is dtype:
            return weight
        if not isinstance(weight.node, Leaf) or weight.is_view or weight.dtype is not DType.FLOAT32:
            return ops.to(self, weight, dtype)
        key = f"{id(weight.node)}"
        if key not in self.casts:
            self.casts[key] = ops.to(self, weight, dtype), weight
        return self.casts[key][0]

    # -- embedding and norms ----------------------------------------------------------------------------

    def embedding(
        self,
        name: str,
        shape: Shape,
        num_embeddings: int,
        dim: int,
        *,
        class_name: str = "Embedding",
        indices: Tensor | None = None,
    ) -> Tensor:
        """`nn.Embedding` looked up with indices of `shape`: [*shape, dim].

        A trained one saves its `indices`; None for those of the batch and of buffers, which live anyway.
        """
        path = self.join(name)
        if self.declaring:
            self.declare(
                Module(
                    path,
                    ModuleKind.EMBEDDING,
                    (Parameter("weight", (num_embeddings, dim)),),
                    num_embeddings,
                    dim,
                    class_name,
                )
            )
        outer, self.module = self.module, path
        weight = self.parameter(path, "weight", (num_embeddings, dim))
        site = self.sites.get(path) if self.sites else None
        if site is None or site.adapter is None:
            out = lookup(self, weight, indices, shape)
        else:
            tokens = indices or Tensor(self, shape, DType.INT64, None)
            layer = AdaptedLayer(self, path, site, weight, None, lambda x: self._base_embedding(path, weight, x))
            out = site.adapter.rewrite(layer, tokens)
        self.module = outer
        return out

    def _base_embedding(self, path: str, weight: Tensor, tokens: Tensor) -> Tensor:
        out = lookup(self, weight, tokens, tokens.shape)
        # The hook was put on this module before an adapter was put around it.
        return self._made_leaf(out) if path == self.input_path else out

    def input_embedding(
        self,
        name: str,
        shape: Shape,
        num_embeddings: int,
        dim: int,
        *,
        class_name: str = "Embedding",
        is_result: bool = True,
    ) -> Tensor:
        """The model's input embedding (`get_input_embeddings`).

        Args:
            name: as for `embedding`, and so are `shape`, `num_embeddings`, `dim` and `class_name`.
            shape: see there.
            num_embeddings: see there.
            dim: see there.
            class_name: see there.
            is_result: whether this is what the module returns; False where its forward goes on (a scaled embedding), and
                `require_input_gradient` is called on what it does return.
        """
        self.input_path = self.join(name)
        if self.prompt is not None:
            shape = (self.batch, self.tokens)
        out = self.embedding(name, shape, num_embeddings, dim, class_name=class_name, indices=self.input_ids)
        return self.require_input_gradient(out) if is_result else out

    def require_input_gradient(self, out: Tensor) -> Tensor:
        """With `input_require_grads` the input embedding's result is made a leaf, whose gradient accumulates."""
        out = self._made_leaf(out)
        return self.prompt(out) if self.prompt is not None else out

    def _made_leaf(self, out: Tensor) -> Tensor:
        if self.settings.input_require_grads and out.node is None:
            leaf = Leaf(self.input_path, out.shape, out.dtype, Component.TEMPORARIES)
            out.node = leaf
            self.held.append((out.storage if self.grad_enabled else None, leaf))
        return out

    def rms_norm(self, name: str, x: Tensor, *, class_name: str = "RMSNorm", weight_in_float: bool = False) -> Tensor:
        """RMSNorm over the last dimension, computed in float32 (LlamaRMSNorm; Gemma multiplies `1 + weight` in float32).

        Args:
            name: module name.
            x: [..., H].
            class_name: torch class.
            weight_in_float: multiply by the weight before casting back (Gemma, OLMo-2).
        """
        path = self.join(name)
        size = x.shape[-1]
        if self.declaring:
            self.declare(Module(path, ModuleKind.NORM, (Parameter("weight", (size,)),), class_name=class_name))
        outer, self.module = self.module, path
        weight = self.parameter(path, "weight", (size,))
        if self.settings.liger_kernels:
            out = liger.rms_norm(self, x, weight, self.settings.multiprocessors)
        else:
            out = _rms_norm(self, x, weight, weight_in_float)
        self.module = outer
        return out

    def layer_norm(self, name: str, x: Tensor, *, bias: bool = True, class_name: str = "LayerNorm") -> Tensor:
        """`nn.LayerNorm` over the last dimension: saves its input, mean and reciprocal deviation."""
        path = self.join(name)
        size = x.shape[-1]
        if self.declaring:
            names = ("weight", "bias") if bias else ("weight",)
            self.declare(
                Module(path, ModuleKind.NORM, tuple(Parameter(n, (size,)) for n in names), class_name=class_name)
            )
        outer, self.module = self.module, path
        weight = self.parameter(path, "weight", (size,))
        bias_tensor = self.parameter(path, "bias", (size,)) if bias else None
        out = _native_layer_norm(self, x, weight, bias_tensor)
        self.module = outer
        return out

    def activation(self, function: str, x: Tensor) -> Tensor:
        """An activation by its `hidden_act` name; each saves its input except relu and tanh, which save their output."""
        if function in ("relu", "tanh", "sigmoid"):
            return ops.unary(self, function, x, save="output")
        if function in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh_python"):
            return _gelu_new(self, x)
        return ops.unary(self, function, x, save="input")

    def dropout(self, x: Tensor, probability: float) -> Tensor:
        """`F.dropout` of a model in training."""
        return ops.dropout(self, x, probability)


def lookup(t: Tape, weight: Tensor, indices: Tensor | None, shape: Shape | None = None) -> Tensor:
    """`F.embedding` of a weight [V, H] with indices of `shape`: a trained one saves the indices."""
    shape = indices.shape if shape is None and indices is not None else shape
    assert shape is not None
    node = t.record("embedding", (weight,), (indices,), _embedding_backward, (weight.shape, weight.dtype))
    return t.new((*shape, weight.shape[-1]), weight.dtype, "embedding", node)


def _linear_module(
    path: str, kind: ModuleKind, in_features: int, out_features: int, bias: bool, class_name: str
) -> Module:
    weight = (out_features, in_features) if kind is ModuleKind.LINEAR else (in_features, out_features)
    parameters = [Parameter("weight", weight)]
    if bias:
        parameters.append(Parameter("bias", (out_features,)))
    return Module(path, kind, tuple(parameters), int(in_features), int(out_features), class_name)


def _embedding_backward(tape: Tape, node: Node, grad: Tensor) -> tuple[Tensor]:
    shape, dtype = node.meta
    assert isinstance(shape, tuple)
    assert isinstance(dtype, DType)
    return (tape.new(shape, dtype, "embedding_dense_backward"),)


def _rms_norm(t: LayerOps, x: Tensor, weight: Tensor, weight_in_float: bool) -> Tensor:
    input_dtype = x.dtype
    hidden = ops.to(t, x, DType.FLOAT32)
    variance = ops.mean_last(t, ops.pow2(t, hidden))
    hidden = hidden * ops.rsqrt(t, ops.add_scalar(t, variance))
    if weight_in_float:
        return ops.to(t, weight * hidden, input_dtype)  # promoted inside the kernel
    return weight * ops.to(t, hidden, input_dtype)


def _native_layer_norm(t: LayerOps, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if t.settings.autocast is not None:  # layer_norm is on autocast's float32 list (autocast_mode.h)
        x, weight = ops.to(t, x, DType.FLOAT32), ops.to(t, weight, DType.FLOAT32)
        bias = ops.to(t, bias, DType.FLOAT32) if bias is not None else None
    rows = (*x.shape[:-1], 1)
    inputs = (x, weight, bias)
    kept_bias, kept, kept_weight = (t.packed(entry, inputs) for entry in (bias, x, weight))
    out = t.alloc(x.shape, x.dtype, "native_layer_norm")
    mean = t.alloc(rows, DType.FLOAT32, "native_layer_norm")
    rstd = t.alloc(rows, DType.FLOAT32, "native_layer_norm")
    node = t.record(
        "native_layer_norm",
        inputs,
        (kept, mean, rstd, kept_weight, kept_bias),
        _layer_norm_backward,
        (x.shape, x.dtype),
    )
    return Tensor(t, x.shape, x.dtype, out, node)


def _layer_norm_backward(tape: Tape, node: Node, grad: Tensor) -> tuple[Tensor | None, ...]:
    shape, dtype = node.meta
    assert isinstance(shape, tuple)
    assert isinstance(dtype, DType)
    kept = node.all_stored()
    grads = [
        tape.new(shape if position == 0 else shape[-1:], dtype, "native_layer_norm_backward")
        if edge is not None
        else None
        for position, edge in enumerate(node.edges)
    ]
    del kept
    return tuple(grads)


def _gelu_new(t: LayerOps, x: Tensor) -> Tensor:
    """Transformers' `NewGELUActivation`: 0.5 * x * (1 + tanh(c * (x + 0.044715 * x**3))), op by op."""
    half = ops.scale(t, x)
    return half * ops.add_scalar(t, ops.unary(t, "tanh", ops.scale(t, x + ops.scale(t, _cube(t, x))), save="output"))


def _cube(t: LayerOps, x: Tensor) -> Tensor:
    # Autocast runs pow in float32.
    return ops.power(t, ops.to(t, x, DType.FLOAT32) if t.settings.autocast is not None else x)
