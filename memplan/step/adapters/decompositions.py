"""LoRA initialised by decomposing the base weight: PiSSA, OLoRA and LoftQ.

Symbols: R adapter rank, N_out and N_in of a layer, K the smaller of them.

Sources: peft/tuners/lora/layer.py (`pissa_init`, `olora_init`, `loftq_init`), peft/utils/loftq_utils.py (PEFT 0.21.2);
torch/_lowrank.py, `svd_lowrank` (2.13); what `torch.linalg.svd` and `qr` allocate inside themselves:
memplan/catalog/kernel_temporaries.toml, rows linalg_svd and linalg_qr.

Known limits:
    cuSOLVER's workspaces (`gesvdj_bufferSize`, `geqrf_bufferSize`, `orgqr_bufferSize`) are in no source and not counted.
    Weights that are not quantized, of linear layers; OLoRA and LoftQ not of Conv1D, whose factors PEFT swaps.
"""

from __future__ import annotations

from memplan.dtypes import DType
from memplan.quantization import Quantization, Scheme
from memplan.step import ops
from memplan.step.adapters.layer import AdaptedLayer, int8_dequantized
from memplan.step.adapters.requantizing import play_arrival
from memplan.step.layers import LayerOps
from memplan.step.tensor import Storage, Tensor
from memplan.step.weight_ops import mm, transposed

# cusolverDn<t>gesvdjBatched: the largest rows and columns.
BATCHED_MAX_SIZE = 32


