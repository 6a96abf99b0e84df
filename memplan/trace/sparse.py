"""Sparse COO matrices on fakes, for the methods whose trainable weights are the values of one (SHiRA, FRoD).

PyTorch has no fake kernels for sparse tensors. A `FakeSparse` keeps indices and values as dense fakes and does what
the sparse kernels do in terms of dense ops: adding to a dense matrix flattens the indices and adds in place
(aten/src/ATen/native/sparse/cuda/SparseCUDATensorMath.cu, add_out_dense_sparse_cuda), and the gradient of the values
is gathered from the dense gradient (FunctionsManual.cpp, sparse_constructor_values_backward). What the kernels hold
for a moment beyond that, a few integers an entry, is not counted.
"""

from __future__ import annotations

from typing import Any

import torch

METHODS = ("SHIRA", "FROD")


class FakeSparse:
    """A matrix [rows, columns] with `values` [nnz] at `indices` [2, nnz]."""

    def __init__(self, indices: torch.Tensor, values: torch.Tensor, size: Any) -> None:
        # The constructor stores int64 indices.
        self.indices = indices.to(torch.int64)
        self.values = values
        self.size = tuple(int(length) for length in size)

    def coalesce(self) -> FakeSparse:
        """The same: the methods make every entry once."""
        return self

    def _nnz(self) -> int:
        return int(self.values.shape[0])

    def to_dense(self) -> torch.Tensor:
        """The whole matrix."""
        dense = torch.zeros(self.size, dtype=self.values.dtype, device=self.values.device)
        return self.add_to(dense)

    def add_to(self, dense: torch.Tensor) -> torch.Tensor:
        """`dense += self`, in place."""
        flat = self.indices[0] * self.size[1] + self.indices[1]
        dense.view(-1).index_add_(0, flat, self.values.to(dense.dtype))
        return dense

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first, second = args[0], args[1] if len(args) > 1 else None
        if func in (torch.Tensor.add_, torch.Tensor.__iadd__) and isinstance(second, FakeSparse):
            return second.add_to(first)
        return NotImplemented


def install() -> None:
    """Makes `torch.sparse_coo_tensor` return a `FakeSparse`."""
    torch.sparse_coo_tensor = FakeSparse
