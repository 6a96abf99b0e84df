"""What a quantized layer allocates beside its inputs, outputs and stored tensors, moment by moment.

Loading, forward and backward each give a tuple of `Moment`: the temporaries alive together, in the order in which the
library reaches them. The `*_bytes` functions are the largest of them. Sizes are elements; `Moment.block_bytes` rounds
each tensor to the allocator's blocks.

The dequantized weight is N x K in the dtype of the multiplication. For bitsandbytes 4-bit it is allocated in every
backward and, unless `gemm_4bit` takes its fused kernel, in every forward.
"""

from __future__ import annotations

from dataclasses import dataclass

from memplan.dtypes import DType
from memplan.errors import UnsupportedError
from memplan.quantization.bitsandbytes import CODE_BOOK_ELEMENTS_4BIT, absmax_blocks
from memplan.quantization.fp8 import is_tileable, scale_shape
from memplan.quantization.gemm_4bit import Gpu, uses_fused_kernel
from memplan.quantization.scheme import Quantization, Scheme, StoredTensor


@dataclass(frozen=True, slots=True)
class Moment:
    """Temporaries alive at the same time.

    Attributes:
        name: what the library is doing.
        tensors: alive then, beside the op's inputs and its stored weight.
        output_alive: whether the op's output is allocated by then.
    """

    name: str
    tensors: tuple[StoredTensor, ...]
    output_alive: bool = False

    @property
    def size_bytes(self) -> int:
        """Bytes of the elements."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def block_bytes(self) -> int:
        """Bytes of the allocator's blocks."""
        return sum(tensor.block_bytes for tensor in self.tensors)


def load_transients(
    quantization: Quantization, shape: tuple[int, ...], dtype: DType, *, conv1d: bool = False
) -> tuple[Moment, ...]:
    """Temporaries while transformers quantizes one weight of a checkpoint on the GPU.

    Quantizing on load is sequential, one parameter at a time (transformers/core_model_loading.py,
    convert_and_load_state_dict_in_model, 5.23: no thread pool with on-the-fly quantization), so the load needs what is
    stored so far plus the transients of a single weight. A pre-quantized checkpoint has none.

    Args:
        quantization: the scheme and its options.
        shape: of the weight, [out_features, in_features].
        dtype: load dtype, in which the weight first arrives on the GPU. A checkpoint in another dtype is cast on the
            CPU on its way.
        conv1d: the module is a GPT-2 `Conv1D`: the 4-bit path makes the transposed weight contiguous on the GPU.

    Sources, beside the one above: transformers/integrations/bitsandbytes.py, Bnb4bitQuantize and Bnb8bitQuantize;
    transformers/integrations/finegrained_fp8.py, Fp8Quantize (5.23); bitsandbytes/functional.py, quantize_4bit;
    bitsandbytes/nn/modules.py, Int8Params._quantize (0.50.2).
    """
    if quantization.pre_quantized:
        return ()
    weight = _temporary("weight", shape, dtype)
    if quantization.scheme.is_4bit_bitsandbytes:
        alive = [weight]
        if conv1d:
            alive.append(_temporary("transposed weight", shape, dtype))
        if quantization.double_quant:
            # `_absmax` and the argument `_absmax - offset` both live until the nested quantization returns.
            blocks = (absmax_blocks(quantization, shape),)
            alive += [_temporary("absmax", blocks, DType.FLOAT32), _temporary("centred absmax", blocks, DType.FLOAT32)]
        else:
            # get_4bit_type normalizes the code book: `data.div_(data.abs().max())`.
            alive += [
                _temporary("code.abs()", (CODE_BOOK_ELEMENTS_4BIT,), DType.FLOAT32),
                _temporary("code.abs().max()", (), DType.FLOAT32),
            ]
        return (Moment("quantize_4bit", tuple(alive), output_alive=True),)
    if quantization.scheme is Scheme.INT8:
        # The weight goes back to the CPU and returns in float16; the first copy is still held by the loader.
        return (Moment("int8_vectorwise_quant", (weight, _temporary("half", shape, DType.FLOAT16)), output_alive=True),)
    if not is_tileable(quantization, shape):
        return ()
    scales = scale_shape(quantization, shape)
    # `value.to(torch.float32)` is the value itself when that is its dtype.
    upcast = [] if dtype is DType.FLOAT32 else [_temporary("value_fp32", shape, DType.FLOAT32)]
    maxima = [_temporary(name, scales, DType.FLOAT32) for name in ("max_abs", "safe_max_abs", "scales")]
    scaled = [_temporary(name, shape, DType.FLOAT32) for name in ("scaled", "clamped")]
    return (Moment("quantize fp8", (weight, *upcast, *maxima, *scaled), output_alive=True),)


