"""Two oracles: the peak of live tensor bytes while a function runs, and bitsandbytes' CUDA wrappers run on the CPU."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Peak bytes of the storages that ops inside the context created and that are still referenced."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        # `torch.tensor(...)` allocates outside the dispatcher and enters it as the argument of lift_fresh.
        is_new = func is torch.ops.aten.lift_fresh.default
        known = set() if is_new else {leaf.untyped_storage()._cdata for leaf in arguments} - self._alive.keys()
        result = func(*args, **(kwargs or {}))
        self._alive = {key: value for key, value in self._alive.items() if not value[0].expired()}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in known:
                storage = leaf.untyped_storage()
                self._alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._alive.values()))
        return result


@pytest.fixture
def peak_bytes() -> Callable[[Callable[[], Any]], tuple[int, Any]]:
    """Runs a function and gives the peak of what it allocates, its result included, and the result."""

    def run(function: Callable[[], Any]) -> tuple[int, Any]:
        with LiveBytes() as live:
            result = function()
        return live.peak_bytes, result

    return run


class _NoKernels:
    def __getattr__(self, name: str) -> Callable[..., int]:
        return _no_kernel


def _no_kernel(*_: Any) -> int:
    return 0


@pytest.fixture(scope="session")
def cuda_ops() -> dict[str, Any]:
    """Names of bitsandbytes/backends/cuda/ops.py, executed with kernels that do nothing.

    The wrappers allocate every tensor that the kernels write, so on the CPU they allocate what they do on a GPU.
    Registered ops are found under their full name ("bitsandbytes::int8_mm_dequant").
    """
    spec = importlib.util.find_spec("bitsandbytes")
    assert spec is not None
    assert spec.origin is not None
    source = ast.parse((Path(spec.origin).parent / "backends/cuda/ops.py").read_text(encoding="utf-8"))
    names: dict[str, Any] = {
        "lib": _NoKernels(),
        "get_ptr": _no_kernel,
        "_cuda_device_of": lambda _: contextlib.nullcontext(),
        "CUBLAS_Context": type(
            "Context", (), {"get_instance": classmethod(lambda cls: cls), "get_context": _no_kernel}
        ),
    }
    names["register_kernel"] = lambda op, _: lambda function: names.setdefault(op, function)

    def provided(node: ast.stmt) -> bool:
        if isinstance(node, ast.ImportFrom):
            return node.level > 0 or node.module == "bitsandbytes.functional"
        is_setup = isinstance(node, ast.FunctionDef) and node.name == "_setup_ctypes"
        return is_setup or (isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_get_raw_stream")

    names |= {"_setup_ctypes": _no_kernel, "_get_raw_stream": _no_kernel}
    source.body = [node for node in source.body if not provided(node)]
    for call in ast.walk(source):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "_setup_ctypes":
            call.keywords = []
    exec(compile(source, "bitsandbytes/backends/cuda/ops.py", "exec"), names)
    return names
