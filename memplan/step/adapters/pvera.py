"""PVeRA: VeRA whose inner product is a mean and a variance to sample from.

Symbols: r rank.

Source: peft/tuners/pvera/{layer,bnb}.py (PEFT 0.21.2).
"""

from __future__ import annotations

from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer
from memplan.step.split import split
from memplan.step.tensor import Tensor


def pvera(layer: AdaptedLayer, x: Tensor) -> Tensor:
    """`result + lambda_b * F.linear(sample(lambda_d * F.linear(dropout(x), A[:, :in])), B[:out])`."""
    t, previous = layer.t, x.dtype
    outputs, inputs = layer.weight.shape
    result = layer.base(x)
    if layer.is_4bit:
        result = ops.clone(t, result)
    lambda_d, lambda_b = layer["pvera_lambda_d"], layer["pvera_lambda_b"]
    dtype, converts = result.dtype, layer.is_quantized and t.settings.autocast is None
    rank = layer["pvera_B"].shape[1]
    sliced_a = t.view(layer["pvera_A"], (2 * rank, inputs))
    sliced_b = t.view(layer["pvera_B"], (outputs, rank))
    dropout = layer.option("dropout")
    if not layer.is_quantized:
        x = ops.to(t, x, lambda_d.dtype)
        mu, logvar = split(t, lambda_d * t.matmul(ops.dropout(t, x, dropout), sliced_a, None), (rank, rank))
        result = result + lambda_b * t.matmul(_sampled(layer, mu, logvar), sliced_b, None)
        result = ops.to(t, result, previous)
        del mu, logvar
        return result
    if converts:
        x = ops.to(t, x, lambda_d.dtype)
    temporary = ops.dropout(t, ops.to(t, x, lambda_d.dtype), dropout)
    mu, logvar = split(t, lambda_d * t.matmul(temporary, sliced_a, None), (rank, rank))
    output = lambda_b * t.matmul(_sampled(layer, mu, logvar), sliced_b, None)
    if converts:
        output = ops.to(t, output, dtype)
    result = result + output
    result = ops.to(t, result, x.dtype)
    del mu, logvar, temporary, output
    return result


def _sampled(layer: AdaptedLayer, mu: Tensor, logvar: Tensor) -> Tensor:
    """`_reparametrize`: mu + noise * exp(logvar / 2), in training or with `sample_at_inference`."""
    t = layer.t
    if not t.training and not layer.option("samples_always"):
        return mu
    deviation = ops.unary(t, "exp", ops.scale(t, logvar), save="output", backward_op="mul")
    noise = t.new(deviation.shape, deviation.dtype, "randn_like")
    result = mu + noise * deviation
    del deviation, noise
    return result