def forward_temporaries(
    quantization: Quantization,
    shape: tuple[int, int],
    rows: int,
    compute_dtype: DType,
    gpu: Gpu | None = None,
    *,
    autocast_dtype: DType | None = None,
) -> tuple[Moment, ...]:
    """Temporaries of one forward through a quantized linear layer.

    Args:
        quantization: the scheme and its options.
        shape: of the weight, [out_features, in_features].
        rows: of the input, batch x sequence.
        compute_dtype: of the input as the kernel sees it: `bnb_4bit_compute_dtype` for nf4 and fp4, the dtype of the
            layer's input for int8.
        gpu: decides between the fused and the dequantizing 4-bit kernel; None assumes the one that needs more.
        autocast_dtype: of an enclosing `torch.autocast`. Autocast still acts on the `F.linear` inside `gemm_4bit`, so
            with a float32 compute dtype (the default of `BitsAndBytesConfig`) the dequantized weight and the input are
            cast once more.

    Raises:
        UnsupportedError: fp8, gptq and awq, whose kernels are chosen or downloaded at run time.

    Sources: bitsandbytes/backends/cuda/ops.py, _dequant_linear_fallback, int8_vectorwise_quant, int8_mm_dequant;
    bitsandbytes/autograd/_functions.py, MatMul4Bit, MatMul8bitLt (0.50.2). For LLM.int8 the columns of the input that
    hold outliers (beyond `llm_int8_threshold`, 6.0) depend on the data. They are left out: c of them allocate
    subA [rows, c], subB [N, c] and a second output.
    """
    n, k = shape
    if quantization.scheme.is_4bit_bitsandbytes:
        if uses_fused_kernel(gpu, compute_dtype, rows, shape, quantization.blocksize):
            return ()
        alive = []
        if quantization.double_quant:
            # `absmax_dq` stays a local variable beside `absmax = absmax_dq + absmax_offset`.
            blocks = (absmax_blocks(quantization, shape),)
            alive += [_temporary("absmax_dq", blocks, DType.FLOAT32), _temporary("absmax", blocks, DType.FLOAT32)]
        alive.append(_temporary("dequantized weight", shape, compute_dtype))
        if autocast_dtype is not None and autocast_dtype is not compute_dtype:
            alive.append(_temporary("autocast weight", shape, autocast_dtype))
            alive.append(_temporary("autocast input", (rows, k), autocast_dtype))
        return (Moment("dequantize, F.linear", tuple(alive), output_alive=True),)
    if quantization.scheme is Scheme.INT8:
        statistics = (_temporary("CA", (rows, k), DType.INT8), _temporary("SCA", (rows,), DType.FLOAT32))
        half_input = () if compute_dtype is DType.FLOAT16 else (_temporary("half input", (rows, k), DType.FLOAT16),)
        magnitude = _temporary("A.abs()", (rows, k), DType.FLOAT16)
        outliers = _temporary("outliers", (rows, k), DType.BOOL)
        accumulator = _temporary("out_i32", (rows, n), DType.INT32)
        # int8_mm_dequant writes float16 and casts to the dtype of the input, which is the output when that is float16.
        half_output = () if compute_dtype is DType.FLOAT16 else (_temporary("half output", (rows, n), DType.FLOAT16),)
        return (
            Moment("int8_vectorwise_quant", (*half_input, *statistics, magnitude, outliers)),
            Moment("int8_mm_dequant", (*statistics, accumulator, *half_output), output_alive=True),
        )
    raise _unsupported(quantization, "forward")


