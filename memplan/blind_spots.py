"""What neither the walk of a step nor a trace of it accounts for: with one of these no verdict is `fits`.

Known limits: the rows that records contradict say how far, not why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memplan.quantization import Scheme

# Source: peft/tuners/adalora/layer.py, RankAllocator (PEFT 0.21); torch.fft on CUDA plans with cuFFT, which allocates itself.
_METHODS = {
    "adalora": "the importance scores that AdaLoRA's update_and_allocate keeps: three numbers a parameter",
    "fourierft": "the workspace of cuFFT, whose size its planner chooses",
    "c3a": "the workspace of cuFFT, whose size its planner chooses",
    "shira": "what the kernels of sparse matrices hold besides values and places: a few integers an entry",
}
# Source: aten/src/ATen/native/cudnn/RNN.cpp; the record peft.json, ptuning/llama-3.2-3B-vt50-LSTM: 8 % more than its trace.
_LSTM = "what cuDNN's LSTM keeps for backward and works in"
# Source: fms/a100_80gb.csv#70 and #72 (SantaCoder): a quarter more than their traces in allocated memory.
# Source: peft/tuners/lora/{layer,eva,corda,loraga}.py (PEFT 0.21): what runs over data before the first step is the user's.
_INITS = {
    "eva": "the forward passes over data by which EVA finds its factors before the first step",
    "corda": "the forward passes over data and the covariances by which CorDA finds its factors before the first step",
    "lora_ga": "the backward passes over data and the gradients by which LoRA-GA finds its factors before the first step",
    "mica": "what MiCA's singular vectors borrow while the adapter is made",
    # aten/src/ATen/native/cuda/linalg/BatchLinearAlgebraLib.cpp, apply_geqrf: sized by `xgeqrf_bufferSize`, a size_t.
    "olora": "cuSOLVER's workspace for the QR decompositions of OLoRA, to which its interface sets no limit",
    "pissa_niter": "cuSOLVER's workspace for the QR decompositions of a randomised SVD, to which its interface sets no limit",
}
_QUANTIZED_TYPES = {
    "gpt_bigcode": "what gpt_bigcode takes on quantized weights beyond a trace of it: published runs took up to a third "
    "more, for a reason that is not known",
}


def blind_spots(method: str, model_type: str, scheme: Scheme | None, peft: Mapping[str, Any]) -> tuple[str, ...]:
    """In words for the user; empty where nothing is known to be missed.

    Args:
        method: its own name.
        model_type: as in the config.
        scheme: how the base model's weights are quantized, if they are.
        peft: the adapter's configuration.
    """
    found = []
    if method in _METHODS:
        found.append(_METHODS[method])
    if method == "p_tuning" and str(peft.get("encoder_reparameterization_type", "")).upper().endswith("LSTM"):
        found.append(_LSTM)
    init = str(peft.get("init_lora_weights")).lower()
    found += [words for name, words in _INITS.items() if init.startswith(name)]
    if scheme is not None and model_type in _QUANTIZED_TYPES:
        found.append(_QUANTIZED_TYPES[model_type])
    if scheme is Scheme.INT8:
        found.append("LLM.int8's outlier columns, which depend on the data")
    return tuple(found)