def svd(t: LayerOps, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`torch.linalg.svd(a, full_matrices=False)` on CUDA by its default driver: U, S, Vh."""
    rows, columns = a.shape
    smaller = min(rows, columns)
    u = t.new((rows, smaller), a.dtype, "_linalg_svd")
    s = t.new((smaller,), a.dtype, "_linalg_svd")
    vh = t.new((smaller, columns), a.dtype, "_linalg_svd")
    held = [t.alloc((), DType.INT32, "_linalg_svd (inside)"), t.alloc(a.shape, a.dtype, "_linalg_svd (inside)")]
    if max(rows, columns) <= BATCHED_MAX_SIZE and rows != columns:
        held.append(t.alloc((max(rows, columns),) * 2, a.dtype, "_linalg_svd (inside)"))
    while held:
        del held[0]
    return u, s, vh


def qr(t: LayerOps, a: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.qr(a)` on CUDA: Q, R."""
    rows, columns = a.shape
    smaller = min(rows, columns)
    q = t.new((rows, smaller), a.dtype, "linalg_qr")
    r = t.new((smaller, columns), a.dtype, "linalg_qr")
    held = [t.alloc((smaller,), a.dtype, "linalg_qr (inside)"), t.alloc((), DType.INT32, "linalg_qr (inside)")]
    while held:
        del held[0]
    return q, r


def svd_lowrank(t: LayerOps, a: Tensor, rank: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """`torch.svd_lowrank(a, rank, niter=iterations)`: U, S, V."""
    rows, columns = a.shape
    if rows < columns:
        a = transposed(t, a)
    basis = _approximate_basis(t, a, rank, iterations)
    projected = mm(t, transposed(t, basis), a)
    u, s, vh = svd(t, projected)
    v = transposed(t, vh)
    u = mm(t, basis, u)
    if rows < columns:
        u, v = v, u
    return u, s, v


def _approximate_basis(t: LayerOps, a: Tensor, rank: int, iterations: int) -> Tensor:
    random = t.new((a.shape[1], rank), a.dtype, "randn")
    x = mm(t, a, random)
    q = qr(t, x)[0]
    for _ in range(iterations):
        x = mm(t, transposed(t, a), q)
        q = qr(t, x)[0]
        x = mm(t, a, q)
        q = qr(t, x)[0]
    del random
    return q


def _diagonal(t: LayerOps, s: Tensor, size: int) -> Tensor:
    """`torch.diag(s)` of its first `size` elements."""
    return t.new((size, size), s.dtype, "diag_embed")


def _root(t: LayerOps, s: Tensor, size: int) -> Tensor:
    """`torch.diag(torch.sqrt(s))`."""
    return _diagonal(t, t.new((size,), s.dtype, "sqrt"), size)


def pissa_creation(layer: AdaptedLayer) -> dict[str, Tensor]:
    """`pissa_init`: the weight's principal part becomes the factors, the rest the weight."""
    t, dtype, rank, iterations = layer.t, layer.weight.dtype, _rank(layer), layer.option("svd_iterations")
    weight = ops.to(t, layer.weight, DType.FLOAT32)
    if iterations is None:
        v, s, uh = svd(t, weight)
    else:
        v, s, uh = svd_lowrank(t, weight, rank, iterations)
    a = mm(t, _root(t, s, rank), t.view(uh, (rank, weight.shape[1])))
    b = mm(t, t.view(v, (weight.shape[0], rank)), _root(t, s, rank))
    weight = ops.sub(t, weight, mm(t, ops.scale(t, b), a))
    weight = ops.to(t, weight, dtype)
    layer.replace_weight(weight)
    factors = [a, b]
    del a, b, v, s, uh
    return _moved(layer, factors)


def olora_creation(layer: AdaptedLayer) -> dict[str, Tensor]:
    """`olora_init`: the first columns of Q and rows of R; a float32 weight is changed in place."""
    t, dtype, rank = layer.t, layer.weight.dtype, _rank(layer)
    weight = ops.to(t, layer.weight, DType.FLOAT32)
    q, r = qr(t, weight)
    a = t.new((rank, weight.shape[1]), r.dtype, "clone")
    b = t.new((weight.shape[0], rank), q.dtype, "clone")
    scaled = ops.scale(t, b)
    product = mm(t, scaled, a)
    del product, scaled
    if dtype is not DType.FLOAT32:
        weight = ops.to(t, weight, dtype)
        layer.replace_weight(weight)
    factors = [a, b]
    del a, b, q, r
    return _moved(layer, factors)


def loftq_creation(layer: AdaptedLayer) -> dict[str, Tensor]:
    """`loftq_init`: what quantization loses becomes the factors, what it leaves the weight."""
    bits, iterations = layer.option("loftq")
    left, *factors = _loftq(layer, bits, iterations)
    layer.replace_weight(left)
    return _moved(layer, factors)


def _loftq(layer: AdaptedLayer, bits: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    t, dtype, rank = layer.t, layer.weight.dtype, _rank(layer)
    weight = ops.to(t, layer.weight, DType.FLOAT32)
    res = ops.clone(t, weight)
    for iteration in range(iterations):
        layer.empty_cache()
        quantized = _quantized(layer, bits)
        dequantized = _dequantized(t, res.shape, bits)
        res = ops.sub(t, weight, dequantized)
        output = _low_rank_decomposition(t, res, rank)
        b, a = output["L"], output["R"]
        if iteration + 1 == iterations:
            break
        res = ops.sub(t, weight, mm(t, b, a))
    left = ops.to(t, dequantized, dtype)
    del weight, res, quantized, dequantized, output
    return left, a, b


def _low_rank_decomposition(t: LayerOps, weight: Tensor, rank: int) -> dict[str, Tensor]:
    """`_low_rank_decomposition`: L and R, and U, S and Vh, which the caller holds as well."""
    u, s, vh = svd(t, weight)
    size = s.shape[0]
    left = mm(t, u, _root_of_part(t, s, (size, rank)))
    right = mm(t, _root_of_part(t, s, (rank, size)), vh)
    return {"L": left, "R": right, "U": u, "S": s, "Vh": vh}


def _root_of_part(t: LayerOps, s: Tensor, shape: tuple[int, int]) -> Tensor:
    """`torch.sqrt(torch.diag(s)[...])`: the whole diagonal matrix is made first."""
    diagonal = _diagonal(t, s, s.shape[0])
    root = t.new(shape, s.dtype, "sqrt")
    del diagonal
    return root


def _quantized(layer: AdaptedLayer, bits: int) -> list[Storage]:
    """The residual, which comes back from host memory, as bitsandbytes holds it quantized."""
    if bits == 4:
        return play_arrival(layer.t, Quantization(Scheme.NF4), layer.weight.shape, DType.FLOAT32)
    return play_arrival(layer.t, Quantization(Scheme.INT8), layer.weight.shape, DType.FLOAT32)


def _dequantized(t: LayerOps, shape: tuple[int, ...], bits: int) -> Tensor:
    if bits == 4:
        return t.new(shape, DType.FLOAT32, "dequantize_4bit")
    return int8_dequantized(t, shape)


def _rank(layer: AdaptedLayer) -> int:
    return layer["lora_A"].shape[0]


def _moved(layer: AdaptedLayer, factors: list[Tensor]) -> dict[str, Tensor]:
    """`_move_adapter_to_device_of_base_layer`: A and B are cast to the weight's dtype, one after the other."""
    for place in range(len(factors)):
        factors[place] = ops.to(layer.t, factors[place], layer["lora_A"].dtype)
    return dict(zip(("lora_A", "lora_B"), factors, strict=True))