def backward_temporaries(
    quantization: Quantization, shape: tuple[int, int], weight_dtype: DType, grad_dtype: DType
) -> tuple[Moment, ...]:
    """Temporaries of the input's gradient through a frozen quantized linear layer. Always dequantizes.

    Args:
        quantization: the scheme and its options.
        shape: of the weight, [out_features, in_features].
        weight_dtype: load dtype of the checkpoint, which `quant_state.dtype` remembers; unused for int8 and fp8.
        grad_dtype: of the incoming gradient, i.e. of the kernel's output: the compute dtype, or autocast's. For int8
            the dtype of the layer's input.

    Raises:
        UnsupportedError: gptq and awq.

    Sources: bitsandbytes/autograd/_functions.py, MatMul4Bit.backward, MatMul8bitLt.backward;
    bitsandbytes/functional.py, dequantize_4bit (0.50.2); transformers/integrations/finegrained_fp8.py,
    _dequantize_fp8_weight (5.23).
    """
    n, _ = shape
    if quantization.scheme.is_4bit_bitsandbytes:
        dequantized = _temporary("dequantized weight", shape, weight_dtype)
        absmax = _temporary("absmax", (absmax_blocks(quantization, shape),), DType.FLOAT32)
        moments = [Moment("dequantize_4bit", (dequantized, absmax) if quantization.double_quant else (dequantized,))]
        cast = dequantized
        if grad_dtype is not weight_dtype:
            cast = _temporary("cast weight", shape, grad_dtype)
            moments.append(Moment("cast to the gradient's dtype", (dequantized, cast)))
        return (*moments, Moment("matmul", (cast,), output_alive=True))
    if quantization.scheme is Scheme.INT8:
        weight = _temporary("CB", shape, grad_dtype)
        scale = _temporary("SCB / 127", (n, 1), DType.FLOAT32)
        return Moment("dequantize", (weight, scale)), Moment("matmul", (weight,), output_alive=True)
    if quantization.scheme is Scheme.FP8:
        weight = _temporary("dequantized weight", shape, grad_dtype)
        scale = _temporary("scale", scale_shape(quantization, shape), grad_dtype)
        alive = [weight, scale]
        if quantization.block_shape is not None:
            rows = scale.shape[0] * quantization.block_shape[0]
            alive.append(_temporary("scale over rows", (rows, scale.shape[1]), grad_dtype))
        return Moment("dequantize", tuple(alive)), Moment("matmul", (weight,), output_alive=True)
    raise _unsupported(quantization, "backward")


def saves_input(quantization: Quantization) -> bool:
    """Whether a frozen quantized layer keeps its input for backward although its weight needs no gradient.

    LLM.int8 does: `ctx.tensors = (CAt, subA, A)` whenever the input needs a gradient, with A in the input's dtype
    (MatMul8bitLt.forward). MatMul4Bit saves nothing of the activation, and neither does FP8LinearFunction.

    Raises:
        UnsupportedError: gptq and awq.
    """
    if quantization.scheme in (Scheme.GPTQ, Scheme.AWQ):
        raise _unsupported(quantization, "forward")
    return quantization.scheme is Scheme.INT8


def load_transient_bytes(
    quantization: Quantization, shape: tuple[int, ...], dtype: DType, *, conv1d: bool = False
) -> int:
    """Largest of `load_transients`, in bytes; 0 for a pre-quantized checkpoint."""
    return _largest(load_transients(quantization, shape, dtype, conv1d=conv1d))


def forward_temporary_bytes(
    quantization: Quantization,
    shape: tuple[int, int],
    rows: int,
    compute_dtype: DType,
    gpu: Gpu | None = None,
    *,
    autocast_dtype: DType | None = None,
) -> int:
    """Largest of `forward_temporaries`, in bytes; 0 for the fused kernel."""
    return _largest(forward_temporaries(quantization, shape, rows, compute_dtype, gpu, autocast_dtype=autocast_dtype))


def backward_temporary_bytes(
    quantization: Quantization, shape: tuple[int, int], weight_dtype: DType, grad_dtype: DType
) -> int:
    """Largest of `backward_temporaries`, in bytes."""
    return _largest(backward_temporaries(quantization, shape, weight_dtype, grad_dtype))


def _temporary(name: str, shape: tuple[int, ...], dtype: DType) -> StoredTensor:
    return StoredTensor(name, shape, dtype, "data")


def _largest(moments: tuple[Moment, ...]) -> int:
    return max((moment.size_bytes for moment in moments), default=0)


def _unsupported(quantization: Quantization, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"the temporaries of a {quantization.scheme} {what} depend on the kernel that is picked at run time",
        hint="nf4, fp4 and int8 are covered",
    )
