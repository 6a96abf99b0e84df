"""The fake trace against the same step really executed on the CPU, allocation by allocation.

Every allocation and every free of at least 4 KiB in the second step must agree, in size and in order. Attention runs
by the math path or eagerly and without dropout, and everything is float32, because CPU kernels differ from CUDA's
elsewhere: a bfloat16 gemm packs its operands, and dropout keeps a float mask.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from trace_cases import FAMILIES, LLAMA, T5, lora

from memplan.trace import TraceResult, TraceSpec, run_many

MIN_BYTES = 4096
COMMON = {"batch": 2, "sequence": 128, "dtype": "float32", "num_steps": 2, "attn_implementation": "eager"}

# (case, phase) -> (sizes that only the CPU has, cause).
CPU_ONLY: dict[tuple[str, str], tuple[list[int], str]] = {
    ("mixtral-full", "forward"): ([4096, 4096], "the CPU's sort copies its int64 keys, one sort a layer"),
    ("mixtral-lora", "forward"): ([4096, 4096], "the CPU's sort copies its int64 keys, one sort a layer"),
    ("llama-reentrant", "forward"): ([5056, 5056], "checkpointing keeps the CPU generator's state, one a layer"),
    ("llama-reentrant", "backward"): ([5056, 5056], "checkpointing saves and restores the CPU generator's state"),
    ("llama-non-reentrant", "forward"): ([5056, 5056], "checkpointing keeps the CPU generator's state, one a layer"),
    ("llama-non-reentrant", "backward"): ([5056, 5056], "checkpointing saves and restores the CPU generator's state"),
}


def _cases() -> dict[str, TraceSpec]:
    cases = {}
    for family, (config, task, targets) in FAMILIES.items():
        for method, peft in (("full", None), ("lora", lora(targets))):
            cases[f"{family}-{method}"] = TraceSpec(model_config=config, task=task, peft=peft, **COMMON)
    math = {**COMMON, "attn_implementation": "sdpa", "attention_backend": "math"}
    for padding in (False, True):
        name = "padded" if padding else "unpadded"
        cases[f"llama-math-{name}"] = TraceSpec(model_config=LLAMA, padding=padding, **math)
        cases[f"t5-math-{name}"] = TraceSpec(model_config=T5, task="seq2seq-lm", padding=padding, **math)
    for kind in ("reentrant", "non-reentrant"):
        cases[f"llama-{kind}"] = TraceSpec(model_config=LLAMA, checkpointing=kind, **COMMON)
    cases["llama-dora"] = TraceSpec(model_config=LLAMA, peft=lora("all-linear", use_dora=True), **COMMON)
    cases["llama-classification"] = TraceSpec(model_config=LLAMA, task="sequence-classification", **COMMON)
    return cases


CASES = _cases()


@pytest.fixture(scope="module")
def real() -> dict[str, dict[str, list[int]]]:
    request = "[" + ",".join(spec.to_json() for spec in CASES.values()) + "]"
    script = Path(__file__).with_name("cpu_witness.py")
    process = subprocess.run(
        [sys.executable, str(script)], input=request, capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2], env=_environment(),
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-2000:]
    return dict(zip(CASES, json.loads(process.stdout.strip().splitlines()[-1]), strict=True))


@pytest.fixture(scope="module")
def traced() -> dict[str, TraceResult]:
    results = run_many(list(CASES.values()))
    failed = {name: result for name, result in zip(CASES, results, strict=True) if not isinstance(result, TraceResult)}
    assert not failed
    return {name: result for name, result in zip(CASES, results, strict=True) if isinstance(result, TraceResult)}


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _visible(result: TraceResult, phase: str) -> list[int]:
    """Signed sizes of the second step, without what CUDA's own kernels and cuBLAS add."""
    cuda_only = {"cublas_workspace", "embedding_dense_backward (inside)", "_softmax_backward_data (inside)"}
    return [
        event.storage.size_bytes if event.alloc else -event.storage.size_bytes
        for event in result.walk()
        if event.step == 2
        and event.phase == phase
        and event.storage.size_bytes >= MIN_BYTES
        and (event.storage.op not in cuda_only or _strided_copy(event.storage.op, event.storage.size_bytes))
    ]


def _strided_copy(op: str, size_bytes: int) -> bool:
    # The copy of a strided gradient [1, heads, S, S] before T5's position bias is summed; the CPU kernel makes it too.
    return op == "embedding_dense_backward (inside)" and size_bytes == 4 * 128 * 128 * 4


def _additional(measured: list[int], recorded: list[int]) -> list[int]:
    """What `measured` holds beyond `recorded`, which must be a subsequence of it."""
    extra, position = [], 0
    for size in measured:
        if position < len(recorded) and recorded[position] == size:
            position += 1
        else:
            extra.append(size)
    assert position == len(recorded), f"recorded {recorded[position:][:3]} at {position} is missing in the real step"
    return extra


@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES)
def test_allocations_and_frees_equal_the_real_step(
    case: str, phase: str, real: dict[str, dict[str, list[int]]], traced: dict[str, TraceResult]
) -> None:
    measured = [size for size in real[case][phase] if abs(size) >= MIN_BYTES]
    expected, _cause = CPU_ONLY.get((case, phase), ([], ""))
    recorded = _visible(traced[case], phase)
    births = [size for size in recorded if size > 0]
    assert _additional([size for size in measured if size > 0], births) == expected
    if not expected:
        assert recorded == measured
    assert len(births) > 40


def test_no_value_was_guessed(traced: dict[str, TraceResult]) -> None:
    assert {name: result.guesses for name, result in traced.items() if result.guesses} == {}
